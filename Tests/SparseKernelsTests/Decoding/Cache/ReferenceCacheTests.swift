import SparseKernels
import SparseKernelsReference
import Testing

@Suite("Oracles of a paged cache")
struct ReferenceCacheTests {
    @Test("a list of all positions is dense attention")
    func dense() throws {
        let shape = try AttentionShape(queryLength: 3, keyLength: 11, queryHeads: 4, kvHeads: 2, headDim: 5, valueDim: 7)
        let query = try Tensor<Float>.normal([4, 3, 5], seed: 1)
        let key = try Tensor<Float>.normal([2, 11, 5], seed: 2)
        let value = try Tensor<Float>.normal([2, 11, 7], seed: 3)
        let modifiers = ScoreModifiers(softmaxScale: 0.7, logitsSoftCap: 2)
        let oracle = ReferencePagedAttention(softmaxScale: 0.7, logitsSoftCap: 2)
        for head in 0..<4 {
            for token in 0..<3 {
                let expected = try ReferenceAttention(shape, mask: .causal, modifiers: modifiers).row(
                    head: head, token: token, query: query.view(), key: key.view(), value: value.view())
                let row = oracle.row(
                    query: query.rows(ofHead: head)[token], keys: key.rows(ofHead: head / 2),
                    values: value.rows(ofHead: head / 2), positions: Array(0...8 + token))
                #expect(row.output == expected.output)
                #expect(row.logSumExp == expected.logSumExp)
                #expect(row.visibleKeys == 9 + token)
            }
        }
    }

    @Test("order does not matter, repetition counts, and nothing gives 0 and −∞")
    func lists() {
        let keys = [[1.0, 0], [0, 1], [-1, 0.5]]
        let values = [[1.0], [2], [4]]
        func row(_ positions: [Int]) -> ReferenceAttention.Row {
            ReferencePagedAttention(softmaxScale: 1).row(query: [1, 2], keys: keys, values: values, positions: positions)
        }
        #expect(abs(row([0, 2]).logSumExp - row([2, 0]).logSumExp) < 1e-15)
        // The scores are 1 and 0, each once, and then the first one twice.
        let e = 2.718281828459045
        #expect(abs(row([0, 2]).output[0] - (e + 4) / (e + 1)) < 1e-15)
        #expect(abs(row([0, 2, 0]).output[0] - (2 * e + 4) / (2 * e + 1)) < 1e-15)
        #expect(row([]).output == [0])
        #expect(row([]).logSumExp == -.infinity)
    }

    @Test("streaming heads see the sink and a window that ends with the query")
    func streaming() {
        func positions(_ position: Int, _ sink: Int, _ window: Int) -> [Int] {
            ReferencePagedAttention.streamingPositions(of: position, sink: sink, window: window)
        }
        #expect(positions(9, 2, 3) == [0, 1, 7, 8, 9])
        #expect(positions(3, 2, 3) == [0, 1, 2, 3])
        #expect(positions(0, 4, 1) == [0])
        // LServe at 1100 cached tokens has 128 of the sink, and 845 to 1100.
        let lserve = positions(1100, 128, 256)
        #expect(lserve.count == 384 && lserve[127] == 127 && lserve[128] == 845)
        #expect(ReferencePagedAttention.positions(ofPages: [2, 0], pageSize: 2, length: 5) == [4, 0, 1])
    }

    @Test("Quest: bounds and score of the page of the specification")
    func questVector() {
        let keys: [[Double]] = [[1, 0, -1, 2], [-2, 1, 3, 0], [0.5, -1, 2, -1]]
        let query = [1, -2, 0.5, 3]
        let pages = ReferencePageSelection(keys: keys, pageSize: 16)
        #expect(pages.maxima == [[1, 1, 3, 2]])
        #expect(pages.minima == [[-2, -1, -1, -1]])
        #expect(pages.scores(query: query) == [10.5])
        #expect(keys.map { zip($0, query).reduce(0) { $0 + $1.0 * $1.1 } } == [6.5, -2.5, 0.5])
        // With one key per page, the bound is the product.
        #expect(ReferencePageSelection(keys: keys, pageSize: 1).scores(query: query) == [6.5, -2.5, 0.5])
        #expect(ReferencePageSelection(keys: keys, pageSize: 2).maxima == [[1, 1, 3, 2], [0.5, -1, 2, -1]])
    }

    @Test("Quest: the two rules")
    func questRules() {
        let scores = [1.0, 5, 3, 5, 2, 0]
        func accuracy(_ budget: Int, length: Int = 90) -> [Int] {
            ReferencePageSelection.questAccuracy(scores, length: length, pageSize: 16, tokenBudget: budget).indices
        }
        #expect(accuracy(64) == [1, 2, 3, 4])
        // At least three pages are kept if there are as many. The last page is not forced, and ties keep the lower index.
        #expect(accuracy(16) == [1, 2, 3])
        #expect(accuracy(1000, length: 81) == [0, 1, 2, 3, 4])
        #expect(accuracy(1000, length: 96) == [0, 1, 2, 3, 4, 5])
        func kernel(_ budget: Int) -> ReferencePageSelection.Pages {
            ReferencePageSelection.questKernel(scores, pageSize: 16, tokenBudget: budget)
        }
        #expect(kernel(48).indices == [1, 3, 5])
        #expect(kernel(48).margin == 2)
        #expect(kernel(32).indices == [1, 5])
        #expect(kernel(32).margin == 0)
        #expect(kernel(16).indices == [5])
        #expect(kernel(1000).indices == [0, 1, 2, 3, 4, 5])
        func twilight(_ budget: Int) -> [Int] {
            ReferencePageSelection.twilightQuest(scores, pageSize: 16, tokenBudget: budget).indices
        }
        #expect(twilight(32) == [1, 3])
        #expect(twilight(33) == [1, 2, 3])
        #expect(twilight(0) == [1])
    }

    @Test("LServe: physical pages, and the last one always")
    func lserve() {
        let logical = [1.0, 9, 0, 0, 3, 3, 3, 3, -5, -6, -4, -8, 2, 2, 2, 2, 7]
        let physical = ReferencePageSelection.physicalScores(logical, logicalPages: 4)
        #expect(physical == [9, 3, -4, 2, 7])
        func select(_ tokens: Int, _ budget: Int) -> [Int] {
            ReferencePageSelection.lserve(physical, cachedTokens: tokens, pageSize: 64, tokenBudget: budget).indices
        }
        #expect(select(270, 64) == [0, 1, 4])
        #expect(select(270, 256) == [0, 1, 3, 4])
        #expect(select(270, 270) == [0, 1, 2, 3, 4])
    }

    @Test("LServe: the quantised row of the specification")
    func quantization() {
        let row = [0.31, 0.42, -0.57, 0.23, -1.79, -2.18, 1.90, 4.32]
        let quantized = ReferenceKVQuantization(row, bits: 4)
        #expect(quantized.codes == [6, 6, 4, 6, 1, 0, 9, 15])
        #expect(abs(quantized.scale - 0.4333) < 5e-5 && abs(quantized.zero - 5.03) < 5e-3)
        for (value, expected) in zip(quantized.values, [0.4198, 0.4198, -0.4469, 0.4198, -1.7469, -2.1803, 1.7199, 4.32]) {
            #expect(abs(value - expected) < 5e-5)
        }
        // The fused form rounds s·z once more, and the result.
        for (value, fused) in zip(quantized.values, quantized.fusedHalfValues) {
            #expect(abs(value - fused) <= 0x1p-11 * (2.18 + abs(value)))
        }
    }

    @Test("LServe: a decoded channel is off by half a step, and by the rounding of scale and zero point", arguments: [4, 8])
    func quantizationError(_ bits: Int) throws {
        let rows = try Tensor<Float>.normal([50, 33], seed: UInt64(bits)).rows()
        let steps = Double(1 << bits - 1)
        for row in rows {
            let quantized = ReferenceKVQuantization(row, bits: bits)
            // x/s + z exceeds the codes by at most the error of s over the range and that of z, and is clamped.
            let outside = 0x1p-11 * (steps + 2 * abs(quantized.zero))
            for (x, value) in zip(row, quantized.values) {
                #expect(abs(x - value) <= quantized.scale * (0.5 + outside))
            }
        }
    }

    @Test("LServe: rows without a spread keep their value", arguments: [0, 1.5, -3, 0x1p-20])
    func constantRows(_ value: Double) {
        let quantized = ReferenceKVQuantization([value, value, value], bits: 4)
        #expect(quantized.values == [value, value, value])
        #expect(quantized.codes == [0, 0, 0])
    }

    @Test("Twilight: estimates of a key")
    func estimates() {
        #expect(ReferenceKeyEstimate.minMax([-1, 0.5, 14, 3.4], bits: 4) == [-1, 1, 14, 3])
        #expect(ReferenceKeyEstimate.minMax([2, 2], bits: 4) == [2, 2])
        #expect(ReferenceKeyEstimate.absMax([-15, 7.4, 0], bits: 4) == [-15, 7, 0])
        #expect(ReferenceKeyEstimate.absMax([-15, 7.4, 0], bits: 1) == [-1, 1, 0])
        #expect(ReferenceKeyEstimate.absMax([5, 15.4], bits: 4, subtracting: [5, 0.4]) == [0, 15])
    }

    @Test("Twilight: the bisection keeps what the specification lists")
    func bisection() {
        func kept(_ weights: [Double], _ mass: Double, first: Bool = true) -> [Int] {
            ReferenceTwilight(weights: weights, mass: mass, startsAtFirstToken: first).kept
        }
        let sink = [0.5, 0.2, 0.15, 0.1, 0.05]
        #expect(kept(sink, 0.5) == [0])
        #expect(kept(sink, 0.85) == [0, 1, 2])
        #expect(kept(sink, 0.95) == [0, 1, 2, 3])
        // The search starts from token 0, so that a weak first token keeps everything.
        let weak = [0.05, 0.5, 0.2, 0.15, 0.1]
        #expect(kept(weak, 0.5) == [0, 1, 2, 3, 4])
        #expect(kept(weak, 0.5, first: false) == [1])
        #expect(kept([0, 0.75, 0.25, 0], 0.5) == [1, 2])
    }

    @Test("Twilight: weights are a softmax over the selection")
    func pruning() {
        let keys: [[Double]] = [[4], [0], [3], [9], [0]]
        let pruned = ReferenceTwilight(query: [1], estimates: keys, selected: [0, 1, 2, 4], mass: 0.7, softmaxScale: 1)
        let e = 2.718281828459045
        let sum = e * e * e * e + e * e * e + 2
        #expect(abs(pruned.weights[0] - e * e * e * e / sum) < 1e-15)
        #expect(pruned.weights[3] == 0)
        #expect(pruned.kept == [0])
        #expect(abs(pruned.massMargin - (e * e * e * e / sum - 0.7)) < 1e-15)
        #expect(ReferenceTwilight.groupUnion([[0, 4], [2], [], [2, 4]]) == [0, 2, 4])
    }

    @Test("Twilight: the bisection of the product finds the same set", arguments: [1, 2, 7, 100, 1001])
    func productBisection(_ count: Int) throws {
        var generator = SplitMix64(seed: UInt64(count))
        for mass in [0.3, 0.85, 0.97] {
            let draws = (0..<count).map { _ in
                let x = generator.uniform()
                return x * x * x + 1e-6
            }
            let sum = draws.reduce(0, +)
            let weights = draws.map { Float($0 / sum) }
            for first in [true, false] {
                let expected = ReferenceTwilight(weights: weights.map { Double($0) }, mass: mass, startsAtFirstToken: first)
                // Sums of the product are rounded to Float.
                guard expected.massMargin > 0x1p-22 else { continue }
                let found = try TopP.bisection(
                    weights: weights.span, mass: mass, upperBound: first ? .firstWeight : .maximum)
                let kept = weights.indices.filter { weights[$0] > found.threshold }
                #expect(kept == expected.kept, "p = \(mass), first = \(first)")
            }
        }
    }
}
