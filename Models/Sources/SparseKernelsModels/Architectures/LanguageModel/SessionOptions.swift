public import SparseKernels

/// The attention of a prompt: which keys its queries see. All methods are causal, see the tokens that the cache already has, and
/// leave layers with a sliding window alone.
public enum PrefillMethod: Hashable, Sendable {
    /// All keys.
    case dense
    /// XAttention: blocks with most of the mass, as estimated from antidiagonals. `threshold` is the mass to keep, 0…1; `stride`
    /// divides 128.
    case xAttention(threshold: Double, stride: Int = 16)
    /// MInference: the `vertical` keys and the `slash` distances with the most attention of the last 64 queries.
    case mInference(vertical: Int, slash: Int)
    /// SpargeAttention: the part of the key blocks that each query block keeps, predicted from block means.
    case sparge(keepRatio: Double)
    /// The first `sink` keys and the `local` ones that end at the query.
    case streaming(sink: Int, local: Int)
    /// LServe: retrieval heads see all keys, streaming heads the first `sink` ones and the `local` ones that end at the query.
    case lServe(sink: Int = 128, local: Int = 8192)

    /// Whether blocks of queries choose their keys together, by an estimate. The others say what each query sees.
    var estimatesByBlocks: Bool {
        switch self {
        case .xAttention, .mInference, .sparge: true
        case .dense, .streaming, .lServe: false
        }
    }
}

/// The attention of decoding: which tokens the query of a step reads. Layers with a sliding window read their window.
public enum DecodingMethod: Hashable, Sendable {
    /// All tokens.
    case dense
    /// The first `sink` tokens and the `local` ones that end at the query.
    case streaming(sink: Int, local: Int)
    /// Quest: the pages with the highest bounds, up to `tokens` tokens.
    case quest(tokens: Int)
    /// Twilight: of Quest's pages of `tokens` tokens, the tokens that hold a fraction `topP` of the attention mass.
    case twilight(tokens: Int, topP: Double)
    /// LServe: retrieval heads read pages of up to `tokens` tokens, selected every `interval` steps; streaming heads a sink and
    /// a window.
    case lServe(tokens: Int, interval: Int = 4)
    /// Polar Sparsity: the model's routers choose `heads` heads for every sequence, query heads or key/value heads as the routers are.
    /// The first layer is dense.
    case polar(heads: Int)
}

/// How a session caches and attends. The defaults are exact attention over keys and values in half precision.
public struct SessionOptions: Hashable, Sendable {
    public var prefill = PrefillMethod.dense
    public var decoding = DecodingMethod.dense
    /// How keys and values are stored.
    public var keyFormat = KVFormat.float16
    public var valueFormat = KVFormat.float16
    /// What the codes of INT8 and INT4 stand for.
    public var quantization = KVQuantization.leastSquares
    /// Whether keys are stored rotated by a Hadamard matrix per head, which spreads outliers over the channels. Queries are
    /// rotated as well, so that scores stay as they are.
    public var rotatesKeys = false
    /// Whether values are stored rotated by a Hadamard matrix per head. The output of attention is rotated back.
    public var rotatesValues = false
    /// Tokens of all sequences together, at least 1.
    public var tokenCapacity = 4096
    /// Sequences at the same time, at least 1. Each may take a partly filled page beyond `tokenCapacity`.
    public var sequenceCapacity = 8
    /// Checkpoints of recurrent states at the same time, 0 or more. It matters to models with recurrent layers only.
    public var checkpointCapacity = 8
    /// The most tokens of a pass: longer prompts go through the model in chunks.
    public var chunk = 1024
    /// Tokens of a page of the cache; nil means 16 for Quest and Twilight, and 64 for other methods.
    public var pageSize: Int?
    /// Layers, from the first on, that stay dense with a sparse method of prefill or decoding.
    public var denseLayers = 0
    /// The last tokens of a prompt whose queries see all keys where the method estimates from blocks of queries: XAttention,
    /// MInference and SpargeAttention. A prompt often ends in a question, and what few of the 128 queries of a block look for
    /// disappears in the block's estimate. 64 queries cost less than one percent of the pairs of a long prompt. 0 is the method as
    /// published.
    public var denseTail = 64
    /// For every layer, whether each KV head is a retrieval head. It matters to LServe only; nil means that all are.
    public var retrievalHeads: [[Bool]]?

    public init(
        prefill: PrefillMethod = .dense, decoding: DecodingMethod = .dense, keyFormat: KVFormat = .float16,
        valueFormat: KVFormat = .float16, tokenCapacity: Int = 4096
    ) {
        self.prefill = prefill
        self.decoding = decoding
        self.keyFormat = keyFormat
        self.valueFormat = valueFormat
        self.tokenCapacity = tokenCapacity
    }
}
