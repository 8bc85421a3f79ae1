internal import Communication
internal import GoldenReplay
internal import SequenceParallel
internal import SparseKernels

/// The operands of a recorded attention over ranks, and comparisons with what was recorded.
struct RecordedAttention: Sendable {
    let golden: GoldenCase
    let length: Int
    let heads: Int
    let kvHeads: Int
    let headDim: Int
    /// `[heads, tokens, channels]`, of all ranks.
    let query, key, value: Tensor<Float>

    /// The bound of outputs and LSE that the recording states.
    private static let bound = 1e-5

    init(
        _ golden: GoldenCase, length: Int, heads: Int, kvHeads: Int, headDim: Int
    ) throws(SparseKernelsError) {
        (self.golden, self.length, self.heads, self.kvHeads, self.headDim) = (golden, length, heads, kvHeads, headDim)
        query = try golden.file.floatTensor("in.q")
        key = try golden.file.floatTensor("in.k")
        value = try golden.file.floatTensor("in.v")
        try golden.check("in.q", query.shape, [heads, length, headDim])
        try golden.check("in.k", key.shape, [kvHeads, length, headDim])
        try golden.check("in.v", value.shape, [kvHeads, length, headDim])
    }

    /// What each rank computes for its tokens. Ranks are threads.
    func attend(
        _ shards: TokenShards, causal: Bool, ulysses: Int, _ set: InstructionSet
    ) throws(SparseKernelsError) -> [AttentionState] {
        try LocalCommunicator.run(ranks: shards.ranks, timeLimit: 120) { (ranks) throws(SparseKernelsError) in
            let attention = try SequenceParallelAttention(
                shards, queryHeads: heads, kvHeads: kvHeads, headDim: headDim, mask: causal ? .causal : .full,
                ulysses: ulysses, instructionSet: set, on: ranks)
            return try attention(
                query: rows(query, shards, ranks.rank), key: rows(key, shards, ranks.rank),
                value: rows(value, shards, ranks.rank), on: .serial)
        }
    }

    /// The rows of a rank's tokens, `[heads, own tokens, channels]`.
    private func rows(_ tensor: Tensor<Float>, _ shards: TokenShards, _ rank: Int) throws(SparseKernelsError) -> Tensor<Float> {
        let tokens = shards.positions(of: rank)
        let channels = tensor.shape[2]
        return try Tensor([tensor.shape[0], tokens.count, channels]) { index in
            let (row, channel) = index.quotientAndRemainder(dividingBy: channels)
            let (head, token) = row.quotientAndRemainder(dividingBy: tokens.count)
            return tensor[flat: (head * length + tokens[token]) * channels + channel]
        }
    }

    // MARK: - Comparisons

    /// Compares a recorded list of every rank's tokens, which all have the same number of.
    func compareTokens(_ name: String, _ shards: TokenShards, _ comparison: inout GoldenComparison) throws(SparseKernelsError) {
        let tokens = try golden.integers(name, [shards.ranks, length / shards.ranks])
        comparison.compare(name, (0..<shards.ranks).flatMap(shards.positions), tokens)
    }

    /// Compares outputs that were recorded rank by rank, `[rank, head, own token, channel]`.
    func compareRanks(
        _ name: String, _ states: [AttentionState], _ shards: TokenShards, logSumExp: Bool, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        let count = length / shards.ranks
        let output = try golden.file.tensor("\(name).o", as: Float.self)
        try golden.check("\(name).o", output.shape, [shards.ranks, heads, count, headDim])
        compare("\(name).o", states.flatMap(\.output.elements), output.elements, &comparison)
        if !logSumExp { return }
        let logs = try golden.file.tensor("\(name).lse", as: Float.self)
        try golden.check("\(name).lse", logs.shape, [shards.ranks, heads, count])
        compare("\(name).lse", states.flatMap(\.logSumExp.elements), logs.elements, &comparison)
    }

    /// Compares outputs of the whole sequence, `[head, token, channel]`.
    func compareAll(
        _ name: String, logSumExp: String?, _ states: [AttentionState], _ shards: TokenShards,
        _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        let output = try golden.file.tensor(name, as: Float.self)
        try golden.check(name, output.shape, [heads, length, headDim])
        let logs: Tensor<Float>? = if let logSumExp { try golden.file.tensor(logSumExp, as: Float.self) } else { nil }
        if let logs { try golden.check(logSumExp ?? "", logs.shape, [heads, length]) }
        for rank in 0..<shards.ranks {
            let (tokens, state) = (shards.positions(of: rank), states[rank])
            for head in 0..<heads {
                for (row, token) in tokens.enumerated() {
                    for channel in 0..<headDim {
                        comparison.compare(
                            "\(name)[\(head), \(token), \(channel)]", actual: Double(state.output[head, row, channel]),
                            expected: Double(output[head, token, channel]), bound: Self.bound)
                    }
                    guard let logs else { continue }
                    comparison.compare(
                        "\(logSumExp ?? "")[\(head), \(token)]", actual: Double(state.logSumExp[head, row]),
                        expected: Double(logs[head, token]), bound: Self.bound)
                }
            }
        }
    }

    private func compare(
        _ name: String, _ actual: [Float], _ expected: [Float], _ comparison: inout GoldenComparison
    ) {
        for index in actual.indices {
            comparison.compare(
                "\(name)[\(index)]", actual: Double(actual[index]), expected: Double(expected[index]), bound: Self.bound)
        }
    }
}
