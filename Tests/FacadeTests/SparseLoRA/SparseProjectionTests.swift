import SparseKernelsReference
import SparseKernelsTraining
import SparseLoRA
import TestSupport
import Testing

@Suite("SparseLoRA: projection")
struct SparseProjectionTests {
    struct Case: Sendable, CustomStringConvertible {
        var side: SparseLinear.Side
        var isBiased: Bool
        var rank: Int?
        var accumulates: Bool
        var passes: Bool
        var description: String { "\(side), bias \(isBiased), rank \(rank ?? 0), adds \(accumulates), passes \(passes)" }
    }

    struct Result: Equatable {
        var y: [Float]
        var dx: [Float]
        var a: [Float]
        var b: [Float]
    }

    static let cases: [Case] = [SparseLinear.Side.outputs, .inputs].flatMap { side in
        [
            Case(side: side, isBiased: false, rank: nil, accumulates: false, passes: true),
            Case(side: side, isBiased: true, rank: 3, accumulates: false, passes: true),
            Case(side: side, isBiased: true, rank: nil, accumulates: true, passes: true),
            Case(side: side, isBiased: false, rank: 3, accumulates: false, passes: false),
            Case(side: side, isBiased: false, rank: 3, accumulates: true, passes: false),
        ]
    }

    /// The down projection of a problem for inputs, and gate for outputs.
    static func operands(_ p: SparseLoRAProblem, _ c: Case) throws -> (
        weight: Tensor<Float>, bias: Tensor<Float>?, x: Tensor<Float>, dy: Tensor<Float>, factors: LoRAFactors?
    ) {
        let weight = c.side == .outputs ? p.gate : p.down
        let (outputs, inputs) = (weight.shape[0], weight.shape[1])
        return (
            weight, c.isBiased ? try .normal([outputs], seed: 31) : nil, try .normal([p.rows, inputs], seed: 32),
            try .normal([p.rows, outputs], seed: 33),
            try c.rank.map { try SparseLoRAProblem.factors(inputs, outputs, rank: $0, seed: 34) }
        )
    }

    static func run(
        _ p: SparseLoRAProblem, _ c: Case, start: Float = 0, _ set: InstructionSet? = nil, on pool: WorkerPool = .serial
    ) throws -> Result {
        let (weight, bias, x, dy, factors) = try operands(p, c)
        let projection = try SparseProjection(
            weight: weight, picking: c.side, bias: bias, loraRank: c.rank, instructionSet: set)
        var (tape, workspace) = (SparseProjection.Tape(), SparseLoRAWorkspace())
        var y = try Tensor<Float>([p.rows, projection.outFeatures]) { _ in .nan }
        var dx = try Tensor<Float>(x.shape) { _ in c.accumulates ? start : .nan }
        try projection.run(
            x: x.matrixView(), split: p.split, channels: p.kept, lora: factors, tape: &tape, workspace: &workspace,
            y: y.mutableMatrixView(), on: pool)
        guard let factors else {
            try projection.gradient(
                dy.matrixView(), tape: tape, workspace: &workspace, dx: dx.mutableMatrixView(), accumulates: c.accumulates,
                passesFrozenGradient: c.passes, on: pool)
            return Result(y: y.elements, dx: dx.elements, a: [], b: [])
        }
        var a = try Tensor<Float>(zeros: factors.a.shape)
        var b = try Tensor<Float>(zeros: factors.b.shape)
        try projection.gradient(
            dy.matrixView(), x: x.matrixView(), lora: factors, aGradient: &a, bGradient: &b, tape: tape, workspace: &workspace,
            dx: dx.mutableMatrixView(), accumulates: c.accumulates, passesFrozenGradient: c.passes, on: pool)
        return Result(y: y.elements, dx: dx.elements, a: a.elements, b: b.elements)
    }

    @Test("outputs and all gradients are the oracle's", arguments: cases, InstructionSet.available)
    func oracle(_ c: Case, _ set: InstructionSet) throws {
        for s in SparseMLPTests.shapes {
            let p = try SparseLoRAProblem(
                width: s.width, channels: s.channels, batch: s.batch, length: s.length, dense: s.dense, kept: s.kept)
            let (weight, bias, x, dy, factors) = try Self.operands(p, c)
            let actual = try Self.run(p, c, set)
            let oracle = c.side == .outputs ? ReferenceSparseLoRA.outputs : ReferenceSparseLoRA.inputs
            let expected = oracle(
                BoundedMatrix(x), BoundedMatrix(weight), bias?.elements.map(Double.init),
                factors.map(SparseLoRAProblem.reference), p.mask(p.kept, of: p.channels), BoundedMatrix(dy), c.passes)
            expectWithin(actual.y, expected.y, "\(s), \(c): y")
            expectWithin(actual.dx, expected.dx, "\(s), \(c): dx")
            if let gradients = expected.adapters.first {
                expectWithin(actual.a, gradients.a, "\(s), \(c): a")
                expectWithin(actual.b, gradients.b, "\(s), \(c): b")
            }
        }
    }

    @Test("gradients are added to what is there", arguments: cases.filter(\.accumulates))
    func accumulation(_ c: Case) throws {
        let p = try SparseLoRAProblem(width: 20, channels: 40, batch: 2, length: 9, dense: 2..<4, kept: 16)
        let (zero, two) = (try Self.run(p, c), try Self.run(p, c, start: 2))
        for (a, b) in zip(zero.dx, two.dx) { #expect(abs(a + 2 - b) < 1e-5) }
    }

    @Test("bits do not depend on threads", arguments: cases)
    func threads(_ c: Case) throws {
        let p = try SparseLoRAProblem(width: 96, channels: 200, batch: 3, length: 40, dense: 20..<30, kept: 60)
        let first = try Self.run(p, c)
        for threads in [2, 7] { #expect(try Self.run(p, c, on: WorkerPool(threads: threads)) == first) }
    }

    @Test("operands that disagree are errors with both numbers")
    func errors() throws {
        let p = try SparseLoRAProblem(width: 20, channels: 48, batch: 2, length: 9, dense: 2..<4, kept: 16)
        let projection = try SparseProjection(weight: p.gate, picking: .outputs, loraRank: 3)
        var (tape, workspace) = (SparseProjection.Tape(), SparseLoRAWorkspace())
        var y = try Tensor<Float>(zeros: [18, 48])
        var dx = try Tensor<Float>(zeros: [18, 20])
        let factors = try SparseLoRAProblem.factors(20, 48, rank: 4, seed: 1)
        expectError(.invalidShape, "lora", containing: "[3, 20]", "[4, 20]") {
            try projection.run(
                x: p.x.matrixView(), lora: factors, tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        }
        expectError(.invalidArgument, "lora", containing: "rank 4") {
            try SparseProjection(weight: p.gate, picking: .outputs).run(
                x: p.x.matrixView(), lora: factors, tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        }
        expectError(.invalidArgument, "tape") {
            try projection.gradient(y.matrixView(), tape: tape, workspace: &workspace, dx: dx.mutableMatrixView())
        }
        try projection.run(x: p.x.matrixView(), tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        let three = try SparseLoRAProblem.factors(20, 48, rank: 3, seed: 1)
        var (a, b) = (three.a, three.b)
        expectError(.invalidArgument, "tape", containing: "rank 3") {
            try projection.gradient(
                y.matrixView(), x: p.x.matrixView(), lora: three, aGradient: &a, bGradient: &b, tape: tape,
                workspace: &workspace, dx: dx.mutableMatrixView())
        }
        try projection.run(x: p.x.matrixView(), lora: three, tape: &tape, workspace: &workspace, y: y.mutableMatrixView())
        expectError(.invalidShape, "bGradient", containing: "[48, 3]", "[3, 20]") {
            var wrong = a
            try projection.gradient(
                y.matrixView(), x: p.x.matrixView(), lora: three, aGradient: &a, bGradient: &wrong, tape: tape,
                workspace: &workspace, dx: dx.mutableMatrixView())
        }
        expectError(.invalidShape, "dx", containing: "18 × 20", "18 × 48") {
            var wrong = y
            try projection.gradient(y.matrixView(), tape: tape, workspace: &workspace, dx: wrong.mutableMatrixView())
        }
        #expect(dx.elements.allSatisfy { $0 == 0 })
    }
}
