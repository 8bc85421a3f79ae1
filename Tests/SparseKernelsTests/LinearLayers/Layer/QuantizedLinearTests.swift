import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The product: every weight format with every activation format, at awkward sizes, compared with the oracle.
@Suite("Quantised linear layer")
struct QuantizedLinearTests {
    static let tokens = [1, 2, 3, 4, 5, 7, 8, 9, 17, 65]
    static let outFeatures = [1, 7, 8, 15, 16, 17, 24, 47, 48, 49, 100]
    static let inFeatures = [1, 16, 63, 64, 65, 200, 513, 1408]

    /// Runs a layer on every level and compares with the oracle.
    static func expectMatches<X: AttentionElement>(
        _ parts: LayerParts, _ packed: [PackedWeight], x: Tensor<X>, _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let expected = ExpectedOutputs(parts, x: x)
        for weight in packed {
            let y = try parts.layer(weight).output(of: x, as: Float.self)
            expected.expectMatch(y, "\(weight.instructionSet), \(label)", sourceLocation: sourceLocation)
        }
    }

    static func packed(_ weight: QuantizedWeight) throws -> [PackedWeight] {
        try InstructionSet.available.map { try PackedWeight(weight, instructionSet: $0) }
    }

    @Test("agrees with the oracle for every weight and activation format", arguments: WeightKind.all.indices)
    func formats(_ index: Int) throws {
        let kind = WeightKind.all[index]
        // The steps share no factor with the lengths of the lists, so that the kinds together use every extent many times.
        for step in 0..<4 {
            let n = Self.outFeatures[(3 * index + 5 * step) % Self.outFeatures.count]
            let k = Self.inFeatures[(3 * index + 2 * step + step / 2) % Self.inFeatures.count]
            let weight = try kind.weight(n, k, seed: UInt64(100 * index + step))
            let packed = try Self.packed(weight)
            for (number, activation) in ActivationFormat.all.enumerated() {
                let m = Self.tokens[(index + 3 * step + 7 * number) % Self.tokens.count]
                let parts = LayerParts(weight: weight, activation: activation)
                let label = "\(kind.testDescription), \(activation), \(m)×\(n)×\(k)"
                switch (index + step + number) % 3 {
                case 0:
                    try Self.expectMatches(parts, packed, x: activation.input(m, k, seed: 7) as Tensor<Float>, label)
                case 1:
                    try Self.expectMatches(parts, packed, x: activation.input(m, k, seed: 8) as Tensor<Float16>, label)
                default:
                    try Self.expectMatches(parts, packed, x: activation.input(m, k, seed: 9) as Tensor<BFloat16>, label)
                }
            }
        }
    }

    @Test("every number of tokens with every number of outputs", arguments: WeightKind.main)
    func edges(_ kind: WeightKind) throws {
        let k = 65
        for n in Self.outFeatures {
            let weight = try kind.weight(n, k, seed: UInt64(n))
            let packed = try Self.packed(weight)
            for (index, m) in Self.tokens.enumerated() {
                let activation = ActivationFormat.all[(index + n) % ActivationFormat.all.count]
                let x: Tensor<Float> = try activation.input(m, k, seed: UInt64(m))
                let parts = LayerParts(weight: weight, activation: activation)
                try Self.expectMatches(parts, packed, x: x, "\(kind.testDescription), \(activation), \(m)×\(n)×\(k)")
            }
        }
    }

    @Test("every depth agrees with the oracle", arguments: WeightKind.main)
    func depths(_ kind: WeightKind) throws {
        for k in Self.inFeatures + [2, 3, 15, 17, 31, 33, 127, 128, 129, 255, 256, 257] {
            let weight = try kind.weight(17, k, seed: UInt64(k))
            let packed = try Self.packed(weight)
            for activation in ActivationFormat.all {
                let x: Tensor<Float> = try activation.input(5, k, seed: 3)
                let parts = LayerParts(weight: weight, activation: activation)
                try Self.expectMatches(parts, packed, x: x, "\(kind.testDescription), \(activation), K = \(k)")
            }
        }
    }

    @Test("numbers of tokens around the blocks of rows agree with the oracle", arguments: ActivationFormat.all)
    func blocks(_ activation: ActivationFormat) throws {
        let (n, k) = (5, 20)
        let weight = try WeightKind(.int4, 16, offsets: true).weight(n, k, seed: 1)
        let parts = try LayerParts(
            weight: weight, activation: activation, lowRank: LayerParts.branch(rank: 3, n, k, seed: 2),
            bias: Tensor.normal([n], seed: 3))
        let packed = try Self.packed(weight)
        for m in [63, 64, 127, 128, 129, 257, 1023, 1024, 1025, 1100] {
            let x: Tensor<Float16> = try activation.input(m, k, seed: 4)
            try Self.expectMatches(parts, packed, x: x, "\(activation), \(m) tokens")
        }
    }

    @Test("scales and offsets that no 16-bit type represents agree with the oracle", arguments: WeightKind.all.indices)
    func exactScales(_ index: Int) throws {
        let kind = WeightKind.all[index]
        let rounded = try kind.weight(20, 200, seed: 5)
        func spoiled(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            try Tensor(tensor.shape) { tensor[flat: $0] * (1 + Float($0 % 7 + 1) * 0x1p-14) }
        }
        let weight = try QuantizedWeight(
            format: rounded.format, inFeatures: 200, codes: rounded.codes, scales: spoiled(rounded.scales),
            offsets: rounded.offsets.map(spoiled), channelScales: rounded.channelScales.map(spoiled))
        for activation in [ActivationFormat.float, .int8PerGroup] {
            let parts = LayerParts(weight: weight, activation: activation)
            let x = try Tensor<Float>.normal([3, 200], seed: 2)
            try Self.expectMatches(parts, Self.packed(weight), x: x, "\(kind.testDescription), \(activation)")
        }
    }

    @Test("bits are the same on 1, 2 and 7 threads, in every call and beside any rows", arguments: ActivationFormat.all)
    func threads(_ activation: ActivationFormat) throws {
        let (m, n, k) = (65, 49, 513)
        #expect(m * n * k > WorkerPool.workCutoff)
        let parts = try LayerParts(
            weight: WeightKind(.int4, 64).weight(n, k, seed: 1), activation: activation, smooth: LayerParts.smooth(k, seed: 2),
            lowRank: LayerParts.branch(rank: 17, n, k, seed: 3), bias: Tensor.normal([n], seed: 4))
        let x: Tensor<BFloat16> = try activation.input(m, k, seed: 5)
        for set in InstructionSet.available {
            let layer = try parts.layer(set)
            let serial = try layer.output(of: x, as: Float.self, on: .serial).bits
            for threads in [2, 7] {
                let pool = WorkerPool(threads: threads)
                for _ in 0..<2 {
                    #expect(try layer.output(of: x, as: Float.self, on: pool).bits == serial, "\(set), \(threads) threads")
                }
            }
            // Starts with two rows, because a single row has kernels of its own.
            for row in [0, 33, m - 2] {
                let pair = try Tensor([2, k], Array(x.elements[row * k..<(row + 2) * k]))
                #expect(try layer.output(of: pair, as: Float.self).bits == Array(serial[row * n..<(row + 2) * n]), "\(set)")
            }
        }
    }

    @Test("a row has the same bits in batches of any size from two on", arguments: ActivationFormat.all)
    func batches(_ activation: ActivationFormat) throws {
        let (m, n, k) = (140, 29, 70)
        let parts = try LayerParts(
            weight: WeightKind(.int4, 32, offsets: true).weight(n, k, seed: 1), activation: activation,
            lowRank: LayerParts.branch(rank: 17, n, k, seed: 2), bias: Tensor.normal([n], seed: 3))
        let x: Tensor<Float16> = try activation.input(m, k, seed: 4)
        for set in InstructionSet.available {
            let layer = try parts.layer(set)
            let expected = try layer.output(of: x, as: Float.self).bits
            // One more than a multiple of a tile or task leaves a single row in the last one.
            for rows in Array(2...19) + [25, 31, 33, 49, 64, 65, 66, 73, 97, 127, 128, 129, 133] {
                let some = try layer.output(of: Tensor([rows, k], Array(x.elements[..<(rows * k)])), as: Float.self).bits
                let differs = some.indices.first { some[$0] != expected[$0] }
                #expect(differs == nil, "\(set), \(activation), \(rows) rows: row \((differs ?? 0) / n) has other bits")
            }
        }
    }

    @Test("nothing outside the operands is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for (m, n, k) in [(1, 1, 1), (3, 7, 63), (9, 17, 65), (5, 48, 128)] {
                for (kind, activation) in [
                    (WeightKind(.int4, 64), ActivationFormat.int4), (WeightKind(.int8, nil), .int8PerToken),
                    (WeightKind(.uint4, 32, offsets: true), .float), (WeightKind(.fp4, 16), .fp4),
                ] {
                    let parts = try LayerParts(
                        weight: kind.weight(n, k, seed: 1), activation: activation, smooth: LayerParts.smooth(k, seed: 2),
                        lowRank: LayerParts.branch(rank: 17, n, k, seed: 3))
                    let values = try Tensor<Float16>.normal([m, k], seed: 4).elements
                    for set in InstructionSet.available {
                        let layer = try parts.layer(set)
                        for fencesEnd in [false, true] {
                            let x = FencedMemory(values, fencesEnd: fencesEnd)
                            let y = FencedMemory(Array(repeating: Float16.nan, count: m * n), fencesEnd: fencesEnd)
                            try layer.run(
                                x: MatrixView(x.elements.span, rows: m, columns: k),
                                y: MutableMatrixView(y.elements.mutableSpan, rows: m, columns: n))
                            #expect(y.elements.allSatisfy { !$0.isNaN }, "\(set), \(activation)")
                        }
                    }
                }
            }
        }
    }
}
