import Quest
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Quest")
struct QuestTests {
    static func cache(
        _ key: Tensor<Float16>, _ value: Tensor<Float16>, layers: Int = 1
    ) throws -> (cache: PagedKVCache, sequence: PagedKVCache.SequenceID) {
        let cache = try PagedKVCache(
            QuestDecode.cache(
                layers: layers, kvHeads: key.shape[0], headDim: key.shape[2], pageCapacity: (key.shape[1] + 15) / 16))
        let sequence = cache.makeSequence()
        for layer in 0..<layers { try cache.append(key: key.view(), value: value.view(), to: sequence, layer: layer) }
        return (cache, sequence)
    }

    @Test("both rules choose and attend as the oracle does", arguments: QuestDecode.Rule.allCases, [1, 16, 70, 128, 129, 333])
    func rules(_ rule: QuestDecode.Rule, _ length: Int) throws {
        let (key, value) = try (
            Tensor<Float16>.normal([2, length, 32], seed: 1), Tensor<Float16>.normal([2, length, 32], seed: 2)
        )
        let query = try Tensor<Float>.normal([4, 1, 32], seed: 3)
        let (cache, sequence) = try Self.cache(key, value)
        for budget in [16, 64, 128] {
            let quest = try QuestDecode(
                queryHeads: 4, configuration: cache.configuration, tokenBudget: budget, rule: rule, denseLayers: 0)
            let selection = try #require(
                try quest.select(query: query.view(), cache: cache, sequences: [sequence], layer: 0))
            let state = try quest(query: query, cache: cache, sequences: [sequence], layer: 0)
            for head in 0..<4 {
                let q = query.rows(ofHead: head)[0]
                let scores = ReferencePageSelection(keys: key.rows(ofHead: head / 2), pageSize: 16).scores(query: q)
                // A context within the budget keeps all pages. Both releases omit one unless the pages are full.
                let expected =
                    length <= budget
                    ? ReferencePageSelection.largest(scores.count, of: scores)
                    : rule == .releasedKernels
                        ? ReferencePageSelection.questKernel(scores, pageSize: 16, tokenBudget: budget)
                        : ReferencePageSelection.questAccuracy(scores, length: length, pageSize: 16, tokenBudget: budget)
                // The error of products of 64 terms of about 1 is far below this.
                #expect(expected.margin > 1e-4)
                let pages = selection.list(sequence: 0, head: head).map { Int($0) }
                #expect(pages == expected.indices, "budget \(budget), head \(head)")
                expectRow(
                    state, head: head, token: 0, query: q, keys: key.rows(ofHead: head / 2),
                    values: value.rows(ofHead: head / 2),
                    positions: ReferencePagedAttention.positions(ofPages: pages, pageSize: 16, length: length),
                    "budget \(budget), head \(head)")
            }
        }
    }

    @Test("the first layers attend to everything")
    func denseLayers() throws {
        let key = try Tensor<Float16>.normal([2, 200, 16], seed: 1)
        let query = try Tensor<Float>.normal([2, 1, 16], seed: 3)
        let (cache, sequence) = try Self.cache(key, key, layers: 3)
        let quest = try QuestDecode(queryHeads: 2, configuration: cache.configuration, tokenBudget: 32)
        #expect(quest.denseLayers == 2)
        for layer in 0..<3 {
            let selection = try quest.select(query: query.view(), cache: cache, sequences: [sequence], layer: layer)
            #expect((selection == nil) == (layer < 2))
            let state = try quest(query: query, cache: cache, sequences: [sequence], layer: layer)
            let pages = selection?.list(sequence: 0, head: 1).map { Int($0) } ?? Array(0..<13)
            expectRow(
                state, head: 1, token: 0, query: query.rows(ofHead: 1)[0], keys: key.rows(ofHead: 1),
                values: key.rows(ofHead: 1),
                positions: ReferencePagedAttention.positions(ofPages: pages, pageSize: 16, length: 200), "layer \(layer)")
        }
    }

    @Test("a shared list has the pages that its best query head wants")
    func sharing() throws {
        let key = try Tensor<Float16>.normal([1, 300, 16], seed: 4)
        let query = try Tensor<Float>.normal([3, 1, 16], seed: 5)
        let (cache, sequence) = try Self.cache(key, key)
        let quest = try QuestDecode(
            queryHeads: 3, configuration: cache.configuration, tokenBudget: 64, sharing: .kvHead, denseLayers: 0)
        let selection = try #require(try quest.select(query: query.view(), cache: cache, sequences: [sequence], layer: 0))
        let pages = ReferencePageSelection(keys: key.rows(), pageSize: 16)
        let scores = (0..<3).map { pages.scores(query: query.rows(ofHead: $0)[0]) }
        let best = scores[0].indices.map { page in scores.map { $0[page] }.max()! }
        let expected = ReferencePageSelection.questKernel(best, pageSize: 16, tokenBudget: 64)
        #expect(selection.heads == 1 && selection.list(sequence: 0, head: 0).map { Int($0) } == expected.indices)
    }

    @Test("bad options are errors that name them")
    func errors() throws {
        let configuration = try QuestDecode.cache(kvHeads: 2, headDim: 16, pageCapacity: 1)
        #expect(configuration.pageSize == 16 && configuration.metadata == PageMetadata(.minMax, logicalPageSize: 16))
        expectError(.invalidArgument, "denseLayers") {
            _ = try QuestDecode(queryHeads: 2, configuration: configuration, tokenBudget: 64, denseLayers: -1)
        }
        expectError(.invalidArgument, "tokenBudget") {
            _ = try QuestDecode(queryHeads: 2, configuration: configuration, tokenBudget: 0)
        }
        expectError(.invalidShape, "queryHeads") {
            _ = try QuestDecode(queryHeads: 3, configuration: configuration, tokenBudget: 64)
        }
    }

    // MARK: - Recorded steps

    @Test(
        "recorded steps of the accuracy code: the same pages, outputs within 1e-5",
        .enabled(if: !TestData.externalFiles(in: "goldens/quest").isEmpty, TestData.absence),
        arguments: TestData.externalFiles(in: "goldens/quest"))
    func recorded(_ path: String) throws {
        let file = try SafetensorsFile(path: path)
        let (key, value) = try (file.tensor("in.k", as: Float16.self), file.tensor("in.v", as: Float16.self))
        let query = try RecordedSteps.query(file)
        let (cache, sequence) = try Self.cache(key, value)
        let budgets = [32, 64, 128, 192, 256].filter { budget in file.tensors.contains { $0.name == "out.b\(budget).page_mask" }
        }
        #expect(budgets.count >= 2)
        for budget in budgets {
            let quest = try QuestDecode(
                queryHeads: query.shape[0], configuration: cache.configuration, tokenBudget: budget, rule: .releasedEvaluation,
                denseLayers: 0)
            let selection = try #require(
                try quest.select(query: query.view(), cache: cache, sequences: [sequence], layer: 0))
            let mask = try file.tensor("out.b\(budget).page_mask", as: UInt8.self)
            for head in 0..<query.shape[0] {
                let row = head * mask.shape[1]
                let expected = (0..<mask.shape[1]).filter { mask[flat: row + $0] != 0 }
                #expect(selection.list(sequence: 0, head: head).map { Int($0) } == expected)
            }
            let state = try quest(query: query, cache: cache, sequences: [sequence], layer: 0)
            let output = try file.tensor("out.b\(budget).attention_output", as: Float.self)
            #expect(zip(state.output.elements, output.elements).allSatisfy { abs($0 - $1) <= 1e-5 })
        }
    }
}
