internal import Foundation
internal import SpargeAttention
internal import SparseKernels

/// `spargeattn.block_map`: INT8 codes, block means, self-similarity and the block map. Every stage starts from official
/// results.
///
/// Tolerances, as recorded with the cases: codes equal unless the quotient is within 1e-5 of a half; scales 1e-6 relative;
/// means one unit in the last place of the element type; similar flags equal unless the similarity is within 1e-3 of the
/// threshold.
///
/// The block map from the released means and flags must be exactly equal to `aux.…f64_block_map`, which is the same rule in
/// float64. The released map is computed from 16-bit scores, probabilities and running sums, so it differs in some blocks, each
/// of which must be a near-tie. Let u be the unit roundoff of the type. A score of magnitude at most M is rounded twice
/// (product, scale), so two scores within σ = 2·(2uM) + 2u of each other may be swapped, where the last term is for rounded
/// probabilities. A running sum of r probabilities may be off by μ = (√r + 4M)·u. A differing block passes when some block
/// within σ of its score is at the boundary: for a kept ratio on its other side, for a mass with a running sum within μ of it.
func replaySpargeBlockMap(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let type = try golden.file.entry(named: "in.q").elementType
    switch type {
    case .bfloat16:
        var replay = try SpargeReplay<BFloat16>(golden, instructionSet, pool, unitRoundoff: 0x1p-8)
        return try replay.run()
    #if !(os(macOS) && arch(x86_64))
        case .float16:
            var replay = try SpargeReplay<Float16>(golden, instructionSet, pool, unitRoundoff: 0x1p-11)
            return try replay.run()
    #endif
    default:
        throw SparseKernelsError(
            .invalidElementType, "in.q of \(golden.name)", expected: "F16 or BF16", actual: type.rawValue)
    }
}

private struct SpargeParameters: Decodable {
    struct Variant: Decodable {
        var queryBlockSize: Int
        var keyBlockSize: Int
        var attentionSink: Bool
        var causal: Bool
        var mode: String
        var similarityThreshold: Float
        var value: Double

        enum CodingKeys: String, CodingKey {
            case queryBlockSize = "BLKQ"
            case keyBlockSize = "BLKK"
            case attentionSink = "attention_sink"
            case causal, mode, value
            case similarityThreshold = "simthreshd1"
        }
    }
    var variants: [String: Variant]
    var quantisationBlocks: [String: Int]

    enum CodingKeys: String, CodingKey {
        case variants
        case quantisationBlocks = "quant_blocks"
    }
}

private struct SpargeReplay<Element: AttentionElement> {
    let golden: GoldenCase
    let instructionSet: InstructionSet
    let pool: WorkerPool
    let unitRoundoff: Double
    let parameters: SpargeParameters
    let query: Tensor<Element>
    let key: Tensor<Element>
    /// `[heads, 1, headDim]`, from the file.
    let keyMean: Tensor<Float>
    var comparison = GoldenComparison()

    init(
        _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool, unitRoundoff: Double
    ) throws(SparseKernelsError) {
        self.golden = golden
        self.instructionSet = instructionSet
        self.pool = pool
        self.unitRoundoff = unitRoundoff
        parameters = try golden.parameters(SpargeParameters.self)
        query = try golden.file.tensor("in.q", as: Element.self)
        key = try golden.file.tensor("in.k", as: Element.self)
        keyMean = try golden.file.floatTensor("out.k_mean")
    }

    mutating func run() throws(SparseKernelsError) -> GoldenResult {
        let mean = try SelfSimilarity.tokenMean(key, roundsAsReleased: true, instructionSet: instructionSet, on: pool)
        try compareValues("out.k_mean", mean, ulps: 1)
        try compareCodes("q", query, mean: nil)
        try compareCodes("k", key, mean: keyMean)
        for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
            let grid = try BlockGrid(
                queryLength: query.shape[1], keyLength: key.shape[1], queryBlockSize: variant.queryBlockSize,
                keyBlockSize: variant.keyBlockSize, isCausal: variant.causal)
            let queries = try compareSummary("q", query, grid.query, mean: nil, name, variant)
            let keys = try compareSummary("k", key, grid.key, mean: keyMean, name, variant)
            try compareMaps(name, variant, grid: grid, queries: queries, keys: keys)
        }
        return comparison.result(golden)
    }

    /// Compares values of the element type, whose unit in the last place is at most 2u of the value.
    private mutating func compareValues(
        _ name: String, _ actual: Tensor<Float>, ulps: Double
    ) throws(SparseKernelsError) {
        let expected = try checked(golden.file.floatTensor(name), name, actual.shape)
        for index in 0..<expected.count {
            let value = Double(expected[flat: index])
            comparison.compare(
                "\(name)[\(index)]", actual: Double(actual[flat: index]), expected: value,
                bound: ulps * 2 * unitRoundoff * abs(value))
        }
    }

    private mutating func compareCodes(
        _ side: String, _ rows: Tensor<Element>, mean: Tensor<Float>?
    ) throws(SparseKernelsError) {
        guard let blockSize = parameters.quantisationBlocks[side] else {
            throw SparseKernelsError(
                .malformedFile, "params of \(golden.name)", expected: "quant_blocks.\(side)", actual: "none")
        }
        let (tokens, channels) = (rows.shape[1], rows.shape[2])
        let partition = try BlockPartition(length: tokens, blockSize: blockSize)
        let quantised = try Int8BlockQuantization(
            rows, blocks: partition, subtracting: mean, roundsAsReleased: true, instructionSet: instructionSet, on: pool)
        let scales = try checked(golden.file.floatTensor("out.\(side)_scale"), "out.\(side)_scale", quantised.scales.shape)
        let codes = try checked(
            golden.file.tensor("out.\(side)_int8", as: Int8.self), "out.\(side)_int8", quantised.codes.shape)
        for index in 0..<scales.count {
            let expected = Double(scales[flat: index])
            comparison.compare(
                "out.\(side)_scale[\(index)]", actual: Double(quantised.scales[flat: index]), expected: expected,
                bound: 1e-6 * expected)
        }
        for index in 0..<codes.count where codes[flat: index] != quantised.codes[flat: index] {
            let (head, token) = (index / channels / tokens, index / channels % tokens)
            let centre = mean.map { $0[flat: head * channels + index % channels] } ?? 0
            let value = Element(rows[flat: index].floatValue - centre).floatValue
            let quotient = Double(value) / Double(scales[flat: head * partition.count + token / blockSize])
            let distance = abs(abs(quotient).truncatingRemainder(dividingBy: 1) - 0.5)
            comparison.compare(
                "out.\(side)_int8[\(index)], distance of \(quotient) from a half", actual: distance, expected: 0, bound: 1e-5)
        }
    }

    /// Compares means and flags, and returns the recorded ones as a summary whose similarities reproduce the flags.
    private mutating func compareSummary(
        _ side: String, _ rows: Tensor<Element>, _ partition: BlockPartition, mean: Tensor<Float>?, _ variant: String,
        _ settings: SpargeParameters.Variant
    ) throws(SparseKernelsError) -> BlockSummary {
        let summary = try SelfSimilarity.summary(
            rows, blocks: partition, subtracting: mean, roundsAsReleased: true, instructionSet: instructionSet, on: pool)
        let name = "out.\(side)_pooled_b\(partition.blockSize ?? 0)"
        try compareValues(name, summary.means, ulps: 1)
        let flags = try checked(
            golden.file.tensor("out.\(variant).\(side)_similar", as: UInt8.self), "out.\(variant).\(side)_similar",
            summary.similarities.shape)
        for index in 0..<flags.count {
            let similarity = summary.similarities[flat: index]
            if (similarity > settings.similarityThreshold) == (flags[flat: index] != 0) { continue }
            comparison.compare(
                "out.\(variant).\(side)_similar[\(index)], distance from the threshold",
                actual: Double(abs(similarity - settings.similarityThreshold)), expected: 0, bound: 1e-3)
        }
        return try BlockSummary(
            partition: partition, means: golden.file.floatTensor(name),
            similarities: Tensor(flags.shape) { flags[flat: $0] != 0 ? 1 : .nan })
    }

    private mutating func compareMaps(
        _ name: String, _ variant: SpargeParameters.Variant, grid: BlockGrid, queries: BlockSummary, keys: BlockSummary
    ) throws(SparseKernelsError) {
        let rule: SimilaritySelection.Rule = variant.mode == "cdf" ? .cdfThreshold(variant.value) : .keepRatio(variant.value)
        let selection = try SimilaritySelection(
            grid: grid, heads: [SimilaritySelection.Head(rule, similarityThreshold: variant.similarityThreshold)],
            keepsFirstColumn: variant.attentionSink, instructionSet: instructionSet)
        let mask = try selection(query: queries, key: keys, on: pool)
        let shape = [queries.heads, grid.blockRows, grid.blockColumns]
        let exact = try checked(
            golden.file.tensor("aux.\(name).f64_block_map", as: UInt8.self), "aux.\(name).f64_block_map", shape)
        let official = try checked(golden.file.tensor("out.\(name).block_map", as: UInt8.self), "out.\(name).block_map", shape)
        for head in 0..<queries.heads {
            for row in 0..<grid.blockRows {
                let ranked = RankedRow(queries: queries, keys: keys, head: head, row: row, grid: grid)
                for column in 0..<grid.blockColumns {
                    let index = (head * grid.blockRows + row) * grid.blockColumns + column
                    let isKept = mask[head, row, column]
                    comparison.compare(
                        "aux.\(name).f64_block_map[\(head), \(row), \(column)]", actual: isKept ? 1 : 0,
                        expected: Double(exact[flat: index]), bound: 0)
                    if isKept == (official[flat: index] != 0) { continue }
                    comparison.compare(
                        "out.\(name).block_map[\(head), \(row), \(column)], which is no near-tie",
                        actual: ranked.isNearTie(column, rule: rule, unitRoundoff: unitRoundoff) ? 0 : 1, expected: 0, bound: 0)
                }
            }
        }
        try compareLists(name, official: official, grid: grid)
    }

    /// Compares the kernels' lists of blocks: counts, and columns as differences to the column before, followed by zeros.
    private mutating func compareLists(
        _ name: String, official: Tensor<UInt8>, grid: BlockGrid
    ) throws(SparseKernelsError) {
        let (heads, rows, columns) = (official.shape[0], grid.blockRows, grid.blockColumns)
        let mask = try BlockMask(grid: grid, heads: heads) { head, row, column in
            official[flat: (head * rows + row) * columns + column] != 0
        }
        let counts = try checked(golden.file.tensor("out.\(name).count", as: Int32.self), "out.\(name).count", [heads, rows])
        let lists = try checked(
            golden.file.tensor("out.\(name).lut", as: Int32.self), "out.\(name).lut", [heads, rows, columns])
        for line in 0..<heads * rows {
            let kept = Array(mask.columns(head: line / rows, row: line % rows))
            comparison.compare(
                "out.\(name).count[\(line)]", actual: Double(kept.count), expected: Double(counts[flat: line]), bound: 0)
            for index in 0..<columns {
                let step = index >= kept.count ? 0 : kept[index] - (index == 0 ? 0 : kept[index - 1])
                comparison.compare(
                    "out.\(name).lut[\(line), \(index)]", actual: Double(step),
                    expected: Double(lists[flat: line * columns + index]), bound: 0)
            }
        }
    }

    /// Throws unless a tensor of the file has the shape that the case's other tensors imply.
    private func checked<T>(_ tensor: Tensor<T>, _ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<T> {
        guard tensor.shape == shape else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\(shape)", actual: "\(tensor.shape)")
        }
        return tensor
    }
}

/// The similar, reachable columns of a row of blocks in the order of their scores, in `Double`.
private struct RankedRow {
    private var ranked: [(column: Int, score: Double, mass: Double)] = []
    private let columns: Int

    init(queries: BlockSummary, keys: BlockSummary, head: Int, row: Int, grid: BlockGrid) {
        let channels = queries.channels
        columns = grid.blockColumns
        for column in grid.reachableColumns(ofRow: row) where !keys.similarities[flat: head * columns + column].isNaN {
            var score = 0.0
            for channel in 0..<channels {
                score +=
                    Double(queries.means[flat: (head * grid.blockRows + row) * channels + channel])
                    * Double(keys.means[flat: (head * columns + column) * channels + channel])
            }
            ranked.append((column, score / Double(channels).squareRoot(), 0))
        }
        ranked.sort { ($0.score, $1.column) > ($1.score, $0.column) }
        guard let best = ranked.first else { return }
        var sum = 0.0
        for index in ranked.indices {
            sum += exp(ranked[index].score - best.score)
            ranked[index].mass = sum
        }
        for index in ranked.indices { ranked[index].mass /= sum }
    }

    /// Whether 16-bit rounding explains the difference of the released map at this column. See `replaySpargeBlockMap`.
    func isNearTie(_ column: Int, rule: SimilaritySelection.Rule, unitRoundoff u: Double) -> Bool {
        guard let rank = ranked.firstIndex(where: { $0.column == column }) else { return false }
        let largest = ranked.reduce(0) { max($0, abs($1.score)) }
        let scoreError = 4 * u * largest + 2 * u
        for (other, block) in ranked.enumerated() where abs(block.score - ranked[rank].score) <= scoreError {
            switch rule {
            case .keepRatio(let ratio):
                let kept = max(1, Int(Float(ratio) * Float(columns)))
                if (other < kept) != (rank < kept) { return true }
            case .cdfThreshold(let mass):
                let massError = (Double(other + 1).squareRoot() + 4 * largest) * u
                if abs(block.mass - mass) <= massError { return true }
            }
        }
        return false
    }
}
