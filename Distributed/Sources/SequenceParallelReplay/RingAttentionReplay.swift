internal import Communication
internal import GoldenReplay
internal import SequenceParallel
internal import SparseKernels

/// `longvila.ring_attention`: causal and full attention of 4 and 8 ranks in a ring, with shards in order and in a zigzag.
///
/// Tokens of ranks are compared exactly, outputs and LSE within 10⁻⁵ with those that the released code recorded, rank by rank, and with
/// the oracle's.
func replayRingAttention(_ golden: GoldenCase, _ set: InstructionSet) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(RingParameters.self)
    try golden.check("ranks", parameters.ranks, in: 1...64)
    let recorded = try RecordedAttention(
        golden, length: parameters.length, heads: parameters.heads, kvHeads: parameters.kvHeads, headDim: parameters.headDim)
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let shards: TokenShards =
            name.hasPrefix("zigzag")
            ? try .zigzag(length: recorded.length, ulysses: 1, ring: parameters.ranks)
            : try .contiguous(length: recorded.length, ranks: parameters.ranks)
        let states = try recorded.attend(shards, causal: variant.causal, ulysses: 1, set)
        try recorded.compareTokens("out.\(name).rank_tokens", shards, &comparison)
        try recorded.compareRanks("out.\(name)", states, shards, logSumExp: true, &comparison)
        let oracle = variant.causal ? "aux.f64_causal" : "aux.f64_full"
        try recorded.compareAll("\(oracle).o", logSumExp: "\(oracle).lse", states, shards, &comparison)
    }
    return comparison.result(golden)
}

/// `longvila.attention_2d`: causal attention of a grid, in a ring of shards in order and in the zigzag that is right.
///
/// `zigzag_released_rule` has the tokens that the released code gives each rank, and its result, which is wrong by 3.6 and more.
func replayAttention2D(_ golden: GoldenCase, _ set: InstructionSet) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(GridParameters.self)
    try golden.check("ranks", parameters.ranks, in: 1...64)
    try golden.check("ulysses", parameters.ulysses, in: 1...parameters.ranks)
    try golden.check("ring", parameters.ring, in: parameters.ranks / parameters.ulysses...parameters.ranks / parameters.ulysses)
    let recorded = try RecordedAttention(
        golden, length: parameters.length, heads: parameters.heads, kvHeads: parameters.kvHeads, headDim: parameters.headDim)
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) where variant.equalsDense == true {
        let shards: TokenShards =
            variant.type == "zigzag"
            ? try .zigzag(length: recorded.length, ulysses: parameters.ulysses, ring: parameters.ring)
            : try .contiguous(length: recorded.length, ranks: parameters.ranks)
        let states = try recorded.attend(shards, causal: parameters.causal, ulysses: parameters.ulysses, set)
        try recorded.compareTokens("out.\(name).rank_tokens", shards, &comparison)
        try recorded.compareRanks("out.\(name)", states, shards, logSumExp: false, &comparison)
        try recorded.compareAll("aux.f64_o", logSumExp: "aux.f64_lse", states, shards, &comparison)
    }
    return comparison.result(golden)
}

private struct RingParameters: Decodable {
    struct Variant: Decodable { var causal: Bool }

    var length: Int
    var headDim: Int
    var heads: Int
    var kvHeads: Int
    var ranks: Int
    var variants: [String: Variant]

    enum CodingKeys: String, CodingKey {
        case length = "N"
        case headDim = "head_dim"
        case heads
        case kvHeads = "kv_heads"
        case ranks
        case variants
    }
}

private struct GridParameters: Decodable {
    struct Variant: Decodable {
        /// Nil where the released rule leaves the sequence.
        var equalsDense: Bool?
        var type: String?

        enum CodingKeys: String, CodingKey {
            case equalsDense = "equals_dense"
            case type = "ring_type"
        }
    }

    var length: Int
    var causal: Bool
    var headDim: Int
    var heads: Int
    var kvHeads: Int
    var ranks: Int
    var ring: Int
    var ulysses: Int
    var variants: [String: Variant]

    enum CodingKeys: String, CodingKey {
        case length = "N"
        case causal
        case headDim = "head_dim"
        case heads
        case kvHeads = "kv_heads"
        case ranks
        case ring
        case ulysses
        case variants
    }
}
