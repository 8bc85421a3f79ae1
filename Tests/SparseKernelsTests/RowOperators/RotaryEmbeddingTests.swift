import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Rotary embedding")
struct RotaryEmbeddingTests {
    static let positions = [0, 1, 2, 17, 5, 5, 4095, 131_071, 1_000_000, -3]

    static func check<E: AttentionElement>(
        _ type: E.Type, _ rotary: RotaryEmbedding, heads: Int, positions: [Int], layout: TensorLayout
    ) throws {
        let d = rotary.headDim
        let shape = layout == .hnd ? [heads, positions.count, d] : [positions.count, heads, d]
        let x = try Tensor<E>.normal(shape, seed: 1)
        var y = x
        try rotary.table(positions: positions).rotate(&y, layout: layout)
        let rounding = RowNormTests.rounding(E.self)
        for head in 0..<heads {
            for (token, position) in positions.enumerated() {
                let row = layout == .hnd ? head * positions.count + token : token * heads + head
                let source = RowNormTests.doubles(x, row: row)
                let length = (positions.max() ?? 0) + 1
                let expected = ReferenceRows.rotated(
                    source, position: position, frequencies: rotary.frequencies(length: length), pairing: rotary.pairing,
                    factor: rotary.attentionFactor)
                let largest = source.map(abs).max()! * rotary.attentionFactor
                // 4e-7 of both channels, and what the oracle's own angle rounds to.
                let angle = Double(abs(position)) * 0x1p-51
                let actual = RowNormTests.doubles(y, row: row)
                for i in 0..<d {
                    let bound = i < rotary.rotatedChannels ? 2 * largest * (4e-7 + angle) + 2 * rounding * abs(expected[i]) : 0
                    if !(abs(actual[i] - expected[i]) <= bound) {
                        Issue.record(
                            "\(rotary), \(E.self), position \(position), channel \(i): \(actual[i]) for \(expected[i])")
                        return
                    }
                }
            }
        }
    }

    @Test("agrees with the oracle at all sizes, positions and layouts", arguments: InstructionSet.available)
    func agrees(_ set: InstructionSet) throws {
        for pairing in RotaryEmbedding.Pairing.allCases {
            for (headDim, rotated) in [(2, 2), (4, 4), (6, 4), (20, 10), (34, 34), (64, 64), (80, 32), (128, 128), (96, 46)] {
                let rotary = try RotaryEmbedding(
                    headDim: headDim, rotatedChannels: rotated, theta: 500_000, pairing: pairing, instructionSet: set)
                for (heads, layout) in [(1, TensorLayout.hnd), (3, .nhd), (13, .nhd)] {
                    try Self.check(Float.self, rotary, heads: heads, positions: Self.positions, layout: layout)
                }
                try Self.check(Float16.self, rotary, heads: 12, positions: [1234], layout: .nhd)
                try Self.check(BFloat16.self, rotary, heads: 2, positions: Self.positions, layout: .hnd)
            }
        }
    }

    @Test("cosines and sines are within 3e-7 at positions up to a million", arguments: InstructionSet.available)
    func accuracy(_ set: InstructionSet) throws {
        let positions = (0..<3000).map { $0 * 367 % 1_000_003 }
        for pairing in RotaryEmbedding.Pairing.allCases {
            let rotary = try RotaryEmbedding(headDim: 64, pairing: pairing, instructionSet: set)
            let (table, frequencies) = (try rotary.table(positions: positions), rotary.frequencies())
            var worst = 0.0
            for (token, position) in positions.enumerated() {
                for pair in 0..<32 {
                    let (angle, r) = (Double(position) * frequencies[pair], table.rotation(token: token, pair: pair))
                    worst = max(worst, abs(Double(r.cosine) - cos(angle)), abs(Double(r.sine) - sin(angle)))
                }
            }
            #expect(worst <= 3e-7, "\(set), \(pairing): \(worst)")
        }
    }

    // MARK: - Rules for long contexts, written from the formulas of modeling_rope_utils.py

    static func plain(_ d: Int, _ theta: Double) -> [Double] { (0..<d / 2).map { pow(theta, -2 * Double($0) / Double(d)) } }

    static func expectEqual(_ a: [Double], _ b: [Double]) {
        #expect(a.count == b.count && zip(a, b).allSatisfy { abs($0 - $1) <= 1e-12 * abs($1) }, "\(a)\n\(b)")
    }

    @Test("linear and dynamic NTK scaling")
    func linearAndDynamic() throws {
        let linear = try RotaryEmbedding(headDim: 64, scaling: .linear(factor: 4))
        Self.expectEqual(linear.frequencies(), Self.plain(64, 10_000).map { $0 / 4 })
        let dynamic = try RotaryEmbedding(headDim: 64, scaling: .dynamicNTK(factor: 2, originalLength: 2048))
        Self.expectEqual(dynamic.frequencies(length: 2048), Self.plain(64, 10_000))
        let base = 10_000 * pow(2 * 8192.0 / 2048 - 1, 64.0 / 62)
        Self.expectEqual(dynamic.frequencies(length: 8192), Self.plain(64, base))
        // The largest position decides, unless the length is given.
        let (short, long) = (try dynamic.table(positions: [5]), try dynamic.table(positions: [5, 8191]))
        let given = try dynamic.table(positions: [5], length: 8192)
        #expect(short.rotation(token: 0, pair: 20) != long.rotation(token: 0, pair: 20))
        #expect(given.rotation(token: 0, pair: 20) == long.rotation(token: 0, pair: 20))
    }

    @Test("Llama-3 scaling")
    func llama3() throws {
        let rotary = try RotaryEmbedding(
            headDim: 128, theta: 500_000,
            scaling: .llama3(factor: 8, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalLength: 8192))
        let expected = Self.plain(128, 500_000).map { frequency -> Double in
            let wavelength = 2 * Double.pi / frequency
            let smooth = (8192 / wavelength - 1) / 3
            return wavelength < 2048
                ? frequency : wavelength > 8192 ? frequency / 8 : (1 - smooth) * frequency / 8 + smooth * frequency
        }
        Self.expectEqual(rotary.frequencies(), expected)
        #expect(rotary.attentionFactor == 1)
    }

    @Test("YaRN: ramp, truncation, attention factors", arguments: [true, false])
    func yarn(_ truncates: Bool) throws {
        var options = RotaryEmbedding.YaRN(factor: 4, originalLength: 4096)
        options.truncates = truncates
        let rotary = try RotaryEmbedding(headDim: 64, theta: 150_000, scaling: .yarn(options))
        func dimension(_ turns: Double) -> Double { 64 * log(4096 / (turns * 2 * .pi)) / (2 * log(150_000)) }
        let low = max(truncates ? floor(dimension(32)) : dimension(32), 0)
        let high = min(truncates ? ceil(dimension(1)) : dimension(1), 63)
        let expected = Self.plain(64, 150_000).enumerated().map { i, frequency -> Double in
            let kept = 1 - min(1, max(0, (Double(i) - low) / (high - low)))
            return frequency / 4 * (1 - kept) + frequency * kept
        }
        Self.expectEqual(rotary.frequencies(), expected)
        #expect(rotary.attentionFactor == 0.1 * log(4.0) + 1)
        for set in InstructionSet.available {
            let rotary = try RotaryEmbedding(headDim: 64, theta: 150_000, scaling: .yarn(options), instructionSet: set)
            try Self.check(Float.self, rotary, heads: 2, positions: Self.positions, layout: .nhd)
        }
        options.mscale = 1
        options.mscaleAllDim = 0.707
        let deep = try RotaryEmbedding(headDim: 64, scaling: .yarn(options))
        #expect(abs(deep.attentionFactor - (0.1 * log(4.0) + 1) / (0.0707 * log(4.0) + 1)) < 1e-15)
        options.attentionFactor = 1.25
        #expect(try RotaryEmbedding(headDim: 64, scaling: .yarn(options)).attentionFactor == 1.25)
    }

    @Test("rotating keeps the length of pairs, and differences of positions are all that counts")
    func invariance() throws {
        let rotary = try RotaryEmbedding(headDim: 64)
        let (q, k) = (try Tensor<Float>.normal([1, 64], seed: 1), try Tensor<Float>.normal([1, 64], seed: 2))
        func score(_ a: Int, _ b: Int) throws -> Double {
            var (q, k) = (q, k)
            try rotary.table(positions: [a]).rotate(&q)
            try rotary.table(positions: [b]).rotate(&k)
            return (0..<64).reduce(0) { $0 + Double(q[0, $1]) * Double(k[0, $1]) }
        }
        #expect(abs(try score(100, 90) - score(900_010, 900_000)) < 1e-4)
    }

    @Test("threads do not change bits", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let positions = (0..<3000).map { $0 * 7 }
        let rotary = try RotaryEmbedding(headDim: 64, instructionSet: set)
        var expected = try Tensor<Float>.normal([4, 3000, 64], seed: 1)
        let x = expected
        try rotary.table(positions: positions, on: .serial).rotate(&expected, on: .serial)
        for threads in [2, 7] {
            var y = x
            let pool = WorkerPool(threads: threads)
            try rotary.table(positions: positions, on: pool).rotate(&y, on: pool)
            #expect(y.bits == expected.bits, "\(set)")
        }
        var none = try Tensor<Float>(zeros: [4, 0, 64])
        try rotary.table(positions: []).rotate(&none)
    }

    @Test("huge factors of dynamic NTK leave frequencies finite", arguments: [1e15, 1e17, 1e300])
    func hugeFactors(_ factor: Double) throws {
        let scaling = RotaryEmbedding.Scaling.dynamicNTK(factor: factor, originalLength: 16)
        let rotary = try RotaryEmbedding(headDim: 8, scaling: scaling)
        Self.expectEqual(rotary.frequencies(), Self.plain(8, 10_000))
        for length in [17, 1 << 40] {
            #expect(rotary.frequencies(length: length).allSatisfy { $0 >= 0 && $0 <= 1 }, "\(length)")
            _ = try rotary.table(positions: [0, 5], length: length)
        }
    }

    @Test("errors name the option and both numbers")
    func errors() throws {
        expectError(.invalidShape, "headDim", containing: "1") { _ = try RotaryEmbedding(headDim: 1) }
        expectError(.invalidShape, "rotatedChannels", containing: "5", "8") {
            _ = try RotaryEmbedding(headDim: 8, rotatedChannels: 5)
        }
        expectError(.invalidArgument, "theta", containing: "nan") { _ = try RotaryEmbedding(headDim: 8, theta: .nan) }
        expectError(.invalidArgument, "factor", containing: "0.5") {
            _ = try RotaryEmbedding(headDim: 8, scaling: .yarn(.init(factor: 0.5, originalLength: 8)))
        }
        expectError(.invalidArgument, "factor", containing: "5e-324") {
            _ = try RotaryEmbedding(headDim: 8, scaling: .linear(factor: .leastNonzeroMagnitude))
        }
        expectError(.invalidArgument, "rotatedChannels", containing: "2") {
            _ = try RotaryEmbedding(headDim: 2, scaling: .dynamicNTK(factor: 2, originalLength: 8))
        }
        expectError(.invalidArgument, "highFrequencyFactor", containing: "1.0") {
            _ = try RotaryEmbedding(
                headDim: 8, scaling: .llama3(factor: 8, lowFrequencyFactor: 1, highFrequencyFactor: 1, originalLength: 8))
        }
        let table = try RotaryEmbedding(headDim: 8).table(positions: [1, 2])
        var x = try Tensor<Float>(zeros: [1, 3, 8])
        expectError(.invalidShape, "x", containing: "2 tokens × 8", "3 × 8") { try table.rotate(&x) }
    }
}
