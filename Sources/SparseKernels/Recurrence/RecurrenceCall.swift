internal import KernelInterface

/// The plan that `LinearRecurrence` and `StateSpaceDuality` share: how a recurrence is cut into tasks.
///
/// A task is one sequence, one key head, and some of the value heads that read it. All of its tokens follow each other.
struct RecurrencePlan: Sendable {
    let shape: RecurrenceShape
    let decay: DecayKind
    let form: RecurrenceForm
    let scale: Float
    /// `[3, valueHeads]`: rates, biases, skips.
    let constants: Tensor<Float>
    var stepLimits: ClosedRange<Float> = 0...Float.infinity
    let instructionSet: InstructionSet
    let kernels: any KernelTable.Type

    init(
        _ shape: RecurrenceShape, decay: DecayKind, form: RecurrenceForm, scale: Float, rates: [Float], biases: [Float],
        skips: [Float], instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        try form.validate()
        self.shape = shape
        self.decay = decay
        self.form = form
        self.scale = scale
        constants = try Tensor([3, shape.valueHeads], rates + biases + skips)
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Tokens of a chunk.
    var chunk: Int {
        switch form {
        case .chunked(let tokens): tokens
        case .stepwise: 1
        }
    }

    /// The most value heads of a task. Heads of a task share the products of queries and keys; those of different tasks compute them
    /// again. Eight states of 128 × 64 floats stay in a second-level cache, and 16 tasks keep 16 threads busy.
    var headsPerTask: Int {
        if decay == .perChannel { return 1 }
        let fitting = max(1, (1 << 16) / (shape.keyDim * shape.valueDim))
        let feeding = max(1, shape.valueHeads / 16)
        let limit = min(fitting, feeding, shape.valueHeadsPerKeyHead)
        // Parts of a group are as equal as they can be.
        let parts = (shape.valueHeadsPerKeyHead + limit - 1) / limit
        return (shape.valueHeadsPerKeyHead + parts - 1) / parts
    }

    var partsPerKeyHead: Int { (shape.valueHeadsPerKeyHead + headsPerTask - 1) / headsPerTask }

    var scratchByteCount: Int {
        LinearRecurrenceScratch(
            keyDim: shape.keyDim, valueDim: shape.valueDim, chunk: chunk, heads: headsPerTask,
            hasChannelDecays: decay == .perChannel
        ).byteCount
    }

    /// Throws for operands that do not fit, before anything is written.
    func check(
        query: TensorGeometry, key: TensorGeometry, value: TensorGeometry, output: TensorGeometry, names: RecurrenceNames,
        batch: PackedSequences, states: RecurrentStates
    ) throws(SparseKernelsError) {
        try batch.requireFit(tokens: query.tokens, named: names.query, in: states)
        try query.requireExtents(names.query, heads: shape.keyHeads, tokens: batch.tokenCount, channels: shape.keyDim)
        try key.requireExtents(names.key, heads: shape.keyHeads, tokens: batch.tokenCount, channels: shape.keyDim)
        try value.requireExtents(names.value, heads: shape.valueHeads, tokens: batch.tokenCount, channels: shape.valueDim)
        try output.requireExtents(names.output, heads: shape.valueHeads, tokens: batch.tokenCount, channels: shape.valueDim)
        try states.requireShape(heads: shape.valueHeads, rows: shape.keyDim, columns: shape.valueDim, named: "states")
    }

    /// Runs the tasks of a call.
    func run(_ call: RecurrenceCall, on pool: WorkerPool) {
        if call.batch.tokenCount == 0 { return }
        let (perToken, overflow) = (2 * shape.keyDim * shape.valueDim).multipliedReportingOverflow(by: shape.valueHeads)
        let (work, overflowed) = perToken.multipliedReportingOverflow(by: call.batch.tokenCount)
        pool.run(
            call, tasks: call.batch.lengths.count * shape.keyHeads * partsPerKeyHead,
            work: overflow || overflowed ? .max : work, scratchByteCount: scratchByteCount)
    }
}

/// What the operands are called in errors.
struct RecurrenceNames {
    var query: String
    var key: String
    var value: String
    var output: String
}

/// The operand that decays come from.
enum RecurrenceSteps {
    case none
    /// `[tokens, valueHeads]`.
    case rows(RowOperand)
    /// `[heads, tokens, keyDim]`, with one head per key head or per value head.
    case channels(AttentionOperand)
}

/// One `run`.
struct RecurrenceCall: PoolCall {
    let plan: RecurrencePlan
    let query: AttentionOperand
    let key: AttentionOperand
    let value: AttentionOperand
    let steps: RecurrenceSteps
    let output: MutableAttentionOperand
    let batch: PackedSequences
    /// The address of slot 0.
    let states: UnsafeMutableRawPointer
    let bytesPerSlot: Int
    let stateType: StorageType

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let shape = plan.shape
        let parts = plan.partsPerKeyHead
        let (sequence, rest) = task.quotientAndRemainder(dividingBy: shape.keyHeads * parts)
        let (keyHead, part) = rest.quotientAndRemainder(dividingBy: parts)
        let (tokens, first) = (batch.lengths[sequence], batch.starts[sequence])
        if tokens == 0 { return }
        let group = shape.valueHeadsPerKeyHead
        let head = keyHead * group + part * plan.headsPerTask
        let heads = min(plan.headsPerTask, group - part * plan.headsPerTask)
        if heads <= 0 { return }
        let constants = UnsafePointer(plan.constants.storage.pointer.assumingMemoryBound(to: Float.self))
        let stepwise = tokens == 1 || plan.form == .stepwise
        var arguments = LinearRecurrenceArguments(
            query: query.rows(head: keyHead, from: first), key: key.rows(head: keyHead, from: first),
            value: value.rows(head: head, from: first), valueHeadStride: value.geometry.headStride,
            output: RowTarget(
                base: output.row(head: head, token: first), stride: output.geometry.tokenStride, type: output.type),
            outputHeadStride: output.geometry.headStride, decay: plan.decay,
            steps: query.rows(head: keyHead, from: first), rates: constants + head,
            biases: constants + shape.valueHeads + head, skips: constants + 2 * shape.valueHeads + head, scale: plan.scale,
            state: states + batch.slots[sequence] * bytesPerSlot
                + head * shape.keyDim * shape.valueDim * stateType.byteCount,
            stateType: stateType, heads: heads, tokens: tokens, keyDim: shape.keyDim, valueDim: shape.valueDim,
            chunk: stepwise ? 1 : plan.chunk, scratch: scratch)
        arguments.leastStep = plan.stepLimits.lowerBound
        arguments.largestStep = plan.stepLimits.upperBound
        switch steps {
        case .none: break
        case .rows(let rows):
            arguments.steps = rows.from(first)
            arguments.steps.base += head * rows.type.byteCount
        case .channels(let channels):
            let perValue = channels.geometry.heads == shape.valueHeads
            arguments.steps = channels.rows(head: perValue ? head : keyHead, from: first)
            arguments.stepHeadStride = perValue ? channels.geometry.headStride : 0
        }
        if stepwise {
            plan.kernels.recurSteps(&arguments)
        } else {
            plan.kernels.recurChunks(&arguments)
        }
    }
}
