internal import SparseKernels

// Operators on the first rows of tensors that have room for more. A span cannot be borrowed from a property of a class for the time of
// a call, but a tensor can.

extension LayerNorm {
    func run(
        _ tokens: Int, of x: Tensor<Float>, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            MatrixView(x.span, rows: tokens, columns: channels),
            into: MutableMatrixView(y.mutableSpan, rows: tokens, columns: channels), on: pool)
    }
}

extension FloatLinear {
    /// `rowStride` is that of x, whose first columns are read.
    func run(
        _ tokens: Int, of x: Tensor<Float>, rowStride: Int? = nil, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            x: MatrixView(x.span, rows: tokens, columns: inFeatures, rowStride: rowStride),
            y: MutableMatrixView(y.mutableSpan, rows: tokens, columns: outFeatures), on: pool)
    }
}

extension CausalConvolution {
    /// The first columns of x.
    func run(
        _ x: Tensor<Float>, rowStride: Int, into y: inout Tensor<Float>, _ direction: RecurrenceDirection,
        _ batch: PackedSequences, _ states: RecurrentStates, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            MatrixView(x.span, rows: batch.tokenCount, columns: channels, rowStride: rowStride),
            into: MutableMatrixView(y.mutableSpan, rows: batch.tokenCount, columns: channels), direction: direction,
            batch: batch,
            states: states, on: pool)
    }
}
