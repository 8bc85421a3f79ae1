internal import SparseKernels
internal import SparseKernelsReference

/// `quest.decode`: bounds of pages, their scores, and for several budgets each query head's pages and attention.
///
/// It is replayed twice: by the oracles, and by `PageSelector` and `PagedAttention` on a cache. Tolerances as recorded: bounds
/// and masks equal, scores 1e-5 relative, outputs 1e-5.
func replayQuest(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(QuestParameters.self)
    let step = try GoldenDecodeStep(golden)
    var comparison = GoldenComparison()
    try compareQuestOracle(golden, parameters, step, &comparison)
    let cache = try GoldenDecodeCache(
        step, tokens: step.tokens, pageSize: parameters.pageSize,
        metadata: PageMetadata(logicalPageSize: parameters.pageSize), instructionSet: instructionSet, pool: pool)
    try compareQuestOperators(golden, parameters, cache, &comparison)
    return comparison.result(golden)
}

private struct QuestParameters: Decodable {
    var pageSize: Int
    var tokenBudgets: [Int]

    enum CodingKeys: String, CodingKey {
        case pageSize = "page_size"
        case tokenBudgets = "token_budgets"
    }
}

private func compareQuestOracle(
    _ golden: GoldenCase, _ parameters: QuestParameters, _ step: GoldenDecodeStep, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let pageSize = parameters.pageSize
    let pages = try BlockPartition(length: step.tokens, blockSize: pageSize).count
    let maxima = try golden.rows("out.page_kmax", [step.kvHeads, pages, step.headDim])
    let minima = try golden.rows("out.page_kmin", [step.kvHeads, pages, step.headDim])
    let bounds = step.keys.map { ReferencePageSelection(keys: $0, pageSize: pageSize) }
    for head in 0..<step.kvHeads {
        for page in 0..<pages {
            let row = head * pages + page
            comparison.compare("oracle: out.page_kmax[\(row)]", bounds[head].maxima[page], maxima[row])
            comparison.compare("oracle: out.page_kmin[\(row)]", bounds[head].minima[page], minima[row])
        }
    }
    let recorded = try golden.rows("out.page_scores", [step.heads, pages])
    let scores = (0..<step.heads).map { bounds[step.kvHead(of: $0)].scores(query: step.queries[$0]) }
    for head in 0..<step.heads {
        comparison.compare("oracle: out.page_scores[\(head)]", scores[head], recorded[head], relative: 1e-5)
    }
    for budget in parameters.tokenBudgets {
        let pageMask = try golden.rows("out.b\(budget).page_mask", [step.heads, pages])
        let tokenMask = try golden.rows("out.b\(budget).token_mask", [step.heads, step.tokens])
        let output = try golden.rows("out.b\(budget).attention_output", [step.heads, step.headDim])
        for head in 0..<step.heads {
            let chosen = ReferencePageSelection.questAccuracy(
                scores[head], length: step.tokens, pageSize: pageSize, tokenBudget: budget)
            let positions = ReferencePagedAttention.positions(ofPages: chosen.indices, pageSize: pageSize, length: step.tokens)
            let name = "oracle: out.b\(budget)"
            comparison.compare("\(name).page_mask[\(head)]", members: chosen.indices, pageMask[head])
            comparison.compare("\(name).token_mask[\(head)]", members: positions, tokenMask[head])
            comparison.compare(
                "\(name).attention_output[\(head)]", step.output(head: head, positions: positions), output[head],
                absolute: 1e-5)
        }
    }
}

private func compareQuestOperators(
    _ golden: GoldenCase, _ parameters: QuestParameters, _ cache: GoldenDecodeCache, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let (step, configuration) = (cache.step, cache.cache.configuration)
    let pages = configuration.pageCapacity
    let recorded = try golden.rows("out.page_scores", [step.heads, pages])
    for budget in parameters.tokenBudgets {
        // The accuracy code has one list per query head and at least three pages; the last page is a candidate like the others.
        let selector = try PageSelector(
            queryHeads: step.heads, configuration: configuration, tokenBudget: budget, sharing: .queryHead, forcedLast: 0)
        let scores = try selector.pageScores(
            query: step.query.view(named: "in.q"), cache: cache.cache, sequence: cache.sequence, on: cache.pool)
        let selection = try selector.select(
            query: step.query.view(named: "in.q"), cache: cache.cache, sequences: [cache.sequence], on: cache.pool)
        let mask = try golden.rows("out.b\(budget).page_mask", [step.heads, pages])
        let expected = try golden.rows("out.b\(budget).attention_output", [step.heads, step.headDim])
        let output = try cache.output(selection: selection)
        for head in 0..<step.heads {
            comparison.compare("out.page_scores[\(head)]", scores.pages.rows()[head], recorded[head], relative: 1e-5)
            comparison.compare("out.b\(budget).page_mask[\(head)]", members: selection.members(head: head), mask[head])
            comparison.compare("out.b\(budget).attention_output[\(head)]", output[head], expected[head], absolute: 1e-5)
        }
    }
}
