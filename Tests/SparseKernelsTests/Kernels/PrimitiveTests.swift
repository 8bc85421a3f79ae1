import Foundation
import KernelInterface
import SparseKernels
import SparseKernelsReference
import Testing

/// The elementary functions and conversions that kernels inline, on each instruction set.
@Suite("Primitives")
struct PrimitiveTests {
    /// Applies a primitive to an array of any length, padded because the kernel takes whole vectors.
    static func apply<Source: BitwiseCopyable, Result: BitwiseCopyable>(
        _ primitive: Primitive, _ source: [Source], filler: Source, empty: Result, _ set: InstructionSet
    ) -> [Result] {
        let lanes = set.kernels.sizes.laneCount
        let padding = (lanes - source.count % lanes) % lanes
        let input = source + Array(repeating: filler, count: padding)
        var output = Array(repeating: empty, count: input.count)
        input.withUnsafeBytes { from in
            output.withUnsafeMutableBytes { to in
                set.kernels.applyPrimitive(primitive, from: from.baseAddress!, to: to.baseAddress!, count: input.count)
            }
        }
        return Array(output.prefix(source.count))
    }

    static func map(_ primitive: Primitive, _ source: [Float], _ set: InstructionSet) -> [Float] {
        apply(primitive, source, filler: 0, empty: 0, set)
    }

    static func widen(_ primitive: Primitive, _ source: [UInt16], _ set: InstructionSet) -> [Float] {
        apply(primitive, source, filler: 0, empty: 0, set)
    }

    static func narrow(_ primitive: Primitive, _ source: [Float], _ set: InstructionSet) -> [UInt16] {
        apply(primitive, source, filler: 0, empty: 0, set)
    }

    /// The largest relative error compared with `exact`, and its place.
    static func worstRelativeError(
        _ primitive: Primitive, _ points: [Float], _ set: InstructionSet, exact: (Double) -> Double
    ) -> (error: Double, at: Float) {
        var worst = (error: 0.0, at: Float(0))
        for (x, y) in zip(points, map(primitive, points, set)) {
            let expected = exact(Double(x))
            let error = abs(Double(y) - expected) / abs(expected)
            if !(error <= worst.error) { worst = (error, x) }
        }
        return worst
    }

    // MARK: - eˣ

    @Test("eˣ is within its error over the range that softmax uses", arguments: InstructionSet.available)
    func expAccuracy(_ set: InstructionSet) {
        // One sweep is even over the range, the other over the reduced argument, on which the polynomial depends.
        let range = (0...100_000).map { Float(-87 + 175 * Double($0) / 100_000) }
        let reduced = (0...20_000).map { Float(-0.7 + 1.4 * Double($0) / 20_000) }
        // 2e-7 is the error of the polynomial and the rounding of its steps. The rounding of the constant log₂e adds 1.3e-8
        // relative, and without fused multiply-adds that of x·log₂e adds half an ulp. Both grow with |x|.
        let perUnit = set == .portable ? 1e-7 : 2e-8
        let points = range + reduced
        for (x, y) in zip(points, Self.map(.exp, points, set)) {
            let error = abs(Double(y) / Foundation.exp(Double(x)) - 1)
            if !(error <= 2e-7 + perUnit * Double(abs(x))) {
                Issue.record("\(set): error \(error) at \(x)")
                return
            }
        }
    }

    @Test("eˣ is exact where the softmax relies on it", arguments: InstructionSet.available)
    func expSpecialValues(_ set: InstructionSet) {
        // An unchanged maximum must rescale by exactly 1.
        #expect(Self.map(.exp, [0, -0.0], set) == [1, 1])
        // Masked scores become positive zeros, which add nothing: 0 · v keeps the sign of v.
        let hidden: [Float] = [-.infinity, -.greatestFiniteMagnitude, -1e30, -200, -150, -88.1, -88]
        #expect(Self.map(.exp, hidden, set).allSatisfy { $0.bitPattern == 0 }, "\(set)")
        #expect(Self.map(.exp, [.nan, -.nan, .signalingNaN], set).allSatisfy { $0.isNaN }, "\(set)")
    }

    @Test("eˣ never decreases by more than its error", arguments: InstructionSet.available)
    func expMonotonicity(_ set: InstructionSet) {
        // At every half integer of x·log₂e, the reduced argument jumps from ½ to −½.
        let halves = (-125..<127).map { Float((Double($0) + 0.5) / 1.442695040888963) }
        let results = Self.map(.exp, halves.flatMap { [$0.nextDown, $0, $0.nextUp] }, set)
        let isGrowing = zip(results, results.dropFirst()).allSatisfy { $1 >= $0 * (1 - 4e-7) }
        #expect(isGrowing, "\(set)")
    }

    // MARK: - tanh

    @Test("tanh is within 4e-7 of exact, relatively", arguments: InstructionSet.available)
    func tanhAccuracy(_ set: InstructionSet) {
        let coarse = (1...60_000).map { Float(20 * Double($0) / 60_000) }
        // The two branches meet at 0.4, where both have their largest errors.
        let middle = (0...40_000).map { Float(0.2 + 0.4 * Double($0) / 40_000) }
        let tiny = (0...120).map { Float(sign: .plus, exponent: -$0, significand: 1.3) }
        let points = coarse + middle + tiny
        let worst = Self.worstRelativeError(.tanh, points + points.map { -$0 }, set) { Foundation.tanh($0) }
        #expect(worst.error <= 4e-7, "\(set): at \(worst.at)")
    }

    @Test("tanh is odd, saturates at 1 and keeps NaN", arguments: InstructionSet.available)
    func tanhSpecialValues(_ set: InstructionSet) {
        var random = SplitMix64(seed: 7)
        let points = (0..<4000).map { _ in random.normal() * 4 }
        let positive = Self.map(.tanh, points, set)
        let negative = Self.map(.tanh, points.map { -$0 }, set)
        #expect(zip(positive, negative).allSatisfy { $0.bitPattern == (-$1).bitPattern }, "\(set)")
        #expect(positive.allSatisfy { abs($0) <= 1 }, "\(set)")

        let large: [Float] = [12, 20, 88, 1000, 1e30, .greatestFiniteMagnitude, .infinity]
        #expect(Self.map(.tanh, large, set).allSatisfy { $0 == 1 }, "\(set)")
        #expect(Self.map(.tanh, large.map { -$0 }, set).allSatisfy { $0 == -1 }, "\(set)")
        let zeros = Self.map(.tanh, [0, -0.0], set).map(\.bitPattern)
        #expect(zeros == [Float(0).bitPattern, Float(-0.0).bitPattern], "\(set)")
        #expect(Self.map(.tanh, [.nan, -.nan], set).allSatisfy { $0.isNaN }, "\(set)")
    }

    // MARK: - Conversions

    /// The first pattern for which two results differ. NaN equals NaN whatever its payload.
    private static func firstDifference(_ actual: [Float], _ expected: (UInt16) -> Float) -> String? {
        for (pattern, value) in actual.enumerated() {
            let other = expected(UInt16(pattern))
            if value.isNaN && other.isNaN { continue }
            if value.bitPattern != other.bitPattern { return "0x\(String(pattern, radix: 16)): \(value), expected \(other)" }
        }
        return nil
    }

    @Test("every half-precision pattern widens exactly", arguments: InstructionSet.available)
    func widenHalf(_ set: InstructionSet) {
        let widened = Self.widen(.widenHalf, Array(0...UInt16.max), set)
        #expect(Self.firstDifference(widened) { Float(Float16(bitPattern: $0)) } == nil, "\(set)")
    }

    @Test("every bfloat16 pattern widens exactly", arguments: InstructionSet.available)
    func widenBFloat16(_ set: InstructionSet) {
        let widened = Self.widen(.widenBFloat16, Array(0...UInt16.max), set)
        #expect(Self.firstDifference(widened) { BFloat16(bitPattern: $0).floatValue } == nil, "\(set)")
    }

    /// All points where rounding turns: every finite value of a 16-bit type, ties of neighbours, and floats next to them.
    private static func roundingPoints(_ value: (UInt16) -> Float) -> [Float] {
        var points: [Float] = []
        for pattern in 0...UInt16(0x7fff) {
            let (low, high) = (value(pattern), value(pattern + 1))
            guard low.isFinite else { break }
            // The tie above the largest value is computed as if the next exponent existed.
            let middle = high.isFinite ? low + (high - low) / 2 : low + (low - value(pattern - 1)) / 2
            points += [low, low.nextUp, middle.nextDown, middle, middle.nextUp]
        }
        return points + points.map { -$0 }
    }

    /// Random bit patterns, which are floats of every exponent.
    private static func randomPatterns(_ count: Int) -> [Float] {
        var random = SplitMix64(seed: 11)
        return (0..<count).map { _ in Float(bitPattern: UInt32(truncatingIfNeeded: random.next())) }
    }

    private static let limits: [Float] = [
        .infinity, -.infinity, .nan, -.nan, .greatestFiniteMagnitude, .leastNormalMagnitude, .leastNonzeroMagnitude,
        65504, 65519.996, 65520, 65536, 0, -0.0,
    ]

    private static func firstDifference(
        _ points: [Float], _ actual: [UInt16], value: (UInt16) -> Float, expected: (Float) -> UInt16
    ) -> String? {
        for (x, pattern) in zip(points, actual) {
            let other = expected(x)
            if pattern != other && !(value(pattern).isNaN && value(other).isNaN) {
                return "\(x): 0x\(String(pattern, radix: 16)), expected 0x\(String(other, radix: 16))"
            }
        }
        return nil
    }

    @Test("narrowing to half precision rounds to nearest even", arguments: InstructionSet.available)
    func narrowToHalf(_ set: InstructionSet) {
        let value = { (pattern: UInt16) in Float(Float16(bitPattern: pattern)) }
        let points = Self.roundingPoints(value) + Self.randomPatterns(50_000) + Self.limits
        let narrowed = Self.narrow(.narrowToHalf, points, set)
        let difference = Self.firstDifference(points, narrowed, value: value) { Float16($0).bitPattern }
        #expect(difference == nil, "\(set)")
    }

    @Test("narrowing to bfloat16 rounds to nearest even", arguments: InstructionSet.available)
    func narrowToBFloat16(_ set: InstructionSet) {
        let value = { (pattern: UInt16) in Float(bitPattern: UInt32(pattern) << 16) }
        let points = Self.roundingPoints(value) + Self.randomPatterns(50_000) + Self.limits
        let narrowed = Self.narrow(.narrowToBFloat16, points, set)
        let difference = Self.firstDifference(points, narrowed, value: value) { BFloat16($0).bitPattern }
        #expect(difference == nil, "\(set)")
    }

    @Test("BFloat16 rounds to nearest even")
    func bfloat16Oracle() {
        // `BFloat16.init` is the oracle above, so it is tested here by distances: no neighbour may be nearer.
        var failures: [Float] = []
        for x in Self.roundingPoints({ Float(bitPattern: UInt32($0) << 16) }) {
            let result = BFloat16(x)
            let chosen = Double(result.floatValue)
            if !chosen.isFinite { continue }
            let error = abs(chosen - Double(x))
            for neighbour in [result.bitPattern &- 1, result.bitPattern &+ 1] {
                let other = Double(BFloat16(bitPattern: neighbour).floatValue)
                guard other.isFinite, neighbour & 0x8000 == result.bitPattern & 0x8000 else { continue }
                let distance = abs(other - Double(x))
                if distance < error || (distance == error && result.bitPattern & 1 == 1) { failures.append(x) }
            }
        }
        #expect(failures.isEmpty)
        #expect(BFloat16(Float.greatestFiniteMagnitude).floatValue == .infinity)
        #expect(BFloat16(Float.nan).floatValue.isNaN && BFloat16(Float(bitPattern: 0x7f80_0001)).floatValue.isNaN)
    }

    @Test("all instruction sets convert to the same bits")
    func conversionsAgree() {
        let points = Self.randomPatterns(20_000)
        let patterns = Array(0...UInt16.max)
        for set in InstructionSet.available.dropFirst() {
            let first = InstructionSet.available[0]
            #expect(Self.narrow(.narrowToHalf, points, set) == Self.narrow(.narrowToHalf, points, first))
            #expect(Self.narrow(.narrowToBFloat16, points, set) == Self.narrow(.narrowToBFloat16, points, first))
            let half = Self.widen(.widenHalf, patterns, first)
            #expect(Self.firstDifference(Self.widen(.widenHalf, patterns, set)) { half[Int($0)] } == nil)
        }
    }
}
