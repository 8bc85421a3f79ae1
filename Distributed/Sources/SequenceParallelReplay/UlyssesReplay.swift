internal import Communication
internal import GoldenReplay
internal import SequenceParallel
internal import SparseKernels

/// `longvila.ulysses`: attention of ranks with unequal shards that exchange heads for tokens, with copied key/value heads where ranks
/// outnumber them.
///
/// The recorded code pads shards to the longest; here the exchange has counts. Which row a rank has after either exchange is compared
/// exactly, outputs within 10⁻⁵.
func replayUlysses(_ golden: GoldenCase, _ set: InstructionSet) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(UlyssesParameters.self)
    let ranks = parameters.ulysses
    try golden.check("ulysses", ranks, in: 1...64)
    let recorded = try RecordedAttention(
        golden, length: parameters.length, heads: parameters.heads, kvHeads: parameters.kvHeads, headDim: parameters.headDim)
    let shards = try TokenShards.contiguous(lengths: try golden.integers("in.shard_lengths", [ranks]))
    try golden.check("in.shard_lengths", [shards.length], [recorded.length])
    var comparison = GoldenComparison()
    let states = try recorded.attend(shards, causal: parameters.causal, ulysses: ranks, set)
    try recorded.compareAll("out.ulysses.o", logSumExp: nil, states, shards, &comparison)
    try recorded.compareAll("aux.f64_o", logSumExp: nil, states, shards, &comparison)

    let ids = try exchange(shards, heads: parameters.heads)
    comparison.compare(
        "out.a2a.forward_ids", ids.flatMap(\.there),
        try golden.integers("out.a2a.forward_ids", [ranks, recorded.length, parameters.heads / ranks]))
    for rank in 0..<ranks {
        let name = "out.a2a.back_ids_rank\(rank)"
        comparison.compare(
            name, ids[rank].back, try golden.integers(name, [shards.count(of: rank), parameters.heads]))
    }
    return comparison.result(golden)
}

/// The rows that each rank has after both exchanges. A row of a token and head is the number token · heads + head.
private func exchange(
    _ shards: TokenShards, heads: Int
) throws(SparseKernelsError) -> [(there: [Int], back: [Int])] {
    let count = shards.ranks
    let local = heads / count
    return try LocalCommunicator.run(ranks: count, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
        let own = shards.positions(of: ranks.rank)
        let rows = (0..<count).map { shards.count(of: $0) }
        // A peer's part: its heads of this rank's tokens.
        let parts = (0..<count).flatMap { peer in
            own.flatMap { token in (0..<local).map { token * heads + peer * local + $0 } }
        }
        let (sent, received) = (try buffer(parts), try MessageBuffer(of: Int.self, count: shards.length * local))
        let (toEach, fromEach) = (rows.map { _ in own.count * local * 8 }, rows.map { $0 * local * 8 })
        try ranks.allToAll(from: sent, counts: toEach, into: received, counts: fromEach)
        let home = try MessageBuffer(of: Int.self, count: parts.count)
        try ranks.allToAll(from: received, counts: fromEach, into: home, counts: toEach)
        let (there, back) = (received.elements(Int.self), home.elements(Int.self))
        // Heads of a token come from all ranks.
        let byToken = own.indices.flatMap { row in
            (0..<heads).map { back[($0 / local * own.count + row) * local + $0 % local] }
        }
        return (there.indices.map { there[$0] }, byToken)
    }
}

private func buffer(_ values: [Int]) throws(SparseKernelsError) -> MessageBuffer {
    let buffer = try MessageBuffer(of: Int.self, count: values.count)
    var elements = buffer.mutableElements(Int.self)
    for index in values.indices { elements[index] = values[index] }
    return buffer
}

private struct UlyssesParameters: Decodable {
    var length: Int
    var causal: Bool
    var headDim: Int
    var heads: Int
    var kvHeads: Int
    var ulysses: Int

    enum CodingKeys: String, CodingKey {
        case length = "N"
        case causal
        case headDim = "head_dim"
        case heads
        case kvHeads = "kv_heads"
        case ulysses
    }
}
