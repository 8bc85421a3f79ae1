internal import SpargeAttention
public import SparseKernels
public import XAttention

/// XAttention without causality: blocks of 128 × 128 with most of the mass, as estimated from strided antidiagonals. Every query
/// block keeps the first key block, which has the text.
public struct XVideoAttention: VideoAttention {
    /// The part of the estimated mass that is kept, 0…1.
    public let threshold: Double
    public let configuration: XAttentionConfiguration

    /// - Throws: `.invalidArgument` for a threshold outside 0…1.
    public init(threshold: Double = 0.9, stride: Int = 16) throws(SparseKernelsError) {
        try checkFraction(threshold, named: "threshold")
        self.threshold = threshold
        configuration = XAttentionConfiguration(stride: stride, isCausal: false, keepSink: true)
    }

    public func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        try XAttentionPrefill(shape(query: query, key: key), configuration, threshold: threshold)
            .run(query: query, key: key, value: value, output: output, on: pool).density
    }
}

/// SpargeAttention without causality: blocks of 128 × 64 predicted from block means, and products of negligible tiles skipped.
public struct SpargeVideoAttention: VideoAttention {
    /// The part of the key blocks that each query block keeps, 0…1.
    public let keepRatio: Double

    /// - Throws: `.invalidArgument` for a ratio outside 0…1.
    public init(keepRatio: Double = 0.5) throws(SparseKernelsError) {
        try checkFraction(keepRatio, named: "keepRatio")
        self.keepRatio = keepRatio
    }

    public func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        try SpargeAttentionPrefill(shape(query: query, key: key), heads: [.keepRatio(keepRatio)], isCausal: false)
            .run(query: query, key: key, value: value, output: output, on: pool).density
    }
}

func checkFraction(_ value: Double, named name: String) throws(SparseKernelsError) {
    guard (0...1).contains(value) else {
        throw SparseKernelsError(.invalidArgument, name, expected: "0 to 1", actual: "\(value)")
    }
}
