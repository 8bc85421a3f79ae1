import BenchmarkReport
import SparseKernels
import SparseKernelsReference
import XAttention

/// Attention of given operands, with data that are computed once for checking and judging all estimators.
final class PrefillProblem {
    let name: String
    let shape: AttentionShape
    let modifiers: ScoreModifiers
    let grid: BlockGrid
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    /// The output of all variants, which run one after the other.
    let output: AttentionOutput
    /// The attention mass of every block, from antidiagonal scoring with a stride of 1.
    let masses: BlockScores
    private var scoreCheckers: [Int: ScoreChecker] = [:]
    private var floatMasks: [Configuration: BlockMask] = [:]
    private lazy var denseChecker = AttentionChecker(reference: reference, query: query, key: key, value: value)

    /// The parameters of XAttention.
    struct Configuration: Hashable {
        var stride = 16
        var precision = ScoringPrecision.int6
        var threshold = 0.9

        func prefill(_ problem: PrefillProblem, _ set: InstructionSet) throws -> XAttentionPrefill {
            try XAttentionPrefill(
                problem.shape,
                .init(
                    stride: stride, isCausal: problem.grid.isCausal, precision: precision,
                    softmaxScale: problem.modifiers.softmaxScale),
                threshold: threshold, instructionSet: set)
        }
    }

    /// - Parameters:
    ///   - set: the level that computes the exact masses.
    ///   - announce: announces slow steps to the user.
    init(
        name: String, shape: AttentionShape, modifiers: ScoreModifiers, query: Tensor<Float>, key: Tensor<Float>,
        value: Tensor<Float>, isCausal: Bool = true, set: InstructionSet, pool: WorkerPool, announce: (String) -> Void
    ) throws {
        self.name = name
        self.shape = shape
        self.modifiers = modifiers
        (self.query, self.key, self.value) = (query, key, value)
        grid = try BlockGrid(shape, isCausal: isCausal)
        output = AttentionOutput(shape)
        announce("exact mass of every block")
        masses = try AntidiagonalScoring(
            shape, grid: grid, stride: 1, softmaxScale: modifiers.softmaxScale, precision: .float32, instructionSet: set)(
                query: query, key: key, on: pool)
    }

    /// - Parameter isCausal: nil means the capture's own value.
    convenience init(
        _ capture: Capture, isCausal: Bool? = nil, set: InstructionSet, pool: WorkerPool, announce: (String) -> Void
    ) throws {
        try self.init(
            name: capture.name, shape: capture.shape, modifiers: capture.modifiers,
            query: capture.file.floatTensor("query"), key: capture.file.floatTensor("key"),
            value: capture.file.floatTensor("value"), isCausal: isCausal ?? capture.isCausal, set: set, pool: pool,
            announce: announce)
    }

    convenience init(
        _ input: StructuredInput, set: InstructionSet, pool: WorkerPool, announce: (String) -> Void
    ) throws {
        try self.init(
            name: "structured-\(input.shape.queryLength) d \(input.shape.headDim)", shape: input.shape,
            modifiers: ScoreModifiers(), query: input.query, key: input.key, value: input.value, set: set, pool: pool,
            announce: announce)
    }

    private var mask: AttentionMask { grid.isCausal ? .causal : .full }

    var reference: ReferenceAttention { ReferenceAttention(shape, mask: mask, modifiers: modifiers) }

    func densePlan(_ set: InstructionSet) throws -> DenseAttention {
        try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
    }

    var flopPerPair: Double { 2 * Double(shape.headDim + shape.valueDim) }
    private var effectiveFLOP: Double {
        flopPerPair * Double(shape.queryHeads * shape.queryLength) * Double(shape.keyLength)
    }

    func attend(_ plan: some AttentionOperator, on pool: WorkerPool) { output.compute(plan, query, key, value, on: pool) }

    // MARK: - Rows

    func dense(_ set: InstructionSet, _ pool: WorkerPool, op: String) throws -> Variant {
        let plan = try densePlan(set)
        return attention(
            plan, checker: denseChecker, set, pool, op: op,
            amounts: .operations(flopPerPair * Double(plan.visiblePairs), effective: effectiveFLOP))
    }

    /// A checker for attention of a mask, whose oracle hides the same blocks.
    func checker(of mask: BlockMask) -> AttentionChecker<Float> {
        AttentionChecker(reference: reference, mask: mask, query: query, key: key, value: value)
    }

    /// A variant for attention of a mask whose plan exists.
    func sparse(
        _ plan: BlockSparseAttention, checker: AttentionChecker<Float>, _ set: InstructionSet, _ pool: WorkerPool, op: String
    ) -> Variant {
        attention(plan, checker: checker, set, pool, op: op, amounts: amounts(plan))
    }

    private func amounts(_ plan: BlockSparseAttention) -> [Metric: Double] {
        .operations(flopPerPair * Double(plan.visiblePairs), effective: effectiveFLOP)
    }

    private func attention(
        _ plan: some AttentionOperator, checker: AttentionChecker<Float>, _ set: InstructionSet, _ pool: WorkerPool,
        op: String, amounts: [Metric: Double]
    ) -> Variant {
        let body = { [self] in attend(plan, on: pool) }
        return Variant(
            isa: set.name, threads: pool.threads, body: body,
            verify: { [self] in
                body()
                return try checker.check(output.tensor)
            }, op: op, amounts: amounts)
    }

    /// A variant for block scores. Single-precision scores are compared with the oracle. 6-bit codes are judged by their
    /// purpose: at the configuration's threshold their mask must have the other's recall, within `recallTolerance`.
    func scores(_ configuration: Configuration, _ set: InstructionSet, _ pool: WorkerPool, op: String) throws -> Variant {
        let estimate = try AntidiagonalScoring(
            shape, grid: grid, stride: configuration.stride, softmaxScale: modifiers.softmaxScale,
            precision: configuration.precision, instructionSet: set)
        let pairs = Double(shape.queryHeads) * Double(grid.visiblePairs) / Double(configuration.stride)
        return Variant(
            isa: set.name, threads: pool.threads,
            body: { [self] in _ = try! estimate(query: query, key: key, on: pool) },
            verify: { [self] in
                let scores = try estimate(query: query, key: key, on: pool)
                if configuration.precision == .float32 {
                    return try scoreChecker(stride: configuration.stride).check(scores)
                }
                let mask = try configuration.prefill(self, set).mask(from: scores, on: pool)
                var single = configuration
                single.precision = .float32
                let error = abs(masses.keptPart(of: mask) - masses.keptPart(of: try floatMask(single, set, pool)))
                return Verification(error: error, bound: Self.recallTolerance)
            }, op: op, amounts: .operations(2 * pairs * Double(shape.headDim)))
    }

    /// A requirement, not a derived bound: at thresholds of 0.9 and more, changing it by 0.002 changes about 0.002 of the mass.
    private static let recallTolerance = 0.002

    private func scoreChecker(stride: Int) throws -> ScoreChecker {
        if let checker = scoreCheckers[stride] { return checker }
        let checker = try ScoreChecker(
            shape, grid: grid, stride: stride, softmaxScale: modifiers.softmaxScale, query: query, key: key)
        scoreCheckers[stride] = checker
        return checker
    }

    private func floatMask(
        _ configuration: Configuration, _ set: InstructionSet, _ pool: WorkerPool
    ) throws -> BlockMask {
        if let mask = floatMasks[configuration] { return mask }
        let mask = try configuration.prefill(self, set).select(query: query, key: key, on: pool).mask
        floatMasks[configuration] = mask
        return mask
    }

    /// A variant for the selection of blocks from scores.
    func selection(
        _ configuration: Configuration, _ scores: BlockScores, _ set: InstructionSet, _ pool: WorkerPool, op: String
    ) throws -> Variant {
        let prefill = try configuration.prefill(self, set)
        let mask = try prefill.mask(from: scores, on: pool)
        return Variant(
            isa: set.name, threads: pool.threads, body: { _ = try! prefill.mask(from: scores, on: pool) },
            verify: { SelectionCheck.topP(mask, scores, mass: configuration.threshold) }, op: op, amounts: .uncounted,
            metrics: [.density: mask.density, .recall: masses.keptPart(of: mask)])
    }

    /// A variant that scores, selects, plans and attends in one call. `plan` equals its plan and is used to count operations.
    func endToEnd(
        _ configuration: Configuration, _ plan: BlockSparseAttention, checker: AttentionChecker<Float>, _ set: InstructionSet,
        _ pool: WorkerPool, op: String
    ) throws -> Variant {
        let prefill = try configuration.prefill(self, set)
        let body = { [self] in output.compute(prefill, query, key, value, on: pool) }
        return Variant(
            isa: set.name, threads: pool.threads, body: body,
            verify: { [self] in
                body()
                return try checker.check(output.tensor)
            }, op: op, amounts: amounts(plan))
    }
}

extension BlockGrid {
    /// The pairs that the causal limit leaves, if there is one.
    fileprivate var visiblePairs: Int {
        isCausal ? query.length * queryOffset + query.length * (query.length + 1) / 2 : query.length * key.length
    }
}
