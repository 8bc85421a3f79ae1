/// A sequence cut into consecutive blocks: equal ones with a shorter last one, or blocks of any sizes.
///
/// Block-sparse masks of estimators use uniform partitions. Clustered (permuted) sequences use partitions of any sizes, where a
/// block is a cluster; these may have empty blocks. A sequence without tokens has no blocks, or empty ones.
///
/// Partitions are equal when their blocks are equal, however they were described.
public struct BlockPartition: Sendable {
    /// Tokens of the sequence.
    public let length: Int
    /// Tokens of every block except the last; nil when sizes vary.
    public let blockSize: Int?
    /// Number of blocks.
    public let count: Int
    /// The first token of every block, then `length`. Empty for uniform partitions.
    private let edges: [Int]

    /// Below this, no position computed from lengths and block sizes overflows.
    static let limit = 1 << 60

    /// Blocks of `blockSize` tokens; the last one may be shorter.
    /// - Throws: `.invalidShape` for a negative length, a block size below 1, or either of 2⁶⁰ or more.
    public init(length: Int, blockSize: Int) throws(SparseKernelsError) {
        for (name, extent, least) in [("length", length, 0), ("blockSize", blockSize, 1)] {
            try require(
                extent >= least && extent < Self.limit, .invalidShape, name, expected: "at least \(least) and below 2⁶⁰",
                actual: "\(extent)")
        }
        self.length = length
        self.blockSize = blockSize
        count = (length + blockSize - 1) / blockSize
        edges = []
    }

    /// Blocks of the given sizes, in order. A block may be empty.
    /// - Throws: `.invalidShape` for a negative size, or sizes that add up to 2⁶⁰ or more.
    public init(sizes: [Int]) throws(SparseKernelsError) {
        var edges = [0]
        edges.reserveCapacity(sizes.count + 1)
        for (index, size) in sizes.enumerated() {
            try require(size >= 0, .invalidShape, "sizes[\(index)]", expected: "at least 0", actual: "\(size)")
            let (end, overflow) = edges[index].addingReportingOverflow(size)
            try require(
                !overflow && end < Self.limit, .invalidShape, "sizes", expected: "a sum below 2⁶⁰",
                actual: "more after \(index + 1) of \(sizes.count) sizes")
            edges.append(end)
        }
        length = edges[sizes.count]
        blockSize = nil
        count = sizes.count
        self.edges = edges
    }

    /// Tokens of block `index`.
    public subscript(index: Int) -> Range<Int> {
        precondition(index >= 0 && index < count, "block \(index) outside a partition of \(count) blocks")
        guard let blockSize else { return edges[index]..<edges[index + 1] }
        return index * blockSize..<min(length, (index + 1) * blockSize)
    }

    /// The block with `token`. Tokens outside the sequence give the first or the last block; without blocks the result is 0.
    public func block(of token: Int) -> Int {
        let token = max(0, min(length - 1, token))
        if let blockSize { return token / blockSize }
        // Finds the last edge at or before the token, which belongs to a block that is not empty.
        var (low, high) = (0, count)
        while high - low > 1 {
            let middle = (low + high) / 2
            if edges[middle] <= token { low = middle } else { high = middle }
        }
        return low
    }

    /// Sizes of all blocks.
    public var sizes: [Int] { (0..<count).map { self[$0].count } }
}

extension BlockPartition: Hashable {
    /// - Complexity: O(1) for uniform partitions, O(blocks) otherwise.
    public static func == (a: BlockPartition, b: BlockPartition) -> Bool {
        if a.length != b.length || a.count != b.count { return false }
        // With one block of a given length, or none, the nominal size makes no difference.
        if a.blockSize != nil && b.blockSize != nil { return a.count <= 1 || a.blockSize == b.blockSize }
        if a.blockSize == nil && b.blockSize == nil { return a.edges == b.edges }
        return (0..<a.count).allSatisfy { a[$0] == b[$0] }
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(length)
        hasher.combine(count)
        if count > 0 { hasher.combine(self[0].count) }
    }
}
