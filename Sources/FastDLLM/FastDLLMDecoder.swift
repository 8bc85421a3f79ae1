public import SparseKernels

/// Fast-dLLM (Wu et al., 2025, arXiv 2505.22618): parallel decoding of masked-diffusion language models, with an approximate
/// cache of keys and values by blocks, and rules that commit several positions per forward pass where the model is confident.
///
/// ```swift
/// let decoder = try FastDLLMDecoder(FastDLLMConfiguration(blockLength: 32, rule: .threshold(0.9), cache: .dual))
/// let result = try decoder.generate(prompt, length: 64, with: &model)
/// print(result.tokens, result.forwardPasses, result.tokensPerForward)
/// ```
///
/// Any `DiffusionModel` will do. Both caches are approximations: attention has no causal limit, so keys and values of other
/// positions would change as the block fills.
///
/// - Results depend on the logits, the configuration and nothing else. They are bitwise equal for every number of threads if
///   the model's are.
/// - Complexity: a pass runs all positions, those from the block on, or those of the block; only masked positions of the block
///   are projected.
public struct FastDLLMDecoder: Sendable {
    public let configuration: FastDLLMConfiguration

    /// - Throws: `.invalidArgument` for an option out of its domain.
    public init(_ configuration: FastDLLMConfiguration = FastDLLMConfiguration()) throws(SparseKernelsError) {
        let c = configuration
        try require(c.blockLength >= 1, .invalidArgument, "blockLength", expected: "at least 1", actual: "\(c.blockLength)")
        try c.rule.validate()
        if let interval = c.refreshEvery {
            try require(interval >= 1, .invalidArgument, "refreshEvery", expected: "at least 1", actual: "\(interval)")
        }
        try require(
            c.temperature >= 0 && c.temperature.isFinite, .invalidArgument, "temperature", expected: "at least 0 and finite",
            actual: "\(c.temperature)")
        try require(c.nearTie >= 0, .invalidArgument, "nearTie", expected: "at least 0", actual: "\(c.nearTie)")
        self.configuration = configuration
    }

    /// Continues a prompt by `length` tokens.
    ///
    /// - Parameters:
    ///   - prompt: tokens without masks. With `shiftsLogits` there is at least one.
    ///   - length: a multiple of `blockLength`.
    ///   - model: the model. What it kept of other sequences is lost.
    ///   - pool: the threads to use.
    ///   - observe: called after each step.
    /// - Throws: `.invalidArgument` for a length or tokens that are refused, steps that the blocks do not divide, or a sequence
    ///   longer than the model's capacity, all before the model runs; the errors of the model; `.invalidArgument` for logits
    ///   that are not finite.
    public func generate<Model: DiffusionModel>(
        _ prompt: [Int], length: Int, with model: inout Model, on pool: WorkerPool = .shared,
        observing observe: (FastDLLMStep) -> Void = { _ in }
    ) throws(SparseKernelsError) -> FastDLLMResult {
        try require(
            length >= 0 && length.isMultiple(of: configuration.blockLength), .invalidArgument, "length",
            expected: "a multiple of blockLength (\(configuration.blockLength)), 0 or more", actual: "\(length)")
        let room = model.capacity - prompt.count
        try require(
            length <= room, .invalidArgument, "length",
            expected: "at most \(room), what a capacity of \(model.capacity) leaves of a prompt of \(prompt.count)",
            actual: "\(length)")
        return try fill(
            prompt + Array(repeating: model.maskToken, count: length), from: prompt.count, with: &model, on: pool,
            observing: observe)
    }

    /// Fills the masked positions of a sequence. Blocks without any are skipped.
    ///
    /// - Parameters:
    ///   - tokens: the whole sequence. Positions from `start` on may be masked.
    ///   - start: where the first block begins; what follows is a multiple of `blockLength`.
    ///   - model: the model. What it kept of other sequences is lost.
    ///   - pool: the threads to use.
    ///   - observe: called after each step.
    /// - Throws: as `generate`, and `.invalidArgument` for a start outside the sequence, or a mask before it.
    public func fill<Model: DiffusionModel>(
        _ tokens: [Int], from start: Int, with model: inout Model, on pool: WorkerPool = .shared,
        observing observe: (FastDLLMStep) -> Void = { _ in }
    ) throws(SparseKernelsError) -> FastDLLMResult {
        let blocks = try check(tokens, from: start, model)
        var run = try FastDLLMRun(configuration, tokens, model, steps: configuration.rule.steps.map { $0 / max(1, blocks) })
        for block in 0..<blocks {
            let first = start + block * configuration.blockLength
            try run.fill(first..<first + configuration.blockLength, with: &model, on: pool, observing: observe)
        }
        return FastDLLMResult(
            tokens: Array(run.tokens[start...]), sequence: run.tokens, steps: run.steps,
            releasedForwardPasses: run.steps.count + run.emptyPasses, nearTies: run.nearTies)
    }

    /// - Returns: the number of blocks.
    private func check<Model: DiffusionModel>(
        _ tokens: [Int], from start: Int, _ model: Model
    ) throws(SparseKernelsError) -> Int {
        let length = configuration.blockLength
        try require(
            start >= 0 && start <= tokens.count, .invalidArgument, "start",
            expected: "0 to \(tokens.count), the sequence's length",
            actual: "\(start)")
        try require(
            (tokens.count - start).isMultiple(of: length), .invalidArgument, "start",
            expected: "so that a multiple of blockLength (\(length)) follows",
            actual: "\(start), before \(tokens.count - start) positions")
        try require(
            tokens.count <= model.capacity, .invalidArgument, "tokens",
            expected: "at most \(model.capacity), the model's capacity",
            actual: "\(tokens.count)")
        try require(
            !configuration.shiftsLogits || start > 0 || tokens.isEmpty, .invalidArgument, "start",
            expected: "after at least one token, which predicts the next one with shiftsLogits", actual: "0")
        if let masked = tokens[..<start].firstIndex(of: model.maskToken) {
            throw SparseKernelsError(
                .invalidArgument, "tokens", expected: "without masks (\(model.maskToken)) before the first block",
                actual: "one at position \(masked)")
        }
        try model.check(tokens)
        let blocks = (tokens.count - start) / length
        if let steps = configuration.rule.steps, blocks > 0 {
            try require(
                steps.isMultiple(of: blocks), .invalidArgument, "rule.steps", expected: "a multiple of the \(blocks) blocks",
                actual: "\(steps)")
        }
        return blocks
    }
}
