/// Which rank has which tokens of a sequence.
///
/// A rank keeps its tokens in ascending order, whatever pieces of the sequence they come from: row i of its operands is its i-th token.
/// Positions travel with tokens, so that rotary embeddings and masks see those of the whole sequence.
///
/// ```swift
/// let shards = try TokenShards.zigzag(length: 48, ulysses: 2, ring: 2)
/// shards.ranges[1]            // [36..<48]
/// shards.owner(of: 40)        // 1
/// shards.positions(of: 2)     // [12, 13, …, 23]
/// ```
///
/// ``contiguous(length:ranks:alignment:)`` cuts a sequence in order. Where queries see no later keys, the last ranks of a ring have
/// the most work then, and ``zigzag(length:ulysses:ring:alignment:)`` gives all the same.
///
/// Shards may have different lengths, and a rank may have no token. Every token is in exactly one: nothing is padded or dropped.
public struct TokenShards: Hashable, Sendable {
    /// The tokens of the sequence.
    public let length: Int
    /// The tokens of each rank: ascending ranges that do not touch, and are not empty.
    public let ranges: [[Range<Int>]]

    /// The pieces of the sequence in order, with who has them and where.
    let pieces: [Piece]
    private let counts: [Int]

    /// A run of tokens that one rank keeps in neighbouring rows.
    struct Piece: Hashable, Sendable {
        let tokens: Range<Int>
        let rank: Int
        /// The row of the first token.
        let row: Int
    }

    /// The most ranks. It keeps tables small when a number comes from a file.
    public static let largestRankCount = 1 << 16

    /// Makes shards of a sequence.
    ///
    /// - Parameters:
    ///   - length: the number of tokens, 0 or more.
    ///   - ranges: of each rank, ascending ranges of its tokens. Those that touch become one.
    /// - Throws: `.invalidArgument`, naming the range, for one that is empty, outside of the sequence or before the range in front of
    ///   it, for a token that no rank or two ranks have, and for no rank or more than ``largestRankCount``.
    /// - Complexity: O(*p* log *p*) for *p* ranges.
    public init(length: Int, ranges: [[Range<Int>]]) throws(SparseKernelsError) {
        try Self.require(length >= 0, "length", "0 or more", length)
        try Self.require(ranks: ranges.count, "ranges")
        var (merged, pieces, counts): ([[Range<Int>]], [Piece], [Int]) = ([], [], [])
        for (rank, own) in ranges.enumerated() {
            var (list, count): ([Range<Int>], Int) = ([], 0)
            for (index, range) in own.enumerated() {
                let least = list.last?.upperBound ?? 0
                guard !range.isEmpty, range.lowerBound >= least, range.upperBound <= length else {
                    throw SparseKernelsError(
                        .invalidArgument, "ranges[\(rank)][\(index)]",
                        expected: "a range of tokens within \(least)..<\(length)", actual: "\(range)")
                }
                if let last = list.last, last.upperBound == range.lowerBound {
                    list[list.count - 1] = last.lowerBound..<range.upperBound
                } else {
                    list.append(range)
                }
            }
            for range in list {
                pieces.append(Piece(tokens: range, rank: rank, row: count))
                count += range.count
            }
            merged.append(list)
            counts.append(count)
        }
        pieces.sort { $0.tokens.lowerBound < $1.tokens.lowerBound }
        var next = 0
        for piece in pieces {
            guard piece.tokens.lowerBound == next else {
                throw Self.cover(piece.tokens.lowerBound < next ? piece.tokens.lowerBound : next, ranges)
            }
            next = piece.tokens.upperBound
        }
        if next != length { throw Self.cover(next, ranges) }
        (self.length, self.ranges, self.pieces, self.counts) = (length, merged, pieces, counts)
    }

    // MARK: - Questions

    public var ranks: Int { ranges.count }

    /// The tokens that a rank has.
    public func count(of rank: Int) -> Int { counts[rank] }

    /// The tokens of a rank, ascending: the token of each of its rows.
    public func positions(of rank: Int) -> [Int] { ranges[rank].flatMap { $0 } }

    /// The rank that has a token.
    /// - Complexity: O(log *p*) for *p* ranges.
    public func owner(of token: Int) -> Int { piece(of: token).rank }

    /// The row in which its rank keeps a token.
    /// - Complexity: O(log *p*) for *p* ranges.
    public func row(of token: Int) -> Int {
        let piece = piece(of: token)
        return piece.row + token - piece.tokens.lowerBound
    }

    /// The most tokens that a rank has.
    public var largestCount: Int { counts.max() ?? 0 }

    private func piece(of token: Int) -> Piece {
        precondition(token >= 0 && token < length, "token \(token) is outside of a sequence of \(length)")
        var (low, high) = (0, pieces.count)
        while low < high {
            let middle = (low + high) / 2
            if pieces[middle].tokens.upperBound <= token { low = middle + 1 } else { high = middle }
        }
        return pieces[low]
    }

    /// The shards in some letters, for ranks to agree on: their numbers, and a fingerprint of all ranges.
    package var summary: String {
        var fingerprint = Fingerprint()
        for own in ranges {
            fingerprint.add(own.count)
            for range in own {
                fingerprint.add(range.lowerBound)
                fingerprint.add(range.upperBound)
            }
        }
        return "\(length) tokens on \(ranks) ranks (\(String(fingerprint.value, radix: 16)))"
    }

    // MARK: - Checks

    static func require(
        _ condition: Bool, _ argument: @autoclosure () -> String, _ expected: @autoclosure () -> String, _ actual: Int
    ) throws(SparseKernelsError) {
        if !condition { throw SparseKernelsError(.invalidArgument, argument(), expected: expected(), actual: "\(actual)") }
    }

    static func require(ranks: Int, _ argument: String) throws(SparseKernelsError) {
        try require(ranks >= 1 && ranks <= largestRankCount, argument, "of 1 to \(largestRankCount) ranks", ranks)
    }

    /// The error for the first token that is not in exactly one range.
    private static func cover(_ token: Int, _ ranges: [[Range<Int>]]) -> SparseKernelsError {
        let owners = ranges.indices.filter { rank in ranges[rank].contains { $0.contains(token) } }
        return SparseKernelsError(
            .invalidArgument, "ranges", expected: "with every token in exactly one",
            actual: owners.isEmpty ? "token \(token) in none" : "token \(token) in those of ranks \(owners)")
    }
}
