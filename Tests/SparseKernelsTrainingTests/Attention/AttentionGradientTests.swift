import SparseKernels
import SparseKernelsReference
import SparseKernelsTraining
import TestSupport
import Testing

@Suite("Gradient of attention")
struct AttentionGradientTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var lengths: (Int, Int)
        var heads = (2, 1)
        var channels: (Int, Int)
        var mask = AttentionMask.full
        var softmaxScale: Float?

        var testDescription: String {
            "\(heads.0)/\(heads.1) heads, \(lengths.0)×\(lengths.1)×\(channels.0)→\(channels.1), left \(mask.left ?? -1), right "
                + "\(mask.right ?? -1)"
        }

        func scene() throws -> AttentionGradientScene {
            try AttentionGradientScene(
                AttentionShape(
                    queryLength: lengths.0, keyLength: lengths.1, queryHeads: heads.0, kvHeads: heads.1, headDim: channels.0,
                    valueDim: channels.1),
                mask: mask, softmaxScale: softmaxScale)
        }
    }

    /// Sizes near the edges of tiles, panels and blocks; queries longer and shorter than keys; odd head widths; cut keys and groups.
    static let sweep = [
        Case(lengths: (1, 1), channels: (1, 1)), Case(lengths: (3, 7), channels: (3, 5), mask: .causal),
        Case(lengths: (7, 3), channels: (10, 2), mask: .causal), Case(lengths: (97, 129), channels: (64, 64), mask: .causal),
        Case(lengths: (48, 128), channels: (64, 48)), Case(lengths: (193, 137), channels: (33, 17), mask: .causal),
        Case(lengths: (60, 70), heads: (3, 3), channels: (96, 128), mask: .causal),
        Case(lengths: (25, 40), heads: (4, 2), channels: (256, 255)),
        Case(lengths: (100, 30), channels: (16, 16), softmaxScale: -0.7),
        Case(lengths: (20, 1100), heads: (4, 2), channels: (16, 8), mask: .causal),
        Case(lengths: (530, 530), heads: (1, 1), channels: (8, 8), mask: .causal),
        Case(lengths: (130, 600), heads: (6, 2), channels: (8, 16), mask: .causal(window: 50)),
        Case(lengths: (260, 515), heads: (2, 2), channels: (20, 12), mask: .window(left: 30, right: 9)),
        Case(lengths: (90, 600), channels: (12, 12), mask: .window(left: nil, right: 20)),
        Case(lengths: (560, 513), heads: (1, 1), channels: (4, 4), mask: .full(window: 7)),
        Case(lengths: (150, 20), channels: (8, 8), mask: .causal(window: 1)),
        // Several passes over the queries.
        Case(lengths: (5, 511), heads: (1, 1), channels: (256, 256), mask: .window(left: 450, right: 0)),
    ]

    @Test("agrees with the oracle on every level", arguments: sweep)
    func matchesReference(_ test: Case) throws {
        let scene = try test.scene()
        let expected = try scene.reference()
        let state = try expected.state(scene.shape)
        for set in InstructionSet.available {
            expectAttentionGradients(try scene.gradients(set, state: state), expected, "\(set)")
        }
    }

    @Test("agrees with the oracle after the forward pass of the operator", arguments: InstructionSet.available)
    func matchesAfterForward(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 110, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 40, valueDim: 24)
        let scene = try AttentionGradientScene(shape, mask: .causal)
        let state = try scene.forward(set)
        let exact = try scene.reference()
        let outputError = zip(state.output.elements, exact.output).map { abs(Double($0) - $1) }.max()!
        let logSumExpError = zip(state.logSumExp.elements, exact.logSumExp).map { abs(Double($0) - $1) }.max()!
        #expect(outputError < 1e-5 && logSumExpError < 1e-5)
        expectAttentionGradients(
            try scene.gradients(set, state: state),
            try scene.reference(outputError: outputError, logSumExpError: logSumExpError), "\(set)")
    }

    @Test("the oracle agrees with differences of the forward pass", arguments: [AttentionMask.full, .causal])
    func finiteDifferences(_ mask: AttentionMask) throws {
        let shape = try AttentionShape(queryLength: 4, keyLength: 5, queryHeads: 4, kvHeads: 2, headDim: 3, valueDim: 2)
        var scene = try AttentionGradientScene(shape, mask: mask, softmaxScale: 0.8)
        // Multiples of 2⁻⁴, to which steps are added without rounding.
        for path in [\AttentionGradientScene.query, \.key, \.value] {
            let shape = scene[keyPath: path].shape
            let elements = scene[keyPath: path].elements
            scene[keyPath: path] = try Tensor(shape) { (elements[$0] * 16).rounded() / 16 }
        }
        let gradients = try scene.reference()
        func loss(_ scene: AttentionGradientScene) throws -> Double {
            zip(try scene.reference().output, scene.outputGradient.elements).reduce(0) { $0 + $1.0 * Double($1.1) }
        }
        func slope(_ path: WritableKeyPath<AttentionGradientScene, Tensor<Float>>, _ index: Int, step: Float) throws -> Double {
            var (above, below) = (scene, scene)
            above[keyPath: path][flat: index] += step
            below[keyPath: path][flat: index] -= step
            return try (loss(above) - loss(below)) / (2 * Double(step))
        }
        for (path, values) in [
            (\AttentionGradientScene.query, gradients.query.values), (\.key, gradients.key.values),
            (\.value, gradients.value.values),
        ] {
            for (index, value) in values.enumerated() {
                // Two steps leave an error of the fourth order: 2⁻²⁴ times a derivative of the fifth order.
                let difference = try (4 * slope(path, index, step: 0x1p-7) - slope(path, index, step: 0x1p-6)) / 3
                #expect(abs(difference - value) <= 1e-6 * (1 + abs(value)), "\(index): \(value), differences \(difference)")
            }
        }
    }

    @Test("has the same bits on any number of threads", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        // Keys cut in strips, groups cut in heads, both and neither.
        for (queries, keys, heads, kvHeads, mask) in [
            (200, 600, 2, 2, AttentionMask.causal), (100, 200, 8, 2, .full), (90, 1100, 4, 1, .causal(window: 70)),
            (60, 90, 16, 16, .causal),
        ] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: heads, kvHeads: kvHeads, headDim: 20, valueDim: 12)
            let scene = try AttentionGradientScene(shape, mask: mask)
            let state = try scene.forward(set)
            let expected = try scene.gradients(set, state: state, on: .serial)
            for threads in [2, 7] {
                let gradients = try scene.gradients(set, state: state, on: WorkerPool(threads: threads))
                #expect(gradients.query.bits == expected.query.bits && gradients.key.bits == expected.key.bits)
                #expect(gradients.value.bits == expected.value.bits)
            }
        }
    }

    @Test("is linear: twice the gradient of the output gives exactly twice the gradients", arguments: InstructionSet.available)
    func linear(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 70, keyLength: 90, queryHeads: 4, kvHeads: 2, headDim: 24)
        var scene = try AttentionGradientScene(shape, mask: .causal)
        let state = try scene.forward(set)
        let once = try scene.gradients(set, state: state)
        let elements = scene.outputGradient.elements
        scene.outputGradient = try Tensor(scene.outputGradient.shape) { 2 * elements[$0] }
        let twice = try scene.gradients(set, state: state)
        #expect(twice.query.elements == once.query.elements.map { 2 * $0 })
        #expect(twice.key.elements == once.key.elements.map { 2 * $0 })
        #expect(twice.value.elements == once.value.elements.map { 2 * $0 })
    }

    @Test(
        "gradients of values of a query that sees all keys sum to the gradient of its output",
        arguments: InstructionSet.available)
    func massOfValues(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 1, keyLength: 300, queryHeads: 1, kvHeads: 1, headDim: 16, valueDim: 5)
        let scene = try AttentionGradientScene(shape)
        let gradients = try scene.gradients(set, state: scene.forward(set))
        for channel in 0..<5 {
            let sum = (0..<300).reduce(0.0) { $0 + Double(gradients.value[0, $1, channel]) }
            #expect(abs(sum - Double(scene.outputGradient[0, 0, channel])) < 1e-5)
        }
    }

    @Test("queries without keys and keys without queries have the gradient 0", arguments: InstructionSet.available)
    func unseen(_ set: InstructionSet) throws {
        // Of 40 queries the last 10 see keys; of 600 keys the last 45 are seen.
        for (queries, keys, mask) in [(40, 10, AttentionMask.causal), (40, 600, .causal(window: 6))] {
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 2, kvHeads: 1, headDim: 8)
            let scene = try AttentionGradientScene(shape, mask: mask)
            let gradients = try scene.gradients(set, state: scene.forward(set))
            func sees(_ query: Int, _ key: Int) -> Bool {
                mask.isVisible(query: query, key: key, queryLength: queries, keyLength: keys)
            }
            let (query, key, value) = (gradients.query.elements, gradients.key.elements, gradients.value.elements)
            for row in 0..<2 * queries where !(0..<keys).contains(where: { sees(row % queries, $0) }) {
                #expect(query[row * 8..<row * 8 + 8].allSatisfy { $0 == 0 })
            }
            for row in 0..<keys {
                let isSeen = (0..<queries).contains { sees($0, row) }
                #expect(isSeen || key[row * 8..<row * 8 + 8].allSatisfy { $0 == 0 })
                #expect(isSeen == value[row * 8..<row * 8 + 8].contains { $0 != 0 })
            }
        }
    }

    @Test("empty sequences", arguments: InstructionSet.available)
    func empty(_ set: InstructionSet) throws {
        for (queries, keys) in [(0, 5), (5, 0), (0, 0)] {
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 4, kvHeads: 2, headDim: 8)
            for mask in [AttentionMask.full, .causal] {
                let scene = try AttentionGradientScene(shape, mask: mask)
                var (query, key, value) = try (
                    Tensor<Float>([4, queries, 8]) { _ in 7 }, Tensor<Float>([2, keys, 8]) { _ in 7 },
                    Tensor<Float>([2, keys, 8]) { _ in 7 }
                )
                try scene.plan(set).run(
                    query: scene.query, key: scene.key, value: scene.value, state: scene.forward(set),
                    outputGradient: scene.outputGradient, queryGradient: &query, keyGradient: &key, valueGradient: &value)
                #expect((query.elements + key.elements + value.elements).allSatisfy { $0 == 0 })
            }
        }
    }

    @Test("a plan says how many pairs it has and what memory it takes")
    func numbers() throws {
        let shape = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 8, kvHeads: 2, headDim: 64)
        let gradient = try AttentionGradient(shape, mask: .causal)
        #expect(gradient.visiblePairs == 8 * 512 * 513 / 2)
        #expect(gradient.softmaxScale == 0.125)
        // Six of eight query heads write gradients of keys and values apart, and one of two strips of keys gradients of queries.
        #expect(gradient.workspaceByteCount > 6 * 512 * 128 * 4)
        let many = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 16, kvHeads: 16, headDim: 64)
        #expect(try AttentionGradient(many).workspaceByteCount == 0)
    }
}
