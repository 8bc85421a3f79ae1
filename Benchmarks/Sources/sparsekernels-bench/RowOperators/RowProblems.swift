import Foundation
import SparseKernels
import SparseKernelsReference

// Shapes agree by construction, so no `run` can throw.

extension Tensor<Float> {
    /// A row in `Double`.
    fileprivate func doubles(row: Int) -> [Double] {
        let columns = shape[1]
        return (0..<columns).map { Double(self[flat: row * columns + $0]) }
    }
}

final class NormProblem: RowProblem {
    enum Kind { case rms, rmsOfSums, layer }

    private let kind: Kind
    private let x: Tensor<Float>
    private let weight: Tensor<Float>
    private let bias: Tensor<Float>
    private let given: Tensor<Float>
    private var residual: Tensor<Float>
    private var y: Tensor<Float>
    private static let epsilon: Float = 1e-5

    init(tokens: Int, kind: Kind) throws {
        self.kind = kind
        x = try .normal([tokens, RowCases.channels], seed: 1)
        weight = try .normal([RowCases.channels], seed: 2)
        bias = try .normal([RowCases.channels], seed: 3)
        given = try .normal(x.shape, seed: 4)
        residual = given
        y = try Tensor(zeros: x.shape)
    }

    var elements: Int { x.count }
    var bytes: Int { x.count * 4 * (kind == .rmsOfSums ? 4 : 2) }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let rms = try RMSNorm(weight: weight, epsilon: Self.epsilon, instructionSet: set)
        let layer = try LayerNorm(
            channels: RowCases.channels, weight: weight, bias: bias, epsilon: Self.epsilon, instructionSet: set)
        return { [self] in
            switch kind {
            case .rms: try! rms.run(x, into: &y, on: pool)
            case .rmsOfSums: try! rms.run(adding: x, to: &residual, into: &y, on: pool)
            case .layer: try! layer.run(x, into: &y, on: pool)
            }
        }
    }

    func reset() { residual = given }

    func check() -> Verification {
        var verification = Verification.none
        let (w, b) = (weight.elements.map(Double.init), bias.elements.map(Double.init))
        let sums = ReferenceRows.sumError(RowCases.channels)
        for row in [0, x.shape[0] / 2, x.shape[0] - 1] {
            // Sums are those that were stored.
            let values = kind == .rmsOfSums ? residual.doubles(row: row) : x.doubles(row: row)
            let epsilon = Double(Self.epsilon)
            let expected =
                kind == .layer
                ? ReferenceRows.layerNorm(values, weight: w, bias: b, epsilon: epsilon)
                : ReferenceRows.rmsNorm(values, weight: w, epsilon: epsilon)
            for (channel, actual) in y.doubles(row: row).enumerated() {
                let e = expected[channel]
                // Half the error of the sum of squares, and some roundings; the bias and the mean of LayerNorm have their own.
                let offset = kind == .layer ? 0x1p-23 * abs(b[channel]) + abs(w[channel]) * (2 * sums + 0x1p-22) : 0
                let scaled = kind == .layer ? abs(e - b[channel]) : abs(e)
                let bound = scaled * (sums / 2 + 16 * 0x1p-24) + offset + 0x1p-24
                verification.add(error: abs(actual - e), bound: bound)
            }
        }
        return verification
    }
}

final class RotationProblem: RowProblem {
    private let heads: Int
    private let given: Tensor<Float>
    private var x: Tensor<Float>
    private static let theta = 500_000.0
    private static let first = 1000

    init(tokens: Int, heads: Int) throws {
        self.heads = heads
        given = try .normal([tokens, heads * RowCases.headDim], seed: 1)
        x = given
    }

    var elements: Int { x.count }
    var bytes: Int { x.count * 8 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let rotary = try RotaryEmbedding(headDim: RowCases.headDim, theta: Self.theta, instructionSet: set)
        let table = try rotary.table(positions: Array(Self.first..<Self.first + given.shape[0]))
        return { [self] in Self.rotate(&x, table, pool) }
    }

    private static func rotate(_ x: inout Tensor<Float>, _ table: RotaryTable, _ pool: WorkerPool) {
        try! table.rotate(x.mutableView(headDim: RowCases.headDim), on: pool)
    }

    func reset() { x = given }

    func check() -> Verification {
        var verification = Verification.none
        let half = RowCases.headDim / 2
        let frequencies = (0..<half).map { pow(Self.theta, -Double($0) / Double(half)) }
        for row in [0, x.shape[0] - 1] {
            let (before, after) = (given.doubles(row: row), x.doubles(row: row))
            for head in [0, heads - 1] {
                let values = Array(before[head * RowCases.headDim..<(head + 1) * RowCases.headDim])
                let expected = ReferenceRows.rotated(
                    values, position: Self.first + row, frequencies: frequencies, pairing: .halfSplit)
                for channel in 0..<RowCases.headDim {
                    // Cosines and sines are within 3·10⁻⁷.
                    let magnitude = abs(values[channel]) + abs(values[(channel + half) % RowCases.headDim])
                    verification.add(
                        error: abs(after[head * RowCases.headDim + channel] - expected[channel]),
                        bound: 5e-7 * magnitude + 1e-30)
                }
            }
        }
        return verification
    }
}

final class ActivationProblem: RowProblem {
    private let function: GatedActivation.Function
    private let x: Tensor<Float>
    private var y: Tensor<Float>

    init(tokens: Int, _ function: GatedActivation.Function) throws {
        self.function = function
        x = try .normal([tokens, 2 * RowCases.inner], seed: 1, scale: 2)
        y = try Tensor(zeros: [tokens, RowCases.inner])
    }

    var elements: Int { y.count }
    var bytes: Int { y.count * 12 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let activation = try GatedActivation(function, instructionSet: set)
        return { [self] in try! activation.run(halvesOf: x, into: &y, on: pool) }
    }

    func check() -> Verification {
        var verification = Verification.none
        for row in [0, x.shape[0] - 1] {
            let (input, output) = (x.doubles(row: row), y.doubles(row: row))
            for (column, actual) in output.enumerated() {
                let (gate, up) = (input[column], input[RowCases.inner + column])
                let expected = ReferenceRows.activation(function, gate) * up
                let bound = ReferenceRows.activationError(function, gate) * abs(up) + 0x1p-23 * abs(expected)
                verification.add(error: abs(actual - expected), bound: bound)
            }
        }
        return verification
    }
}

final class EmbeddingProblem: RowProblem {
    private let table: Tensor<Float16>
    private let tokens: [Int]
    private var y: Tensor<Float>

    init(tokens: Int) throws {
        // Larger than caches; which numbers a table has does not matter to its speed.
        table = try Tensor([32_000, RowCases.channels]) { Float16(Float($0 % 977) / 512 - 1) }
        self.tokens = (0..<tokens).map { ($0 * 12_347 + 5) % 32_000 }
        y = try Tensor(zeros: [tokens, RowCases.channels])
    }

    var elements: Int { y.count }
    var bytes: Int { y.count * 6 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let embedding = try TokenEmbedding(table: table, instructionSet: set)
        return { [self] in try! embedding.run(tokens: tokens, into: &y, on: pool) }
    }

    func check() -> Verification {
        var verification = Verification.none
        for row in [0, tokens.count - 1] {
            for channel in 0..<RowCases.channels {
                verification.add(error: Double(abs(y[row, channel] - Float(table[tokens[row], channel]))), bound: 0)
            }
        }
        return verification
    }
}

final class LogitProblem: RowProblem {
    private let logits: Tensor<Float>
    private var summary: LogitSummary?
    private static let kept = 40

    init(rows: Int) throws { logits = try .normal([rows, RowCases.vocabulary], seed: 1, scale: 3) }

    var elements: Int { logits.count }
    var bytes: Int { logits.count * 4 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let statistics = try LogitStatistics(vocabulary: RowCases.vocabulary, topK: Self.kept, instructionSet: set)
        summary = try statistics.makeSummary(rows: logits.shape[0])
        return { [self] in try! statistics.run(logits, into: &summary!, on: pool) }
    }

    func check() -> Verification {
        var verification = Verification.none
        guard let summary else { return verification }
        for row in [0, logits.shape[0] - 1] {
            let expected = ReferenceRows.statistics(logits.doubles(row: row), topK: Self.kept)
            let wrong = (0..<Self.kept).count { Int(summary.topIndices[row, $0]) != expected.indices[$0] }
            verification.add(error: Double(wrong), bound: 0)
            // Logits are at most 30 below the largest one.
            let bound = 4e-7 + 1e-7 * 30 + 90 * 0x1p-24 + 0x1p-23 * abs(expected.logSumExp)
            verification.add(error: abs(Double(summary.logSumExp[flat: row]) - expected.logSumExp), bound: bound)
        }
        return verification
    }
}
