import FastDLLM
import Foundation
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Fast-dLLM: decoding")
struct FastDLLMDecoderTests {
    static let prompt = [1, 2, 3, 4, 5, 6, 7]

    private func decode(
        _ configuration: FastDLLMConfiguration, length: Int = 24
    ) throws -> (result: FastDLLMResult, model: ScriptedModel) {
        var model = ScriptedModel()
        let result = try FastDLLMDecoder(configuration).generate(Self.prompt, length: length, with: &model, on: .serial)
        return (result, model)
    }

    @Test("is the released loop", arguments: FastDLLMConfiguration.Cache.allCases, [false, true])
    func loop(_ cache: FastDLLMConfiguration.Cache, _ shifts: Bool) throws {
        let tokens = Self.prompt + Array(repeating: 11, count: 24)
        let rules: [(CommitRule, ([(confidence: Double, position: Int)], Int) -> Int)] = [
            (.threshold(0.6), { list, _ in max(1, list.count { $0.confidence >= 0.6 }) }),
            (.tokensPerStep(2), { list, _ in min(2, list.count) }),
            (
                .factor(1.5),
                { list, _ in
                    var n = 1
                    while n < list.count, Double(n + 2) * (1 - list[n].confidence) < 1.5 { n += 1 }
                    return n
                }
            ),
            // 8 positions in 3 steps; with the shift the last step has more.
            (.schedule(steps: 9), { list, step in step == 2 ? list.count : 3 }),
        ]
        for (rule, commit) in rules {
            var configuration = FastDLLMConfiguration(blockLength: 8, rule: rule, cache: cache)
            configuration.shiftsLogits = shifts
            let (result, model) = try decode(configuration)
            let expected = try ScriptedModel.expected(
                tokens, from: 7, block: 8, cache: cache, shifts: shifts, model: ScriptedModel(), commit: commit)
            #expect(result.sequence == expected.tokens, "\(rule)")
            #expect(result.tokens == Array(expected.tokens[7...]))
            #expect(result.steps.map { $0.commits.map(\.position).sorted() } == expected.forwards, "\(rule)")
            #expect(result.queryRows == expected.rows && result.forwardPasses == expected.forwards.count)
            #expect(result.steps.map(\.forward) == Array(0..<result.forwardPasses))
            #expect(result.projectedRows == model.calls.reduce(0) { $0 + $1.rows.count })
            #expect(result.tokensPerForward == 24 / Double(result.forwardPasses))
            // Dream's first position is committed by the pass over everything, and alone.
            if shifts, cache != .none {
                for step in result.steps where step.running.count == 31 {
                    #expect(step.commits.map(\.position) == [step.block.lowerBound])
                }
            }
        }
    }

    @Test("caches run what they must, and rows are masked positions of the block")
    func calls() throws {
        for cache in FastDLLMConfiguration.Cache.allCases {
            let (result, model) = try decode(FastDLLMConfiguration(blockLength: 8, rule: .tokensPerStep(3), cache: cache))
            #expect(model.calls.count == 9)
            for (index, call) in model.calls.enumerated() {
                let (block, pass) = (7 + index / 3 * 8, index % 3)
                let inner = cache == .none ? 0..<31 : cache == .prefix ? block..<31 : block..<block + 8
                #expect(call.running == (pass == 0 ? 0..<31 : inner), "\(cache), pass \(index)")
                #expect(call.rows.count == 8 - 3 * pass && call.rows.allSatisfy { (block..<block + 8).contains($0) })
                #expect(result.steps[index].block == block..<block + 8 && result.steps[index].running == call.running)
                // What the cache knows of other positions is what they were when they ran.
                #expect(call.seen[..<block].allSatisfy { $0 != 11 } && call.seen[(block + 8)...].allSatisfy { $0 == 11 })
            }
        }
    }

    @Test("a refresh runs everything again", arguments: [FastDLLMConfiguration.Cache.prefix, .dual])
    func refresh(_ cache: FastDLLMConfiguration.Cache) throws {
        let configuration = FastDLLMConfiguration(blockLength: 12, rule: .tokensPerStep(2), cache: cache, refreshEvery: 3)
        let (result, _) = try decode(configuration)
        #expect(
            result.steps.map { $0.running.count == 31 } == [
                true, false, false, true, false, false, true, false, false, true, false, false,
            ])
        let always = try decode(FastDLLMConfiguration(blockLength: 12, rule: .threshold(0.7), cache: cache, refreshEvery: 1))
            .result
        let plain = try decode(FastDLLMConfiguration(blockLength: 12, rule: .threshold(0.7), cache: .none)).result
        #expect(always.sequence == plain.sequence && always.steps == plain.steps)
    }

    @Test("counts the pass that the released code makes over a full block")
    func releasedPasses() throws {
        var configuration = FastDLLMConfiguration(blockLength: 8, rule: .threshold(0), cache: .dual)
        #expect(try decode(configuration).result.forwardPasses == 3)
        #expect(try decode(configuration).result.releasedForwardPasses == 6)
        configuration.cache = .none
        #expect(try decode(configuration).result.releasedForwardPasses == 3)
    }

    @Test("random and entropy rules fill everything, each step as many as it says")
    func otherRules() throws {
        let random = try decode(FastDLLMConfiguration(blockLength: 8, rule: .random(steps: 12), cache: .dual, seed: 5)).result
        #expect(random.steps.map(\.commits.count) == Array(repeating: 2, count: 12))
        let same = try decode(FastDLLMConfiguration(blockLength: 8, rule: .random(steps: 12), cache: .dual, seed: 5)).result
        let other = try decode(FastDLLMConfiguration(blockLength: 8, rule: .random(steps: 12), cache: .dual, seed: 6)).result
        #expect(random == same && random.steps != other.steps)
        // From 8 masked positions: ⌊8·(1 − t₁/t₀)⌋ = ⌊8·0.999/4⌋ = 1, then ⌊7·0.999/3.001…⌋ = 2, and so on; the last takes the
        // rest.
        let entropy = try decode(FastDLLMConfiguration(blockLength: 8, rule: .entropy(steps: 12), cache: .none)).result
        var remaining = 8.0
        for (index, step) in entropy.steps.enumerated() {
            let i = Double(index % 4)
            func time(_ i: Double) -> Double { 1 - 0.999 * i / 4 }
            let count = index % 4 == 3 ? remaining : floor(remaining * (1 - time(i + 1) / time(i)))
            #expect(Double(step.commits.count) == count)
            remaining = index % 4 == 3 ? 8 : remaining - count
        }
        #expect(entropy.tokens.allSatisfy { $0 != 11 })
    }

    @Test("a temperature draws each token with its probability, and has a stream per seed")
    func temperature() throws {
        // Two tokens, 3 to 1. A rule that left some for later would commit the likelier ones first and draw the others again.
        struct Coin: DiffusionModel {
            let vocabularySize = 3
            let maskToken = 9
            let capacity = 4096
            func check(_ tokens: [Int]) {}
            mutating func logits(
                of rows: [Int], running: Range<Int>, in tokens: [Int], on pool: WorkerPool
            ) throws(SparseKernelsError) -> Tensor<Float> {
                try Tensor([rows.count, 3], rows.flatMap { _ in [Float(log(3.0)), 0, -.infinity] })
            }
        }
        var coin = Coin()
        func tokens(_ temperature: Double, _ seed: UInt64) throws -> [Int] {
            let configuration = FastDLLMConfiguration(rule: .threshold(0), temperature: temperature, seed: seed)
            return try FastDLLMDecoder(configuration).generate([], length: 4096, with: &coin, on: .serial).tokens
        }
        let drawn = try tokens(1, 1)
        let share = Double(drawn.count { $0 == 0 }) / 4096
        #expect(abs(share - 0.75) < 4 * (0.75 * 0.25 / 4096).squareRoot() && !drawn.contains(2))
        #expect(try tokens(1, 1) == drawn)
        #expect(try tokens(1, 2) != drawn)
        #expect(try tokens(0, 1).allSatisfy { $0 == 0 })
        // At temperature 1/2 the odds are squared.
        let cold = Double(try tokens(0.5, 1).count { $0 == 0 }) / 4096
        #expect(abs(cold - 0.9) < 4 * (0.09 / 4096).squareRoot())
    }

    @Test("positions that are there already stay, and full blocks cost nothing")
    func filling() throws {
        var model = ScriptedModel()
        var tokens = Self.prompt + Array(repeating: 11, count: 16)
        for position in 7..<15 { tokens[position] = 3 }
        tokens[17] = 8
        let decoder = try FastDLLMDecoder(FastDLLMConfiguration(blockLength: 8, rule: .tokensPerStep(1)))
        let result = try decoder.fill(tokens, from: 7, with: &model, on: .serial)
        #expect(result.forwardPasses == 7 && result.tokens.prefix(8) == [3, 3, 3, 3, 3, 3, 3, 3] && result.tokens[10] == 8)
        #expect(try decoder.fill(result.sequence, from: 7, with: &model, on: .serial).forwardPasses == 0)
        let nothing = try decoder.generate(Self.prompt, length: 0, with: &model, on: .serial)
        #expect(nothing.tokens.isEmpty && nothing.tokensPerForward == 0 && nothing.smallestMargin == (.infinity, .infinity))
    }

    @Test("steps are shown as they happen, and near-ties are counted")
    func observing() throws {
        var model = ScriptedModel()
        var seen: [FastDLLMStep] = []
        var configuration = FastDLLMConfiguration(blockLength: 8, rule: .threshold(0.8), nearTie: 0)
        let result = try FastDLLMDecoder(configuration).generate(Self.prompt, length: 16, with: &model, on: .serial) {
            seen.append($0)
        }
        #expect(seen == result.steps && result.nearTies == 0)
        configuration.nearTie = .infinity
        model = ScriptedModel()
        let all = try FastDLLMDecoder(configuration).generate(Self.prompt, length: 16, with: &model, on: .serial)
        #expect(all.nearTies == all.forwardPasses)
        #expect(all.smallestMargin.tokens == result.steps.map(\.tokenMargin).min())
    }
}
