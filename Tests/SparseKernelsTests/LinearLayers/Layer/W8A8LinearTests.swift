import SparseKernelsReference
import TestSupport
import Testing

@testable import SparseKernels

/// Layers with one scale per output and one per token: exact sums over whole rows, quiet weights and their remainders.
@Suite("W8A8 linear layer")
struct W8A8LinearTests {
    /// A weight of the distribution of trained ones: few adjacent pairs are loud.
    static func weight(_ n: Int, _ k: Int, seed: UInt64) throws -> QuantizedWeight {
        try WeightQuantizer(.int8PerChannel)(Tensor.normal([n, k], seed: seed))
    }

    /// A weight of given codes whose scales are 1.
    static func weight(_ n: Int, _ k: Int, code: (Int, Int) -> Int) throws -> QuantizedWeight {
        let padded = WeightFormat.int8PerChannel.paddedInFeatures(k)
        let codes = try Tensor<UInt8>([n, padded]) { index in
            let (row, column) = (index / padded, index % padded)
            return column < k ? UInt8(truncatingIfNeeded: code(row, column)) : 0
        }
        return try QuantizedWeight(
            format: .int8PerChannel, inFeatures: k, codes: codes, scales: Tensor([n, 1]) { _ in 1 })
    }

    /// Codes as activations: each row has a 127, so that its scale is 1.
    static func codes(_ m: Int, _ k: Int, seed: UInt64) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: seed)
        return try Tensor([m, k]) { index in
            if index % k == index / k % k { return 127 }
            switch generator.next() % 4 {
            case 0: return 127
            case 1: return -127
            default: return Float(Int(generator.next() % 255) - 127)
            }
        }
    }

    /// Compares all outputs with sums of integers, which are exact in `Float` up to 2²⁴.
    static func expectExact(
        _ weight: QuantizedWeight, _ x: Tensor<Float>, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let (m, k, n) = (x.shape[0], x.shape[1], weight.outFeatures)
        let rows = x.elements.map { Int32($0) }
        let columns = (0..<n * k).map { Int32(weight.code(row: $0 / k, column: $0 % k)) }
        var expected = [Float](repeating: 0, count: m * n)
        for row in 0..<m {
            for column in 0..<n {
                expected[row * n + column] = Float(
                    zip(rows[row * k..<(row + 1) * k], columns[column * k..<(column + 1) * k]).reduce(0) { $0 + $1.0 * $1.1 })
            }
        }
        for set in InstructionSet.available {
            let layer = try QuantizedLinear(PackedWeight(weight, instructionSet: set), activation: .int8PerToken)
            let y = try layer(x).elements
            let bad = y.indices.first { y[$0] != expected[$0] }
            #expect(
                bad == nil, "\(set), \(label): \(y[bad ?? 0]) at \(bad ?? 0), expected \(expected[bad ?? 0])",
                sourceLocation: sourceLocation)
        }
    }

    @Test("agrees with the oracle for all numbers of rows around the blocks")
    func rows() throws {
        let sizes = [(1, 1), (7, 5), (9, 130), (16, 513), (17, 64), (33, 1152)]
        for (index, m) in [1, 2, 6, 8, 31, 32, 33, 64, 65, 95, 96, 97, 191, 193, 389].enumerated() {
            let (n, k) = sizes[index % sizes.count]
            let weight = try Self.weight(n, k, seed: UInt64(index))
            let isPlain = index % 3 == 0
            let parts = try LayerParts(
                weight: weight, activation: .int8PerToken, smooth: isPlain ? nil : LayerParts.smooth(k, seed: 2),
                lowRank: index % 3 == 1 ? LayerParts.branch(rank: 5, n, k, seed: 3) : nil, bias: Tensor.normal([n], seed: 4),
                epilogue: isPlain ? .none : .gelu)
            let x = try Tensor<Float>.normal([m, k], seed: UInt64(m))
            try QuantizedLinearTests.expectMatches(parts, QuantizedLinearTests.packed(weight), x: x, "\(m)×\(n)×\(k)")
            let narrow: Tensor<BFloat16> = x.converted()
            try QuantizedLinearTests.expectMatches(
                parts, QuantizedLinearTests.packed(weight), x: narrow, "\(m)×\(n)×\(k) of bf16")
        }
    }

    @Test("sums are exact for every pair of extreme weights")
    func extremes() throws {
        let values = [-128, -127, -65, -64, -1, 0, 1, 63, 64, 65, 127]
        let k = 2 * values.count * values.count
        // All pairs as adjacent weights, then small weights, so that quiet weights are used.
        let depth = 8 * k
        let weight = try Self.weight(11, depth) { row, column in
            if column >= k { return (row + column) % 7 - 3 }
            let pair = (column / 2 + row) % (values.count * values.count)
            return column % 2 == 0 ? values[pair / values.count] : values[pair % values.count]
        }
        for m in [1, 5, 67] { try Self.expectExact(weight, Self.codes(m, depth, seed: 1), "\(m) rows") }
        for set in InstructionSet.available where set == .avx2 {
            let packed = try PackedWeight(weight, instructionSet: set)
            #expect((packed.remainders?.count ?? 0) > 100)
        }
    }

    @Test("sums are exact where all weights and activations are extreme")
    func allExtreme() throws {
        for value in [127, -127, -128] {
            let weight = try Self.weight(9, 300) { row, column in row % 2 == 0 || column % 3 == 0 ? value : -value / 2 }
            for m in [1, 4, 33, 97] {
                let x = try Tensor<Float>([m, 300]) { $0 / 300 % 2 == 0 ? 127 : ($0 % 2 == 0 ? -127 : 127) }
                try Self.expectExact(weight, x, "\(value), \(m) rows")
            }
        }
    }

    @Test("weights with few loud pairs are split, those with many are not")
    func shares() throws {
        for set in InstructionSet.available {
            let normal = try PackedWeight(Self.weight(40, 1152, seed: 1), instructionSet: set)
            let uniform = try PackedWeight(WeightKind(.int8, nil).weight(40, 1152, seed: 1), instructionSet: set)
            #expect((normal.remainders != nil) == (set == .avx2) && uniform.remainders == nil, "\(set)")
            if let remainders = normal.remainders {
                // About 3% of the words of normal weights.
                #expect((100...1000).contains(remainders.count))
                #expect(normal.byteCount == uniform.byteCount + remainders.byteCount)
            }
        }
    }

    @Test("a pair without its remainder is quiet, and the remainder fits in a byte")
    func remainders() {
        var bad: [(Int, Int)] = []
        for first in -128...127 {
            for second in -128...127 {
                let remainder = WeightRemainders.remainder(first, second)
                let quiet = second - remainder
                let (most, least) = (max(first, 0) + max(quiet, 0), min(first, 0) + min(quiet, 0))
                var isRight = (-128...127).contains(remainder) && (-128...127).contains(quiet)
                // The sum of the products with any two unsigned bytes fits in 16 bits.
                isRight = isRight && 255 * most <= Int(Int16.max) && 255 * least >= Int(Int16.min)
                let isQuiet = max(first, 0) + max(second, 0) <= 127 && min(first, 0) + min(second, 0) >= -128
                if !isRight || (isQuiet && remainder != 0) { bad.append((first, second)) }
            }
        }
        #expect(bad.isEmpty, "\(bad.prefix(5))")
    }

    @Test("a row has the same bits alone and among any others, on any number of threads")
    func bits() throws {
        let (m, n, k) = (230, 37, 390)
        let weight = try Self.weight(n, k, seed: 1)
        let x = try Tensor<Float>.normal([m, k], seed: 2)
        let bias = try Tensor<Float>.normal([n], seed: 3)
        for set in InstructionSet.available {
            let layer = try QuantizedLinear(
                PackedWeight(weight, instructionSet: set), activation: .int8PerToken, bias: bias, epilogue: .gelu)
            let expected = try layer.output(of: x, as: Float.self, on: .serial).bits
            for threads in [2, 7] {
                #expect(try layer.output(of: x, as: Float.self, on: WorkerPool(threads: threads)).bits == expected, "\(set)")
            }
            for (row, count) in [(0, 1), (m - 1, 1), (5, 2), (100, 9), (60, 31), (7, 32), (11, 100)] {
                let part = try Tensor([count, k], Array(x.elements[row * k..<(row + count) * k]))
                let y = try layer.output(of: part, as: Float.self).bits
                #expect(y == Array(expected[row * n..<(row + count) * n]), "\(set), rows \(row)..<\(row + count)")
            }
        }
    }

    @Test("activations that are not finite stay in their row")
    func nonFinite() throws {
        let (m, n, k) = (70, 20, 200)
        let weight = try Self.weight(n, k, seed: 1)
        let clean = try Tensor<Float>.normal([m, k], seed: 2)
        var x = clean
        x[3, 7] = .nan
        x[40, 199] = .infinity
        x[69, 0] = -.infinity
        for set in InstructionSet.available {
            let layer = try QuantizedLinear(PackedWeight(weight, instructionSet: set), activation: .int8PerToken)
            let (y, expected) = (try layer(x), try layer(clean))
            for row in 0..<m {
                for column in 0..<n {
                    let isHit = [3, 40, 69].contains(row)
                    #expect(isHit ? y[row, column].isNaN : y[row, column] == expected[row, column], "\(set), row \(row)")
                }
            }
        }
    }

    @Test("quotients at and beside the middle of two codes are rounded as by division")
    func ties() throws {
        // The largest element makes the scale; the others are near (code + ½) · scale.
        let (m, k) = (24, 260)
        let kind = WeightKind(.int8, nil)
        for exponent in [-125, -100, -20, 0, 60, 105, 125] {
            let unit = Float(sign: .plus, exponent: exponent, significand: 1)
            let x = try Tensor<Float>([m, k]) { index in
                let (row, column) = (index / k, index % k)
                let largest = unit * (1 + Float(row) * 0.037)
                if column == 0 { return largest }
                let middle = (Float(column % 127) + 0.5) * (largest / 127)
                let neighbours = [middle, middle.nextUp, middle.nextDown, middle.nextUp.nextUp, -middle, -middle.nextUp]
                return neighbours[column % neighbours.count]
            }
            try QuantizedActivationTests.check(x, .int8PerToken, kind, smooth: nil, "exponent \(exponent)")
        }
        let random = try Tensor<Float>.normal([64, 1000], seed: 8)
        try QuantizedActivationTests.check(random, .int8PerToken, kind, smooth: nil, "random")
    }

    @Test("layers that share codes have the bits of the layers one by one, with and without quiet weights")
    func groups() throws {
        let k = 300
        let weights = [
            try Self.weight(20, k, seed: 1), try WeightKind(.int8, nil).weight(17, k, seed: 2),
            try WeightKind(.int8, nil, offsets: true).weight(9, k, seed: 3), try Self.weight(40, k, seed: 4),
        ]
        for set in InstructionSet.available {
            for order in [[0, 1, 2, 3], [1, 0], [2, 3]] {
                let layers = try order.map {
                    try QuantizedLinear(PackedWeight(weights[$0], instructionSet: set), activation: .int8PerToken)
                }
                let group = try QuantizedLinearGroup(layers)
                for m in [1, 20, 33, 130] {
                    let x = try Tensor<Float>.normal([m, k], seed: UInt64(m))
                    let y = try group(x)
                    var column = 0
                    for layer in layers {
                        let own = try layer(x)
                        let same = (0..<m).allSatisfy { row in
                            (0..<layer.outFeatures).allSatisfy { y[row, column + $0] == own[row, $0] }
                        }
                        #expect(same, "\(set), \(order), \(m) rows, columns from \(column)")
                        column += layer.outFeatures
                    }
                }
            }
        }
    }

    @Test("a packed weight serves layers of floats with the same values")
    func otherActivations() throws {
        let weight = try Self.weight(33, 260, seed: 1)
        let packed = try QuantizedLinearTests.packed(weight)
        for activation in ActivationFormat.all {
            let x: Tensor<Float> = try activation.input(40, 260, seed: 2)
            try QuantizedLinearTests.expectMatches(
                LayerParts(weight: weight, activation: activation), packed, x: x, "\(activation)")
        }
    }

    @Test("nothing outside the operands is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for (m, n, k) in [(33, 17, 65), (97, 9, 130), (32, 8, 4)] {
                let weight = try W8A8LinearTests.weight(n, k, seed: 1)
                let values = try Tensor<Float>.normal([m, k], seed: 4).elements
                for set in InstructionSet.available {
                    let layer = try QuantizedLinear(PackedWeight(weight, instructionSet: set), activation: .int8PerToken)
                    for fencesEnd in [false, true] {
                        let x = FencedMemory(values, fencesEnd: fencesEnd)
                        let y = FencedMemory(Array(repeating: Float.nan, count: m * n), fencesEnd: fencesEnd)
                        try layer.run(
                            x: MatrixView(x.elements.span, rows: m, columns: k),
                            y: MutableMatrixView(y.elements.mutableSpan, rows: m, columns: n))
                        #expect(y.elements.allSatisfy { !$0.isNaN }, "\(set)")
                    }
                }
            }
        }
    }
}

#if os(Linux) && canImport(Glibc)
    extension W8A8LinearTests {
        @Test("calls allocate nothing after the first ones")
        func allocations() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float>.normal([100, 130], seed: 1)
                var y = try Tensor<Float>(zeros: [100, 40])
                let weight = try W8A8LinearTests.weight(40, 130, seed: 2)
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let layer = try QuantizedLinear(
                            PackedWeight(weight, instructionSet: set), activation: .int8PerToken)
                        AllocationTests.warmUp(pool, scratchByteCount: max(layer.scratchByteCount, 1 << 22), workspaces: 1)
                        var allocated = 0
                        for call in 0..<8 {
                            // Views are made outside, because they are the caller's.
                            let input = try x.matrixView()
                            let output = try y.mutableMatrixView()
                            let before = AllocationCounter.count
                            try layer.run(x: input, y: output, on: pool)
                            if call >= 2 { allocated += AllocationCounter.count - before }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations")
                    }
                }
            }
        }
    }
#endif
