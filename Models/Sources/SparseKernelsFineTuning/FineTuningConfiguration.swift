import SparseKernels
import SparseKernelsModels
public import SparseLoRA

/// A linear layer of a block that an adapter can change, by its name in the block.
public enum AdapterTarget: String, Hashable, Sendable, Codable, CaseIterable {
    case query = "q_proj"
    case key = "k_proj"
    case value = "v_proj"
    case output = "o_proj"

    /// The name of the layer of a block in files.
    public func layer(block: Int) -> String { "model.layers.\(block).self_attn.\(rawValue)" }
}

/// The settings of a run that decide its bits.
///
/// The defaults are those of SparseLoRA's runs on mathematics: rank 32, α 64, no dropout, AdamW at 3·10⁻⁴ with a cosine, batches of
/// 8 × 512 tokens.
public struct FineTuningConfiguration: Hashable, Sendable, Codable {
    /// Rank of the factors.
    public var rank = 32
    /// Adapters are scaled by alpha / rank.
    public var alpha = 64.0
    /// The layers with adapters.
    public var targets = AdapterTarget.allCases
    /// Steps of the run, over which the learning rate falls to 0.
    public var steps = 300
    /// Windows of a step.
    public var batch = 8
    /// Tokens of a window.
    public var length = 512
    /// Tokens at the end of a window that count.
    public var scored = 128
    /// Windows that are held out.
    public var validation = 32
    /// The largest learning rate.
    public var learningRate = 3e-4
    /// Steps over which the learning rate rises.
    public var warmup = 0
    /// Gradients are scaled down to this norm of all of them together; nil leaves them.
    public var maximumNorm: Double? = 1
    public var weightDecay = 0.0
    /// Of the factors and the order of the windows.
    public var seed: UInt64 = 1
    /// The channels that context tokens leave out; nil trains with all of them.
    public var sparsity: SparseLoRAConfiguration?

    public init() {}

    /// Throws `.invalidArgument` for numbers out of range.
    func check(for frozen: FrozenModel) throws(SparseKernelsError) {
        let model = frozen.configuration
        func require(
            _ condition: Bool, _ name: String, _ expected: String, _ actual: some CustomStringConvertible
        ) throws(SparseKernelsError) {
            if !condition { throw SparseKernelsError(.invalidArgument, name, expected: expected, actual: "\(actual)") }
        }
        let widest = max(model.hiddenSize, model.queryHeads * model.headDim)
        try require((1...widest).contains(rank), "rank", "from 1 to \(widest)", rank)
        try require(rank == frozen.rank, "rank", "\(frozen.rank), for which the model was read", rank)
        try require(alpha > 0 && Float(alpha).isFinite, "alpha", "a number above 0", alpha)
        try require(
            !targets.isEmpty && Set(targets).count == targets.count, "targets", "one or more layers, each of them once",
            targets.map(\.rawValue))
        try require((1...1 << 40).contains(steps), "steps", "1 or more", steps)
        try require((1...1 << 16).contains(batch), "batch", "from 1 to 65536", batch)
        try require((2...1 << 24).contains(length), "length", "2 or more", length)
        try require((1...length).contains(scored), "scored", "from 1 to length (\(length))", scored)
        try require(validation >= 0, "validation", "0 or more", validation)
        try require(learningRate > 0 && learningRate.isFinite, "learningRate", "a number above 0", learningRate)
        try require((0...steps).contains(warmup), "warmup", "from 0 to steps (\(steps))", warmup)
        try require(maximumNorm.map { $0 > 0 && $0.isFinite } ?? true, "maximumNorm", "a number above 0", maximumNorm ?? 0)
        try require(weightDecay >= 0 && weightDecay.isFinite, "weightDecay", "0 or more", weightDecay)
    }
}
