import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The codes of a layer's activations, which follow the rule of the engines code for code on every level.
@Suite("Quantised activations")
struct QuantizedActivationTests {
    static let quantising = ActivationFormat.all.filter { $0 != .float }

    /// Compares with the oracle. Both use the same operations in single precision, so ties are rounded alike.
    static func expectMatches<X: AttentionElement>(
        _ quantized: QuantizedActivations, _ x: Tensor<X>, _ rule: ReferenceActivationQuantization, smooth: [Float]?,
        _ label: String, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let (m, k, values) = (x.shape[0], x.shape[1], x.elements)
        let (codes, scales) = (quantized.codes.elements.map(Int.init), quantized.scales.elements)
        let (padded, groups) = (quantized.codes.shape[1], quantized.scales.shape[1])
        var text = ""
        for row in 0..<m {
            let expected = rule(Array(values[row * k..<(row + 1) * k]), smooth: smooth)
            for group in 0..<groups {
                // A token's only scale is that of each group.
                let scale = expected.scales[min(group, expected.scales.count - 1)]
                if scales[row * groups + group] != scale {
                    text = "scale (\(row), \(group)) \(scales[row * groups + group]), expected \(scale)"
                }
            }
            for column in 0..<padded {
                // Padding is multiplied by weights of 0. With a shift it must still be 0.
                let code = column < k ? expected.codes[column] : 0
                if codes[row * padded + column] != code {
                    text = "code (\(row), \(column)) \(codes[row * padded + column]), expected \(code)"
                }
            }
        }
        #expect(text.isEmpty, "\(label): \(text)", sourceLocation: sourceLocation)
    }

    /// Quantises on every level, and compares with the oracle and between levels.
    static func check<X: AttentionElement>(
        _ x: Tensor<X>, _ activation: ActivationFormat, _ kind: WeightKind, smooth: Tensor<Float>?, _ label: String
    ) throws {
        let weight = try kind.weight(1, x.shape[1], seed: 1)
        let rule = ReferenceActivationQuantization(activation, weight: weight.format)
        var first: QuantizedActivations?
        for set in InstructionSet.available {
            let layer = try LayerParts(weight: weight, activation: activation, smooth: smooth).layer(set)
            let quantized = try layer.quantized(x.matrixView(named: "x"), on: .serial)
            #expect(first.map { $0.codes == quantized.codes && $0.scales == quantized.scales } ?? true, "\(set), \(label)")
            if first == nil { expectMatches(quantized, x, rule, smooth: smooth?.elements, "\(set), \(label)") }
            first = first ?? quantized
        }
    }

    @Test("codes and scales are those of the rule, on every level", arguments: quantising)
    func rule(_ activation: ActivationFormat) throws {
        let sizes = [(1, 1), (3, 16), (2, 63), (1, 64), (5, 65), (7, 200), (9, 513)]
        for (index, kind) in [
            WeightKind(.int4, 64), WeightKind(.int8, 32), WeightKind(.uint4, 128, offsets: true), WeightKind(.fp4, 16),
            WeightKind(.int8, nil),
        ].enumerated() {
            for (number, (m, k)) in sizes.enumerated() {
                let smooth = number % 2 == 0 ? nil : try LayerParts.smooth(k, seed: UInt64(k))
                let label = "\(kind.testDescription), \(activation), \(m)×\(k)"
                let seed = UInt64(10 * index + number)
                switch (index + number) % 3 {
                case 0:
                    try Self.check(activation.input(m, k, seed: seed) as Tensor<Float>, activation, kind, smooth: smooth, label)
                case 1:
                    try Self.check(
                        activation.input(m, k, seed: seed) as Tensor<Float16>, activation, kind, smooth: smooth, label)
                default:
                    try Self.check(
                        activation.input(m, k, seed: seed) as Tensor<BFloat16>, activation, kind, smooth: smooth, label)
                }
            }
        }
    }

    @Test("ties go to even", arguments: InstructionSet.available)
    func ties(_ set: InstructionSet) throws {
        // The largest value makes the scale exactly 1, so that the other values equal their quotients.
        func codes(_ values: [Float], _ activation: ActivationFormat) throws -> [Int8] {
            let layer = try LayerParts(
                weight: WeightKind(.int4, 16).weight(1, values.count, seed: 1), activation: activation
            ).layer(set)
            let x = try Tensor<Float>([1, values.count], values)
            return Array(try layer.quantized(x.matrixView(named: "x")).codes.elements[..<values.count])
        }
        #expect(try codes([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5], .int8PerToken) == [127, 0, 2, 2, 0, -2, -2, 126])
        // amax · (1/7) and (1/15) are not exact: 7·2⁻ⁿ times Float(1/7) rounds to 2⁻ⁿ, and 15·Float(1/15) to 1.
        #expect(7 * (1 / Float(7)) == 1 && 15 * (1 / Float(15)) == 1)
        #expect(try codes([7, 0.5, 1.5, 2.5, -3.5, -4.5, 6.5, -6.5], .int4) == [7, 0, 2, 2, -4, -4, 6, -6])
        #expect(try codes([15, 0.5, 1.5, 14.5, 13.5, 0, 7.5, 8.5], .uint4(shift: 0)) == [15, 0, 2, 14, 14, 0, 8, 8])
        // Codes are twice the E2M1 values.
        #expect(6 * (1 / Float(6)) == 1)
        #expect(
            try codes([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, 0.26], .fp4)
                == [12, 0, 2, 2, 4, 4, 8, 8, 0, -2, -2, -4, -4, -8, -8, 1])
    }

    @Test("small activations, whose 16-bit scales lose bits, have saturated codes", arguments: quantising)
    func smallValues(_ activation: ActivationFormat) throws {
        // There is no shift, because these values would vanish beside it.
        let activation = if case .uint4 = activation { ActivationFormat.uint4(shift: 0) } else { activation }
        func values(_ magnitude: Float, seed: UInt64) throws -> Tensor<Float> {
            let normal: Tensor<Float> = try activation.input(9, 100, seed: seed)
            return try Tensor(normal.shape) { normal[flat: $0] * magnitude }
        }
        for exponent in 8...24 {
            let x = try values(Float(sign: .plus, exponent: -exponent, significand: 1), seed: UInt64(exponent))
            try Self.check(
                x.converted() as Tensor<Float16>, activation, WeightKind(.int4, 32), smooth: nil,
                "\(activation), 2^-\(exponent)")
        }
        for exponent in stride(from: 118, through: 148, by: 3) {
            let x = try values(Float(sign: .plus, exponent: -exponent, significand: 1), seed: UInt64(exponent))
            try Self.check(x, activation, WeightKind(.int4, 32), smooth: nil, "\(activation), 2^-\(exponent)")
            try Self.check(
                x.converted() as Tensor<BFloat16>, activation, WeightKind(.int4, 32), smooth: nil,
                "\(activation), 2^-\(exponent)")
        }
    }

    @Test("codes come from the unrounded scale, and the stored one is rounded", arguments: InstructionSet.available)
    func storedScale(_ set: InstructionSet) throws {
        // amax = 5: 5/7 is between two BFloat16 values, and 2.5 · (1/s) = 3.5 is a tie, which the rounded scale would move.
        let x = try Tensor<BFloat16>([1, 16]) { BFloat16($0 == 0 ? 5 : 2.5) }
        let weight = try WeightKind(.int4, 16).weight(1, 16, seed: 1)
        let layer = try LayerParts(weight: weight, activation: .int4).layer(set)
        let quantized = try layer.quantized(x.matrixView(named: "x"))
        let scale: Float = 5 * (1 / Float(7))
        #expect(quantized.scales.elements == [BFloat16(scale).floatValue] && BFloat16(scale).floatValue != scale)
        let expected = (2.5 * (1 / scale)).rounded(.toNearestOrEven)
        #expect(quantized.codes.elements[1...].allSatisfy { Float($0) == expected })
    }

    @Test("zero groups have scale 0 and codes 0", arguments: quantising)
    func zeroGroups(_ activation: ActivationFormat) throws {
        let k = 200
        let activation = if case .uint4 = activation { ActivationFormat.uint4(shift: 0) } else { activation }
        var x = try Tensor<Float16>([3, k]) { Float16($0 % 7) }
        // These are the first group of row 0, and all of row 1.
        for index in Array(0..<64) + Array(k..<2 * k) { x[flat: index] = 0 }
        for set in InstructionSet.available {
            let layer = try LayerParts(weight: WeightKind(.int4, 64).weight(1, k, seed: 1), activation: activation).layer(set)
            let quantized = try layer.quantized(x.matrixView(named: "x"))
            let (groups, padded) = (quantized.scales.shape[1], quantized.codes.shape[1])
            #expect(quantized.scales.elements[groups..<2 * groups].allSatisfy { $0 == 0 }, "\(set)")
            #expect(quantized.codes.elements[padded..<2 * padded].allSatisfy { $0 == 0 }, "\(set)")
            #expect(quantized.codes.elements[..<64].allSatisfy { $0 == 0 }, "\(set)")
            #expect(activation == .int8PerToken || quantized.scales[flat: 0] == 0, "\(set)")
            #expect(quantized.scales.elements[(2 * groups)...].allSatisfy { $0 > 0 }, "\(set)")
        }
    }

    @Test("shifted activations below zero saturate at code 0", arguments: InstructionSet.available)
    func belowTheShift(_ set: InstructionSet) throws {
        let layer = try LayerParts(
            weight: WeightKind(.int4, 64).weight(1, 4, seed: 1), activation: .uint4(shift: 0.5)
        ).layer(set)
        let x = try Tensor<Float>([1, 4], [1, -0.5, -0.75, -0.53])
        #expect(Array(try layer.quantized(x.matrixView(named: "x")).codes.elements[..<4]) == [15, 0, 0, 0])
    }

    @Test("NVFP4 scales are E4M3 values from 2⁻⁹ to 448", arguments: InstructionSet.available)
    func blockScales(_ set: InstructionSet) throws {
        let layer = try LayerParts(weight: WeightKind(.fp4, 16).weight(1, 64, seed: 1), activation: .fp4).layer(set)
        // Groups whose largest values are 6 · 1.0625 (a tie between 1 and 1.125), 6000, 6 · 2⁻⁹ and 6 · 2⁻¹¹.
        let largest: [Float] = [6.375, 6000, 6 * 0x1p-9, 6 * 0x1p-11]
        let x = try Tensor<Float>([1, 64]) { largest[$0 / 16] }
        let quantized = try layer.quantized(x.matrixView(named: "x"))
        #expect(quantized.scales.elements == [1, 448, 0x1p-9, 0x1p-9])
        // Values are divided by the unrounded scale, which gives the largest code or more. The last group is divided by the
        // smallest scale: 1½, whose code is 3, because codes are twice the value.
        #expect(quantized.codes.elements == (0..<64).map { $0 < 48 ? 12 : 3 })
        #expect(quantized.value(row: 0, column: 63) == 6 * 0x1p-11 && quantized.value(row: 0, column: 0) == 6)
    }

    @Test("small NVFP4 activations are kept in steps of the smallest scale", arguments: InstructionSet.available)
    func smallActivations(_ set: InstructionSet) throws {
        let layer = try LayerParts(weight: WeightKind(.fp4, 16).weight(1, 64, seed: 1), activation: .fp4).layer(set)
        var generator = SplitMix64(seed: 2)
        for exponent in -20...(-9) {
            // The limit is the largest value that has a code with the smallest scale.
            let limit = 6 * Float(sign: .plus, exponent: exponent, significand: 1)
            let x = try Tensor<Float>([3, 64]) { _ in limit * (2 * generator.uniform() - 1) }
            let quantized = try layer.quantized(x.matrixView())
            #expect(quantized.scales.elements.allSatisfy { $0 == E4M3.leastNonzeroMagnitude })
            for index in 0..<x.count {
                // The bound is half a step of 2⁻¹⁰. Beyond twice the scale, E2M1 is within a fifth of the value.
                let bound = max(0x1p-11, 0.200_001 * abs(x[flat: index]))
                let value = quantized.value(row: index / 64, column: index % 64)
                #expect(abs(value - x[flat: index]) <= bound, "\(x[flat: index])")
            }
        }
        // Only values below 2⁻¹¹ of a group are lost.
        let x = try Tensor<Float>([1, 64]) { $0 % 2 == 0 ? 0.0011 : -0.0006 }
        let quantized = try layer.quantized(x.matrixView())
        #expect(quantized.codes.elements == (0..<64).map { $0 % 2 == 0 ? 1 : -1 })
    }

    @Test("scales of activations and of weights mean the same", arguments: quantising)
    func meaning(_ activation: ActivationFormat) throws {
        // A layer of the identity returns its activations as they enter the product.
        let k = 48
        let identity = try Tensor<Float>([k, k]) { $0 / k == $0 % k ? 6 : 0 }
        let weight = try WeightQuantizer(.nvfp4)(identity)
        let layer = try LayerParts(weight: weight, activation: activation).layer(.portable)
        let x: Tensor<Float> = try activation.input(5, k, seed: 7)
        let (y, quantized) = (try layer(x), try layer.quantized(x.matrixView()))
        for row in 0..<5 {
            for column in 0..<k {
                let expected = weight.value(row: column, column: column) * quantized.value(row: row, column: column)
                #expect(abs(y[flat: row * k + column] - expected) <= 1e-6 * abs(expected))
            }
        }
        let group = quantized.groupSize
        for row in 0..<5 {
            for column in 0..<k {
                let scale = quantized.scales[flat: row * quantized.scales.shape[1] + column / group]
                let code = Float(quantized.codes[flat: row * quantized.codes.shape[1] + column])
                #expect(quantized.value(row: row, column: column) == scale * (activation == .fp4 ? code / 2 : code))
            }
        }
        if activation == .fp4 { #expect(quantized.scales.elements.allSatisfy { E4M3($0).floatValue == $0 }) }
    }

    @Test("operands that disagree are refused")
    func badInput() throws {
        let layer = try LayerParts(weight: WeightKind(.int4, 64).weight(1, 70, seed: 1), activation: .int4).layer(.portable)
        let x = try Tensor<Float>(zeros: [2, 69])
        expectError(.invalidShape, "x", containing: ["70", "69"]) {
            _ = try layer.quantized(x.matrixView(named: "x"))
        }
    }

    @Test("codes are the same on any number of threads and from strided rows", arguments: quantising)
    func layouts(_ activation: ActivationFormat) throws {
        let (m, k, gap) = (37, 200, 3)
        let x: Tensor<Float16> = try activation.input(m, k, seed: 3)
        var spread = [Float16](repeating: .nan, count: m * (k + gap))
        let adjacent = x.elements
        for index in adjacent.indices { spread[index / k * (k + gap) + index % k] = adjacent[index] }
        for set in InstructionSet.available {
            let layer = try LayerParts(weight: WeightKind(.int4, 32).weight(1, k, seed: 1), activation: activation).layer(set)
            let expected = try layer.quantized(x.matrixView(named: "x"), on: .serial)
            for threads in [1, 2, 7] {
                let pool = WorkerPool(threads: threads)
                let quantized = try layer.quantized(
                    MatrixView(spread.span, rows: m, columns: k, rowStride: k + gap), on: pool)
                #expect(quantized.codes == expected.codes && quantized.scales == expected.scales, "\(set), \(threads) threads")
            }
        }
    }
}
