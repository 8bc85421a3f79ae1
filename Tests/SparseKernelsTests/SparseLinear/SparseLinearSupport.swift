import SparseKernels
import SparseKernelsReference
import Testing

/// A layer with a subset, its operands, and what the oracle makes of them.
struct SparseLinearProblem<W: AttentionElement> {
    let side: SparseLinear.Side
    var weight: Tensor<W>
    let bias: Tensor<Float>?
    let subset: ChannelSubset?
    let rows: Int
    let isGradient: Bool
    /// The operand that is multiplied, compact on the picked side, and what the result is added to, row by row.
    var operand: [Float]
    let start: [Float]

    /// - Parameter picked: the number of channels of the subset, spread over the width; nil for no subset.
    init(
        _ side: SparseLinear.Side, isGradient: Bool, channels: Int, depth: Int, picked: Int?, rows: Int, hasBias: Bool = false,
        seed: UInt64 = 1
    ) throws {
        let shape = side == .outputs ? [channels, depth] : [depth, channels]
        self.side = side
        self.isGradient = isGradient
        self.rows = rows
        weight = try Tensor<W>.normal(shape, seed: seed, scale: 0.5)
        bias = hasBias ? try Tensor<Float>.normal([shape[0]], seed: seed + 1) : nil
        var generator = SplitMix64(seed: seed + 2)
        subset = try picked.map {
            try ChannelSubset.strongest((0..<channels).map { _ in generator.uniform() }, count: $0)
        }
        let count = subset?.count ?? channels
        let isCompact = (side == .outputs) == isGradient
        operand = try Tensor<Float>.normal([rows, isCompact ? count : depth], seed: seed + 3).elements
        start = try Tensor<Float>.normal([rows, isCompact ? depth : count], seed: seed + 4).elements
    }

    var count: Int { subset?.count ?? (side == .outputs ? weight.shape[0] : weight.shape[1]) }
    var depth: Int { side == .outputs ? weight.shape[1] : weight.shape[0] }
    private var isCompact: Bool { (side == .outputs) == isGradient }
    var operandColumns: Int { isCompact ? count : depth }
    var resultColumns: Int { isCompact ? depth : count }
    var list: [Int] { subset.map { $0.indices.map { Int($0) } } ?? Array(0..<count) }

    func layer(_ set: InstructionSet) throws -> SparseLinear {
        try SparseLinear(weight: weight, picking: side, bias: bias, instructionSet: set)
    }

    /// The rows of the result, from operands whose rows are `gap` elements apart. Nil where something wrote to a gap.
    func run(
        _ layer: SparseLinear, accumulates: Bool = false, gap: Int = 0, on pool: WorkerPool = .serial
    ) throws -> [Float]? {
        let (inputs, outputs) = (operandColumns, resultColumns)
        var source = [Float](repeating: .nan, count: rows * (inputs + gap))
        var target = [Float](repeating: accumulates ? 987.25 : .nan, count: rows * (outputs + gap))
        for row in 0..<rows {
            for column in 0..<inputs { source[row * (inputs + gap) + column] = operand[row * inputs + column] }
            for column in 0..<outputs {
                if accumulates { target[row * (outputs + gap) + column] = start[row * outputs + column] }
            }
            for column in outputs..<outputs + gap { target[row * (outputs + gap) + column] = 987.25 }
        }
        let a = try MatrixView(source.span, rows: rows, columns: inputs, rowStride: inputs + gap)
        do {
            let c = try MutableMatrixView(target.mutableSpan, rows: rows, columns: outputs, rowStride: outputs + gap)
            if isGradient {
                try layer.inputGradient(a, channels: subset, into: c, accumulates: accumulates, on: pool)
            } else {
                try layer.run(x: a, channels: subset, y: c, accumulates: accumulates, on: pool)
            }
        }
        var result: [Float] = []
        for row in 0..<rows {
            let line = target[row * (outputs + gap)..<(row + 1) * (outputs + gap)]
            if line.suffix(gap).contains(where: { $0 != 987.25 }) { return nil }
            result += line.prefix(outputs)
        }
        return result
    }

    func expected(accumulates: Bool = false) -> ReferenceSparseLinear.Sums {
        let start = accumulates ? start : nil
        return isGradient
            ? ReferenceSparseLinear.inputGradient(
                dy: operand, rows: rows, weight: weight, side: side, channels: list, start: start)
            : ReferenceSparseLinear.output(
                x: operand, rows: rows, weight: weight, side: side, channels: list, bias: bias, start: start)
    }

    var label: String {
        "\(W.self), \(side), \(isGradient ? "gradient" : "forward"), \(rows) rows, \(count) of \(weight.shape), "
            + "\(bias == nil ? "no bias" : "bias")"
    }

    /// Runs with and without accumulating, and compares both with the oracle.
    func expectMatch(_ set: InstructionSet, gap: Int, sourceLocation: SourceLocation = #_sourceLocation) throws {
        let layer = try layer(set)
        for accumulates in [false, true] {
            let result = try #require(
                try run(layer, accumulates: accumulates, gap: gap), "\(set), \(label): wrote between rows",
                sourceLocation: sourceLocation)
            let worst = expected(accumulates: accumulates).worst(result)
            #expect(
                worst <= 1, "\(set), \(label)\(accumulates ? ", accumulating" : ""): \(worst) of the bound",
                sourceLocation: sourceLocation)
        }
    }
}
