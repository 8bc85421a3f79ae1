import SparseKernelsReference
import SparseKernelsTraining
import SparseLoRA
import TestSupport
import Testing

/// Weights and a batch for tests of layers, with the oracle's masks.
struct SparseLoRAProblem {
    let width: Int
    let channels: Int
    let split: TokenSplit?
    let kept: ChannelSubset?
    let rows: Int
    let gate: Tensor<Float>
    let up: Tensor<Float>
    let down: Tensor<Float>
    let x: Tensor<Float>
    let dy: Tensor<Float>

    /// - Parameters:
    ///   - dense: dense positions; nil means no split.
    ///   - kept: number of picked channels; nil means a dense layer.
    init(
        width: Int, channels: Int, batch: Int, length: Int, dense: Range<Int>?, kept: Int?, seed: UInt64 = 1
    ) throws {
        self.width = width
        self.channels = channels
        rows = batch * length
        split = try dense.map { try TokenSplit(dense: $0, length: length, batch: batch) }
        self.kept = try kept.map { count in
            let scores = try Tensor<Float>.normal([channels], seed: seed + 9)
            return try ChannelSubset.strongest(scores.elements, count: count)
        }
        gate = try .normal([channels, width], seed: seed, scale: 0.3)
        up = try .normal([channels, width], seed: seed + 1, scale: 0.3)
        down = try .normal([width, channels], seed: seed + 2, scale: 0.3)
        x = try .normal([rows, width], seed: seed + 3)
        dy = try .normal([rows, width], seed: seed + 4)
    }

    func mask(_ subset: ChannelSubset?, of width: Int) -> ReferenceSparseLoRA.Mask {
        let isDense = (0..<rows).map { row in
            subset == nil || (split.map { $0.isDense(row % $0.length) } ?? false)
        }
        return .init(isDense: isDense, channels: subset?.indices.map(Int.init) ?? [], of: width)
    }

    static func factors(_ inputs: Int, _ outputs: Int, rank: Int, seed: UInt64) throws -> LoRAFactors {
        try LoRAFactors(
            a: .normal([rank, inputs], seed: seed, scale: 0.3), b: .normal([outputs, rank], seed: seed + 1, scale: 0.3),
            scale: 2)
    }

    static func reference(_ factors: LoRAFactors) -> ReferenceSparseLoRA.Adapter {
        .init(a: BoundedMatrix(factors.a), b: BoundedMatrix(factors.b), scale: Double(factors.scale))
    }

    static func zeros(like factors: LoRAFactors) throws -> LoRAFactors {
        try LoRAFactors(a: Tensor(zeros: factors.a.shape), b: Tensor(zeros: factors.b.shape), scale: factors.scale)
    }
}

/// Expects values within the bounds of the oracle.
func expectWithin(
    _ actual: [Float], _ expected: BoundedMatrix, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
) {
    #expect(actual.count == expected.values.count, sourceLocation: sourceLocation)
    for (index, value) in actual.enumerated() {
        let error = abs(Double(value) - expected.values[index])
        // One addition to what was there before, at most.
        let bound = expected.errors[index] + 0x1p-22 * abs(expected.values[index]) + 1e-30
        if !(error <= bound) {
            Issue.record(
                "\(label)[\(index)]: \(value), expected \(expected.values[index]) ± \(bound)", sourceLocation: sourceLocation)
            return
        }
    }
}
