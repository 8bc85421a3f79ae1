import SparseKernels
import SparseKernelsModels
import SparseLoRA

/// What the backward pass of a block needs from the forward pass. Rows are tokens, sequence by sequence.
struct BlockTape {
    /// `[rows, hiddenSize]`: the residual stream before attention and before the MLP.
    var attentionInput: Tensor<Float>
    var innerInput: Tensor<Float>
    /// Both of them, normalised.
    var normalized: Tensor<Float>
    var innerNormalized: Tensor<Float>
    /// `[rows, heads · headDim]`: queries and keys after the rotation, values, and the output of attention.
    var query: Tensor<Float>
    var key: Tensor<Float>
    var value: Tensor<Float>
    var attended: Tensor<Float>
    /// `[sequences, queryHeads, length]`.
    var logSumExp: Tensor<Float>
    var queryTape = SparseProjection.Tape()
    var keyTape = SparseProjection.Tape()
    var valueTape = SparseProjection.Tape()
    var outputTape = SparseProjection.Tape()
    var mlpTape = SparseMLP.Tape()
    /// The channels of the context of this pass.
    var channels = BlockChannels()

    init(_ c: LanguageModelConfiguration, rows: Int) throws(SparseKernelsError) {
        let (hidden, queries, keys) = (c.hiddenSize, c.queryHeads * c.headDim, c.kvHeads * c.headDim)
        attentionInput = try Tensor(zeros: [rows, hidden])
        innerInput = try Tensor(zeros: [rows, hidden])
        normalized = try Tensor(zeros: [rows, hidden])
        innerNormalized = try Tensor(zeros: [rows, hidden])
        query = try Tensor(zeros: [rows, queries])
        key = try Tensor(zeros: [rows, keys])
        value = try Tensor(zeros: [rows, keys])
        attended = try Tensor(zeros: [rows, queries])
        logSumExp = try Tensor(zeros: [rows * c.queryHeads])
    }
}

/// The channels that context tokens have in a block; nil for all of them.
struct BlockChannels {
    var mlp: ChannelSubset?
    var attention: AttentionChannels?
}

/// The memory of passes, which blocks use one after the other.
struct TrainingWorkspace {
    /// `[rows, hiddenSize]`: the residual stream; then its gradient.
    var hidden: Tensor<Float>
    /// What attention or an MLP adds; then the gradient of its input.
    var update: Tensor<Float>
    /// Gradients of queries, keys, values and the output of attention.
    var query: Tensor<Float>
    var key: Tensor<Float>
    var value: Tensor<Float>
    var attended: Tensor<Float>
    /// `[rows, hiddenSize]` and `[rows, vocabularySize]`, of the rows that count, for a part of them.
    var scored: Tensor<Float>
    var scoredUpdate: Tensor<Float>
    var scoredNormalized: Tensor<Float>
    var logits: Tensor<Float>
    var logitGradient: Tensor<Float>

    /// Picked columns, and what MLPs need.
    var buffers = SparseLoRAWorkspace()

    /// Rows that count whose logits are computed at once: about 64 MiB of them.
    let headRows: Int

    init(_ c: LanguageModelConfiguration, rows: Int, scored count: Int) throws(SparseKernelsError) {
        let (hidden, queries, keys) = (c.hiddenSize, c.queryHeads * c.headDim, c.kvHeads * c.headDim)
        self.hidden = try Tensor(zeros: [rows, hidden])
        update = try Tensor(zeros: [rows, hidden])
        query = try Tensor(zeros: [rows, queries])
        key = try Tensor(zeros: [rows, keys])
        value = try Tensor(zeros: [rows, keys])
        attended = try Tensor(zeros: [rows, queries])
        headRows = max(1, min(count, (1 << 24) / c.vocabularySize))
        scored = try Tensor(zeros: [headRows, hidden])
        scoredUpdate = try Tensor(zeros: [headRows, hidden])
        scoredNormalized = try Tensor(zeros: [headRows, hidden])
        logits = try Tensor(zeros: [headRows, c.vocabularySize])
        logitGradient = try Tensor(zeros: [headRows, c.vocabularySize])
    }
}

extension BlockTape {
    var byteCount: Int {
        let rows = [attentionInput, innerInput, normalized, innerNormalized, query, key, value, attended, logSumExp]
        return 4 * rows.reduce(0) { $0 + $1.count } + mlpTape.byteCount
    }
}

extension TrainingWorkspace {
    var byteCount: Int {
        let all = [hidden, update, query, key, value, attended, scored, scoredUpdate, scoredNormalized, logits, logitGradient]
        return 4 * all.reduce(0) { $0 + $1.count } + buffers.byteCount
    }
}
