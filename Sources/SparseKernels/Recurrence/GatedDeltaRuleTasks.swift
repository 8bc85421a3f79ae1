internal import KernelInterface

/// The cut of a call of the delta rule into tasks: a sequence, some value heads of a key head, and some columns of their states.
///
/// The sum of an element does not depend on its task. The cut depends on the shape and the batch, never on the threads.
struct GatedDeltaRuleTasks {
    /// Value heads of a task, and tasks of a key head that they make.
    let heads: Int
    let parts: Int
    /// Columns of a task, and tasks of a part of heads.
    let columns: Int
    let columnParts: Int
    let perSequence: Int
    let count: Int

    /// Tasks that a call has at least, if it can be cut that far: two for each of eight threads. Tasks of the same key head compute
    /// the products of its queries and keys again, which is a thirtieth to a tenth of their work.
    private static let fewest = 16

    init(_ plan: GatedDeltaRule, _ batch: PackedSequences) {
        let shape = plan.shape
        let group = shape.valueHeadsPerKeyHead
        let (sequences, keyHeads) = (batch.lengths.count, shape.keyHeads)
        var isChunked = false
        if case .chunked = plan.form { isChunked = batch.lengths.contains { $0 > 1 } }
        // A step shares nothing between heads, and waits for memory.
        let fitting = isChunked ? Self.fittingHeads(shape, plan.decay) : 1
        var parts = (group + fitting - 1) / fitting
        while sequences * keyHeads * parts < Self.fewest && parts < group { parts += 1 }
        heads = (group + parts - 1) / parts
        self.parts = (group + heads - 1) / heads
        let panel = plan.kernels.sizes.panelWidth
        let panels = (shape.valueDim + panel - 1) / panel
        var columnParts = 1
        while isChunked && sequences * keyHeads * self.parts * columnParts < Self.fewest && columnParts < panels {
            columnParts += 1
        }
        columns = min(shape.valueDim, (panels + columnParts - 1) / columnParts * panel)
        self.columnParts = (shape.valueDim + columns - 1) / columns
        perSequence = keyHeads * self.parts * self.columnParts
        count = sequences * perSequence
    }

    /// The most value heads of a task: their states, half a megabyte, stay in a second-level cache. Decays per channel leave them
    /// nothing to share.
    static func fittingHeads(_ shape: RecurrenceShape, _ decay: GatedDeltaRule.Decay) -> Int {
        if decay == .perChannel { return 1 }
        return min(shape.valueHeadsPerKeyHead, max(1, (1 << 17) / (shape.keyDim * shape.valueDim)))
    }
}

/// One `run`.
struct GatedDeltaRuleCall: PoolCall {
    let plan: GatedDeltaRule
    let tasks: GatedDeltaRuleTasks
    let query: AttentionOperand
    let key: AttentionOperand
    let value: AttentionOperand
    let logDecay: RowOperand
    let logDecayHeadStride: Int
    let beta: RowOperand
    let output: MutableAttentionOperand
    let batch: PackedSequences
    /// The address of slot 0.
    let states: UnsafeMutableRawPointer
    let bytesPerSlot: Int
    let stateType: StorageType

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let shape = plan.shape
        let (sequence, rest) = task.quotientAndRemainder(dividingBy: tasks.perSequence)
        let (tokens, first) = (batch.lengths[sequence], batch.starts[sequence])
        if tokens == 0 { return }
        let (headPart, columnPart) = rest.quotientAndRemainder(dividingBy: tasks.columnParts)
        let (keyHead, part) = headPart.quotientAndRemainder(dividingBy: tasks.parts)
        let group = shape.valueHeadsPerKeyHead
        let head = keyHead * group + part * tasks.heads
        let column = columnPart * tasks.columns
        var values = value.rows(head: head, from: first)
        values.base += column * values.type.byteCount
        var decays = logDecay.from(first)
        decays.base += head * logDecayHeadStride * decays.type.byteCount
        var betas = beta.from(first)
        betas.base += head * betas.type.byteCount
        let stateElement = head * shape.keyDim * shape.valueDim + column
        var arguments = DeltaRuleArguments(
            query: query.rows(head: keyHead, from: first), key: key.rows(head: keyHead, from: first), value: values,
            valueHeadStride: value.geometry.headStride,
            output: RowTarget(
                base: output.row(head: head, token: first) + column * output.type.byteCount,
                stride: output.geometry.tokenStride, type: output.type),
            outputHeadStride: output.geometry.headStride, logDecay: decays, logDecayHeadStride: logDecayHeadStride,
            decay: plan.decay.kind, beta: betas, tokens: tokens, heads: min(tasks.heads, group - part * tasks.heads),
            keyDim: shape.keyDim, columns: min(tasks.columns, shape.valueDim - column),
            state: states + batch.slots[sequence] * bytesPerSlot + stateElement * stateType.byteCount,
            stateHeadStride: shape.keyDim * shape.valueDim, stateStride: shape.valueDim, stateType: stateType,
            scale: plan.scale, normalizes: plan.normalizesQueriesAndKeys, epsilon: GatedDeltaRule.normEpsilon, chunk: 1,
            scratch: scratch)
        if case .chunked(let chunk) = plan.form, tokens > 1 {
            arguments.chunk = chunk
            plan.kernels.chunkDeltaRule(&arguments)
        } else {
            plan.kernels.stepDeltaRule(&arguments)
        }
    }
}
