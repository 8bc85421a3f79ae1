import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

// Shared by the suites of quantised layers: weights of every format, layers with their oracle, and the comparison.

/// A weight format, and the optional parts that a weight of it has.
struct WeightKind: Sendable, CustomTestStringConvertible {
    var format: WeightFormat
    var hasOffsets = false
    var hasChannelScales = false
    /// Some scales are negative, as in ggml.
    var hasNegativeScales = false

    init(
        _ code: WeightFormat.Code, _ groupSize: Int?, offsets: Bool = false, channelScales: Bool = false,
        negativeScales: Bool = false
    ) {
        format = try! WeightFormat(code, groupSize: groupSize)
        hasOffsets = offsets
        hasChannelScales = channelScales
        hasNegativeScales = negativeScales
    }

    var testDescription: String {
        "\(format)" + (hasOffsets ? " with offsets" : "") + (hasChannelScales ? " with channel scales" : "")
    }

    /// Every format, and every optional part with each kind of code.
    static let all: [WeightKind] = [
        WeightKind(.int4, 64), WeightKind(.int4, 32, negativeScales: true), WeightKind(.int4, 128, channelScales: true),
        WeightKind(.int4, 16, offsets: true), WeightKind(.int4, nil),
        WeightKind(.uint4, 32, offsets: true), WeightKind(.uint4, 64, offsets: true),
        WeightKind(.uint4, 128, offsets: true, channelScales: true), WeightKind(.uint4, nil, offsets: true),
        WeightKind(.uint4, 16), WeightKind(.uint4, 64),
        WeightKind(.int8, nil), WeightKind(.int8, 32, channelScales: true), WeightKind(.int8, 16),
        WeightKind(.int8, 64, offsets: true), WeightKind(.int8, 128), WeightKind(.int8, nil, offsets: true),
        WeightKind(.fp4, 16, channelScales: true), WeightKind(.fp4, 32), WeightKind(.fp4, 128, offsets: true),
        WeightKind(.fp4, nil),
    ]

    /// The formats of the systems in the guide.
    static let main: [WeightKind] = [
        WeightKind(.int4, 64), WeightKind(.uint4, 128, offsets: true), WeightKind(.int8, nil),
        WeightKind(.fp4, 16, channelScales: true),
    ]

    /// A weight of random codes of the whole range, or of one code. Scales have 8 significant bits, as 16-bit files have.
    func weight(_ outFeatures: Int, _ inFeatures: Int, seed: UInt64, code: Int? = nil) throws -> QuantizedWeight {
        var generator = SplitMix64(seed: seed)
        let (padded, bits) = (format.paddedInFeatures(inFeatures), format.code.bits)
        var bytes = [UInt8](repeating: 0, count: outFeatures * padded * bits / 8)
        for row in 0..<outFeatures {
            for column in 0..<inFeatures {
                let random = code.map { UInt8(truncatingIfNeeded: $0) } ?? UInt8(truncatingIfNeeded: generator.next())
                let position = row * padded + column
                if bits == 8 { bytes[position] = random } else { bytes[position / 2] |= (random & 15) << (position % 2 * 4) }
            }
        }
        let groups = [outFeatures, format.groups(inFeatures: inFeatures)]
        let scales = try Tensor<Float>(groups) { index in
            let magnitude = BFloat16(0.01 + 0.02 * generator.uniform()).floatValue
            return hasNegativeScales && index % 3 == 1 ? -magnitude : magnitude
        }
        let zero: Float = format.code == .uint4 ? 4 : -3
        let offsets = try Tensor<Float>(groups) { scales[flat: $0] * (zero + Float(generator.next() % 8)) }
        let channelScales = try Tensor<Float>([outFeatures]) { _ in 0.5 + generator.uniform() }
        return try QuantizedWeight(
            format: format, inFeatures: inFeatures, codes: Tensor([outFeatures, padded * bits / 8], bytes), scales: scales,
            offsets: hasOffsets ? offsets : nil, channelScales: hasChannelScales ? channelScales : nil)
    }
}

extension ActivationFormat {
    static let all: [ActivationFormat] = [
        .float, .int8PerToken, .int8PerGroup, .int4, .uint4(shift: geluShift), .fp4,
    ]

    /// Activations that the format accepts. Shifted ones are never below −shift.
    func input<X: AttentionElement>(_ tokens: Int, _ inFeatures: Int, seed: UInt64) throws -> Tensor<X> {
        let normal = try Tensor<Float>.normal([tokens, inFeatures], seed: seed)
        guard case .uint4(let shift) = self else { return normal.converted() }
        return try Tensor<X>(normal.shape) { X(max(-shift, normal[flat: $0])) }
    }
}

/// The parts of a layer, from which its oracle and the layer on any instruction set are made.
struct LayerParts {
    var weight: QuantizedWeight
    var activation: ActivationFormat
    var smooth: Tensor<Float>?
    var lowRank: LowRankBranch?
    var bias: Tensor<Float>?
    var epilogue: Epilogue = .none

    func layer(_ packed: PackedWeight) throws -> QuantizedLinear {
        try QuantizedLinear(
            packed, activation: activation, smooth: smooth, lowRank: lowRank, bias: bias, epilogue: epilogue)
    }

    func layer(_ set: InstructionSet) throws -> QuantizedLinear {
        try layer(PackedWeight(weight, instructionSet: set))
    }

    var oracle: ReferenceQuantizedLinear {
        ReferenceQuantizedLinear(
            weight, activation: activation, smooth: smooth, lowRank: lowRank, bias: bias, epilogue: epilogue)
    }

    /// Positive factors around 1.
    static func smooth(_ inFeatures: Int, seed: UInt64) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: seed)
        return try Tensor([inFeatures]) { _ in BFloat16(0.25 + 2 * generator.uniform()).floatValue }
    }

    /// A branch whose output is about as large as that of the quantised weight.
    static func branch(rank: Int, _ outFeatures: Int, _ inFeatures: Int, seed: UInt64) throws -> LowRankBranch {
        try LowRankBranch(
            down: Tensor.normal([rank, inFeatures], seed: seed, scale: 0.3),
            up: Tensor.normal([outFeatures, rank], seed: seed + 1, scale: 0.3))
    }
}

/// Outputs of the oracle at some rows and columns, for comparison with every instruction set.
struct ExpectedOutputs {
    private var elements: [(row: Int, column: Int, value: Double, bound: Double)] = []

    /// - Parameters:
    ///   - rows: at most this many tokens, including the last one and, if more than one, the first one.
    ///   - columns: the same for the outputs of a token.
    init<X: AttentionElement>(_ parts: LayerParts, x: Tensor<X>, rows: Int = 4, columns: Int = 9) {
        let oracle = parts.oracle
        let (k, values) = (x.shape[1], x.elements)
        for row in Self.sample(x.shape[0], rows) {
            let token = oracle.token(Array(values[row * k..<(row + 1) * k]))
            for column in Self.sample(parts.weight.outFeatures, columns) {
                let output = oracle.output(of: token, column: column)
                elements.append((row, column, output.value, output.errorBound))
            }
        }
    }

    private static func sample(_ count: Int, _ most: Int) -> [Int] {
        if count <= most { return Array(0..<count) }
        return most == 1 ? [count - 1] : (0..<most).map { $0 * (count - 1) / (most - 1) }
    }

    /// Storing as `Y` rounds once more.
    func expectMatch<Y: AttentionElement>(
        _ y: Tensor<Y>, _ label: @autoclosure () -> String, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        var worst = (excess: 0.0, text: "")
        let columns = y.shape[1]
        for (row, column, value, bound) in elements {
            let rounding =
                Y.self == Float.self ? 0 : max(Y.unitRoundoff * (abs(value) + bound), Y.subnormalRoundoff)
            let actual = Double(y[flat: row * columns + column].floatValue)
            let excess = abs(actual - value) - bound - rounding
            if !(excess <= worst.excess) {
                worst = (excess, "(\(row), \(column)) \(actual), expected \(value) ± \(bound + rounding)")
            }
        }
        #expect(worst.text.isEmpty, "\(label()): \(worst.text)", sourceLocation: sourceLocation)
    }
}

extension QuantizedLinear {
    /// Runs the layer into a new tensor of another element type.
    func output<X: AttentionElement, Y: AttentionElement>(
        of x: Tensor<X>, as type: Y.Type, on pool: WorkerPool = .shared
    ) throws -> Tensor<Y> {
        var y = try Tensor<Y>([x.shape[0], outFeatures]) { _ in Y(.nan) }
        try run(x: x.matrixView(named: "x"), y: y.mutableMatrixView(named: "y"), on: pool)
        return y
    }
}
