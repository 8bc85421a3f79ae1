import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Routing of tokens to experts")
struct ExpertRoutingTests {
    @Test("slots are sorted by expert, stably, and none is dropped")
    func sorted() throws {
        for (tokens, experts, perToken) in [(0, 3, 2), (1, 1, 1), (1, 5, 3), (50, 4, 2), (33, 64, 6)] {
            let routing = try ExpertRouting.random(tokens: tokens, experts: experts, perToken: perToken, seed: 9)
            let expected = ReferenceExperts.sortedSlots(ids: routing.ids, experts: experts)
            #expect(routing.counts == expected.counts && routing.offsets == expected.offsets)
            #expect(routing.sortedSlots == expected.sorted)
            #expect(routing.activeExperts == expected.counts.count { $0 > 0 })
            for expert in 0..<experts { #expect(routing.tokenCount(ofExpert: expert) == Int(expected.counts[expert])) }
        }
    }

    @Test("a reused routing is the one that is made anew, and copies keep what they had")
    func reused() throws {
        let long = try ExpertRouting.random(tokens: 40, experts: 6, perToken: 2, seed: 1)
        let short = try ExpertRouting.random(tokens: 3, experts: 6, perToken: 2, seed: 2)
        var routing = try ExpertRouting(experts: 6, expertsPerToken: 2)
        #expect(routing.tokens == 0 && routing.counts == [0, 0, 0, 0, 0, 0] && routing.offsets == [0, 0, 0, 0, 0, 0, 0])
        for other in [short, long, short] {
            let kept = routing
            let before = (kept.ids, kept.counts)
            try routing.update(ids: other.ids.span, weights: other.weights.span)
            #expect(routing == other && routing.sortedSlots == other.sortedSlots && routing.offsets == other.offsets)
            #expect(kept.ids == before.0 && kept.counts == before.1)
        }
    }

    @Test("experts and weights of the caller are checked, and nothing changes when they are wrong")
    func errors() throws {
        func make(_ ids: [Int32], _ weights: [Float], perToken: Int = 2, experts: Int = 4) throws -> ExpertRouting {
            let tokens = ids.count / perToken
            return try ExpertRouting(
                ids: Tensor([tokens, perToken], ids), weights: Tensor([weights.count / perToken, perToken], weights),
                experts: experts)
        }
        #expect(try make([0, 3, 3, 2], [1, 0, -2, 0.5]).counts == [1, 0, 1, 2])
        expectError(.invalidArgument, "ids", containing: "experts 0 to 3", "4 in slot 1 of token 0") {
            _ = try make([0, 4, 1, 2], [1, 1, 1, 1])
        }
        expectError(.invalidArgument, "ids", containing: "-1 in slot 0 of token 1") {
            _ = try make([0, 1, -1, 2], [1, 1, 1, 1])
        }
        expectError(.invalidArgument, "ids", containing: "2 in slots 0 and 1 of token 1") {
            _ = try make([0, 2, 2, 2], [1, 1, 1, 1])
        }
        expectError(.invalidArgument, "weights", containing: "nan in slot 0 of token 1") {
            _ = try make([0, 1, 1, 0], [1, 1, .nan, 1])
        }
        expectError(.invalidShape, "weights") { _ = try make([0, 1, 1, 0], [1, 1]) }
        expectError(.invalidShape, "ids") {
            _ = try ExpertRouting(ids: Tensor([2], [0, 1]), weights: Tensor([2], [0, 1]), experts: 4)
        }
        expectError(.invalidArgument, "expertsPerToken") { _ = try make([0, 1, 0, 1, 0], [1, 1, 1, 1, 1], perToken: 5) }
        var routing = try make([0, 3, 3, 2], [1, 0, -2, 0.5])
        let before = routing
        let (three, four): ([Int32], [Float]) = ([1, 2, 3], [1, 1, 1, 1])
        expectError(.invalidShape, "ids") { try routing.update(ids: three.span, weights: four.span.extracting(first: 3)) }
        #expect(routing == before)
    }
}
