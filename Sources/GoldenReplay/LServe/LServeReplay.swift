internal import SparseKernels
internal import SparseKernelsReference

/// `lserve.decode_select`: statistics of logical pages, the selector, attention over the selected pages and the current token,
/// a streaming head, and the 4-bit codes of keys.
///
/// It is replayed twice: by the oracles, and by a cache, `PageSelector` and `PagedAttention`. The last row of `in.k` and `in.v`
/// is the current token, which the selector does not see. Attention reads keys that are not quantised. Tolerances as recorded:
/// statistics, pages, masks, scales, zeros, codes and decoded keys equal, scores 1e-5 relative, outputs 1e-5.
func replayLServe(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(LServeParameters.self)
    let step = try GoldenDecodeStep(golden)
    try golden.check("in.k", [step.tokens], [parameters.cachedTokens + 1])
    var comparison = GoldenComparison()
    try compareLServeCodes(golden, step, &comparison)
    try compareLServeOracle(golden, parameters, step, &comparison)
    let cache = try GoldenDecodeCache(
        step, tokens: parameters.cachedTokens, pageSize: parameters.pageSize,
        metadata: PageMetadata(logicalPageSize: parameters.logicalPageSize), instructionSet: instructionSet, pool: pool)
    try compareLServeOperators(golden, parameters, cache, &comparison)
    let quantized = try GoldenDecodeCache(
        step, tokens: parameters.cachedTokens, pageSize: parameters.pageSize, format: .int4, instructionSet: instructionSet,
        pool: pool)
    try compareLServeCache(golden, quantized, &comparison)
    return comparison.result(golden)
}

private struct LServeParameters: Decodable {
    var cachedTokens: Int
    var logicalPageSize: Int
    var pageSize: Int
    var selectedCount: Int
    var tokenBudget: Int
    var sink: Int
    var window: Int

    enum CodingKeys: String, CodingKey {
        case cachedTokens = "cached_tokens"
        case logicalPageSize = "logical_page"
        case pageSize = "page"
        case selectedCount = "selected_count"
        case tokenBudget = "token_budget"
        case sink = "sink_tokens"
        case window = "local_tokens"
    }
}

/// Compares only the quantiser, for every cached key of every head.
private func compareLServeCodes(
    _ golden: GoldenCase, _ step: GoldenDecodeStep, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let tokens = step.tokens - 1
    let codes = try golden.rows("out.k_codes4", [step.kvHeads, tokens, step.headDim])
    let values = try golden.rows("out.k_dequant4", [step.kvHeads, tokens, step.headDim])
    let scales = try golden.rows("out.k_scale4", [step.kvHeads, tokens])
    let zeros = try golden.rows("out.k_zero4", [step.kvHeads, tokens])
    for head in 0..<step.kvHeads {
        for token in 0..<tokens {
            let row = head * tokens + token
            let quantized = ReferenceKVQuantization(step.keys[head][token], bits: 4)
            comparison.compare("oracle: out.k_scale4[\(row)]", [quantized.scale], [scales[head][token]])
            comparison.compare("oracle: out.k_zero4[\(row)]", [quantized.zero], [zeros[head][token]])
            comparison.compare("oracle: out.k_codes4[\(row)]", quantized.codes.map { Double($0) }, codes[row])
            comparison.compare("oracle: out.k_dequant4[\(row)]", quantized.fusedHalfValues, values[row])
        }
    }
}

private func compareLServeOracle(
    _ golden: GoldenCase, _ parameters: LServeParameters, _ step: GoldenDecodeStep, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let cached = parameters.cachedTokens
    try require(
        parameters.pageSize % max(1, parameters.logicalPageSize) == 0, .malformedFile, "params of \(golden.name)",
        expected: "logical_page dividing page", actual: "\(parameters.logicalPageSize), \(parameters.pageSize)")
    let subpages = try BlockPartition(length: cached, blockSize: parameters.logicalPageSize).count
    let pages = try BlockPartition(length: cached, blockSize: parameters.pageSize).count
    let maxima = try golden.rows("out.sub_kmax", [step.kvHeads, subpages, step.headDim])
    let minima = try golden.rows("out.sub_kmin", [step.kvHeads, subpages, step.headDim])
    let bounds = step.keys.map {
        ReferencePageSelection(keys: Array($0.prefix(cached)), pageSize: parameters.logicalPageSize)
    }
    for row in 0..<step.kvHeads * subpages {
        let (head, page) = (row / subpages, row % subpages)
        comparison.compare("oracle: out.sub_kmax[\(row)]", bounds[head].maxima[page], maxima[row])
        comparison.compare("oracle: out.sub_kmin[\(row)]", bounds[head].minima[page], minima[row])
    }
    let subScores = try golden.rows("out.sub_scores", [step.heads, subpages])
    let pageScores = try golden.rows("out.page_scores", [step.heads, pages])
    let selected = try golden.rows("out.selected_pages", [step.heads, parameters.selectedCount])
    let output = try golden.rows("out.attention_output", [step.heads, step.headDim])
    let streamingOutput = try golden.rows("out.streaming_output", [step.heads, step.headDim])
    let streamingMask = try golden.rows("out.streaming_mask", [step.tokens])
    let streaming = ReferencePagedAttention.streamingPositions(
        of: cached, sink: parameters.sink, window: parameters.window)
    comparison.compare("oracle: out.streaming_mask", members: streaming, streamingMask[0])
    for head in 0..<step.heads {
        let logical = bounds[step.kvHead(of: head)].scores(query: step.queries[head])
        let physical = ReferencePageSelection.physicalScores(
            logical, logicalPages: parameters.pageSize / parameters.logicalPageSize)
        let chosen = ReferencePageSelection.lserve(
            physical, cachedTokens: cached, pageSize: parameters.pageSize, tokenBudget: parameters.tokenBudget)
        let positions = ReferencePagedAttention.positions(
            ofPages: chosen.indices, pageSize: parameters.pageSize, length: cached)
        comparison.compare("oracle: out.sub_scores[\(head)]", logical, subScores[head], relative: 1e-5)
        comparison.compare("oracle: out.page_scores[\(head)]", physical, pageScores[head], relative: 1e-5)
        comparison.compare("oracle: out.selected_pages[\(head)]", chosen.indices.map { Double($0) }, selected[head])
        comparison.compare(
            "oracle: out.attention_output[\(head)]", step.output(head: head, positions: positions + [cached]), output[head],
            absolute: 1e-5)
        comparison.compare(
            "oracle: out.streaming_output[\(head)]", step.output(head: head, positions: streaming), streamingOutput[head],
            absolute: 1e-5)
    }
}

private func compareLServeOperators(
    _ golden: GoldenCase, _ parameters: LServeParameters, _ cache: GoldenDecodeCache, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let (step, cached) = (cache.step, parameters.cachedTokens)
    let subpages = try BlockPartition(length: cached, blockSize: parameters.logicalPageSize).count
    let pages = try BlockPartition(length: cached, blockSize: parameters.pageSize).count
    let subScores = try golden.rows("out.sub_scores", [step.heads, subpages])
    let pageScores = try golden.rows("out.page_scores", [step.heads, pages])
    let selected = try golden.rows("out.selected_pages", [step.heads, parameters.selectedCount])
    let selector = try PageSelector(
        queryHeads: step.heads, configuration: cache.cache.configuration, tokenBudget: parameters.tokenBudget,
        sharing: .queryHead)
    let scores = try selector.pageScores(
        query: step.query.view(named: "in.q"), cache: cache.cache, sequence: cache.sequence, on: cache.pool)
    let selection = try selector.select(
        query: step.query.view(named: "in.q"), cache: cache.cache, sequences: [cache.sequence], on: cache.pool)
    for head in 0..<step.heads {
        comparison.compare("out.sub_scores[\(head)]", scores.logical.rows()[head], subScores[head], relative: 1e-5)
        comparison.compare("out.page_scores[\(head)]", scores.pages.rows()[head], pageScores[head], relative: 1e-5)
        comparison.compare(
            "out.selected_pages[\(head)]", selection.members(head: head).map { Double($0) }, selected[head])
    }
    // The released kernel keeps the current token in registers. Here it is appended, and may be the first of a page.
    try cache.append(cached..<step.tokens)
    let expected = try golden.rows("out.attention_output", [step.heads, step.headDim])
    let streaming = try golden.rows("out.streaming_output", [step.heads, step.headDim])
    let output = try cache.output(selection: selection.covering([cached..<step.tokens]))
    let streamed = try cache.output(mask: .streaming(sink: parameters.sink, window: parameters.window))
    for head in 0..<step.heads {
        comparison.compare("out.attention_output[\(head)]", output[head], expected[head], absolute: 1e-5)
        comparison.compare("out.streaming_output[\(head)]", streamed[head], streaming[head], absolute: 1e-5)
    }
}

/// Compares the keys of a 4-bit cache. They are read as s·(code − z) in `Float`, which recorded codes, scales and zeros
/// determine. The recorded keys come from one fused multiply-add of halves, q·s + fp16(−s·z), and differ by the rounding of s·z
/// and of the result.
private func compareLServeCache(
    _ golden: GoldenCase, _ cache: GoldenDecodeCache, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let (step, tokens) = (cache.step, cache.step.tokens - 1)
    let keys = try cache.cache.keys(of: cache.sequence)
    let codes = try golden.rows("out.k_codes4", [step.kvHeads, tokens, step.headDim])
    let fused = try golden.rows("out.k_dequant4", [step.kvHeads, tokens, step.headDim])
    let scales = try golden.rows("out.k_scale4", [step.kvHeads, tokens])
    let zeros = try golden.rows("out.k_zero4", [step.kvHeads, tokens])
    for head in 0..<step.kvHeads {
        let rows = keys.rows(ofHead: head)
        for token in 0..<tokens {
            let (s, z) = (scales[head][token], zeros[head][token])
            let exact = codes[head * tokens + token].map { Double((Float($0) - Float(z)) * Float(s)) }
            comparison.compare("out.k_codes4[\(head), \(token)]", rows[token], exact)
            comparison.compare(
                "out.k_dequant4[\(head), \(token)]", rows[token], fused[head * tokens + token],
                absolute: 0x1p-11 * abs(s * z) + 0x1p-24, relative: 0x1p-11)
        }
    }
}
