import SparseKernelsReference
import SparseKernelsTraining
import Synchronization
import Testing

@testable import SequenceParallel

@Suite("Gradient of attention over ranks")
struct SequenceParallelGradientTests {
    /// All splits of up to eight ranks.
    static let splits = (1...8).flatMap { ranks in (1...ranks).filter { ranks % $0 == 0 }.map { ($0, ranks / $0) } }

    @Test(
        "agrees with the oracle for every split of up to eight ranks",
        arguments: [AttentionMask.causal, .full, .causal(window: 11), .window(left: 6, right: 17)])
    func splits(_ mask: AttentionMask) throws {
        // Groups of 1, 2, 4 and 8 ranks divide eight query heads, and four and eight have copies of two key/value heads. Six heads are for
        // groups of 3 and 6.
        for (heads, kvHeads, groups) in [(8, 2, [1, 2, 4, 8]), (6, 3, [3, 6]), (5, 1, [5]), (7, 7, [7])] {
            let scene = try GradientScene(length: 53, heads: (heads, kvHeads), channels: (6, 5), mask: mask)
            for (ulysses, ring) in Self.splits where groups.contains(ulysses) {
                let shards = try TokenShards.zigzag(length: 53, ulysses: ulysses, ring: ring)
                let result = try scene.gradients(shards, ulysses: ulysses)
                scene.expect(result.gradients, "\(ulysses) × \(ring)")
                for (rank, sent) in result.sent.enumerated() {
                    #expect(sent.counted == sent.expected, "\(ulysses) × \(ring), rank \(rank)")
                }
            }
        }
    }

    @Test(
        "agrees with the oracle for shards of any lengths and order",
        arguments: [AttentionMask.causal, .full, .window(left: 3, right: 9)])
    func shards(_ mask: AttentionMask) throws {
        let scene = try GradientScene(length: 40, heads: (6, 6), channels: (4, 7), mask: mask, seed: 20)
        let pages = stride(from: 0, to: 40, by: 6).map { $0..<min(40, $0 + 6) }
        let cyclic = try TokenShards(
            length: 40, ranges: (0..<4).map { rank in pages.indices.filter { $0 % 4 == rank }.map { pages[$0] } })
        let unequal = try TokenShards.contiguous(lengths: [7, 0, 25, 1, 0, 7])
        let backwards = try TokenShards(length: 40, ranges: [[20..<40], [0..<20]])
        for (shards, ulysses) in [
            (cyclic, 1), (cyclic, 2), (unequal, 1), (unequal, 3), (unequal, 6), (backwards, 1), (backwards, 2),
        ] {
            let result = try scene.gradients(shards, ulysses: ulysses)
            scene.expect(result.gradients, "\(shards.ranks) ranks, \(ulysses)")
            #expect(result.sent.allSatisfy { $0.counted == $0.expected })
        }
    }

    @Test("agrees with the oracle on every level, for long shards", arguments: InstructionSet.available)
    func levels(_ set: InstructionSet) throws {
        let scene = try GradientScene(length: 150, heads: (4, 2), channels: (20, 12), seed: 30)
        let shards = try TokenShards.zigzag(length: 150, ulysses: 2, ring: 2)
        scene.expect(try scene.gradients(shards, ulysses: 2, instructionSet: set).gradients, "\(set)")
    }

    @Test("one rank gives the bits of the gradient of attention")
    func oneRank() throws {
        for mask in [AttentionMask.causal, .full, .causal(window: 20)] {
            let scene = try GradientScene(length: 61, heads: (4, 2), channels: (8, 4), mask: mask)
            let plan = try AttentionGradient(scene.shape, mask: mask)
            let alone = try plan(
                query: scene.query, key: scene.key, value: scene.value, state: scene.state,
                outputGradient: scene.outputGradient, on: .serial)
            let result = try scene.gradients(.contiguous(length: 61, ranks: 1), ulysses: 1)
            let expected = SequenceParallelGradient.Gradients(query: alone.query, key: alone.key, value: alone.value)
            #expect(result.gradients.bits == expected.bits && result.sent[0].counted == 0)
        }
    }

    @Test("timing, threads and earlier calls do not change a bit")
    func determinism() throws {
        let scene = try GradientScene(length: 90, heads: (4, 2), channels: (8, 8), seed: 40)
        for (ulysses, ring) in [(1, 3), (2, 2)] {
            let shards = try TokenShards.zigzag(length: 90, ulysses: ulysses, ring: ring)
            let bits = try scene.gradients(shards, ulysses: ulysses).gradients.bits
            #expect(try scene.gradients(shards, ulysses: ulysses, calls: 3, delays: [0, 4, 1, 2]).gradients.bits == bits)
            #expect(try scene.gradients(shards, ulysses: ulysses, calls: 2, delays: [3, 0]).gradients.bits == bits)
            #expect(try scene.gradients(shards, ulysses: ulysses, overlaps: false).gradients.bits == bits)
            #expect(try scene.gradients(shards, ulysses: ulysses, threads: 2).gradients.bits == bits)
        }
    }

    @Test("is linear: twice the gradient of the output gives exactly twice the gradients")
    func linear() throws {
        var scene = try GradientScene(length: 44, heads: (4, 4), channels: (8, 6), seed: 50)
        let shards = try TokenShards.zigzag(length: 44, ulysses: 2, ring: 2)
        let once = try scene.gradients(shards, ulysses: 2).gradients
        let elements = scene.outputGradient.elements
        scene.outputGradient = try Tensor(scene.outputGradient.shape) { 2 * elements[$0] }
        let twice = try scene.gradients(shards, ulysses: 2).gradients
        #expect(twice.query.elements == once.query.elements.map { 2 * $0 })
        #expect(twice.key.elements == once.key.elements.map { 2 * $0 })
        #expect(twice.value.elements == once.value.elements.map { 2 * $0 })
    }

    @Test("gradients of the values of all ranks sum to the gradients of the outputs")
    func sums() throws {
        // Probabilities of a row sum to 1, so each output's gradient is spread over values and not changed.
        let scene = try GradientScene(length: 50, heads: (8, 2), channels: (8, 3), mask: .causal, seed: 60)
        let result = try scene.gradients(.zigzag(length: 50, ulysses: 4, ring: 2), ulysses: 4).gradients
        for channel in 0..<3 {
            for kvHead in 0..<2 {
                let values = (0..<50).reduce(0.0) { $0 + Double(result.value[kvHead, $1, channel]) }
                var outputs = 0.0
                for head in kvHead * 4..<kvHead * 4 + 4 {
                    for token in 0..<50 { outputs += Double(scene.outputGradient[head, token, channel]) }
                }
                #expect(abs(values - outputs) < 1e-4)
            }
        }
    }

    @Test("NaN in the gradient of one output stays with its query and the keys that it sees")
    func nonFinite() throws {
        var scene = try GradientScene(length: 36, heads: (4, 2), channels: (8, 8), seed: 70)
        let shards = try TokenShards.zigzag(length: 36, ulysses: 2, ring: 2)
        let clean = try scene.gradients(shards, ulysses: 2).gradients
        scene.outputGradient[1, 20, 3] = .nan
        let result = try scene.gradients(shards, ulysses: 2).gradients
        for token in 0..<36 {
            for head in 0..<4 {
                for c in 0..<8 where !(head == 1 && token == 20) {
                    #expect(result.query[head, token, c].bitPattern == clean.query[head, token, c].bitPattern)
                }
                #expect(result.query[head, token, 0].isNaN == (head == 1 && token == 20))
            }
            // Query head 1 reads key/value head 0, up to its own token.
            for (touched, c) in [(0, 3), (1, 3), (0, 0), (1, 0)] where touched == 1 || token > 20 {
                #expect(result.key[touched, token, c].bitPattern == clean.key[touched, token, c].bitPattern)
                #expect(result.value[touched, token, c].bitPattern == clean.value[touched, token, c].bitPattern)
            }
            #expect(result.key[0, token, 0].isNaN == (token <= 20) && result.value[0, token, 3].isNaN == (token <= 20))
        }
    }

    @Test("agrees with the oracle after the forward pass over the same ranks")
    func afterForward() throws {
        let scene = try GradientScene(length: 64, heads: (4, 2), channels: (16, 16), seed: 80)
        let shards = try TokenShards.zigzag(length: 64, ulysses: 2, ring: 2)
        let worst = try LocalCommunicator.run(ranks: 4, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let tokens = shards.positions(of: ranks.rank)
            let q = try GradientScene.rows(scene.query, tokens)
            let k = try GradientScene.rows(scene.key, tokens)
            let v = try GradientScene.rows(scene.value, tokens)
            let forward = try SequenceParallelAttention(
                shards, queryHeads: 4, kvHeads: 2, headDim: 16, mask: .causal, ulysses: 2, on: ranks)
            let backward = try SequenceParallelGradient(
                shards, queryHeads: 4, kvHeads: 2, headDim: 16, mask: .causal, ulysses: 2, on: ranks)
            let state = try forward(query: q, key: k, value: v, on: .serial)
            let gradients = try backward(
                query: q, key: k, value: v, state: state, outputGradient: GradientScene.rows(scene.outputGradient, tokens),
                on: .serial)
            var worst = 0.0
            for (row, token) in tokens.enumerated() {
                for c in 0..<16 {
                    for head in 0..<4 {
                        let expected = scene.expected.query.values[(head * 64 + token) * 16 + c]
                        worst = max(worst, abs(Double(gradients.query[head, row, c]) - expected))
                    }
                    for head in 0..<2 {
                        let place = (head * 64 + token) * 16 + c
                        worst = max(worst, abs(Double(gradients.key[head, row, c]) - scene.expected.key.values[place]))
                        worst = max(worst, abs(Double(gradients.value[head, row, c]) - scene.expected.value.values[place]))
                    }
                }
            }
            return worst
        }
        #expect(worst.max()! < 1e-5)
    }

    @Test("operands of another shape, and ranks that disagree, are errors that name them")
    func errors() throws {
        let shards = try TokenShards.contiguous(length: 8, ranks: 2)
        func error<Result: Sendable>(
            _ body: @escaping @Sendable (LocalCommunicator) throws(SparseKernelsError) -> Result
        ) -> SparseKernelsError? {
            do throws(SparseKernelsError) {
                _ = try LocalCommunicator.run(ranks: 2, timeLimit: 20, body)
                return nil
            } catch { return error }
        }
        func planError(heads: Int = 4, kvHeads: Int = 2, ulysses: Int = 1, ranks: Int = 2, mask: AttentionMask = .full)
            -> String?
        {
            error { (communicator) throws(SparseKernelsError) in
                _ = try SequenceParallelGradient(
                    .contiguous(length: 8, ranks: ranks), queryHeads: heads, kvHeads: kvHeads, headDim: 4, mask: mask,
                    ulysses: ulysses, on: communicator)
            }?.argument
        }
        #expect(planError(heads: 3, kvHeads: 1, ulysses: 2) == "ulysses")
        #expect(planError(heads: 6, kvHeads: 3, ulysses: 2) == "ulysses")
        #expect(planError(ulysses: 4) == "ulysses")
        #expect(planError(ranks: 3) == "shards")
        #expect(planError(kvHeads: 3) == "queryHeads")
        #expect(planError(mask: .causal(window: 0)) == "mask.window")
        let disagreement = error { (ranks) throws(SparseKernelsError) in
            _ = try SequenceParallelGradient(shards, queryHeads: 4, kvHeads: 2, headDim: 4 + ranks.rank, on: ranks)
        }
        #expect(disagreement?.code == .communication && disagreement?.actual.contains("5 and 5 channels") == true)
        let shape = error { (ranks) throws(SparseKernelsError) in
            let plan = try SequenceParallelGradient(shards, queryHeads: 2, kvHeads: 2, headDim: 4, on: ranks)
            // Rank 1 has a row too few. Rank 0 fails, too, and does not wait for it.
            let rows = 4 - ranks.rank
            let (x, own) = (try Tensor<Float>(zeros: [2, 4, 4]), try Tensor<Float>(zeros: [2, rows, 4]))
            let state = try AttentionState(output: x, logSumExp: Tensor(zeros: [2, 4]))
            _ = try plan(query: x, key: own, value: x, state: state, outputGradient: x, on: .serial)
        }
        #expect(shape?.code == .invalidShape && shape?.argument == "key" && shape?.actual == "2 × 3 × 4")
    }

    @Test("a rank that fails is an error on the others, which write nothing", arguments: [1, 3])
    func failure(_ ulysses: Int) throws {
        let shards = try TokenShards.zigzag(length: 24, ulysses: ulysses, ring: 3 / ulysses)
        let outcomes = Mutex<[String]>([])
        #expect(throws: SparseKernelsError.self) {
            try LocalCommunicator.run(ranks: 3, timeLimit: 20) { (ranks) throws(SparseKernelsError) in
                let x = try Tensor<Float>.normal([3, 8, 4], seed: 1)
                let logs = try Tensor<Float>(zeros: [3, 8])
                let sevens = try Tensor<Float>([3, 8, 4]) { _ in 7 }
                var (dq, dk, dv) = (sevens, sevens, sevens)
                var outcome = "no error"
                do throws(SparseKernelsError) {
                    let plan = try SequenceParallelGradient(
                        shards, queryHeads: 3, kvHeads: 3, headDim: 4, mask: .causal, ulysses: ulysses, on: ranks)
                    if ranks.rank == 1 {
                        // The others may still be making their plan.
                        ranks.fail(SparseKernelsError(.inputOutput, "disk", expected: "there", actual: "gone"))
                        return
                    }
                    let q = try x.view()
                    let gq = try dq.mutableView()
                    let gk = try dk.mutableView()
                    let gv = try dv.mutableView()
                    try plan.run(
                        query: q, key: q, value: q, output: q, logSumExp: logs.span, outputGradient: q, queryGradient: gq,
                        keyGradient: gk, valueGradient: gv, on: .serial)
                } catch {
                    outcome = "\(error.code), names rank 1: \(error.actual.contains("rank 1"))"
                }
                let isUntouched = dq == sevens && dk == sevens && dv == sevens
                outcomes.withLock { $0.append("\(outcome), untouched: \(isUntouched)") }
            }
        }
        let expected = "communication failure, names rank 1: true, untouched: true"
        #expect(outcomes.withLock { $0 } == [expected, expected])
    }
}
