internal import KernelInterface

/// Chooses the experts of every token from its router logits, and weighs them.
///
///     scores   s = softmax(logits) or sigmoid(logits)
///     choice   the k experts with the largest s + bias, in descending order
///     weights  w = scale · s, or scale · s / Σ of the chosen s
///
/// ```swift
/// let router = try ExpertRouter(experts: 8, expertsPerToken: 2)        // Mixtral
/// let routing = try router(logits)                                     // logits [tokens, experts]
/// let y = try layer(x, routing: routing)
/// ```
///
/// The bias corrects the load of the experts: it takes part in the choice and not in the weights. Of equal keys the expert of lower
/// index is chosen. Without a bias the logits themselves are compared, so that scores that round to the same number do not tie.
///
/// - Exactness: softmax and sigmoid within 2·10⁻⁶ of the score, relatively; sums of `Float` in the order of the experts. A weight is that
///   of its token alone: neither other tokens nor threads change its bits.
/// - Complexity: tokens · experts · (k + 4) operations.
/// - Scratch: `scratchByteCount` per thread, kept by the pool. A routing that is reused is not allocated again.
/// - Source: Shazeer et al., 2017 (arXiv 1701.06538); Mixtral (arXiv 2401.04088); DeepSeek-V3 (arXiv 2412.19437), `noaux_tc`.
public struct ExpertRouter: Sendable {
    /// The function of the logits.
    public enum Scores: String, Hashable, Sendable, CaseIterable {
        /// eˣ / Σ eˣ over the experts: Mixtral, Qwen, DeepSeek-V2.
        case softmax
        /// 1 / (1 + e⁻ˣ) of every expert by itself: DeepSeek-V3.
        case sigmoid
    }

    public let experts: Int
    public let expertsPerToken: Int
    public let scores: Scores
    /// `[experts]`, added to the scores for the choice only.
    public let correctionBias: Tensor<Float>?
    /// Whether the weights of a token are divided by their sum, to which 10⁻²⁰ is added. They are then 0 where all scores are.
    public let renormalizes: Bool
    /// The factor of all weights, `routed_scaling_factor`.
    public let scale: Float
    public let groups: ExpertGroups?
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - experts: the number of experts, which is that of the logits of a token.
    ///   - expertsPerToken: k, `num_experts_per_tok`.
    ///   - scores: the function of the logits.
    ///   - correctionBias: `[experts]`, `e_score_correction_bias`.
    ///   - renormalizes: whether the weights of a token are divided by their sum, `norm_topk_prob`.
    ///   - scale: the factor of all weights.
    ///   - groups: groups of experts of which few are open to a token; nil opens all.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for no experts, k outside 1…experts, a scale or bias that is not finite, groups that do not divide the
    ///   experts, or open groups with fewer than k experts; `.invalidShape` for a bias of another size; `.unsupportedInstructionSet`.
    public init(
        experts: Int, expertsPerToken: Int, scores: Scores = .softmax, correctionBias: Tensor<Float>? = nil,
        renormalizes: Bool = true, scale: Float = 1, groups: ExpertGroups? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try ExpertRouting.requireCounts(experts: experts, expertsPerToken: expertsPerToken)
        if let correctionBias {
            try require(
                correctionBias.shape == [experts], .invalidShape, "correctionBias", expected: "\([experts])",
                actual: "\(correctionBias.shape)")
            try correctionBias.requireFinite(named: "correctionBias")
        }
        try require(scale.isFinite, .invalidArgument, "scale", expected: "finite", actual: "\(scale)")
        if let groups {
            try require(
                experts % groups.count == 0, .invalidArgument, "groups", expected: "a divisor of \(experts) experts",
                actual: "\(groups.count) groups")
            let open = experts / groups.count * groups.kept
            try require(
                open >= expertsPerToken, .invalidArgument, "groups",
                expected: "\(expertsPerToken) or more experts in the groups that stay open",
                actual: "\(open) in \(groups.kept) of \(groups.count) groups")
        }
        self.experts = experts
        self.expertsPerToken = expertsPerToken
        self.scores = scores
        self.correctionBias = correctionBias
        self.renormalizes = renormalizes
        self.scale = scale
        self.groups = groups
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { RouteTokensArguments.scratchFloats(experts: experts) * 4 }

    // MARK: - Run

    /// Routes every token.
    ///
    /// - Parameters:
    ///   - logits: `[tokens, experts]`, of any attention element type and row stride. May have no tokens.
    ///   - routing: overwritten. It keeps its memory, and allocates only when it has never held as many tokens.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for another number of columns, or a routing of other experts; `.invalidArgument` for a logit that is not
    ///   finite, naming token and expert. The routing is not changed then.
    public func run<Element: AttentionElement>(
        _ logits: MatrixView<Element>, into routing: inout ExpertRouting, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("logits", logits.columns, expected: experts)
        try require(
            routing.experts == experts && routing.expertsPerToken == expertsPerToken, .invalidShape, "routing",
            expected: "\(expertsPerToken) of \(experts) experts", actual: "\(routing.expertsPerToken) of \(routing.experts)")
        try ExpertRouting.requireTokens("logits", logits.rows, expertsPerToken: expertsPerToken)
        let operand = RowOperand(logits)
        if logits.rows > 0 {
            let largest = kernels.largestMagnitude(operand, rows: logits.rows, columns: experts)
            if !largest.isFinite { try requireFinite(logits) }
        }
        routing.prepare(tokens: logits.rows)
        if logits.rows == 0 {
            routing.sort()
            return
        }
        // Pointers are used only until this call returns, which borrows the view, the bias and the routing.
        var arguments = RouteTokensArguments(
            logits: operand, tokens: 0, experts: experts, chosen: expertsPerToken, isSigmoid: scores == .sigmoid,
            bias: correctionBias?.span.withUnsafeBufferPointer { $0.baseAddress! }, ids: routing.idPointer,
            weights: routing.weightPointer, scratch: routing.weightPointer)
        if let groups {
            arguments.groups = groups.count
            arguments.keptGroups = groups.kept
            arguments.sumsTwo = groups.strength == .sumOfTwo
        }
        arguments.normalizes = renormalizes
        arguments.scale = scale
        // A comparison takes about as long as moving four bytes.
        let tasks = RowTasks(rows: logits.rows, bytesPerRow: experts * (expertsPerToken + 16) * 4)
        pool.run(
            RouteCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks: tasks.count, work: tasks.work,
            scratchByteCount: scratchByteCount)
        routing.sort()
    }

    /// Routes every token into a routing that is reused from call to call.
    /// - Throws: the errors of `run` with a view, and `.invalidShape` for another rank.
    public func run<Element: AttentionElement>(
        _ logits: Tensor<Element>, into routing: inout ExpertRouting, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(logits.matrixView(named: "logits"), into: &routing, on: pool)
    }

    /// Routes every token, in a new routing.
    /// - Throws: the errors of `run` with a view, and `.invalidShape` for another rank.
    public func callAsFunction<Element: AttentionElement>(
        _ logits: Tensor<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> ExpertRouting {
        var routing = try ExpertRouting(experts: experts, expertsPerToken: expertsPerToken)
        try run(logits, into: &routing, on: pool)
        return routing
    }

    private func requireFinite<Element: AttentionElement>(_ logits: MatrixView<Element>) throws(SparseKernelsError) {
        for token in 0..<logits.rows {
            for expert in 0..<logits.columns {
                let value = logits[token, expert].floatValue
                try require(
                    value.isFinite, .invalidArgument, "logits", expected: "finite",
                    actual: "\(value) of token \(token) for expert \(expert)")
            }
        }
    }
}

private struct RouteCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: RouteTokensArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.logits = arguments.logits.from(first)
        part.tokens = tasks.count(task)
        part.ids = arguments.ids + first * arguments.chosen
        part.weights = arguments.weights + first * arguments.chosen
        part.scratch = scratch.assumingMemoryBound(to: Float.self)
        kernels.routeTokens(&part)
    }
}
