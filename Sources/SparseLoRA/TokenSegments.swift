internal import SparseKernels

/// The rows of a batch as runs of one kind each. What runs on some channels does so run by run, on views of the batch: nothing is copied,
/// since a product of some hundred rows is as fast as one of thousands.
struct TokenSegments: Hashable, Sendable {
    private let split: TokenSplit?
    let rows: Int
    private let isSparse: Bool

    /// - Parameters:
    ///   - rows: of the batch.
    ///   - split: nil means that all tokens are of one kind.
    ///   - isSparse: whether there are channels to pick. If not, all tokens are dense.
    init(rows: Int, split: TokenSplit?, isSparse: Bool) throws(SparseKernelsError) {
        if let split {
            try require(
                split.rows == rows, .invalidShape, "x.rows", expected: "\(split.batch) · \(split.length) rows of the split",
                actual: "\(rows)")
        }
        self.split = isSparse ? split : nil
        self.rows = rows
        self.isSparse = isSparse
    }

    /// Runs of sparse rows, and of dense ones; some may be empty.
    var sparseCount: Int {
        guard isSparse else { return 0 }
        guard let split, !split.dense.isEmpty else { return 1 }
        return split.batch + 1
    }

    var denseCount: Int {
        guard isSparse else { return 1 }
        return split.map { $0.dense.isEmpty ? 0 : $0.batch } ?? 0
    }

    var sparseRows: Int { isSparse ? split?.sparseRows ?? rows : 0 }
    var denseRows: Int { rows - sparseRows }

    /// Context after the output of one sample and before that of the next one.
    func sparse(_ index: Int) -> Range<Int> {
        guard let split, !split.dense.isEmpty else { return 0..<rows }
        let start = index == 0 ? 0 : (index - 1) * split.length + split.dense.upperBound
        return start..<(index == split.batch ? rows : index * split.length + split.dense.lowerBound)
    }

    func dense(_ index: Int) -> Range<Int> {
        guard let split else { return 0..<rows }
        return index * split.length + split.dense.lowerBound..<index * split.length + split.dense.upperBound
    }

    /// The longest run, for which buffers have room.
    var longestSparse: Int {
        var longest = 0
        for index in 0..<sparseCount { longest = max(longest, sparse(index).count) }
        return longest
    }

    var longestDense: Int { denseCount == 0 ? 0 : dense(0).count }
}

/// Buffers that passes of a layer use and leave. Layers that run one after the other share one workspace; it grows to what the largest
/// needs, and stays.
public struct SparseLoRAWorkspace: Sendable {
    /// Outputs of the activation, their gradients, and picked columns.
    var compact = FloatBuffer()
    /// Gradients of gate and up side by side.
    var pair = FloatBuffer()
    /// Gradients of hidden values of all channels, where these have adapters.
    var wide = FloatBuffer()

    public init() {}

    /// Bytes that it holds.
    public var byteCount: Int { 4 * (compact.elements.count + pair.elements.count + wide.elements.count) }
}

/// Memory that grows and is used as a matrix of adjacent rows.
struct FloatBuffer: Sendable {
    var elements: Tensor<Float>

    init() {
        // No elements: cannot fail.
        elements = try! Tensor(zeros: [0])
    }

    /// Makes room for a matrix. What was in the buffer is lost if it grows.
    mutating func reserve(rows: Int, columns: Int) throws(SparseKernelsError) {
        let (count, overflow) = rows.multipliedReportingOverflow(by: columns)
        try require(!overflow, .invalidShape, "x", expected: "a size that fits 63 bits", actual: "\(rows) · \(columns)")
        if count > elements.count { elements = try Tensor(zeros: [count]) }
    }
}
