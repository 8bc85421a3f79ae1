/// Pieces of the lists of a call that go through the model together.
struct SessionPass: Equatable {
    struct Piece: Equatable {
        let list: Int
        /// Tokens of the list.
        let range: Range<Int>
    }

    var pieces: [Piece] = []
    /// Whether the pieces are lists of one token.
    let isDecoding: Bool
    private var tokens = 0

    init(isDecoding: Bool) { self.isDecoding = isDecoding }

    private mutating func add(_ list: Int, _ range: Range<Int>) {
        pieces.append(Piece(list: list, range: range))
        tokens += range.count
    }

    /// Cuts lists into passes of at most `rows` tokens.
    ///
    /// Longer lists are cut at multiples of `rows`, so that where a list is cut does not depend on the others. What is left of
    /// one shares a pass with what is left of others, while there is room.
    static func passes(lengths: [Int], rows: Int) -> [SessionPass] {
        var (passes, decoding): ([SessionPass], SessionPass) = ([], SessionPass(isDecoding: true))
        var open = SessionPass(isDecoding: false)
        for (list, count) in lengths.enumerated() where count > 0 {
            if count == 1 {
                if decoding.tokens == rows {
                    passes.append(decoding)
                    decoding = SessionPass(isDecoding: true)
                }
                decoding.add(list, 0..<1)
                continue
            }
            let whole = count / rows * rows
            for start in stride(from: 0, to: whole, by: rows) {
                var pass = SessionPass(isDecoding: false)
                pass.add(list, start..<start + rows)
                passes.append(pass)
            }
            if whole == count { continue }
            if open.tokens + count - whole > rows {
                passes.append(open)
                open = SessionPass(isDecoding: false)
            }
            open.add(list, whole..<count)
        }
        // The rest of a list comes after its chunks, as both were appended in this order.
        return passes + [open, decoding].filter { !$0.pieces.isEmpty }
    }
}
