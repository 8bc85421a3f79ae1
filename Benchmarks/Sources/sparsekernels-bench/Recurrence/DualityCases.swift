import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// State-space duality with the sizes of a layer of Nemotron-H 8B: 128 heads of 64 channels, a state of 128, 8 groups. x, B, C and dt
/// are slices of one row.
extension RecurrenceCases {
    func dualityGroups() -> [CaseGroup] {
        groups(op: "recurrence.ssd", name: "SSD", heads: DualityProblem.heads) { tokens, part in
            try DualityProblem(tokens: tokens, part: part).prompt(on: pool)
        } step: { batch, format in
            try DualityProblem(tokens: batch, part: 1).step(format, on: pool)
        }
    }
}

private final class DualityProblem {
    static let (heads, headDim, stateSize, groups) = (128, 64, 128, 8)

    let tokens: Int
    let heads: Int
    let groups: Int
    let rows: Tensor<Float>
    let aLog: Tensor<Float>
    let dtBias: Tensor<Float>
    let skip: Tensor<Float>
    private var y: Tensor<Float>

    init(tokens: Int, part: Int) throws {
        self.tokens = tokens
        heads = Self.heads / part
        groups = max(1, Self.groups / part)
        let width = heads * Self.headDim + 2 * groups * Self.stateSize + heads
        rows = try .normal([tokens, width], seed: 1, scale: 0.5)
        // As models start: A in 1…16, Δ in 10⁻³…10⁻¹.
        aLog = try Tensor([heads]) { Float($0) / Float(Self.heads) * 2.77 }
        dtBias = try Tensor([heads]) { -6.9 + Float($0 % 16) / 16 * 4.6 }
        skip = try Tensor([heads]) { _ in 1 }
        y = try Tensor(zeros: [tokens, heads, Self.headDim])
    }

    private func plan(_ form: RecurrenceForm, _ set: InstructionSet) throws -> StateSpaceDuality {
        try StateSpaceDuality(
            heads: heads, headDim: Self.headDim, stateSize: Self.stateSize, groups: groups, aLog: aLog, dtBias: dtBias,
            skip: skip, form: form, instructionSet: set)
    }

    /// Runs tokens from `first` on.
    private func run(
        _ plan: StateSpaceDuality, first: Int = 0, batch: PackedSequences, _ states: RecurrentStates, on pool: WorkerPool
    ) throws {
        try Self.run(plan, rows, first: first, into: &y, batch: batch, states, on: pool)
    }

    /// A view of a property is an error; one of a parameter is not.
    private static func run(
        _ plan: StateSpaceDuality, _ rows: Tensor<Float>, first: Int, into y: inout Tensor<Float>, batch: PackedSequences,
        _ states: RecurrentStates, on pool: WorkerPool
    ) throws {
        let (heads, groups) = (plan.heads, plan.groups)
        let (count, width) = (batch.tokenCount, rows.shape[1])
        let (inner, outer) = (heads * headDim, groups * stateSize)
        let rest = rows.span.extracting(droppingFirst: first * width)
        func geometry(_ heads: Int, _ channels: Int) throws -> TensorGeometry {
            try TensorGeometry(
                heads: heads, tokens: count, channels: channels, headStride: channels, tokenStride: width)
        }
        try plan.run(
            x: TensorView(rest, geometry: geometry(heads, Self.headDim)),
            b: TensorView(rest.extracting(droppingFirst: inner), geometry: geometry(groups, Self.stateSize)),
            c: TensorView(rest.extracting(droppingFirst: inner + outer), geometry: geometry(groups, Self.stateSize)),
            dt: MatrixView(
                rest.extracting(droppingFirst: inner + 2 * outer), rows: count, columns: heads, rowStride: width),
            into: MutableTensorView(
                y.mutableSpan, heads: heads, tokens: count, channels: Self.headDim, layout: .nhd),
            batch: batch, states: states, on: pool)
    }

    func prompt(on pool: WorkerPool) throws -> RecurrencePrompt {
        let shape = try plan(.automatic, .portable).shape
        let states = try RecurrentStates(slots: 1, shape: shape)
        return try RecurrencePrompt(
            tokens: tokens, products: Double(tokens) * Self.products(heads: heads, groups: groups), states: states,
            form: .automatic, plan: plan,
            run: { try self.run($0, first: $1, batch: $2, states, on: pool) }, check: check, heads: heads, headDim: Self.headDim
        )
    }

    /// Multiply-adds of the chunked algorithm per token: with the state twice, and in the lower half of a chunk.
    private static func products(heads: Int, groups: Int) -> Double {
        guard case .chunked(let chunk) = RecurrenceForm.automatic else { return 0 }
        let half = Double(chunk + 1) / 2
        return Double(heads * headDim) * (2 * Double(stateSize) + half) + Double(groups * stateSize) * half
    }

    /// Compares the first tokens of two heads with the oracle.
    private func check() throws -> Verification {
        var verification = Verification.none
        let (inner, outer) = (heads * Self.headDim, groups * Self.stateSize)
        for head in [0, heads - 1] {
            var oracle = ReferenceLinearRecurrence(keyDim: Self.stateSize, valueDim: Self.headDim)
            let group = head / (heads / groups)
            for token in 0..<min(tokens, 300) {
                func slice(_ offset: Int, _ count: Int) -> [Double] {
                    (0..<count).map { Double(rows[token, offset + $0]) }
                }
                let raw = Double(rows[token, inner + 2 * outer + head]) + Double(dtBias[flat: head])
                let size = ReferenceLinearRecurrence.softplus(raw)
                let log = -size * ReferenceLinearRecurrence.rate(Double(aLog[flat: head]))
                let (expected, bound) = oracle.step(
                    query: slice(inner + outer + group * Self.stateSize, Self.stateSize),
                    key: slice(inner + group * Self.stateSize, Self.stateSize), value: slice(head * Self.headDim, Self.headDim),
                    logDecay: Array(repeating: log, count: Self.stateSize), stepSize: size,
                    stepError: ReferenceLinearRecurrence.stepError(raw), skip: Double(skip[flat: head]))
                for channel in expected.indices {
                    verification.add(
                        error: abs(Double(y[token, head, channel]) - expected[channel]), bound: bound[channel])
                }
            }
        }
        return verification
    }

    func step(_ format: RecurrentStates.Format, on pool: WorkerPool) throws -> RecurrenceStep {
        let shape = try plan(.automatic, .portable).shape
        let states = try RecurrentStates(slots: tokens, shape: shape, format: format)
        for slot in 0..<tokens {
            try states.setState(.normal([shape.valueHeads, shape.keyDim, shape.valueDim], seed: 5), of: slot)
        }
        let batch = try PackedSequences(stepOf: Array(0..<tokens))
        return RecurrenceStep(stateBytes: states.byteCount) { set in
            let plan = try self.plan(.automatic, set)
            return { try! self.run(plan, batch: batch, states, on: pool) }
        }
    }
}
