import SparseKernelsReference
import SparseKernelsTraining
import SparseLoRA
import TestSupport
import Testing

@Suite("SparseLoRA: feed-forward layer")
struct SparseMLPTests {
    struct Result: Equatable {
        var y: [Float]
        var dx: [Float]
    }

    static let shapes: [(width: Int, channels: Int, batch: Int, length: Int, dense: Range<Int>?, kept: Int?)] = [
        (17, 50, 3, 7, 2..<5, 13), (16, 33, 1, 1, nil, 1), (20, 40, 2, 6, 0..<6, 10), (20, 40, 2, 6, 6..<6, 10),
        (20, 40, 2, 6, 3..<6, 39), (8, 24, 2, 5, 0..<2, nil), (33, 70, 1, 40, nil, nil), (24, 30, 2, 4, 1..<2, 0),
        (31, 65, 4, 9, 4..<8, 64),
    ]

    static func run(
        _ p: SparseLoRAProblem, _ layer: SparseMLP, _ tape: inout SparseMLP.Tape, _ workspace: inout SparseLoRAWorkspace,
        adding start: Tensor<Float>? = nil, on pool: WorkerPool = .serial
    ) throws -> Result {
        var y = try Tensor<Float>([p.rows, p.width]) { _ in .nan }
        var dx = try start ?? Tensor<Float>([p.rows, p.width]) { _ in .nan }
        try layer.run(
            x: p.x.matrixView(), split: p.split, channels: p.kept, tape: &tape, workspace: &workspace,
            y: y.mutableMatrixView(), on: pool)
        try layer.gradient(
            p.dy.matrixView(), tape: tape, workspace: &workspace, dx: dx.mutableMatrixView(), accumulates: start != nil,
            on: pool)
        return Result(y: y.elements, dx: dx.elements)
    }

    static func run(_ p: SparseLoRAProblem, _ set: InstructionSet? = nil, on pool: WorkerPool = .serial) throws -> Result {
        let layer = try SparseMLP(gate: p.gate, up: p.up, down: p.down, instructionSet: set)
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        return try run(p, layer, &tape, &workspace, on: pool)
    }

    static func expected(_ p: SparseLoRAProblem, adapters: [LoRAFactors] = []) -> ReferenceSparseLoRA.Result {
        ReferenceSparseLoRA.mlp(
            x: BoundedMatrix(p.x), gate: BoundedMatrix(p.gate), up: BoundedMatrix(p.up), down: BoundedMatrix(p.down),
            adapters: adapters.map(SparseLoRAProblem.reference), mask: p.mask(p.kept, of: p.channels), dy: BoundedMatrix(p.dy)
        )
    }

    @Test("outputs and gradients are the oracle's", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        for s in Self.shapes {
            let p = try SparseLoRAProblem(
                width: s.width, channels: s.channels, batch: s.batch, length: s.length, dense: s.dense, kept: s.kept)
            let (actual, expected) = (try Self.run(p, set), Self.expected(p))
            expectWithin(actual.y, expected.y, "\(set), \(s): y")
            expectWithin(actual.dx, expected.dx, "\(set), \(s): dx")
        }
    }

    @Test("adapters of all three layers, and their gradients", arguments: InstructionSet.available)
    func adapters(_ set: InstructionSet) throws {
        for s in Self.shapes {
            let p = try SparseLoRAProblem(
                width: s.width, channels: s.channels, batch: s.batch, length: s.length, dense: s.dense, kept: s.kept)
            let factors = try [
                SparseLoRAProblem.factors(p.width, p.channels, rank: 3, seed: 20),
                SparseLoRAProblem.factors(p.width, p.channels, rank: 3, seed: 30),
                SparseLoRAProblem.factors(p.channels, p.width, rank: 3, seed: 40),
            ]
            let layer = try SparseMLP(gate: p.gate, up: p.up, down: p.down, loraRank: 3, instructionSet: set)
            let adapters = MLPAdapters(gate: factors[0], up: factors[1], down: factors[2])
            var gradients = MLPAdapters(
                gate: try SparseLoRAProblem.zeros(like: factors[0]), up: try SparseLoRAProblem.zeros(like: factors[1]),
                down: try SparseLoRAProblem.zeros(like: factors[2]))
            var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
            var y = try Tensor<Float>(zeros: p.x.shape)
            var dx = try Tensor<Float>(zeros: p.x.shape)
            try layer.run(
                x: p.x.matrixView(), split: p.split, channels: p.kept, adapters: adapters, tape: &tape, workspace: &workspace,
                y: y.mutableMatrixView(), on: .serial)
            try layer.gradient(
                p.dy.matrixView(), x: p.x.matrixView(), adapters: adapters, gradients: &gradients, tape: tape,
                workspace: &workspace, dx: dx.mutableMatrixView(), on: .serial)
            let expected = Self.expected(p, adapters: factors)
            expectWithin(y.elements, expected.y, "\(set), \(s): y")
            expectWithin(dx.elements, expected.dx, "\(set), \(s): dx")
            for (index, gradient) in [gradients.gate, gradients.up, gradients.down].enumerated() {
                expectWithin(gradient!.a.elements, expected.adapters[index].a, "\(set), \(s): a of \(index)")
                expectWithin(gradient!.b.elements, expected.adapters[index].b, "\(set), \(s): b of \(index)")
            }
        }
    }

    @Test("gradients of the oracle are differences of its outputs")
    func differences() throws {
        let p = try SparseLoRAProblem(width: 7, channels: 12, batch: 2, length: 4, dense: 1..<3, kept: 5)
        let factors = try [
            SparseLoRAProblem.factors(7, 12, rank: 2, seed: 20), SparseLoRAProblem.factors(7, 12, rank: 2, seed: 30),
            SparseLoRAProblem.factors(12, 7, rank: 2, seed: 40),
        ].map(SparseLoRAProblem.reference)
        func result(_ x: BoundedMatrix, _ factors: [ReferenceSparseLoRA.Adapter]) -> ReferenceSparseLoRA.Result {
            ReferenceSparseLoRA.mlp(
                x: x, gate: BoundedMatrix(p.gate), up: BoundedMatrix(p.up), down: BoundedMatrix(p.down),
                adapters: factors,
                mask: p.mask(p.kept, of: p.channels), dy: BoundedMatrix(p.dy))
        }
        func loss(_ x: BoundedMatrix, _ factors: [ReferenceSparseLoRA.Adapter]) -> Double {
            zip(result(x, factors).y.values, p.dy.elements).reduce(0) { $0 + $1.0 * Double($1.1) }
        }
        let step = 1e-5
        let gradient = result(BoundedMatrix(p.x), factors)
        for index in stride(from: 0, to: p.x.count, by: 5) {
            var (above, below) = (BoundedMatrix(p.x), BoundedMatrix(p.x))
            above.values[index] += step
            below.values[index] -= step
            let slope = (loss(above, factors) - loss(below, factors)) / (2 * step)
            #expect(abs(slope - gradient.dx.values[index]) < 1e-6 * max(1, abs(slope)))
        }
        for part in 0..<3 {
            for (isA, count) in [(true, factors[part].a.values.count), (false, factors[part].b.values.count)] {
                for index in stride(from: 0, to: count, by: 4) {
                    var (above, below) = (factors, factors)
                    if isA { above[part].a.values[index] += step } else { above[part].b.values[index] += step }
                    if isA { below[part].a.values[index] -= step } else { below[part].b.values[index] -= step }
                    let x = BoundedMatrix(p.x)
                    let slope = (loss(x, above) - loss(x, below)) / (2 * step)
                    let value = (isA ? gradient.adapters[part].a : gradient.adapters[part].b).values[index]
                    #expect(abs(slope - value) < 1e-6 * max(1, abs(slope)))
                }
            }
        }
    }

    @Test("picked channels of a layer are the layer of these channels")
    func smaller() throws {
        let p = try SparseLoRAProblem(width: 20, channels: 48, batch: 2, length: 9, dense: nil, kept: 16)
        let kept = p.kept!.indices.map(Int.init)
        let small = try SparseMLP(
            gate: Tensor([16, 20]) { p.gate[kept[$0 / 20], $0 % 20] }, up: Tensor([16, 20]) { p.up[kept[$0 / 20], $0 % 20] },
            down: Tensor([20, 16]) { p.down[$0 / 16, kept[$0 % 16]] })
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        var y = try Tensor<Float>(zeros: p.x.shape)
        try small.run(x: p.x.matrixView(), tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        let result = try Self.run(p)
        for (a, b) in zip(result.y, y.elements) { #expect(abs(a - b) < 1e-5) }
    }

    @Test("a tape and a workspace serve any later batch")
    func reuse() throws {
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        for s in Self.shapes + Self.shapes.reversed() {
            let p = try SparseLoRAProblem(
                width: s.width, channels: s.channels, batch: s.batch, length: s.length, dense: s.dense, kept: s.kept)
            let layer = try SparseMLP(gate: p.gate, up: p.up, down: p.down)
            #expect(try Self.run(p, layer, &tape, &workspace) == Self.run(p))
        }
        #expect(workspace.byteCount > 0 && tape.byteCount > 0)
    }

    @Test("bits do not depend on threads, nor on what is added to")
    func threads() throws {
        let p = try SparseLoRAProblem(width: 96, channels: 300, batch: 3, length: 50, dense: 20..<40, kept: 60)
        let first = try Self.run(p)
        for threads in [2, 7] { #expect(try Self.run(p, on: WorkerPool(threads: threads)) == first) }
        let layer = try SparseMLP(gate: p.gate, up: p.up, down: p.down)
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        let start = try Tensor<Float>.normal([p.rows, p.width], seed: 77)
        let added = try Self.run(p, layer, &tape, &workspace, adding: start)
        for index in added.dx.indices { #expect(abs(added.dx[index] - first.dx[index] - start[flat: index]) < 2e-4) }
    }

    @Test("half-precision weights are their widened values")
    func half() throws {
        let p = try SparseLoRAProblem(width: 20, channels: 48, batch: 2, length: 9, dense: 2..<4, kept: 16)
        let (g, u, d) = (
            p.gate.converted(to: BFloat16.self), p.up.converted(to: BFloat16.self), p.down.converted(to: BFloat16.self)
        )
        let narrow = try SparseMLP(gate: g, up: u, down: d)
        let wide = try SparseMLP(
            gate: g.converted(to: Float.self), up: u.converted(to: Float.self), down: d.converted(to: Float.self))
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        let (a, b) = (try Self.run(p, narrow, &tape, &workspace), try Self.run(p, wide, &tape, &workspace))
        for (x, y) in zip(a.y + a.dx, b.y + b.dx) { #expect(abs(x - y) < 1e-4) }
    }

    @Test("rows with strides, and NaN in one row")
    func rows() throws {
        let p = try SparseLoRAProblem(width: 20, channels: 48, batch: 2, length: 9, dense: 2..<4, kept: 16)
        let clean = try Self.run(p)
        let layer = try SparseMLP(gate: p.gate, up: p.up, down: p.down)
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        var x = try Tensor<Float>([18, 25]) { $0 % 25 < 20 ? p.x[$0 / 25, $0 % 25] : .nan }
        for column in 0..<20 { x[7, column] = .nan }
        var y = try Tensor<Float>([18, 31]) { _ in 5 }
        try layer.run(
            x: MatrixView(x.span, rows: 18, columns: 20, rowStride: 25), split: p.split, channels: p.kept, tape: &tape,
            workspace: &workspace, y: MutableMatrixView(y.mutableSpan, rows: 18, columns: 20, rowStride: 31))
        for row in 0..<18 {
            for column in 0..<31 {
                let value = y[row, column]
                if column >= 20 {
                    #expect(value == 5)
                } else if row == 7 {
                    #expect(value.isNaN)
                } else {
                    #expect(value == clean.y[row * 20 + column])
                }
            }
        }
    }

    @Test("operands that disagree are errors with both numbers")
    func errors() throws {
        let p = try SparseLoRAProblem(width: 20, channels: 48, batch: 2, length: 9, dense: 2..<4, kept: 16)
        expectError(.invalidShape, "up", containing: "[48, 20]", "[20, 48]") {
            _ = try SparseMLP(gate: p.gate, up: p.down, down: p.down)
        }
        expectError(.invalidShape, "down", containing: "[20, 48]", "[48, 20]") {
            _ = try SparseMLP(gate: p.gate, up: p.up, down: p.up)
        }
        let layer = try SparseMLP(gate: p.gate, up: p.up, down: p.down)
        var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
        var y = try Tensor<Float>(zeros: p.x.shape)
        expectError(.invalidArgument, "tape") {
            try layer.gradient(p.dy.matrixView(), tape: tape, workspace: &workspace, dx: y.mutableMatrixView())
        }
        expectError(.invalidShape, "channels", containing: "48", "20") {
            try layer.run(
                x: p.x.matrixView(), channels: ChannelSubset([1], of: 20), tape: &tape, workspace: &workspace,
                y: y.mutableMatrixView())
        }
        expectError(.invalidShape, "x.rows", containing: "2 · 8", "18") {
            try layer.run(
                x: p.x.matrixView(), split: TokenSplit(dense: 0..<1, length: 8, batch: 2), channels: p.kept, tape: &tape,
                workspace: &workspace, y: y.mutableMatrixView())
        }
        expectError(.invalidShape, "y", containing: "18 × 20", "18 × 21") {
            var wide = try Tensor<Float>(zeros: [18, 21])
            try layer.run(x: p.x.matrixView(), tape: &tape, workspace: &workspace, y: wide.mutableMatrixView())
        }
        expectError(.invalidArgument, "adapters", containing: "rank") {
            try layer.run(
                x: p.x.matrixView(), adapters: MLPAdapters(), tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        }
        let adapted = try SparseMLP(gate: p.gate, up: p.up, down: p.down, loraRank: 2)
        expectError(.invalidShape, "adapters.down", containing: "[2, 48]", "[3, 48]") {
            let factors = try SparseLoRAProblem.factors(48, 20, rank: 3, seed: 1)
            try adapted.run(
                x: p.x.matrixView(), adapters: MLPAdapters(down: factors), tape: &tape, workspace: &workspace,
                y: y.mutableMatrixView())
        }
        #expect(y.elements.allSatisfy { $0 == 0 })
        try layer.run(x: p.x.matrixView(), tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        expectError(.invalidShape, "dy", containing: "18 × 20", "18 × 48") {
            let dy = try Tensor<Float>(zeros: [18, 48])
            try layer.gradient(dy.matrixView(), tape: tape, workspace: &workspace, dx: y.mutableMatrixView())
        }
        expectError(.invalidArgument, "tape", containing: "with adapters") {
            var gradients = MLPAdapters()
            try adapted.gradient(
                p.dy.matrixView(), x: p.x.matrixView(), adapters: MLPAdapters(), gradients: &gradients, tape: tape,
                workspace: &workspace, dx: y.mutableMatrixView())
        }
    }
}
