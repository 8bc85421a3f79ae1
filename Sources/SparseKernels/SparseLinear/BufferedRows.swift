// Operators on the first rows of tensors that have room for more. Spans of two properties of one workspace cannot be taken for one call,
// but the tensors can be passed.

extension GatedActivation {
    /// y = f(x), of rows × columns.
    package func run(
        rows: Int, columns: Int, of x: Tensor<Float>, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            MatrixView(x.span, rows: rows, columns: columns, named: "x"),
            into: MutableMatrixView(y.mutableSpan, rows: rows, columns: columns, named: "y"), on: pool)
    }

    /// y = f(gate) · up, of rows × columns.
    package func run(
        rows: Int, columns: Int, gate: Tensor<Float>, up: Tensor<Float>, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            gate: MatrixView(gate.span, rows: rows, columns: columns, named: "gate"),
            up: MatrixView(up.span, rows: rows, columns: columns, named: "up"),
            into: MutableMatrixView(y.mutableSpan, rows: rows, columns: columns, named: "y"), on: pool)
    }
}

extension ActiveColumns {
    /// Lists the columns of rows × columns that are not 0 in some row.
    package func list(
        rows: Int, columns: Int, of x: Tensor<Float>, into channels: inout ChannelSubset, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try list(MatrixView(x.span, rows: rows, columns: columns, named: "x"), into: &channels, on: pool)
    }

    /// Multiplies rows × `channels.count` with columns of rows × `channels.width`.
    package func gate(
        rows: Int, _ y: inout Tensor<Float>, by gate: Tensor<Float>, _ channels: ChannelSubset, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try self.gate(
            MutableMatrixView(y.mutableSpan, rows: rows, columns: channels.count, named: "y"),
            by: MatrixView(gate.span, rows: rows, columns: channels.width, named: "gate"), channels, on: pool)
    }
}

extension SparseLinear {
    /// Computes rows of picked outputs.
    package func run(
        x: MatrixView<Float>, channels: ChannelSubset?, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            x: x, channels: channels,
            y: MutableMatrixView(
                y.mutableSpan, rows: x.rows, columns: channels?.count ?? outFeatures, named: "y"), on: pool)
    }
}
