import SparseKernelsReference
import TestSupport
import Testing
import XAttention

@Suite("XAttention: threshold profile")
struct ThresholdProfileTests {
    @Test("a hand-made example")
    func example() throws {
        let grid = try BlockGrid(queryLength: 3, keyLength: 3, queryBlockSize: 1, keyBlockSize: 1, isCausal: true)
        // Row 2: blocks 0 and 2 reach 90% of the true mass. The smaller of their estimates is 0.25, so all but block 1 count.
        let masses = try BlockScores(grid: grid, values: Tensor([1, 3, 3], [1, 0, 0, 0.05, 0.95, 0, 0.5, 0.05, 0.45]))
        let sums = try BlockScores(grid: grid, values: Tensor([1, 3, 3], [1, 0, 0, 0.5, 0.5, 0, 0.25, 0.125, 0.625]))
        let found = try ThresholdProfile.thresholds(masses: masses, estimates: sums, stride: 1)
        // Row 1: block 1 alone reaches the mass, but block 0 has the same estimate.
        #expect(abs(found[0] - (1 + 1 + 0.875) / 3) < 1e-8)
        // For the whole mass, every block with some mass counts.
        let all = try ThresholdProfile.thresholds(masses: masses, estimates: sums, stride: 1, mass: 1)
        #expect(abs(all[0] - 1) < 1e-8)
        #expect(try ThresholdProfile.thresholds(masses: masses, estimates: sums, stride: 1, mass: 0) == [0])
    }

    @Test("agrees with the heuristic on the oracle's scores, and keeps the largest over texts")
    func oracle() throws {
        var profile = try ThresholdProfile(queryHeads: 2, stride: 4, blockSize: 16)
        var largest = [0.0, 0.0]
        for (text, (queries, keys)) in [(100, 100), (33, 90)].enumerated() {
            let query = try Tensor<Float>.normal([2, queries, 8], seed: UInt64(10 * text), scale: 2)
            let key = try Tensor<Float>.normal([1, keys, 8], seed: UInt64(10 * text + 1), scale: 2)
            let found = try profile.add(query: query, key: key)
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 2, kvHeads: 1, headDim: 8)
            let grid = try BlockGrid(shape, blockSize: 16, isCausal: true)
            func scores(_ stride: Int) throws -> BlockScores {
                let values = try ReferenceAntidiagonalScoring(shape, grid: grid, stride: stride)(
                    query: query.view(), key: key.view())
                return try BlockScores(
                    grid: grid, values: Tensor([2, grid.blockRows, grid.blockColumns], values.map { Float($0) }))
            }
            let expected = try ThresholdProfile.thresholds(masses: scores(1), estimates: scores(4), stride: 4)
            for head in 0..<2 {
                // The error of sums is at most 1e-4. With these seeds no choice depends on it.
                #expect(abs(found[head] - expected[head]) < 1e-4)
                largest[head] = max(largest[head], found[head])
            }
        }
        #expect(profile.thresholds == largest && profile.texts == 2)
    }

    @Test("bad arguments are refused and change nothing")
    func errors() throws {
        expectError(.invalidShape, "queryHeads") { _ = try ThresholdProfile(queryHeads: 0) }
        expectError(.invalidShape, "blockSize") { _ = try ThresholdProfile(queryHeads: 1, blockSize: 0) }
        expectError(.invalidArgument, "stride") { _ = try ThresholdProfile(queryHeads: 1, stride: 24) }
        expectError(.invalidArgument, "mass") { _ = try ThresholdProfile(queryHeads: 1, mass: 1.1) }
        var profile = try ThresholdProfile(queryHeads: 2, stride: 4, blockSize: 16)
        let (one, two) = try (Tensor<Float>.normal([1, 20, 8], seed: 1), Tensor<Float>.normal([2, 20, 8], seed: 1))
        expectError(.invalidShape, "query") { try profile.add(query: one, key: one) }
        expectError(.invalidShape, "key") { try profile.add(query: two, key: Tensor<Float>.normal([1, 20, 9], seed: 1)) }
        #expect(profile.thresholds == [0, 0] && profile.texts == 0)
        let grid = try BlockGrid(queryLength: 3, keyLength: 3, queryBlockSize: 1, keyBlockSize: 1, isCausal: true)
        let scores = try BlockScores(grid: grid, values: Tensor(zeros: [1, 3, 3]))
        let others = try BlockScores(grid: grid, values: Tensor(zeros: [2, 3, 3]))
        expectError(.invalidShape, "estimates") {
            _ = try ThresholdProfile.thresholds(masses: scores, estimates: others, stride: 1)
        }
        #expect(try ThresholdProfile.thresholds(masses: scores, estimates: scores, stride: 1) == [0])
    }
}

@Suite("XAttention: minimum threshold search")
struct MinimumThresholdSearchTests {
    /// The number of steps of a head from 0.9 to a threshold.
    static func steps(_ threshold: Double) -> Int {
        var (steps, value) = (0, 0.9)
        while value > threshold * (1 + 1e-9) {
            value *= 0.9
            steps += 1
        }
        return steps
    }

    /// The cost of each head's steps. The total is a sum over heads, so the best states have a closed form.
    static let costs: [[Double]] = [[0, 3, 4], [0, -1, 5], [0, 2, 2.5], [0, 0, 7], [0, 1, 1]]

    static func performance(_ steps: [Int]) -> Double { 100 - zip(costs, steps).reduce(0) { $0 + $1.0[$1.1] } }

    @Test("finds the best states of a separable objective", arguments: [1, 2], [3, 5, 100])
    func optimum(_ stepsPerHead: Int, _ limit: Int) throws {
        var search = try MinimumThresholdSearch(heads: 5, maximumReductions: limit, stepsPerHead: stepsPerHead)
        let planned = search.plannedEvaluations
        var last = 0
        let outcome = search(progress: { made, total in
            #expect(made == last + 1 && total == planned)
            last = made
        }) { thresholds in .init(performance: Self.performance(thresholds.map(Self.steps))) }
        #expect(outcome.isComplete && outcome.evaluations == planned && last == planned)
        #expect(search.rememberedEvaluations == planned)

        var best = [Double](repeating: -.infinity, count: min(limit, 5 * stepsPerHead) + 1)
        let choices = stepsPerHead + 1
        for code in 0..<Int(pow5(choices)) {
            let steps = (0..<5).map { code / power(choices, $0) % choices }
            let total = steps.reduce(0, +)
            if total < best.count { best[total] = max(best[total], Self.performance(steps)) }
        }
        #expect(outcome.candidates.count == best.count)
        for (reductions, candidate) in outcome.candidates.enumerated() {
            #expect(candidate.reductions == reductions)
            #expect(candidate.evaluation.performance == best[reductions], "\(reductions)")
            #expect(candidate.thresholds.map(Self.steps) == candidate.steps)
        }
        // Lowering head 1 gains 1, and head 3 costs nothing: at equal performance more reductions win.
        #expect(outcome.best.steps == [0, 1, 0, 1, 0])
        #expect(outcome.candidate(performanceAtLeast: 1000) == nil)
        let good = try #require(outcome.candidate(performanceAtLeast: 99))
        #expect(good.reductions == best.lastIndex { $0 >= 99 })
    }

    func power(_ base: Int, _ exponent: Int) -> Int { (0..<exponent).reduce(1) { value, _ in value * base } }
    func pow5(_ base: Int) -> Int { power(base, 5) }

    @Test("density breaks ties, then reductions; NaN is worst")
    func ties() throws {
        var search = try MinimumThresholdSearch(heads: 3)
        let flat = search { _ in .init(performance: 1) }
        #expect(flat.best.steps == [1, 1, 1] && flat.best.thresholds == [0.9 * 0.9, 0.9 * 0.9, 0.9 * 0.9])
        #expect(flat.candidates[1].steps == [1, 0, 0])
        search = try MinimumThresholdSearch(heads: 3)
        let dense = search { thresholds in .init(performance: 1, density: thresholds[1] < 0.85 ? 0.5 : 1) }
        #expect(dense.candidates[1].steps == [0, 1, 0] && dense.best.steps == [1, 1, 1])
        search = try MinimumThresholdSearch(heads: 3)
        let broken = search { thresholds in .init(performance: thresholds[0] < 0.85 ? .nan : 1) }
        #expect(broken.best.steps == [0, 1, 1] && broken.candidates[3].evaluation.performance == -.infinity)
    }

    @Test("a bounded search goes on where it stopped")
    func resuming() throws {
        func measure(_ thresholds: [Double]) -> MinimumThresholdSearch.Evaluation {
            .init(performance: Self.performance(thresholds.map(Self.steps)))
        }
        var whole = try MinimumThresholdSearch(heads: 5)
        let expected = whole(evaluate: measure)
        var search = try MinimumThresholdSearch(heads: 5)
        var calls = 0
        while true {
            let outcome = search(maximumEvaluations: 4, evaluate: measure)
            calls += 1
            #expect(outcome.evaluations <= 4)
            #expect(outcome.candidates[0].reductions == 0)
            if outcome.isComplete {
                #expect(outcome.candidates == expected.candidates)
                break
            }
        }
        #expect(calls == (whole.plannedEvaluations + 3) / 4)
        #expect(search(maximumEvaluations: 0, evaluate: measure).evaluations == 0)
    }

    @Test("an error of the caller's ends the search and keeps what was measured")
    func failure() throws {
        struct Stop: Error {}
        var search = try MinimumThresholdSearch(heads: 4)
        var count = 0
        #expect(throws: Stop.self) {
            _ = try search { _ throws(Stop) in
                count += 1
                if count == 6 { throw Stop() }
                return .init(performance: 0)
            }
        }
        #expect(search.rememberedEvaluations == 5)
    }

    @Test("bad arguments are refused")
    func errors() {
        expectError(.invalidShape, "heads") { _ = try MinimumThresholdSearch(heads: 0) }
        expectError(.invalidShape, "start") { _ = try MinimumThresholdSearch(start: []) }
        expectError(.invalidArgument, "start[1]") { _ = try MinimumThresholdSearch(start: [0, -1]) }
        for factor in [1, -0.1, .nan] {
            expectError(.invalidArgument, "factor") { _ = try MinimumThresholdSearch(heads: 1, factor: factor) }
        }
        expectError(.invalidArgument, "maximumReductions") { _ = try MinimumThresholdSearch(heads: 1, maximumReductions: 0) }
        expectError(.invalidArgument, "stepsPerHead") { _ = try MinimumThresholdSearch(heads: 1, stepsPerHead: .max) }
    }
}
