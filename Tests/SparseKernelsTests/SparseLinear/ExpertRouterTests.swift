import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Router of experts")
struct ExpertRouterTests {
    private func expectMatches(
        _ router: ExpertRouter, _ logits: Tensor<Float>, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let (tokens, experts) = (logits.shape[0], logits.shape[1])
        let routing = try router(logits)
        #expect(routing.tokens == tokens)
        for token in 0..<tokens {
            let row = (0..<experts).map { Double(logits[token, $0]) }
            let expected = ReferenceExperts.route(row, router)
            for slot in 0..<router.expertsPerToken {
                let (id, weight) = (
                    routing.expert(ofToken: token, slot: slot), Double(routing.weight(ofToken: token, slot: slot))
                )
                // Keys closer than the rounding of a score and its bias may change places; the seeds have none.
                #expect(id == expected.ids[slot], "\(label), token \(token)", sourceLocation: sourceLocation)
                let bound = (4e-6 + 4e-8 * 100) * abs(expected.weights[slot]) + 1e-37
                #expect(
                    abs(weight - expected.weights[slot]) <= bound, "\(label), token \(token), slot \(slot)",
                    sourceLocation: sourceLocation)
            }
        }
        let expected = ReferenceExperts.sortedSlots(ids: routing.ids, experts: experts)
        #expect(routing.counts == expected.counts && routing.offsets == expected.offsets, sourceLocation: sourceLocation)
        #expect(routing.sortedSlots == expected.sorted, sourceLocation: sourceLocation)
        for threads in [1, 2, 7] {
            var again = try ExpertRouting(experts: experts, expertsPerToken: router.expertsPerToken)
            try router.run(logits, into: &again, on: WorkerPool(threads: threads))
            #expect(again == routing, "\(threads) threads", sourceLocation: sourceLocation)
        }
    }

    @Test("scores, choices and weights agree with Double", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        for (experts, k) in [(1, 1), (2, 2), (7, 3), (8, 2), (17, 17), (64, 6), (160, 8)] {
            let logits = try Tensor<Float>.normal([13, experts], seed: UInt64(experts), scale: 3)
            let bias = try Tensor<Float>.normal([experts], seed: 5, scale: 0.2)
            for scores in ExpertRouter.Scores.allCases {
                for (bias, renormalizes, scale) in [(nil, true, 1), (bias, false, 1), (bias, true, Float(2.5))] {
                    let router = try ExpertRouter(
                        experts: experts, expertsPerToken: k, scores: scores, correctionBias: bias,
                        renormalizes: renormalizes, scale: scale, instructionSet: set)
                    try expectMatches(router, logits, "\(set), \(k) of \(experts), \(scores), \(scale)")
                }
            }
        }
    }

    @Test("groups that are closed have no tokens", arguments: InstructionSet.available, ExpertGroups.Strength.allCases)
    func groups(_ set: InstructionSet, _ strength: ExpertGroups.Strength) throws {
        let bias = try Tensor<Float>.normal([32], seed: 2, scale: 0.1)
        let logits = try Tensor<Float>.normal([40, 32], seed: 1, scale: 2)
        for (count, kept, k) in [(1, 1, 4), (8, 3, 4), (8, 8, 5), (4, 1, 8), (32, 6, 6)] {
            let groups = try ExpertGroups(count: count, kept: kept, strength: strength)
            for bias in [nil, bias] {
                let router = try ExpertRouter(
                    experts: 32, expertsPerToken: k, scores: .sigmoid, correctionBias: bias, groups: groups, instructionSet: set
                )
                try expectMatches(router, logits, "\(set), \(kept) of \(count) groups")
                let routing = try router(logits)
                for token in 0..<40 {
                    let used = Set((0..<k).map { routing.expert(ofToken: token, slot: $0) / (32 / count) })
                    #expect(used.count <= kept)
                }
            }
        }
    }

    @Test("of equal experts the one of lower index is chosen", arguments: InstructionSet.available)
    func ties(_ set: InstructionSet) throws {
        let logits = try Tensor<Float>([2, 5], [1, 3, 3, 1, 3, 0, 0, 0, 0, 0])
        for scores in ExpertRouter.Scores.allCases {
            for bias in [nil, try Tensor<Float>(zeros: [5])] {
                let router = try ExpertRouter(
                    experts: 5, expertsPerToken: 4, scores: scores, correctionBias: bias, instructionSet: set)
                #expect(try router(logits).ids == [1, 2, 4, 0, 0, 1, 2, 3])
            }
        }
    }

    @Test("scores that round to the same number do not tie", arguments: InstructionSet.available)
    func saturated(_ set: InstructionSet) throws {
        let logits = try Tensor<Float>([1, 3], [40, 50, 60])
        let router = try ExpertRouter(experts: 3, expertsPerToken: 2, scores: .sigmoid, instructionSet: set)
        let routing = try router(logits)
        #expect(routing.ids == [2, 1] && routing.weights == [0.5, 0.5])
    }

    @Test("a bias changes who is chosen, and not the weight", arguments: InstructionSet.available)
    func biasOnlyChooses(_ set: InstructionSet) throws {
        let logits = try Tensor<Float>([1, 3], [0, 1, 2])
        let bias = try Tensor<Float>([3], [10, 0, 0])
        let router = try ExpertRouter(
            experts: 3, expertsPerToken: 1, scores: .sigmoid, correctionBias: bias, renormalizes: false, instructionSet: set)
        let routing = try router(logits)
        #expect(routing.ids == [0] && routing.weights == [0.5])
    }

    @Test("weights of a token sum to the scale, or are 0 where all scores are", arguments: InstructionSet.available)
    func sums(_ set: InstructionSet) throws {
        let router = try ExpertRouter(experts: 9, expertsPerToken: 4, scale: 2.5, instructionSet: set)
        let routing = try router(Tensor<Float>.normal([30, 9], seed: 4, scale: 5))
        for token in 0..<30 {
            let sum = (0..<4).reduce(0) { $0 + routing.weight(ofToken: token, slot: $1) }
            #expect(abs(sum - 2.5) < 1e-5)
        }
        let sigmoid = try ExpertRouter(experts: 3, expertsPerToken: 2, scores: .sigmoid, instructionSet: set)
        let none = try sigmoid(Tensor<Float>([1, 3], [-3e38, -1e38, -2e38]))
        #expect(none.ids == [1, 2] && none.weights.allSatisfy { $0 >= 0 && $0 < 1e-15 })
    }

    @Test("logits of 16 bits and of strided rows are those numbers", arguments: InstructionSet.available)
    func operands(_ set: InstructionSet) throws {
        let half = try Tensor<Float16>.normal([9, 20], seed: 3)
        let router = try ExpertRouter(experts: 6, expertsPerToken: 2, instructionSet: set)
        let narrow = try Tensor<Float>([9, 6]) { half[flat: $0 / 6 * 20 + 5 + $0 % 6].floatValue }
        var routing = try ExpertRouting(experts: 6, expertsPerToken: 2)
        try router.run(
            MatrixView(half.span.extracting(droppingFirst: 5), rows: 9, columns: 6, rowStride: 20), into: &routing)
        #expect(try routing == router(narrow))
        #expect(try router(Tensor<Float>(zeros: [0, 6])).tokens == 0)
    }

    @Test("errors name the argument, and for a logit token and expert")
    func errors() throws {
        expectError(.invalidArgument, "experts") { _ = try ExpertRouter(experts: 0, expertsPerToken: 1) }
        expectError(.invalidArgument, "experts") { _ = try ExpertRouter(experts: 1 << 40, expertsPerToken: 1) }
        expectError(.invalidArgument, "expertsPerToken", containing: "1 to 4", "5") {
            _ = try ExpertRouter(experts: 4, expertsPerToken: 5)
        }
        expectError(.invalidShape, "correctionBias") {
            _ = try ExpertRouter(experts: 4, expertsPerToken: 1, correctionBias: Tensor(zeros: [3]))
        }
        expectError(.invalidArgument, "correctionBias") {
            _ = try ExpertRouter(experts: 2, expertsPerToken: 1, correctionBias: Tensor([2], [0, .infinity]))
        }
        expectError(.invalidArgument, "scale") { _ = try ExpertRouter(experts: 2, expertsPerToken: 1, scale: .nan) }
        expectError(.invalidArgument, "count") { _ = try ExpertGroups(count: 0, kept: 1) }
        expectError(.invalidArgument, "kept") { _ = try ExpertGroups(count: 4, kept: 5) }
        expectError(.invalidArgument, "groups", containing: "divisor of 6") {
            _ = try ExpertRouter(experts: 6, expertsPerToken: 1, groups: ExpertGroups(count: 4, kept: 1))
        }
        expectError(.invalidArgument, "groups", containing: "4 or more", "2 in 1 of 4") {
            _ = try ExpertRouter(experts: 8, expertsPerToken: 4, groups: ExpertGroups(count: 4, kept: 1))
        }
        let router = try ExpertRouter(experts: 4, expertsPerToken: 2)
        expectError(.invalidShape, "logits") { _ = try router(Tensor<Float>(zeros: [2, 3])) }
        var routing = try router(Tensor<Float>.normal([3, 4], seed: 1))
        let before = routing
        for value in [Float.nan, .infinity, -.infinity] {
            var logits = try Tensor<Float>(zeros: [3, 4])
            logits[2, 1] = value
            expectError(.invalidArgument, "logits", containing: "token 2", "expert 1") {
                try router.run(logits, into: &routing)
            }
            #expect(routing == before)
        }
        expectError(.invalidShape, "routing") {
            var other = try ExpertRouting(experts: 4, expertsPerToken: 1)
            try router.run(Tensor<Float>(zeros: [3, 4]), into: &other)
        }
    }
}
