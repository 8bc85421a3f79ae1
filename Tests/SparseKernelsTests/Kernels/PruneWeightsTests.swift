import Foundation
import KernelInterface
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The kernel of Twilight's pruning compared with bisection in `Double`, on each instruction set.
@Suite("Pruning kernel")
struct PruneWeightsTests {
    struct Result {
        var weights: [[Float]]
        /// One list per row, or one for all rows.
        var kept: [[Int]]
        var thresholds: [Float]
        var masses: [Float]
        /// The number of bits set past the last token.
        var strayBits: Int
    }

    /// - Parameter first: the token whose weight bounds the search, or nil for the largest weight.
    static func prune(
        _ scores: [[Float]], topP: Float, epsilon: Float = 1e-5, first: Int? = nil, union: Bool = false, _ set: InstructionSet
    ) -> Result {
        let count = scores[0].count
        let (stride, words) = (PruneScratch.padded(count), PruneScratch.padded(count) / 64)
        let rows = FencedMemory<Float>(
            scores.flatMap { $0 + [Float](repeating: .nan, count: stride - count) }, fencesEnd: true)
        let scratch = FencedMemory<Float>(
            [Float](repeating: .nan, count: PruneScratch.byteCount(count: count) / 4), fencesEnd: true)
        let lists = union ? 1 : scores.count
        var bits = [UInt64](repeating: .max, count: lists * words)
        var thresholds = [Float](repeating: -1, count: scores.count)
        var masses = thresholds
        bits.withUnsafeMutableBufferPointer { bits in
            thresholds.withUnsafeMutableBufferPointer { thresholds in
                masses.withUnsafeMutableBufferPointer { masses in
                    var arguments = PruneArguments(
                        scores: rows.elements.baseAddress!, scoreStride: stride, rows: scores.count, count: count, topP: topP,
                        epsilon: epsilon, startsAtMaximum: first == nil, first: first ?? -1, kept: bits.baseAddress!,
                        keptStride: union ? 0 : words, thresholds: thresholds.baseAddress!, masses: masses.baseAddress!,
                        scratch: UnsafeMutableRawPointer(scratch.elements.baseAddress!))
                    set.kernels.pruneWeights(&arguments)
                }
            }
        }
        let marked = (0..<lists).map { list in
            (0..<stride).filter { bits[list * words + $0 / 64] >> UInt64($0 % 64) & 1 == 1 }
        }
        return Result(
            weights: scores.indices.map { Array(rows.elements[$0 * stride..<$0 * stride + count]) },
            kept: marked.map { $0.filter { $0 < count } }, thresholds: thresholds, masses: masses,
            strayBits: marked.reduce(0) { $0 + $1.filter { $0 >= count }.count })
    }

    /// The relative error of the kernel's sums: 512/(4·lanes) + 2 + log₂ lanes additions, and one rounding of the total.
    static func sumError(_ set: InstructionSet) -> Double {
        let lanes = Double(set.kernels.sizes.laneCount)
        return (128 / lanes + 2 + log2(lanes) + 1) * 0x1p-24
    }

    /// The smallest distance of a sum of the bisection from p. If it is within the sums' error, the oracle may differ.
    static func closestCall(_ weights: [Float], topP: Float, start: Float, epsilon: Float) -> Double {
        var (low, high) = (Float(0), start)
        var closest = Double.infinity
        while true {
            let middle = low / 2 + high / 2
            let above = min(high, weights.filter { $0 > low }.min() ?? high)
            let below = max(low, weights.filter { $0 <= high }.max() ?? low)
            let sum = weights.reduce(0.0) { $1 > middle ? $0 + Double($1) : $0 }
            closest = min(closest, abs(sum - Double(topP)))
            if Float(sum) >= topP { low = middle } else { high = min(middle, below) }
            if below - above <= epsilon { return closest }
        }
    }

    /// Scores of one kind: few large ones, nearly equal ones, few distinct ones, wide ones, or a dominant one.
    static func scores(_ count: Int, kind: Int, seed: UInt64) -> [Float] {
        var generator = SplitMix64(seed: seed)
        return (0..<count).map { index in
            switch kind {
            case 0: 3 * generator.normal()
            case 1: generator.normal() / 16
            case 2: (2 * generator.normal()).rounded()
            case 3: 20 * generator.normal()
            default: index == count / 2 ? 12 : generator.normal()
            }
        }
    }

    @Test("weights are the softmax", arguments: InstructionSet.available)
    func softmax(_ set: InstructionSet) {
        for count in [1, 3, 7, 63, 64, 65, 511, 1000] {
            for kind in 0..<5 {
                let scores = Self.scores(count, kind: kind, seed: UInt64(count * 5 + kind))
                let weights = Self.prune([scores], topP: 0.9, set).weights[0]
                let top = Double(scores.max()!)
                let exact = scores.map { Foundation.exp(Double($0) - top) }
                let total = exact.reduce(0, +)
                // eˣ has the error in `PrimitiveTests`, and the rounding of x = score − maximum gives it a relative error.
                let perUnit = (set == .portable ? 1e-7 : 2e-8) + 0x1p-24
                let errors = scores.map { 2e-7 + perUnit * (top - Double($0)) }
                // The total has the errors of its terms and of its sum. 1/total, its rounding and the product add to them.
                var share = 0.0
                for index in exact.indices { share += exact[index] / total * errors[index] }
                for index in exact.indices {
                    let expected = exact[index] / total
                    let bound = 1.01 * (errors[index] + share + Self.sumError(set) + 0x1p-22) * expected
                    // Below e^−87.3 the exponential is 0 or loses precision.
                    let isTiny = Double(scores[index]) - top < -87
                    #expect(
                        isTiny ? weights[index] < 2e-38 : abs(Double(weights[index]) - expected) <= bound,
                        "\(set), \(count), kind \(kind), token \(index)")
                }
            }
        }
    }

    @Test("the threshold is the oracle's, and the kept mass reaches p", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        let error = Self.sumError(set)
        var compared = 0
        for count in [1, 2, 3, 7, 63, 64, 65, 200, 513, 3000] {
            for kind in 0..<5 {
                let scores = Self.scores(count, kind: kind, seed: UInt64(count * 7 + kind))
                for (topP, first) in [(0.85, nil), (0.85, 0), (0.5, nil), (0.95, count - 1), (0, nil), (1e-6, nil), (1, nil)]
                    as [(Float, Int?)]
                {
                    let result = Self.prune([scores], topP: topP, first: first, set)
                    let (weights, threshold) = (result.weights[0], result.thresholds[0])
                    let label = "\(set), \(count) tokens, kind \(kind), p \(topP), first \(String(describing: first))"
                    #expect(result.kept[0] == weights.indices.filter { weights[$0] > threshold }, "\(label)")
                    #expect(result.strayBits == 0)
                    // A threshold is raised only while the computed sum f is at least p; f(1 + error) bounds the exact sum. A
                    // threshold of 0 keeps the sum of all weights: 1 up to the errors of the total and of the scaling.
                    let mass = result.kept[0].reduce(0.0) { $0 + Double(weights[$1]) }
                    #expect(mass >= Double(topP) - error - 0x1p-22, "\(label): \(mass)")
                    #expect(abs(Double(result.masses[0]) - mass) <= error * mass, "\(label)")
                    #expect(!result.kept[0].isEmpty, "\(label)")

                    // `TopP.bisection` starts at its first element.
                    var rotated = weights
                    if let first { rotated.swapAt(0, first) }
                    let expected = try TopP.bisection(
                        weights: rotated.span, mass: Double(topP), upperBound: first == nil ? .maximum : .firstWeight)
                    let start = first.map { weights[$0] } ?? weights.max()!
                    if Self.closestCall(weights, topP: topP, start: start, epsilon: 1e-5) > error {
                        #expect(threshold == expected.threshold, "\(label)")
                        compared += 1
                    }
                }
            }
        }
        // Sums of few distinct or of all weights may equal p up to rounding, but not in most cases.
        #expect(compared > 280)
    }

    @Test("weights that are equal are kept or dropped together", arguments: InstructionSet.available)
    func ties(_ set: InstructionSet) {
        // Four tokens have a weight near 0.2, and 64 share the rest.
        let scores = (0..<68).map { Float($0 % 17 == 3 ? 4.2 : 0) }
        for topP in [0.1, 0.5, 0.79, 0.81, 0.9] as [Float] {
            let result = Self.prune([scores], topP: topP, set)
            let mass = 4 * Double(result.weights[0][3])
            #expect(result.kept[0] == (mass >= Double(topP) ? [3, 20, 37, 54] : Array(0..<68)), "p \(topP)")
        }
        // Equal weights are all kept for any p.
        for count in [1, 5, 64, 1000] {
            for topP in [0, 0.3, 1] as [Float] {
                let result = Self.prune([[Float](repeating: -7, count: count)], topP: topP, set)
                #expect(result.kept[0] == Array(0..<count), "\(count), p \(topP)")
            }
        }
    }

    @Test("the released start keeps everything when its token is weak", arguments: InstructionSet.available)
    func sinkQuirk(_ set: InstructionSet) {
        let scores = [0.05, 0.5, 0.2, 0.15, 0.1].map { Foundation.log(Float($0)) }
        #expect(Self.prune([scores], topP: 0.5, set).kept[0] == [1])
        #expect(Self.prune([scores], topP: 0.5, first: 1, set).kept[0] == [1])
        #expect(Self.prune([scores], topP: 0.5, first: 0, set).kept[0] == [0, 1, 2, 3, 4])
        // A first token outside the list has weight 0, so that every non-zero weight is kept.
        let hidden = scores + [-.infinity, -200]
        #expect(Self.prune([hidden], topP: 0.5, first: -1, set).kept[0] == [0, 1, 2, 3, 4])
    }

    @Test("a union has the tokens of every row, and rows do not see each other", arguments: InstructionSet.available)
    func union(_ set: InstructionSet) {
        for count in [1, 70, 300] {
            var rows = (0..<4).map { Self.scores(count, kind: 0, seed: UInt64(count + $0)) }
            // A token hidden from one row may still be kept by another.
            for index in 0..<count / 2 { rows[2][index] = -.infinity }
            let each = Self.prune(rows, topP: 0.7, set)
            let all = Self.prune(rows, topP: 0.7, union: true, set)
            #expect(all.kept == [Set(each.kept.flatMap { $0 }).sorted()] && all.strayBits == 0)
            #expect(all.thresholds == each.thresholds && all.masses == each.masses)
            #expect(each.kept[2].allSatisfy { $0 >= count / 2 } && each.kept[0].contains { $0 < count / 2 } || count == 1)
            for (row, scores) in rows.enumerated() {
                let alone = Self.prune([scores], topP: 0.7, set)
                #expect(alone.kept[0] == each.kept[row] && alone.thresholds[0] == each.thresholds[row])
            }
        }
    }

    @Test("a row that has no softmax keeps what is not hidden or negligible", arguments: InstructionSet.available)
    func unordered(_ set: InstructionSet) {
        var scores = Self.scores(100, kind: 1, seed: 1)
        scores[90] = .nan
        for index in 0..<10 { scores[index] = -.infinity }
        let withNaN = Self.prune([scores], topP: 0.1, set)
        #expect(withNaN.kept[0] == Array(10..<100) && withNaN.thresholds[0].isNaN && withNaN.masses[0].isNaN)
        scores[90] = .infinity
        scores[40] = .infinity
        #expect(Self.prune([scores], topP: 0.1, set).kept[0] == [40, 90])
        let empty = Self.prune([[Float](repeating: -.infinity, count: 70)], topP: 0.1, set)
        #expect(empty.kept[0].isEmpty && empty.strayBits == 0 && empty.thresholds == [0] && empty.masses == [0])
    }

    @Test("it ends for any epsilon and p", arguments: InstructionSet.available)
    func ends(_ set: InstructionSet) throws {
        for epsilon in [0, Float.leastNonzeroMagnitude, 1, .infinity] {
            for kind in 0..<5 {
                let result = Self.prune([Self.scores(500, kind: kind, seed: 3)], topP: 0.9, epsilon: epsilon, set)
                let weights = result.weights[0]
                let mass = result.kept[0].reduce(0.0) { $0 + Double(weights[$1]) }
                #expect(mass >= 0.9 - 1e-5)
                if Self.closestCall(weights, topP: 0.9, start: weights.max()!, epsilon: epsilon) > Self.sumError(set) {
                    let expected = try TopP.bisection(
                        weights: weights.span, mass: Double(Float(0.9)), upperBound: .maximum, epsilon: epsilon)
                    #expect(result.thresholds[0] == expected.threshold)
                }
            }
        }
    }

    @Test(
        "the official kernel's masks, recorded on a GPU", arguments: ["topp_micro", "topp_sink_l1024", "topp_nosink_l1001"])
    func official(_ name: String) throws {
        let file = try SafetensorsFile(path: TestData.path("Tests/Goldens/twilight/\(name).safetensors"))
        let recorded = try file.tensor("in.weights", as: Float.self)
        let (rows, length) = (recorded.shape[0], recorded.shape[1])
        let elements = recorded.elements
        var compared = 0
        for (percent, topP) in [(50, 0.5), (85, 0.85), (95, 0.95)] as [(Int, Float)] {
            let masks = try file.tensor("out.p0\(percent).mask", as: UInt8.self).elements
            for row in 0..<rows {
                let weights = Array(elements[row * length..<(row + 1) * length])
                let mask = masks[row * length..<(row + 1) * length]
                let scores = weights.map { Float(Foundation.log(Double($0))) }
                for set in InstructionSet.available {
                    let result = Self.prune([scores], topP: topP, first: 0, set)
                    // ln w is rounded, by up to 5·10⁻⁷ at 10⁻⁵, so weights and sums of them have errors of 10⁻⁶.
                    let closest = Self.closestCall(weights, topP: topP, start: weights[0], epsilon: 1e-5)
                    let threshold = result.thresholds[0]
                    let nearest = weights.map { abs($0 - threshold) / threshold }.min() ?? 0
                    if closest < 3e-6 || nearest < 3e-6 { continue }
                    #expect(
                        result.kept[0] == mask.indices.filter { mask[$0] == 1 }.map { $0 - mask.startIndex }, "\(set), \(row)")
                    compared += 1
                }
            }
        }
        #expect(compared >= 2 * rows * InstructionSet.available.count)
    }
}
