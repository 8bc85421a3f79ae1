internal import DraftAttention
internal import SparseKernels

/// `draft.attention`: the order of tokens, the draft map, the masks and the output.
///
/// Tolerances, as recorded with the cases: indices equal; the map within 10⁻⁶ of exact arithmetic, and where the released map
/// is further from it, by as much; masks equal, but for near-ties at the threshold of a head; outputs within 10⁻⁵ of exact
/// arithmetic, and of the released output by what that deviates from it in addition.
///
/// Masks are made twice. From the recorded map they must equal the recorded masks exactly. From queries and keys an entry may
/// differ if it is within 2·10⁻⁶ of the threshold, because both may be off by 10⁻⁶. Attention runs on the recorded masks.
func replayDraftAttention(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(DraftParameters.self)
    let query = try golden.file.floatTensor("in.q")
    let key = try golden.file.floatTensor("in.k")
    let value = try golden.file.floatTensor("in.v")
    let shape = try AttentionShape(query: query, key: key, value: value)
    let geometry = try VideoGeometry(
        frames: parameters.frames, height: parameters.height, width: parameters.width, textTokens: parameters.text,
        textPlacement: .after)
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let draft = try DraftAttentionVideo(
            shape, geometry: geometry,
            DraftAttentionConfiguration(
                sparsity: variant.sparsity, windowHeight: parameters.windowHeight, windowWidth: parameters.windowWidth,
                isReleased: true), instructionSet: instructionSet)
        let (heads, windows, blocks) = (shape.queryHeads, draft.windows.count, draft.grid.blockRows)
        for (indices, order) in [("out.reorg_idx", draft.permutation), ("out.restore_idx", draft.permutation.inverse)] {
            let expected = try golden.rows(indices, [geometry.tokens])[0]
            comparison.compare(indices, order.order(head: 0).map { Double($0) }, expected)
        }

        let map = try draft.draftMap(query: query, key: key, on: pool)
        let released = try golden.file.floatTensor("out.draft_map")
        try golden.check("out.draft_map", released.shape, [heads, windows, windows])
        let exact = try golden.file.tensor("aux.f64_draft_map", as: Double.self)
        try golden.check("aux.f64_draft_map", exact.shape, released.shape)
        for index in 0..<exact.count {
            let (actual, value) = (Double(map.values[flat: index]), exact[flat: index])
            comparison.compare("aux.f64_draft_map[\(index)]", actual: actual, expected: value, bound: 1e-6)
            let official = Double(released[flat: index])
            comparison.compare(
                "out.draft_map[\(index)]", actual: actual, expected: official, bound: 1e-6 + abs(official - value))
        }

        let mask = try draft.mask(BlockScores(grid: map.grid, values: released), on: pool)
        let videoMask = try golden.file.tensor("out.\(name).video_mask", as: UInt8.self)
        try golden.check("out.\(name).video_mask", videoMask.shape, released.shape)
        let blockMask = try golden.file.tensor("out.\(name).block_mask", as: UInt8.self)
        try golden.check("out.\(name).block_mask", blockMask.shape, [heads, blocks, blocks])
        comparison.compare("out.\(name).block_mask", mask, with: blockMask)
        let exactMask = try golden.file.tensor("aux.\(name).f64_video_mask", as: UInt8.self)
        try golden.check("aux.\(name).f64_video_mask", exactMask.shape, released.shape)
        let own = try draft.mask(map, on: pool)
        for head in 0..<heads {
            let entries = head * windows * windows..<(head + 1) * windows * windows
            // The threshold is the smallest entry that exact arithmetic keeps.
            let threshold = entries.lazy.filter { exactMask[flat: $0] != 0 }.map { exact[flat: $0] }.min() ?? .infinity
            for index in entries {
                let (row, column) = ((index - entries.lowerBound) / windows, (index - entries.lowerBound) % windows)
                comparison.compare(
                    "out.\(name).video_mask[\(index)]", actual: mask[head, row, column] ? 1 : 0,
                    expected: videoMask[flat: index] == 0 ? 0 : 1, bound: 0)
                if abs(exact[flat: index] - threshold) <= 2e-6 { continue }
                comparison.compare(
                    "aux.\(name).f64_video_mask[\(index)]", actual: own[head, row, column] ? 1 : 0,
                    expected: exactMask[flat: index] == 0 ? 0 : 1, bound: 0)
            }
        }

        let state = try draft.attention(over: BlockMask(grid: draft.grid, booleans: blockMask))(
            query: query, key: key, value: value, on: pool)
        try comparison.compare(golden, state.output, exact: "aux.\(name).f64_o", released: "out.\(name).o")
    }
    return comparison.result(golden)
}

extension GoldenComparison {
    /// Compares an output with one in exact arithmetic, within 10⁻⁵, and with the released one, within what that deviates from
    /// exact arithmetic in addition.
    fileprivate mutating func compare(
        _ golden: GoldenCase, _ output: Tensor<Float>, exact: String, released: String
    ) throws(SparseKernelsError) {
        let expected = try golden.file.floatTensor(exact)
        let official = try golden.file.floatTensor(released)
        try golden.check(exact, expected.shape, output.shape)
        try golden.check(released, official.shape, output.shape)
        for index in 0..<output.count {
            let (actual, value) = (Double(output[flat: index]), Double(expected[flat: index]))
            compare("\(exact)[\(index)]", actual: actual, expected: value, bound: 1e-5)
            let other = Double(official[flat: index])
            compare("\(released)[\(index)]", actual: actual, expected: other, bound: 1e-5 + abs(other - value))
        }
    }
}

private struct DraftParameters: Decodable {
    struct Variant: Decodable {
        var sparsity: Double
    }
    var frames: Int
    var height: Int
    var width: Int
    var text: Int
    var windowHeight: Int
    var windowWidth: Int
    var variants: [String: Variant]

    enum CodingKeys: String, CodingKey {
        case frames, variants
        case height = "latent_h"
        case width = "latent_w"
        case text = "text_len"
        case windowHeight = "pool_h"
        case windowWidth = "pool_w"
    }
}
