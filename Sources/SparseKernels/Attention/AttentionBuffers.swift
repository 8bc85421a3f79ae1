internal import KernelInterface

/// The operands of one `run`, checked against a shape, from which the tasks of every attention operator take their addresses.
struct AttentionBuffers {
    let query: AttentionOperand
    let key: AttentionOperand
    let value: AttentionOperand
    let output: MutableAttentionOperand
    var logSumExp: UnsafeMutablePointer<Float>?

    /// Operands that are known to have the plan's extents, such as copies in another order.
    init(
        query: AttentionOperand, key: AttentionOperand, value: AttentionOperand, output: MutableAttentionOperand,
        logSumExp: UnsafeMutablePointer<Float>?
    ) {
        self.query = query
        self.key = key
        self.value = value
        self.output = output
        self.logSumExp = logSumExp
    }

    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    init<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        _ shape: AttentionShape, query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>,
        output: consuming MutableTensorView<O>, logSumExp: consuming MutableSpan<Float>?
    ) throws(SparseKernelsError) {
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp?.count)
        self.query = AttentionOperand(query)
        self.key = AttentionOperand(key)
        self.value = AttentionOperand(value)
        self.output = MutableAttentionOperand(output)
        self.logSumExp = logSumExp?.withUnsafeMutableBufferPointer { $0.baseAddress }
    }

    /// The addresses of one task: `rows` queries of a head and the keys from `firstKey` on. The caller sets the rest.
    func arguments(
        _ shape: AttentionShape, head: Int, firstQuery: Int, rows: Int, firstKey: Int = 0, scratch: UnsafeMutableRawPointer
    ) -> AttentionArguments {
        let kvHead = head / shape.queryHeadsPerKVHead
        return AttentionArguments(
            query: query.rows(head: head, from: firstQuery), key: key.rows(head: kvHead, from: firstKey),
            value: value.rows(head: kvHead, from: firstKey), output: output.row(head: head, token: firstQuery),
            outputStride: output.geometry.tokenStride, outputType: output.type,
            logSumExp: logSumExp.map { $0 + head * shape.queryLength + firstQuery }, queryRows: rows,
            headDim: shape.headDim, valueDim: shape.valueDim, scratch: scratch)
    }
}
