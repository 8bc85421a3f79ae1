internal import Communication
internal import GoldenReplay
internal import SequenceParallel
internal import SparseKernels

/// `longvila.reshard`: rows of a batch move from the ranks that encoded them to those of the model.
///
/// Each row carries its token's number, and each sample is a sequence of its own. The recorded code pads samples to the longest shard;
/// here rows are compared without their padding.
///
/// | recorded | compared with |
/// |---|---|
/// | `ring_varlen` | shards in order |
/// | `ulysses_only` | shards in order, of the lengths that the released code cuts from the padded batch |
/// | `zigzag_ring_only` | the zigzag; of a sample whose last tokens the released code drops, the zigzag of the others |
/// | `zigzag_*` with groups above 1 | the zigzag that is right, not the recorded one: every token arrives once, in its place |
func replayReshard(_ golden: GoldenCase, _ set: InstructionSet) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(ReshardParameters.self)
    let (ranks, batch) = (parameters.ranks, parameters.batch)
    try golden.check("ranks", ranks, in: 1...64)
    try golden.check("batch", batch, in: 1...64)
    let lengths = try golden.integers("in.effective_lengths", [batch, ranks])
    let totals = (0..<batch).map { lengths[$0 * ranks..<($0 + 1) * ranks].reduce(0, +) }
    try golden.check("totals", parameters.totals, totals)
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let ring = variant.ring
        try golden.check("ring_degree of \(name)", ring, in: 1...ranks)
        try golden.check("every_token_once of \(name)", variant.isComplete.count, in: batch...batch)
        for sample in 0..<batch {
            let source = try TokenShards.contiguous(lengths: Array(lengths[sample * ranks..<(sample + 1) * ranks]))
            let target: TokenShards
            if variant.type == "zigzag_ring_varlen" {
                target = try .zigzag(length: totals[sample], ulysses: ranks / ring, ring: ring)
            } else if variant.type == nil {
                let rows = ((totals.max() ?? 0) + ranks - 1) / ranks
                target = try .contiguous(lengths: (0..<ranks).map { max(0, min(rows, totals[sample] - $0 * rows)) })
            } else {
                target = try .contiguous(length: totals[sample], ranks: ranks)
            }
            let moved = try move(source, target)
            let expected = try recorded(golden, name, variant, sample, batch, ranks, target)
            for rank in 0..<ranks {
                let label = "\(name), sample \(sample), rank \(rank)"
                comparison.compare(label, moved[rank], target.positions(of: rank))
                guard let rows = expected else { continue }
                comparison.compare("out.\(label)", rows.ours[rank], rows.recorded[rank])
            }
        }
    }
    return comparison.result(golden)
}

/// The tokens that each rank has after an exchange, each row with its token's number.
private func move(_ source: TokenShards, _ target: TokenShards) throws(SparseKernelsError) -> [[Int]] {
    try LocalCommunicator.run(ranks: source.ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
        let exchange = try TokenExchange(from: source, to: target, rowByteCount: 4, on: ranks)
        let rows = source.positions(of: ranks.rank).map { Int32($0) }
        let moved = try exchange(Tensor([rows.count, 1], rows))
        return (0..<moved.count).map { Int(moved[flat: $0]) }
    }
}

/// The recorded tokens of each rank and those that are to be the same; nil where the recorded ones are wrong.
private func recorded(
    _ golden: GoldenCase, _ name: String, _ variant: ReshardParameters.Variant, _ sample: Int, _ batch: Int, _ ranks: Int,
    _ target: TokenShards
) throws(SparseKernelsError) -> (ours: [[Int]], recorded: [[Int]])? {
    if variant.type == "zigzag_ring_varlen" && variant.ring != ranks { return nil }
    var ours = target
    if !variant.isComplete[sample] {
        ours = try .zigzag(length: target.length / (2 * ranks) * (2 * ranks), ulysses: 1, ring: ranks)
    }
    var rows: [[Int]] = []
    for rank in 0..<ranks {
        let tokens = try golden.integers("out.\(name).tokens_rank\(rank)")
        let width = tokens.count / batch
        rows.append(tokens[sample * width..<(sample + 1) * width].filter { $0 >= 0 })
    }
    return ((0..<ranks).map(ours.positions), rows)
}

private struct ReshardParameters: Decodable {
    struct Variant: Decodable {
        var isComplete: [Bool]
        var ring: Int
        var type: String?

        enum CodingKeys: String, CodingKey {
            case isComplete = "every_token_once"
            case ring = "ring_degree"
            case type = "ring_type"
        }
    }

    var batch: Int
    var ranks: Int
    var totals: [Int]
    var variants: [String: Variant]
}
