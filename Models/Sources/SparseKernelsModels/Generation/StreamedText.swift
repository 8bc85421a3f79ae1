/// The text of a sequence while its tokens arrive: bytes are passed on when they are whole characters that cannot be the start of a
/// stop string any more.
///
/// Stop strings may begin and end anywhere in tokens. The text ends before the first one in it. Bytes that can be no UTF-8 are
/// passed on as they are.
///
/// - Complexity: O(bytes · length of the stop strings).
struct StreamedText {
    private let stops: [[UInt8]]
    /// What was passed on, and what is held back behind it.
    private(set) var bytes: [UInt8] = []
    private(set) var passed = 0
    /// The stop string in the text; its bytes and those behind it are gone.
    private(set) var stop: Int?

    /// - Parameter stops: strings that end the text. Empty ones are in no text.
    init(stops: [String] = []) { self.stops = stops.map { Array($0.utf8) } }

    /// Takes the bytes of the next token, and returns those that can be shown.
    mutating func append(_ new: [UInt8]) -> [UInt8] {
        guard stop == nil else { return [] }
        let start = bytes.count
        bytes += new
        if let (index, position) = firstStop(from: start) {
            stop = index
            bytes.removeLast(bytes.count - position)
            return pass(upTo: position)
        }
        return pass(upTo: wholeCharacters(upTo: min(possibleStop(), bytes.count)))
    }

    /// Ends the text, and returns what was held back.
    mutating func finish() -> [UInt8] { pass(upTo: bytes.count) }

    private mutating func pass(upTo end: Int) -> [UInt8] {
        defer { passed = max(passed, end) }
        return end > passed ? Array(bytes[passed..<end]) : []
    }

    /// The stop string that begins first, among those that end at or behind a position; the longest of several.
    private func firstStop(from start: Int) -> (index: Int, position: Int)? {
        var first: (index: Int, position: Int)?
        for (index, stop) in stops.enumerated() where !stop.isEmpty && stop.count <= bytes.count {
            var position = max(0, start - stop.count + 1)
            while position + stop.count <= bytes.count {
                if bytes[position..<position + stop.count].elementsEqual(stop) {
                    if first == nil || position < first!.position
                        || (position == first!.position && stop.count > stops[first!.index].count)
                    {
                        first = (index, position)
                    }
                    break
                }
                position += 1
            }
        }
        return first
    }

    /// The first position from which on the text is the start of a stop string.
    private func possibleStop() -> Int {
        var first = bytes.count
        for stop in stops where !stop.isEmpty {
            for length in stride(from: min(stop.count - 1, bytes.count), to: 0, by: -1)
            where bytes[(bytes.count - length)...].elementsEqual(stop[..<length]) {
                first = min(first, bytes.count - length)
                break
            }
        }
        return first
    }

    /// The end of the whole characters before a position. Bytes that begin a character which more bytes could complete are held
    /// back; others are not.
    private func wholeCharacters(upTo end: Int) -> Int {
        for length in 1...3 where end - length >= passed {
            let byte = bytes[end - length]
            if byte & 0xc0 == 0x80 { continue }
            let expected =
                byte >= 0xf0 && byte < 0xf5 ? 4 : byte >= 0xe0 && byte < 0xf0 ? 3 : byte >= 0xc2 && byte < 0xe0 ? 2 : 1
            return length < expected ? end - length : end
        }
        return end
    }
}
