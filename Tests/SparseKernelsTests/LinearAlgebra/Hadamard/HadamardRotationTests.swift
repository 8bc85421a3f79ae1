import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Hadamard matrices of every order, and rotations made from them.
@Suite("Hadamard rotation")
struct HadamardRotationTests {
    static let orders = stride(from: 12, through: 4 * HadamardMatrix.largestOddFactor, by: 8).map { $0 }
    /// Powers of two, one factor with and without a power of two, and several factors.
    static let sizes = [1, 2, 4, 8, 16, 32, 64, 128, 12, 28, 24, 44, 52, 104, 172, 240]

    @Test("H · Hᵀ = order · 1 for every order", arguments: orders)
    func isHadamard(_ order: Int) {
        let entries = HadamardMatrix.entries(order: order)
        #expect(entries.count == order * order && entries.allSatisfy { abs($0) == 1 })
        // Rows are bits. Two rows are orthogonal when they differ in half of the places.
        let rows = (0..<order).map { row in
            (0..<3).map { word in
                (min(order, 64 * word)..<min(order, 64 * word + 64)).reduce(UInt64(0)) {
                    $0 << 1 | (entries[row * order + $1] < 0 ? 1 : 0)
                }
            }
        }
        for a in 0..<order {
            for b in 0..<a {
                let differences = (0..<3).reduce(0) { $0 + (rows[a][$1] ^ rows[b][$1]).nonzeroBitCount }
                #expect(2 * differences == order, "rows \(a), \(b)")
            }
        }
    }

    /// The matrix of Q, from the rows of a rotated identity.
    static func matrix(_ rotation: HadamardRotation, inverse: Bool = false) throws -> DoubleMatrix {
        let n = rotation.count
        return try DoubleMatrix(rotation(Tensor<Float>([n, n]) { $0 % (n + 1) == 0 ? 1 : 0 }, inverse: inverse))
    }

    @Test(
        "a rotation has entries ±1/√n and is orthogonal; the inverse is its transpose", arguments: InstructionSet.available,
        sizes)
    func isOrthogonal(_ set: InstructionSet, _ size: Int) throws {
        for seed in [UInt64?.none, 7] {
            let rotation = try HadamardRotation(count: size, seed: seed, instructionSet: set)
            let q = try Self.matrix(rotation)
            // A single 1 is added to zeros only, so every entry is the rounded 1/√n.
            let scale = Double(Float(1 / Double(size).squareRoot()))
            #expect(q.elements.allSatisfy { abs($0) == scale })
            #expect((q * q.transposed).distanceFromIdentity <= 0x1p-22)
            #expect(try Self.matrix(rotation, inverse: true).elements == q.transposed.elements)
        }
    }

    @Test("agrees with the matrix product", arguments: InstructionSet.available, sizes)
    func agreesWithProduct(_ set: InstructionSet, _ size: Int) throws {
        let rotation = try HadamardRotation(count: size, seed: 3, instructionSet: set)
        let q = try Self.matrix(rotation)
        let x = try Tensor<Float>.normal([5, size], seed: 4)
        for inverse in [false, true] {
            let expected = DoubleMatrix(x) * (inverse ? q.transposed : q)
            let actual = try DoubleMatrix(rotation(x, inverse: inverse))
            // Sums of n terms, as trees and short chains: λ·√n·u·Σ|x|/√n ≤ λ·√n·u·|x|, and never more than a chain of n.
            for row in 0..<5 {
                let length = (0..<size).reduce(0.0) { $0 + Double(x[flat: row * size + $1] * x[flat: row * size + $1]) }
                    .squareRoot()
                for column in 0..<size {
                    let error = abs(actual.elements[row * size + column] - expected.elements[row * size + column])
                    #expect(error <= 6 * Double(size).squareRoot() * 0x1p-24 * length, "(\(row), \(column))")
                }
            }
        }
    }

    @Test("a linear layer keeps its result, and rotating back gives the rows back", arguments: [64, 240, 344])
    func keepsProducts(_ size: Int) throws {
        let rotation = try HadamardRotation(count: size, seed: 11)
        let (x, w) = try (Tensor<Float>.normal([6, size], seed: 1), Tensor<Float>.normal([9, size], seed: 2))
        let expected = DoubleMatrix(x) * DoubleMatrix(w).transposed
        let (rotatedX, rotatedW) = try (DoubleMatrix(rotation(x)), DoubleMatrix(rotation(w)))
        // Two rotations with the above error per element, in a sum of n, relative to |x|·|w| ≈ n.
        let tolerance = 2 * 6 * Double(size).squareRoot() * 0x1p-24 * Double(2 * size)
        #expect((rotatedX * rotatedW.transposed - expected).elements.allSatisfy { abs($0) <= tolerance })
        let back = try DoubleMatrix(rotation(rotation(x), inverse: true))
        #expect((back - DoubleMatrix(x)).elements.allSatisfy { abs($0) <= tolerance })
    }

    @Test("an outlier is spread over all channels; seeds differ")
    func spreadsOutliers() throws {
        var x = try Tensor<Float>.normal([1, 448], seed: 1)
        x[flat: 100] = 1000
        let rotated = try HadamardRotation(count: 448, seed: 1)(x)
        let largest = rotated.elements.reduce(0) { max($0, abs($1)) }
        #expect(abs(largest - 1000 / Float(448).squareRoot()) < 6)
        #expect(try HadamardRotation(count: 448, seed: 2)(x).bits != rotated.bits)
        #expect(try HadamardRotation(count: 448, seed: 1)(x).bits == rotated.bits)
    }

    @Test("blocks are rotated by themselves, and NaN stays in its block")
    func blocks() throws {
        let size = 5 * 24
        let rotation = try HadamardRotation(count: size, blockSize: 24, seed: 2)
        let q = try Self.matrix(rotation)
        for index in q.elements.indices {
            let sameBlock = index / size / 24 == index % size / 24
            #expect((q.elements[index] != 0) == sameBlock)
        }
        #expect((q * q.transposed).distanceFromIdentity <= 0x1p-22)
        var x = try Tensor<Float>.normal([3, size], seed: 1)
        let clean = try rotation(x)
        x[flat: size + 30] = .nan
        let spoiled = try rotation(x)
        for index in 0..<3 * size {
            let isSpoiled = index / size == 1 && index % size / 24 == 1
            #expect(spoiled[flat: index].isNaN == isSpoiled)
            if !isSpoiled { #expect(spoiled[flat: index] == clean[flat: index]) }
        }
    }

    @Test("rows of a larger matrix are rotated in place, and nothing between them is written")
    func strides() throws {
        let (rows, size, stride) = (4, 48, 53)
        let rotation = try HadamardRotation(count: size, seed: 2)
        let x = try Tensor<Float>.normal([rows, size], seed: 1)
        let expected = try rotation(x)
        var memory = try Tensor<Float>([rows * stride]) { $0 % stride < size ? x[flat: $0 / stride * size + $0 % stride] : 55 }
        try rotation.run(rows: MutableMatrixView(memory.mutableSpan, rows: rows, columns: size, rowStride: stride))
        for index in 0..<rows * stride {
            let isGap = index % stride >= size
            #expect(memory[flat: index] == (isGap ? 55 : expected[flat: index / stride * size + index % stride]))
        }
    }

    @Test("has the same bits on 1, 2 and 7 threads")
    func sameBits() throws {
        let rotation = try HadamardRotation(count: 960, seed: 1)
        let x = try Tensor<Float>.normal([90, 960], seed: 1)
        let serial = try rotation(x, on: .serial).bits
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            for _ in 0..<3 { #expect(try rotation(x, on: pool).bits == serial) }
        }
    }

    @Test("sizes are split into known orders")
    func sizesAndOrders() {
        let known: [(Int, [Int])] = [
            (4096, []), (3072, [12]), (11008, [172]), (13824, [12, 12, 12]), (14336, [28]), (18944, [148]),
            (29568, [12, 28, 44]),
            (960, [12, 20]), (60, [60]), (172, [172]), (5632, [44]), (1408, [44]),
        ]
        for (size, orders) in known {
            #expect(HadamardRotation.orders(of: size) == orders, "\(size)")
        }
        for size in [3, 6, 13696, 188, 2 * 4304] { #expect(HadamardRotation.orders(of: size) == nil, "\(size)") }
        #expect(HadamardRotation.largestPowerOfTwo(dividing: 13696) == 128)
    }

    @Test("unknown sizes and wrong operands are refused")
    func errors() throws {
        expectError(.invalidArgument, "count", containing: ["13696", "128", "172"]) {
            _ = try HadamardRotation(count: 13696)
        }
        expectError(.invalidArgument, "count") { _ = try HadamardRotation(count: 0) }
        for blockSize in [0, -4, 7, 128] {
            expectError(.invalidArgument, "blockSize", containing: ["\(blockSize)"]) {
                _ = try HadamardRotation(count: 96, blockSize: blockSize)
            }
        }
        expectError(.invalidArgument, "blockSize", containing: ["3"]) {
            _ = try HadamardRotation(count: 96, blockSize: 3)
        }
        expectError(.invalidShape, "rows", containing: ["96", "95"]) {
            _ = try HadamardRotation(count: 96)(Tensor<Float>(zeros: [2, 95]))
        }
    }
}
