import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Cosines with a vector")
struct CosineScoresTests {
    static func doubles<Element: AttentionElement>(_ tensor: Tensor<Element>, row: Int) -> [Double] {
        let columns = tensor.shape.last!
        return (0..<columns).map { Double(tensor[flat: row * columns + $0].floatValue) }
    }

    static func check<X: AttentionElement>(
        _ x: Tensor<X>, _ vector: Tensor<Float>, epsilon: Float = 1e-12, _ set: InstructionSet
    ) throws {
        let cosines = try CosineScores(channels: vector.count, epsilon: epsilon, instructionSet: set)
        let scores = try cosines(x, vector)
        let p = doubles(vector, row: 0)
        for row in 0..<x.shape[0] {
            let values = doubles(x, row: row)
            let expected = ReferenceCosines.score(values, p, epsilon: Double(epsilon))
            let bound = ReferenceCosines.errorBound(values, p, epsilon: Double(epsilon)) + 0x1p-149
            let score = Double(scores[row])
            #expect(
                abs(score - expected) <= bound && abs(score) <= 1 + bound,
                "\(set), \(X.self), \(p.count) channels, row \(row): \(score) for \(expected) ± \(bound)")
        }
    }

    @Test(
        "agree with the oracle at all sizes", arguments: InstructionSet.available,
        [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1031, 1152, 4100])
    func agree(_ set: InstructionSet, _ channels: Int) throws {
        let vector = try Tensor<Float>.normal([channels], seed: 1)
        try Self.check(Tensor<Float>.normal([5, channels], seed: 2), vector, set)
        try Self.check(Tensor<Float16>.normal([3, channels], seed: 3), vector, set)
        try Self.check(Tensor<BFloat16>.normal([3, channels], seed: 4), vector, set)
        // Parallel, opposite, and nearly so.
        let multiples = try Tensor<Float>([3, channels]) { vector[flat: $0 % channels] * [1, -3, 1e-6][$0 / channels] }
        try Self.check(multiples, vector, set)
    }

    @Test("rows and vectors of zeros give 0, and small ones what the least norm leaves", arguments: InstructionSet.available)
    func zeros(_ set: InstructionSet) throws {
        var x = try Tensor<Float>.normal([4, 40], seed: 5)
        for channel in 0..<40 { (x[1, channel], x[2, channel]) = (0, x[2, channel] * 1e-14) }
        let vector = try Tensor<Float>.normal([40], seed: 6)
        let cosines = try CosineScores(channels: 40, instructionSet: set)
        #expect(try cosines(x, vector)[1] == 0)
        #expect(try cosines(x, Tensor(zeros: [40])).elements == [0, 0, 0, 0])
        try Self.check(x, vector, set)
        try Self.check(x, vector, epsilon: 100, set)
    }

    /// What a user would state: the order of scores is that of angles.
    @Test("a vector turned away has a lower score", arguments: InstructionSet.available)
    func angles(_ set: InstructionSet) throws {
        let x = try Tensor<Float>([91, 2]) { index in
            let angle = Double(index / 2) * .pi / 90
            return Float(index % 2 == 0 ? cos(angle) : sin(angle)) * Float(1 + index / 2 % 7)
        }
        let scores = try CosineScores(channels: 2, instructionSet: set)(x, Tensor([2], [3, 0]))
        for row in 1..<91 { #expect(scores[row] < scores[row - 1], "\(set), \(2 * row) degrees") }
    }

    @Test("strides are followed, threads do not change bits, and NaN stays in its row", arguments: InstructionSet.available)
    func rows(_ set: InstructionSet) throws {
        var x = try Tensor<Float>.normal([3000, 50], seed: 7)
        let vector = try Tensor<Float>.normal([37], seed: 8)
        let cosines = try CosineScores(channels: 37, instructionSet: set)
        func run(_ x: Tensor<Float>, on pool: WorkerPool) throws -> [UInt32] {
            var scores = try Tensor<Float>(zeros: [3000])
            try cosines.run(
                MatrixView(x.span, rows: 3000, columns: 37, rowStride: 50), vector.span, into: scores.mutableSpan, on: pool)
            return scores.bits
        }
        let first = try run(x, on: .serial)
        let narrow = try Tensor<Float>([3000, 37]) { x[$0 / 37, $0 % 37] }
        #expect(try cosines(narrow, vector).bits == first)
        for threads in [2, 7] { #expect(try run(x, on: WorkerPool(threads: threads)) == first) }
        (x[3, 5], x[4, 1], x[5, 40]) = (.nan, .infinity, .nan)
        let second = try run(x, on: .serial)
        #expect(Float(bitPattern: second[3]).isNaN && Float(bitPattern: second[4]).isNaN)
        for row in 0..<3000 where row != 3 && row != 4 { #expect(second[row] == first[row]) }
    }

    @Test("nothing outside the operands is read", arguments: [1, 7, 16, 37, 129])
    func borders(_ channels: Int) async {
        await #expect(processExitsWith: .success) { [channels] in
            for (set, fencesEnd) in InstructionSet.available.flatMap({ [($0, false), ($0, true)] }) {
                let x = FencedMemory([Float](repeating: 1, count: 3 * channels), fencesEnd: fencesEnd)
                let vector = FencedMemory([Float](repeating: 2, count: channels), fencesEnd: fencesEnd)
                let scores = FencedMemory([Float](repeating: 0, count: 3), fencesEnd: fencesEnd)
                let view = try MatrixView(UnsafeBufferPointer(x.elements).span, rows: 3, columns: channels)
                try CosineScores(channels: channels, instructionSet: set).run(
                    view, UnsafeBufferPointer(vector.elements).span, into: scores.elements.mutableSpan)
                #expect(scores.elements.allSatisfy { abs($0 - 1) < 1e-6 })
            }
        }
    }

    @Test("operands of other sizes are refused, and vectors that are not finite")
    func errors() throws {
        expectError(.invalidShape, "channels", containing: "0") { _ = try CosineScores(channels: 0) }
        for epsilon in [Float(0), -1, .nan, .infinity, 1e-40] {
            expectError(.invalidArgument, "epsilon", containing: "\(epsilon)") {
                _ = try CosineScores(channels: 3, epsilon: epsilon)
            }
        }
        let cosines = try CosineScores(channels: 3)
        let x = try Tensor<Float>(zeros: [2, 3])
        let vector = try Tensor<Float>(zeros: [3])
        var scores = try Tensor<Float>([2]) { _ in 7 }
        expectError(.invalidShape, "x", containing: "3 columns", "got 4") {
            _ = try cosines(Tensor<Float>(zeros: [2, 4]), vector)
        }
        expectError(.invalidShape, "vector", containing: "[3]", "[4]") {
            try cosines.run(x, Tensor(zeros: [4]), into: &scores)
        }
        for bad in [Float.nan, .infinity] {
            expectError(.invalidArgument, "vector", containing: "finite") {
                try cosines.run(x, Tensor([3], [1, bad, 0]), into: &scores)
            }
        }
        #expect(scores.elements == [7, 7])
        var three = try Tensor<Float>(zeros: [3])
        expectError(.invalidShape, "scores", containing: "2", "3") { try cosines.run(x, vector, into: &three) }
        #expect(try cosines(Tensor<Float>(zeros: [0, 3]), vector).count == 0)
    }
}

#if os(Linux) && canImport(Glibc)
    @Suite("Allocations of cosines")
    struct CosineAllocationTests {
        @Test("they allocate nothing after the first calls")
        func cosines() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float16>.normal([900, 160], seed: 1)
                let vector = try Tensor<Float>.normal([160], seed: 2)
                var scores = try Tensor<Float>(zeros: [900])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let cosines = try CosineScores(channels: 160, instructionSet: set)
                        AllocationTests.warmUp(pool, scratchByteCount: 64)
                        var allocated = 0
                        for call in 0..<12 {
                            let view = try x.matrixView()
                            let before = AllocationCounter.count
                            try cosines.run(view, vector.span, into: scores.mutableSpan, on: pool)
                            if call >= 2 { allocated += AllocationCounter.count - before }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }
    }
#endif
