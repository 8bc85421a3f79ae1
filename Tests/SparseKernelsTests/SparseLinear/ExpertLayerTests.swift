import KernelInterface
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Layers of experts whose weights are numbers, against `Double` and against the layers that they are made of.
@Suite("Layer of experts")
struct ExpertLayerTests {
    private func expectMatches<X: AttentionElement, W: AttentionElement>(
        _ set: InstructionSet, _ x: X.Type, _ w: W.Type, tokens: Int, experts: Int, perToken: Int, width: Int, hidden: Int,
        shared: Int = 0, function: GatedActivation.Function = .silu
    ) throws {
        let label = "\(set), \(X.self)·\(W.self), \(tokens) tokens, \(perToken) of \(experts), \(width)×\(hidden), \(shared)"
        let problem = try ExpertProblem<W>(experts: experts, width: width, hidden: hidden, seed: 11)
        let extra = try ExpertProblem<W>(experts: shared, width: width, hidden: hidden + 3, seed: 91)
        let layer = try ExpertLayer(problem.experts(set), shared: extra.experts(set), activation: function)
        let x = try Tensor<X>.normal([tokens, width], seed: UInt64(tokens))
        let idle: Set<Int> = experts > perToken + 1 ? [1] : []
        let routing = try ExpertRouting.random(
            tokens: tokens, experts: experts, perToken: perToken, idle: idle, seed: UInt64(experts))
        let y = try layer(x, routing: routing)
        var worst = 0.0
        for token in 0..<tokens {
            let row = (0..<width).map { Double(x[flat: token * width + $0].floatValue) }
            let expected = ReferenceExperts.output(
                row, ids: (0..<perToken).map { routing.expert(ofToken: token, slot: $0) },
                weights: (0..<perToken).map { Double(routing.weight(ofToken: token, slot: $0)) },
                experts: problem.references, shared: extra.references, function)
            for k in 0..<width {
                worst = max(worst, abs(Double(y[token, k]) - expected[k].value) / expected[k].errorBound)
            }
        }
        #expect(worst <= 1, "\(label): \(worst) of the bound")
        for threads in [1, 2, 7] {
            var again = try Tensor<Float>(zeros: [tokens, width])
            try layer.run(x, routing: routing, into: &again, on: WorkerPool(threads: threads))
            #expect(again.bits == y.bits, "\(label), \(threads) threads")
        }
    }

    @Test("shapes and types agree with Double", arguments: InstructionSet.available)
    func shapes(_ set: InstructionSet) throws {
        try expectMatches(set, Float.self, Float.self, tokens: 1, experts: 1, perToken: 1, width: 1, hidden: 1)
        try expectMatches(set, Float.self, Float.self, tokens: 1, experts: 5, perToken: 3, width: 33, hidden: 17)
        try expectMatches(set, Float16.self, Float16.self, tokens: 7, experts: 4, perToken: 2, width: 20, hidden: 49)
        try expectMatches(set, BFloat16.self, BFloat16.self, tokens: 25, experts: 3, perToken: 3, width: 31, hidden: 64)
        try expectMatches(set, Float.self, Float16.self, tokens: 40, experts: 9, perToken: 2, width: 15, hidden: 16, shared: 1)
        try expectMatches(set, Float.self, BFloat16.self, tokens: 3, experts: 2, perToken: 1, width: 130, hidden: 7, shared: 2)
        try expectMatches(set, Float.self, Float.self, tokens: 150, experts: 2, perToken: 2, width: 5, hidden: 6, shared: 1)
    }

    @Test("activations", arguments: InstructionSet.available, GatedActivation.Function.allCases)
    func activations(_ set: InstructionSet, _ function: GatedActivation.Function) throws {
        try expectMatches(
            set, Float.self, Float.self, tokens: 5, experts: 4, perToken: 2, width: 18, hidden: 35, function: function)
    }

    /// The bits are those of the layers themselves, one expert at a time, and of a sum in the order of the slots.
    @Test("each expert has the bits of its own layers", arguments: InstructionSet.available)
    func bits(_ set: InstructionSet) throws {
        let problem = try ExpertProblem<Float16>(experts: 5, width: 40, hidden: 70, seed: 4)
        let layer = try ExpertLayer(problem.experts(set))
        let gate = try problem.gate.map { try FloatLinear(weight: $0, instructionSet: set) }
        let up = try problem.up.map { try FloatLinear(weight: $0, instructionSet: set) }
        let down = try problem.down.map { try FloatLinear(weight: $0, instructionSet: set) }
        for tokens in [1, 4, 30] {
            let x = try Tensor<Float>.normal([tokens, 40], seed: 8)
            let routing = try ExpertRouting.random(tokens: tokens, experts: 5, perToken: 2, idle: [3], seed: 5)
            let expected = try composed(
                x, routing, activation: GatedActivation(.silu, instructionSet: set),
                gate: gate.map { layer in { try layer($0) } }, up: up.map { layer in { try layer($0) } },
                down: down.map { layer in { try layer($0) } })
            let y = try layer(x, routing: routing)
            // The portable level on x86-64 has no fused multiply-add.
            if set != .portable { #expect(y.bits == expected.bits) }
            for index in 0..<y.count { #expect(abs(y[flat: index] - expected[flat: index]) <= 1e-4) }
        }
    }

    @Test("codes of 8 bits are their values", arguments: InstructionSet.available)
    func float8(_ set: InstructionSet) throws {
        let problem = try ExpertProblem<Float>(experts: 3, width: 24, hidden: 33, seed: 6)
        func codes(_ tensors: [Tensor<Float>]) throws -> [Float8Tensor<E4M3>] { try tensors.map { try Float8Tensor($0) } }
        let (gate, up, down) = try (codes(problem.gate), codes(problem.up), codes(problem.down))
        let layer = try ExpertLayer(
            (0..<3).map { try GatedExpert(gate: gate[$0], up: up[$0], down: down[$0], instructionSet: set) })
        var values = problem
        values.gate = try gate.map { try $0.dequantized() }
        values.up = try up.map { try $0.dequantized() }
        values.down = try down.map { try $0.dequantized() }
        let x = try Tensor<Float>.normal([9, 24], seed: 1)
        let routing = try ExpertRouting.random(tokens: 9, experts: 3, perToken: 2, seed: 2)
        let (a, b) = try (layer(x, routing: routing), ExpertLayer(values.experts(set))(x, routing: routing))
        for index in 0..<a.count { #expect(abs(a[flat: index] - b[flat: index]) <= 1e-4 * max(1, abs(b[flat: index]))) }
        #expect(layer.byteCount < 24 * 64 * 9 + 2000)
    }

    @Test("a token has the same bits in every batch", arguments: InstructionSet.available)
    func batches(_ set: InstructionSet) throws {
        let problem = try ExpertProblem<BFloat16>(experts: 6, width: 300, hidden: 140, seed: 3)
        let layer = try ExpertLayer(problem.experts(set), shared: [problem.experts(set)[0]])
        let x = try Tensor<Float>.normal([60, 300], seed: 4)
        let routing = try ExpertRouting.random(tokens: 60, experts: 6, perToken: 2, seed: 6)
        let all = try layer(x, routing: routing)
        for range in [0..<1, 7..<9, 10..<60, 59..<60] {
            let slots = range.lowerBound * 2..<range.upperBound * 2
            let part = try ExpertRouting(
                ids: Tensor([range.count, 2], Array(routing.ids[slots])),
                weights: Tensor([range.count, 2], Array(routing.weights[slots])), experts: 6)
            let rows = try Tensor<Float>([range.count, 300]) { x[flat: range.lowerBound * 300 + $0] }
            let y = try layer(rows, routing: part)
            #expect(Array(all.bits[range.lowerBound * 300..<range.upperBound * 300]) == y.bits, "\(set), tokens \(range)")
        }
    }

    @Test("long batches in several passes have the bits of their parts", arguments: InstructionSet.available)
    func passes(_ set: InstructionSet) throws {
        let tokens = 2049
        let problem = try ExpertProblem<Float>(experts: 3, width: 3, hidden: 2, seed: 1)
        let layer = try ExpertLayer(problem.experts(set), shared: [problem.experts(set)[1]])
        let x = try Tensor<Float>.normal([tokens, 3], seed: 4)
        let routing = try ExpertRouting.random(tokens: tokens, experts: 3, perToken: 2, seed: 6)
        let all = try layer(x, routing: routing)
        let last = try ExpertRouting(
            ids: Tensor([9, 2], Array(routing.ids.suffix(18))), weights: Tensor([9, 2], Array(routing.weights.suffix(18))),
            experts: 3)
        let y = try layer(Tensor<Float>([9, 3]) { x[flat: (tokens - 9) * 3 + $0] }, routing: last)
        #expect(Array(all.bits.suffix(27)) == y.bits)
        #expect(
            layer.workspaceByteCount(tokens: 1 << 40, expertsPerToken: 2)
                == layer.workspaceByteCount(tokens: 2049, expertsPerToken: 2))
    }

    @Test("strided rows, outputs of 16 bits, no tokens, and rows that are not finite", arguments: InstructionSet.available)
    func operands(_ set: InstructionSet) throws {
        let problem = try ExpertProblem<Float>(experts: 3, width: 10, hidden: 12, seed: 2)
        let layer = try ExpertLayer(problem.experts(set))
        let wide = try Tensor<Float>.normal([8, 25], seed: 2)
        var narrow = try Tensor<Float>([8, 10]) { wide[flat: $0 / 10 * 25 + 7 + $0 % 10] }
        let routing = try ExpertRouting.random(tokens: 8, experts: 3, perToken: 2, seed: 3)
        let expected = try layer(narrow, routing: routing)
        var y = try Tensor<BFloat16>.normal([8, 13], seed: 3)
        let before = y
        try layer.run(
            x: MatrixView(wide.span.extracting(droppingFirst: 7), rows: 8, columns: 10, rowStride: 25), routing: routing,
            y: MutableMatrixView(y.mutableSpan, rows: 8, columns: 10, rowStride: 13))
        for row in 0..<8 {
            for column in 0..<13 {
                let value = column < 10 ? BFloat16(expected[row, column]) : before[row, column]
                #expect(y[row, column].floatValue == value.floatValue)
            }
        }
        let none = try ExpertRouting(experts: 3, expertsPerToken: 2)
        #expect(try layer(Tensor<Float>(zeros: [0, 10]), routing: none).shape == [0, 10])
        narrow[3, 4] = .nan
        narrow[5, 0] = .infinity
        let spoilt = try layer(narrow, routing: routing)
        for row in 0..<8 {
            for column in 0..<10 {
                #expect(row == 3 || row == 5 ? !spoilt[row, column].isFinite : spoilt[row, column] == expected[row, column])
            }
        }
    }

    @Test("one expert with weight 1 is the feed-forward layer that it is", arguments: InstructionSet.available)
    func dense(_ set: InstructionSet) throws {
        let problem = try ExpertProblem<Float>(experts: 1, width: 50, hidden: 90, seed: 2)
        let layer = try ExpertLayer(problem.experts(set))
        let x = try Tensor<Float>.normal([20, 50], seed: 2)
        let routing = try ExpertRouting(
            ids: Tensor([20, 1], Array(repeating: 0, count: 20)), weights: Tensor([20, 1], Array(repeating: 1, count: 20)),
            experts: 1)
        let stacked = try FloatLinear(weights: [problem.gate[0], problem.up[0]], instructionSet: set)(x)
        var hidden = try Tensor<Float>(zeros: [20, 90])
        try GatedActivation(.silu, instructionSet: set).run(
            halvesOf: stacked.matrixView(), into: hidden.mutableMatrixView())
        let expected = try FloatLinear(weight: problem.down[0], instructionSet: set)(hidden)
        #expect(try layer(x, routing: routing).elements == expected.elements)
    }
}
