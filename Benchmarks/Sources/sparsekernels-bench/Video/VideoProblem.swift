import BenchmarkReport
import SparseKernels
import SparseKernelsReference
import SparseVideoGen

/// Attention of a video's tokens, with the dense result by which methods are judged.
final class VideoProblem {
    let name: String
    let geometry: VideoGeometry
    let shape: AttentionShape
    let modifiers: ScoreModifiers
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    let output: AttentionOutput
    let exact: AttentionState
    private let pool: WorkerPool
    private let set: InstructionSet

    private init(
        name: String, geometry: VideoGeometry, shape: AttentionShape, modifiers: ScoreModifiers, _ query: Tensor<Float>,
        _ key: Tensor<Float>, _ value: Tensor<Float>, set: InstructionSet, pool: WorkerPool, announce: (String) -> Void
    ) throws {
        (self.name, self.geometry, self.shape, self.modifiers) = (name, geometry, shape, modifiers)
        (self.query, self.key, self.value, self.set, self.pool) = (query, key, value, set, pool)
        output = AttentionOutput(shape)
        announce("dense attention")
        exact = try DenseAttention(shape, modifiers: modifiers, instructionSet: set)(
            query: query, key: key, value: value, on: pool)
    }

    /// A capture, whose metadata say what its tokens are.
    convenience init(_ capture: Capture, set: InstructionSet, pool: WorkerPool, announce: (String) -> Void) throws {
        func number(_ key: String) throws -> Int {
            guard let number = capture.file.metadata[key].flatMap({ Int($0) }) else {
                throw SparseKernelsError(
                    .malformedFile, "\(key) of \(capture.name)", expected: "a number",
                    actual: "\(capture.file.metadata[key] ?? "nothing")")
            }
            return number
        }
        let geometry = try VideoGeometry(
            frames: number("frames"), tokensPerFrame: number("tokensPerFrame"), textTokens: number("textTokens"))
        try geometry.check(capture.shape)
        try self.init(
            name: capture.name, geometry: geometry, shape: capture.shape, modifiers: capture.modifiers,
            capture.file.floatTensor("query"), capture.file.floatTensor("key"), capture.file.floatTensor("value"), set: set,
            pool: pool, announce: announce)
    }

    /// One head of a made-up video.
    convenience init(
        name: String, geometry: VideoGeometry, headDim: Int, set: InstructionSet, pool: WorkerPool, announce: (String) -> Void
    ) throws {
        announce("making the operands")
        let input = try VideoInput(geometry, headDim: headDim, seed: 1)
        let shape = try AttentionShape(
            queryLength: geometry.tokens, keyLength: geometry.tokens, queryHeads: 1, kvHeads: 1, headDim: headDim)
        try self.init(
            name: name, geometry: geometry, shape: shape, modifiers: ScoreModifiers(), input.query, input.key, input.value,
            set: set, pool: pool, announce: announce)
    }

    var flopPerPair: Double { 2 * Double(shape.headDim + shape.valueDim) }

    /// A row of attention with a plan, checked on sampled rows with the oracle.
    /// - Parameter sees: whether a head's query sees a key.
    func attention(
        _ plan: some AttentionOperator, pairs: Int, op: String, label: String,
        sees: @escaping (_ head: Int, _ query: Int, _ key: Int) -> Bool = { _, _, _ in true }
    ) -> Variant {
        let body = { [self] in output.compute(plan, query, key, value, on: pool) }
        let roof = { [set, pool] in MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }
        return Variant(
            isa: set.name, threads: pool.threads, body: body,
            verify: { [self] in
                body()
                return try checker(sees).check(output.tensor)
            }, roof: roof, op: op, label: label, amounts: .operations(flopPerPair * Double(pairs)))
    }

    /// A row of a stage without a result of its own to check; `attend` and `total` check what it leads to.
    func stage(_ op: String, _ label: String, amounts: [Metric: Double] = .uncounted, _ body: @escaping () -> Void) -> Variant {
        Variant(isa: set.name, threads: pool.threads, body: body, verify: { nil }, op: op, label: label, amounts: amounts)
    }

    /// A row of a whole call, judged by its distance from dense attention.
    func total(
        _ op: String, _ label: String, density: Double, _ state: AttentionState, _ body: @escaping () -> Void
    ) throws -> Variant {
        let comparison = try AttentionComparison(state, with: exact)
        var variant = stage(op, label, body)
        variant.metrics = [.density: density, .recall: comparison.recall, .outputError: comparison.error]
        return variant
    }

    private func checker(_ sees: (Int, Int, Int) -> Bool) -> AttentionChecker<Float> {
        AttentionChecker(
            reference: ReferenceAttention(shape, modifiers: modifiers), query: query, key: key, value: value,
            hides: { !sees($0, $1, $2) })
    }
}
