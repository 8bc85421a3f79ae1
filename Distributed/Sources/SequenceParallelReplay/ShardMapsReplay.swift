internal import GoldenReplay
internal import SequenceParallel
internal import SparseKernels

/// `longvila.shard_maps`: which rank has which tokens.
///
/// `extract_local_from_list` is ``TokenShards/contiguous(length:ranks:alignment:)``, and `…_zigzag` is
/// ``TokenShards/zigzag(length:ulysses:ring:alignment:)``, for any length. `extract_local` is the same where the length divides; where it
/// does not, the released code cuts chunks that are rounded up, which gives ranks of 8 and of 14 tokens, or fails. Its shards are compared
/// as ranges that somebody gives. `img_*` are the frames and prompt tokens of the first stage, and the positions after encoding.
func replayShardMaps(_ golden: GoldenCase, _ set: InstructionSet) throws(SparseKernelsError) -> GoldenResult {
    var comparison = GoldenComparison()
    let variants = try golden.parameters(ShardMapsParameters.self).variants
    for name in variants.keys.sorted() {
        let variant = variants[name]!
        try golden.check("ranks", variant.ranks, in: 1...1024)
        if let images = variant.images {
            try compareStages(golden, name, variant, images: images, &comparison)
        } else if let length = variant.length {
            try golden.check("N", length, in: 0...1 << 20)
            try compareCuts(golden, name, length: length, ranks: variant.ranks, &comparison)
        }
    }
    return comparison.result(golden)
}

private func compareCuts(
    _ golden: GoldenCase, _ name: String, length: Int, ranks: Int, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let ordered = try TokenShards.contiguous(length: length, ranks: ranks)
    let zigzag = try TokenShards.zigzag(length: length, ulysses: 1, ring: ranks)
    // Chunks as the released code cuts them: all of them rounded up but the last.
    let chunk = (length + 2 * ranks - 1) / (2 * ranks)
    let roundedUp = try? TokenShards(
        length: length,
        ranges: (0..<ranks).map { rank in
            [rank, 2 * ranks - 1 - rank].map { min(length, $0 * chunk)..<min(length, ($0 + 1) * chunk) }
        })
    for rank in 0..<ranks {
        let list = "out.\(name).extract_local_from_list"
        comparison.compare(
            "\(list)_rank\(rank)", ordered.positions(of: rank), try golden.integers("\(list)_rank\(rank)"))
        comparison.compare(
            "\(list)_zigzag_rank\(rank)", zigzag.positions(of: rank), try golden.integers("\(list)_zigzag_rank\(rank)"))
        let local = "out.\(name).extract_local_rank\(rank)"
        if golden.file[local] != nil, let shards = length % (2 * ranks) == 0 ? zigzag : roundedUp {
            comparison.compare(local, shards.positions(of: rank), try golden.integers(local))
        }
    }
}

private func compareStages(
    _ golden: GoldenCase, _ name: String, _ variant: ShardMapsParameters.Variant, images: Int,
    _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let places = try golden.integers("in.\(name).image_positions", [images])
    let stages = try TwoStageSharding(
        promptLength: variant.promptLength ?? 0, placeholders: places,
        // The recorded code counts the tokens that come in addition to the placeholder.
        frameTokens: places.map { _ in (variant.imageTokens ?? 0) + 1 }, ulysses: 1, ring: variant.ranks)
    comparison.compare("\(name).expanded_len", [stages.encoded.length], [variant.expandedLength ?? 0])
    for rank in 0..<variant.ranks {
        let (ids, positions) = ("out.\(name).input_ids_rank\(rank)", "out.\(name).position_ids_rank\(rank)")
        comparison.compare(ids, Array(stages.prompt[rank]), try golden.integers(ids))
        comparison.compare(positions, stages.encoded.positions(of: rank), try golden.integers(positions))
    }
}

private struct ShardMapsParameters: Decodable {
    struct Variant: Decodable {
        var ranks: Int
        var length: Int?
        var images: Int?
        var imageTokens: Int?
        var promptLength: Int?
        var expandedLength: Int?

        enum CodingKeys: String, CodingKey {
            case ranks
            case length = "N"
            case images
            case imageTokens = "image_token_len"
            case promptLength = "text_len"
            case expandedLength = "expanded_len"
        }
    }

    var variants: [String: Variant]
}
