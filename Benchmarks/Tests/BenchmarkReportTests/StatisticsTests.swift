import BenchmarkReport
import Testing

@Suite struct StatisticsTests {
    @Test func oddAndEvenCounts() {
        #expect(Summary([3]) == Summary(median: 3, min: 3, max: 3))
        #expect(Summary([5, 1, 3]) == Summary(median: 3, min: 1, max: 5))
        #expect(Summary([4, 1, 3, 2]) == Summary(median: 2.5, min: 1, max: 4))
    }

    @Test func spreadIsHalfTheRangeOverTheMedian() {
        #expect(Summary([9, 10, 12]).relativeSpread == 0.15)
        #expect(Summary([0, 0]).relativeSpread == 0)
    }

    @Test func roundsEndWithTheMinimumWhenThereIsNoBudget() {
        let sampler = Sampler(warmUpRounds: 3, minimumRounds: 5, budget: .zero, minimumSample: .zero)
        var calls = 0
        var rounds = 0
        let samples = sampler.sample(eachRound: { rounds += 1 }, { calls += 1 })
        #expect(samples.count == 5)
        #expect(rounds == 5)
        #expect(calls == 8)
    }

    @Test func roundsGoOnUntilTheBudgetIsSpentButNotForEver() {
        let patient = Sampler(minimumRounds: 1, budget: .seconds(100), maximumRounds: 20, minimumSample: .zero)
        #expect(patient.sample({}).count == 20)
        let clock = ContinuousClock()
        let time = clock.measure { _ = Sampler(minimumRounds: 1, budget: .milliseconds(20)).sample({}) }
        #expect(time >= .milliseconds(20))
    }

    @Test func shortCallsAreTimedInBatches() {
        var calls = 0
        let samples = Sampler(minimumRounds: 3, budget: .zero, minimumSample: .milliseconds(1)).sample { calls += 1 }
        #expect(calls > 100)
        #expect(samples.count == 3 && samples.allSatisfy { $0 < 1e-3 })
        calls = 0
        let single = Contender("", repeats: false) { calls += 1 }
        let sampler = Sampler(warmUpRounds: 0, minimumRounds: 3, budget: .zero, minimumSample: .milliseconds(1))
        #expect(sampler.interleave([single]).samples[0].count == 3 && calls == 3)
    }

    @Test func contendersTakeTurns() {
        var order = ""
        let sampler = Sampler(warmUpRounds: 0, minimumRounds: 3, budget: .zero, minimumSample: .zero)
        let result = sampler.interleave([Contender("a") { order += "A" }, Contender("b") { order += "B" }])
        #expect(order == "ABABAB")
        #expect(result.names == ["a", "b"])
        #expect(result.samples.map(\.count) == [3, 3])
    }

    @Test func speedupIsTheMedianOfTheRatiosOfRounds() {
        // Both slow down in the second round, which does not change the ratio of the round.
        let result = InterleavedSamples(names: ["sparse", "dense"], samples: [[1, 10, 1], [4, 40, 5]])
        #expect(result.speedup(of: "sparse", over: "dense") == 4)
        #expect(result.summary(of: "dense") == Summary(median: 5, min: 4, max: 40))
        #expect(result.summary(of: "other") == nil)
    }

    @Test func nothingToMeasureHasNoSamples() {
        #expect(Sampler().interleave([]).names.isEmpty)
    }
}
