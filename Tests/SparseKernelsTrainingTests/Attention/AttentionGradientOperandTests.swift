import SparseKernels
import SparseKernelsReference
import SparseKernelsTraining
import TestSupport
import Testing

/// Operands of the backward pass as callers have them: with strides, at the end of their memory, not finite, of wrong shapes.
@Suite("Operands of the gradient of attention")
struct AttentionGradientOperandTests {
    // MARK: - Memory

    /// Rows of a tensor with these strides, and 7 between them.
    static func spread(_ tensor: Tensor<Float>, headStride: Int, tokenStride: Int, count: Int) -> [Float] {
        var memory = [Float](repeating: 7, count: count)
        for head in 0..<tensor.shape[0] {
            for token in 0..<tensor.shape[1] {
                for channel in 0..<tensor.shape[2] {
                    memory[head * headStride + token * tokenStride + channel] = tensor[head, token, channel]
                }
            }
        }
        return memory
    }

    @Test("strides change no bit, and nothing is written between rows", arguments: InstructionSet.available)
    func strides(_ set: InstructionSet) throws {
        for (channels, valueChannels) in [(16, 32), (10, 13)] {
            let shape = try AttentionShape(
                queryLength: 100, keyLength: 530, queryHeads: 4, kvHeads: 2, headDim: channels, valueDim: valueChannels)
            let scene = try AttentionGradientScene(shape, mask: .causal)
            let state = try scene.forward(set)
            let expected = try scene.gradients(set, state: state)
            // Heads inside of tokens, then tokens inside of heads with gaps.
            for (headStride, tokenStride) in [(37, 160), (530 * 41 + 3, 41)] {
                let count = 4 * headStride + 530 * tokenStride
                func memory(_ tensor: Tensor<Float>) -> [Float] {
                    Self.spread(tensor, headStride: headStride, tokenStride: tokenStride, count: count)
                }
                func geometry(_ tensor: Tensor<Float>) throws -> TensorGeometry {
                    try TensorGeometry(
                        heads: tensor.shape[0], tokens: tensor.shape[1], channels: tensor.shape[2], headStride: headStride,
                        tokenStride: tokenStride)
                }
                let (q, k, v) = (memory(scene.query), memory(scene.key), memory(scene.value))
                let (o, g) = (memory(state.output), memory(scene.outputGradient))
                var dq = [Float](repeating: 7, count: count)
                var (dk, dv) = (dq, dq)
                try scene.plan(set).run(
                    query: TensorView(q.span, geometry: geometry(scene.query)),
                    key: TensorView(k.span, geometry: geometry(scene.key)),
                    value: TensorView(v.span, geometry: geometry(scene.value)),
                    output: TensorView(o.span, geometry: geometry(state.output)), logSumExp: state.logSumExp.span,
                    outputGradient: TensorView(g.span, geometry: geometry(scene.outputGradient)),
                    queryGradient: MutableTensorView(dq.mutableSpan, geometry: geometry(scene.query)),
                    keyGradient: MutableTensorView(dk.mutableSpan, geometry: geometry(scene.key)),
                    valueGradient: MutableTensorView(dv.mutableSpan, geometry: geometry(scene.value)))
                #expect(dq.map(\.bitPattern) == memory(expected.query).map(\.bitPattern))
                #expect(dk.map(\.bitPattern) == memory(expected.key).map(\.bitPattern))
                #expect(dv.map(\.bitPattern) == memory(expected.value).map(\.bitPattern))
            }
        }
    }

    @Test("nothing outside of the operands is read or written", arguments: InstructionSet.available, [true, false])
    func fences(_ set: InstructionSet, _ fencesEnd: Bool) throws {
        for (channels, valueChannels) in [(48, 16), (3, 21)] {
            let shape = try AttentionShape(
                queryLength: 101, keyLength: 131, queryHeads: 1, kvHeads: 1, headDim: channels, valueDim: valueChannels)
            let scene = try AttentionGradientScene(shape, mask: .causal)
            let state = try scene.forward(set)
            let expected = try scene.gradients(set, state: state)
            func fenced(_ tensor: Tensor<Float>) -> FencedMemory<Float> {
                FencedMemory(tensor.elements, fencesEnd: fencesEnd)
            }
            let inputs = [scene.query, scene.key, scene.value, state.output, state.logSumExp, scene.outputGradient].map(fenced)
            let outputs = [scene.query, scene.key, scene.value].map(fenced)
            try withExtendedLifetime((inputs, outputs)) {
                try scene.plan(set).run(
                    query: TensorView(inputs[0].elements.span, heads: 1, tokens: 101, channels: channels),
                    key: TensorView(inputs[1].elements.span, heads: 1, tokens: 131, channels: channels),
                    value: TensorView(inputs[2].elements.span, heads: 1, tokens: 131, channels: valueChannels),
                    output: TensorView(inputs[3].elements.span, heads: 1, tokens: 101, channels: valueChannels),
                    logSumExp: inputs[4].elements.span,
                    outputGradient: TensorView(inputs[5].elements.span, heads: 1, tokens: 101, channels: valueChannels),
                    queryGradient: MutableTensorView(
                        outputs[0].elements.mutableSpan, heads: 1, tokens: 101, channels: channels),
                    keyGradient: MutableTensorView(outputs[1].elements.mutableSpan, heads: 1, tokens: 131, channels: channels),
                    valueGradient: MutableTensorView(
                        outputs[2].elements.mutableSpan, heads: 1, tokens: 131, channels: valueChannels))
            }
            #expect(Array(outputs[0].elements) == expected.query.elements)
            #expect(Array(outputs[1].elements) == expected.key.elements)
            #expect(Array(outputs[2].elements) == expected.value.elements)
        }
    }

    // MARK: - Non-finite input

    static let masks: [AttentionMask] = [.full, .causal, .causal(window: 20), .full(window: 9)]

    /// Poisons one element, runs both passes and compares with the clean run. `spoils` says which queries have no finite gradient.
    static func expectSpread(
        _ set: InstructionSet, _ scene: AttentionGradientScene, _ clean: AttentionGradient.Gradients, _ poison: Float,
        of path: WritableKeyPath<AttentionGradientScene, Tensor<Float>>, token: Int, queries spoils: (Int) -> Bool
    ) throws {
        var scene = scene
        scene[keyPath: path][1, token, 3] = poison
        let spoiled = try scene.gradients(set, state: scene.forward(set))
        let isKey = path != \.query && path != \.outputGradient
        // Head 1 of the keys belongs to the query heads 2 and 3, and head 1 of the queries to head 0 of the keys.
        let (queryHeads, kvHead) = isKey ? ([2, 3], 1) : ([1], 0)
        let mask = scene.mask
        func sees(_ query: Int, _ key: Int) -> Bool {
            mask.isVisible(query: query, key: key, queryLength: 110, keyLength: 150)
        }
        let (elements, bits, cleanBits) = (spoiled.query.elements, spoiled.query.bits, clean.query.bits)
        let wrongQuery = (0..<440).first { row in
            let place = row * 10..<row * 10 + 10
            if queryHeads.contains(row / 110) && spoils(row % 110) { return elements[place].allSatisfy(\.isFinite) }
            return bits[place] != cleanBits[place]
        }
        #expect(wrongQuery == nil, "\(set), \(mask), \(poison) in row \(token)")
        let queries = (0..<110).filter(spoils)
        let (keyBits, cleanKeyBits) = (spoiled.key.bits, clean.key.bits)
        let (valueBits, cleanValueBits) = (spoiled.value.bits, clean.value.bits)
        let wrongKey = (0..<300).first { row in
            if row / 150 == kvHead && queries.contains(where: { sees($0, row % 150) }) {
                if path != \.outputGradient { return false }
                // Probabilities do not depend on it, so that other channels of the values keep their bits.
                return spoiled.value[flat: row * 13 + 3].isFinite || valueBits[row * 13 + 4] != cleanValueBits[row * 13 + 4]
            }
            let (key, value) = (row * 10..<row * 10 + 10, row * 13..<row * 13 + 13)
            return keyBits[key] != cleanKeyBits[key] || valueBits[value] != cleanValueBits[value]
        }
        #expect(wrongKey == nil, "\(set), \(mask), \(poison) in row \(token)")
    }

    @Test("what is not finite spreads along visible pairs only", arguments: InstructionSet.available, masks)
    func nonFinite(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let shape = try AttentionShape(
            queryLength: 110, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 10, valueDim: 13)
        let scene = try AttentionGradientScene(shape, mask: mask)
        let clean = try scene.gradients(set, state: scene.forward(set))
        for token in [0, 47, 97] {
            try Self.expectSpread(set, scene, clean, .nan, of: \.query, token: token) { $0 == token }
            try Self.expectSpread(set, scene, clean, .infinity, of: \.outputGradient, token: token) { $0 == token }
        }
        for token in [40, 129] {
            func sees(_ query: Int) -> Bool { mask.isVisible(query: query, key: token, queryLength: 110, keyLength: 150) }
            try Self.expectSpread(set, scene, clean, .nan, of: \.key, token: token, queries: sees)
            try Self.expectSpread(set, scene, clean, -.infinity, of: \.value, token: token, queries: sees)
        }
    }

    // MARK: - Errors

    /// The shapes of one call.
    struct Shapes: Sendable {
        var query = [6, 4, 7]
        var key = [3, 5, 7]
        var value = [3, 5, 8]
        var output = [6, 4, 8]
        var logSumExp = 24
        var outputGradient = [6, 4, 8]
        var queryGradient = [6, 4, 7]
        var keyGradient = [3, 5, 7]
        var valueGradient = [3, 5, 8]

        /// The error of the call, and whether the gradients are untouched.
        func run() throws -> (SparseKernelsError?, Bool) {
            let plan = try AttentionGradient(
                AttentionShape(queryLength: 4, keyLength: 5, queryHeads: 6, kvHeads: 3, headDim: 7, valueDim: 8))
            let (queries, keys, values) = try (
                Tensor<Float>(zeros: query), Tensor<Float>(zeros: key), Tensor<Float>(zeros: value)
            )
            let (outputs, gradients) = try (Tensor<Float>(zeros: output), Tensor<Float>(zeros: outputGradient))
            let statistics = [Float](repeating: 0, count: logSumExp)
            var (dq, dk, dv) = try (
                Tensor<Float>(queryGradient) { _ in 77 }, Tensor<Float>(keyGradient) { _ in 77 },
                Tensor<Float>(valueGradient) { _ in 77 }
            )
            var caught: SparseKernelsError?
            do {
                try plan.run(
                    query: queries.view(), key: keys.view(), value: values.view(), output: outputs.view(),
                    logSumExp: statistics.span, outputGradient: gradients.view(), queryGradient: dq.mutableView(),
                    keyGradient: dk.mutableView(), valueGradient: dv.mutableView())
            } catch { caught = error }
            return (caught, (dq.elements + dk.elements + dv.elements).allSatisfy { $0 == 77 })
        }
    }

    @Test("operands that disagree with the plan are refused by name, and nothing is written")
    func wrongShapes() throws {
        for (name, path) in [
            ("query", \Shapes.query), ("key", \.key), ("value", \.value), ("output", \.output),
            ("outputGradient", \.outputGradient), ("queryGradient", \.queryGradient), ("keyGradient", \.keyGradient),
            ("valueGradient", \.valueGradient),
        ] as [(String, WritableKeyPath<Shapes, [Int]>)] {
            for axis in 0..<3 {
                var shapes = Shapes()
                shapes[keyPath: path][axis] += 1
                let (error, isUntouched) = try shapes.run()
                #expect(error?.code == .invalidShape && error?.argument == name && isUntouched)
                for extent in [shapes[keyPath: path][axis], shapes[keyPath: path][axis] - 1] {
                    #expect(error?.description.contains("\(extent)") == true)
                }
            }
        }
        for count in [0, 23, 25] {
            var shapes = Shapes()
            shapes.logSumExp = count
            let (error, isUntouched) = try shapes.run()
            #expect(error?.argument == "logSumExp" && isUntouched)
            #expect(error?.description.contains("24") == true && error?.description.contains("\(count)") == true)
        }
        let (error, isUntouched) = try Shapes().run()
        #expect(error == nil && !isUntouched)
    }

    @Test("windows and scales out of range are refused")
    func wrongOptions() throws {
        let shape = try AttentionShape(queryLength: 4, keyLength: 5, queryHeads: 6, kvHeads: 3, headDim: 7)
        for window in [0, -1, Int.min] {
            expectError(.invalidArgument, "mask.window", containing: "\(window)") {
                _ = try AttentionGradient(shape, mask: .causal(window: window))
            }
        }
        expectError(.invalidArgument, "mask.left", containing: "-2") {
            _ = try AttentionGradient(shape, mask: .window(left: -2, right: 0))
        }
        for scale: Float in [.nan, .infinity] {
            expectError(.invalidArgument, "softmaxScale", containing: "\(scale)") {
                _ = try AttentionGradient(shape, softmaxScale: scale)
            }
        }
    }

    @Test("the largest sequences make plans")
    func huge() throws {
        let shape = try AttentionShape(
            queryLength: 1 << 20, keyLength: 1 << 22, queryHeads: 128, kvHeads: 8, headDim: 256, valueDim: 256)
        #expect(try AttentionGradient(shape, mask: .causal(window: Int.max)).workspaceByteCount > 0)
        for (queries, keys) in [(1 << 40, 1), (1, 1 << 40), (0, 1 << 50), (1 << 50, 0)] {
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 16, kvHeads: 1, headDim: 1)
            for mask in [AttentionMask.full, .causal, .window(left: 3, right: nil)] {
                #expect(try AttentionGradient(shape, mask: mask).workspaceByteCount >= 0)
            }
        }
    }
}
