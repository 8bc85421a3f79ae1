import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Drawing tokens")
struct SamplerTests {
    private func draw(_ logits: [Float], _ sampling: Sampling, count: Int = 1, stream: UInt64 = 0) throws -> [Int] {
        var sampler = try Sampler(sampling, stream: stream)
        return try (0..<count).map { _ in try sampler.next(logits.span) }
    }

    @Test("greedy takes the largest, the lowest id of several, whatever the seed")
    func greedy() throws {
        #expect(try draw([1, 3, 3, -.infinity], .greedy) == [1])
        #expect(try draw([-.infinity, -5], Sampling(seed: 9)) == [1])
        #expect(try draw([-1e30, -2e30], .greedy) == [0])
    }

    @Test("frequencies are those of the softmax, within what chance allows")
    func frequencies() throws {
        let logits: [Float] = [0, 1, -1, 2]
        for temperature in [0.5, 1, 2] {
            var sampler = try Sampler(Sampling(temperature: temperature, seed: 4))
            let count = 10_000
            var counts = [Int](repeating: 0, count: 4)
            for _ in 0..<count { counts[try sampler.next(logits.span)] += 1 }
            let weights = logits.map { exponential(Double($0) / temperature) }
            for (token, weight) in weights.enumerated() {
                let expected = weight / weights.reduce(0, +)
                // Five standard deviations.
                let bound = 5 * (expected * (1 - expected) / Double(count)).squareRoot()
                #expect(abs(Double(counts[token]) / Double(count) - expected) < bound, "\(temperature), \(token)")
            }
        }
    }

    private func exponential(_ x: Double) -> Double {
        // (e^(x/1024))^1024, to depend on no library that the sampler has.
        var value = 1 + x / 1_048_576 + x * x / 2 / 1_048_576 / 1_048_576
        for _ in 0..<20 { value *= value }
        return value
    }

    /// The tokens that are drawn in many tries.
    private func support(_ logits: [Float], _ sampling: Sampling, tries: Int = 1000) throws -> Set<Int> {
        Set(try draw(logits, sampling, count: tries))
    }

    @Test("filters leave the tokens of their rules")
    func filters() throws {
        // Probabilities 0.4, 0.3, 0.2, 0.1 in another order.
        let logits: [Float] = [-2.302585, -0.916291, -1.609438, -1.203973]
        #expect(try support(logits, Sampling(temperature: 1)) == [0, 1, 2, 3])
        #expect(try support(logits, Sampling(temperature: 1, topK: 2)) == [1, 3])
        #expect(try support(logits, Sampling(temperature: 1, topK: 1)) == [1])
        #expect(try support(logits, Sampling(temperature: 1, topK: 99)) == [0, 1, 2, 3])
        #expect(try support(logits, Sampling(temperature: 1, topP: 0.65)) == [1, 3])
        #expect(try support(logits, Sampling(temperature: 1, topP: 0.75)) == [1, 2, 3])
        #expect(try support(logits, Sampling(temperature: 1, topP: 1e-9)) == [1])
        #expect(try support(logits, Sampling(temperature: 1, minP: 0.45)) == [1, 2, 3])
        #expect(try support(logits, Sampling(temperature: 1, minP: 1)) == [1])
        // After top-k the probabilities are 4/9, 3/9, 2/9: top-p of 0.75 needs two of them, of 0.8 three.
        #expect(try support(logits, Sampling(temperature: 1, topK: 3, topP: 0.75)) == [1, 3])
        #expect(try support(logits, Sampling(temperature: 1, topK: 3, topP: 0.8)) == [1, 2, 3])
        #expect(try support(logits, Sampling(temperature: 1, topK: 3, minP: 0.6)) == [1, 3])
        // Of equal ones, the lowest ids stay.
        #expect(try support([0, 0, 0, 0], Sampling(temperature: 1, topK: 2)) == [0, 1])
        #expect(try support([0, 0, 0, 0], Sampling(temperature: 1, topP: 0.5)) == [0, 1])
        #expect(try support([0, -.infinity, 0], Sampling(temperature: 1)) == [0, 2])
    }

    @Test("what top-k ranks is drawn as if it were sorted, on any number of threads")
    func ranked() throws {
        var generator = SplitMix64(seed: 3)
        let logits = (0..<40_000).map { _ in Float(Int.random(in: -900...900, using: &generator)) / 100 }
        let order = logits.indices.sorted { logits[$0] == logits[$1] ? $0 < $1 : logits[$0] > logits[$1] }
        #expect(try draw(logits, .greedy) == [order[0]])
        for count in [1, 7, 40] {
            let sampling = Sampling(temperature: 3, topK: count, seed: 5)
            var samplers = [try Sampler(sampling), try Sampler(sampling)]
            let pools = [WorkerPool(threads: 1), WorkerPool(threads: 7)]
            var drawn = Set<Int>()
            for _ in 0..<200 {
                let tokens = try (0..<2).map { try samplers[$0].next(logits.span, on: pools[$0]) }
                #expect(tokens[0] == tokens[1])
                drawn.insert(tokens[0])
            }
            #expect(drawn.isSubset(of: order.prefix(count)) && drawn.count > count / 2)
        }
        // The penalty needs all logits, and with 1 changes nothing.
        var (plain, noted) = (try Sampler(.greedy), try Sampler(Sampling(repetitionPenalty: 1.5)))
        noted.note([order[0]])
        #expect(try plain.next(logits.span) == order[0] && noted.next(logits.span) == order[1])
    }

    @Test("filters agree with a sort of everything, on random logits")
    func randomFilters() throws {
        var generator = SplitMix64(seed: 8)
        for _ in 0..<40 {
            let logits = (0..<50).map { _ in Float(Int.random(in: -20...20, using: &generator)) / 5 }
            let sampling = Sampling(
                temperature: 1, topK: Bool.random(using: &generator) ? Int.random(in: 1...60, using: &generator) : nil,
                topP: Double.random(in: 0.05...1, using: &generator), minP: Double.random(in: 0...0.3, using: &generator))
            let order = logits.indices.sorted { logits[$0] == logits[$1] ? $0 < $1 : logits[$0] > logits[$1] }
            var kept = Array(order.prefix(sampling.topK ?? 50))
            func weight(_ token: Int) -> Double { exponential(Double(logits[token] - logits[order[0]])) }
            let total = kept.reduce(0) { $0 + weight($1) }
            var sum = 0.0
            let needed = kept.firstIndex { token in
                sum += weight(token)
                return sum >= sampling.topP * total
            }
            kept = Array(kept.prefix((needed ?? kept.count) + 1)).filter { weight($0) >= sampling.minP }
            let drawn = try support(logits, sampling, tries: 400)
            // The most probable one is always there, and often.
            #expect(drawn.isSubset(of: kept) && drawn.contains(order[0]), "\(sampling)")
        }
    }

    @Test("the penalty is for tokens that were there, also those of the prompt")
    func penalty() throws {
        var sampler = try Sampler(Sampling(repetitionPenalty: 2))
        let logits: [Float] = [3, 2, -1]
        #expect(try sampler.next(logits.span) == 0)
        // 3/2 is below 2, then 2/2 is below 3/2, then both keep their place.
        #expect(try sampler.next(logits.span) == 1)
        #expect(try sampler.next(logits.span) == 0)
        var noted = try Sampler(Sampling(repetitionPenalty: 2))
        noted.note([0])
        #expect(try noted.next(logits.span) == 1)
        var negative = try Sampler(Sampling(repetitionPenalty: 2))
        negative.note([0])
        let below: [Float] = [-1, -1.5]
        #expect(try negative.next(below.span) == 1)
    }

    @Test("a seed and a stream give one sequence; others give others")
    func seeds() throws {
        let logits = [Float](repeating: 0, count: 1000)
        let first = try draw(logits, Sampling(temperature: 1, seed: 1), count: 20)
        #expect(try draw(logits, Sampling(temperature: 1, seed: 1), count: 20) == first)
        #expect(try draw(logits, Sampling(temperature: 1, seed: 2), count: 20) != first)
        #expect(try draw(logits, Sampling(temperature: 1, seed: 1), count: 20, stream: 1) != first)
    }

    @Test("values out of range, and logits that are none, are refused")
    func refusals() throws {
        for (sampling, name) in [
            (Sampling(temperature: -1), "temperature"), (Sampling(temperature: .nan), "temperature"),
            (Sampling(topK: 0), "topK"),
            (Sampling(topP: 0), "topP"), (Sampling(topP: 1.5), "topP"), (Sampling(topP: .nan), "topP"),
            (Sampling(minP: -1), "minP"),
            (Sampling(repetitionPenalty: 0), "repetitionPenalty"),
            (Sampling(repetitionPenalty: .infinity), "repetitionPenalty"),
        ] {
            let error = try #require(throws: SparseKernelsError.self) { _ = try Sampler(sampling) }
            #expect(error.argument == name)
        }
        for logits: [Float] in [[], [.nan, 1], [1, .nan], [.infinity], [-.infinity, -.infinity]] {
            #expect(throws: SparseKernelsError.self) { try draw(logits, .greedy) }
            #expect(throws: SparseKernelsError.self) { try draw(logits, Sampling(temperature: 1)) }
        }
    }
}
