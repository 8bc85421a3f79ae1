import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Checkpoints with groups that are wider than those of the kernels.
@Suite("Groups above 128 in AWQ, GPTQ and MatMulNBits tensors")
struct WideGroupTests {
    /// Random codes, zero points and scales of a file, and the values of elements by the format.
    struct Stored {
        let (rows, columns, groupSize): (Int, Int, Int)
        let codes: [Int]
        let points: [Int]
        let scales: [Float]
        var groups: Int { (columns + groupSize - 1) / groupSize }

        init(_ rows: Int, _ columns: Int, groupSize: Int, isSymmetric: Bool) {
            var generator = SplitMix64(seed: UInt64(rows + columns + groupSize))
            (self.rows, self.columns, self.groupSize) = (rows, columns, groupSize)
            codes = (0..<rows * columns).map { _ in Int(generator.next() % 16) }
            let groups = (columns + groupSize - 1) / groupSize
            points = (0..<rows * groups).map { _ in isSymmetric ? 8 : Int(generator.next() % 16) }
            scales = (0..<rows * groups).map { _ in BFloat16(0.1 + generator.uniform()).floatValue }
        }

        func value(_ n: Int, _ k: Int) -> Float {
            let group = n * groups + k / groupSize
            return scales[group] * Float(codes[n * columns + k] - points[group])
        }

        func expectValues(
            of weight: QuantizedWeight, _ label: String, sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let values = try weight.dequantized()
            var bad = 0
            for n in 0..<rows {
                for k in 0..<columns where values[flat: n * columns + k] != value(n, k) { bad += 1 }
            }
            #expect(bad == 0 && values.shape == [rows, columns], "\(label)", sourceLocation: sourceLocation)
            #expect(weight.format.groupSize == min(groupSize, 128), sourceLocation: sourceLocation)
        }
    }

    private static func words(_ shape: [Int], _ nibble: (Int, Int) -> Int) throws -> Tensor<Int32> {
        try Tensor(shape) { index in
            var bits: UInt32 = 0
            for i in 0..<8 { bits |= UInt32(nibble(index, i)) << UInt32(4 * i) }
            return Int32(bitPattern: bits)
        }
    }

    @Test("values are those of the file, bit for bit", arguments: [128, 256, 384, 512, 1024], [false, true])
    func values(_ groupSize: Int, _ isSymmetric: Bool) throws {
        // Whole groups, a short last one, one shorter than a kernel's group, and fewer columns than a group.
        for columns in [2048, 1280, 1096, 200, 8] {
            let stored = Stored(16, columns, groupSize: groupSize, isSymmetric: isSymmetric)
            let groups = stored.groups
            let scales = try Tensor<Float>([groups, 16]) { stored.scales[$0 % 16 * groups + $0 / 16] }
            let order = [0, 2, 4, 6, 1, 3, 5, 7]
            let awq = try AWQLayout(
                qweight: Self.words([columns, 2]) { stored.codes[($0 % 2 * 8 + order[$1]) * columns + $0 / 2] },
                qzeros: Self.words([groups, 2]) { stored.points[($0 % 2 * 8 + order[$1]) * groups + $0 / 2] },
                scales: scales, groupSize: groupSize)
            try stored.expectValues(of: awq.quantizedWeight(), "AWQ, \(columns)")
            let gptq = try GPTQLayout(
                version: .v2, qweight: Self.words([columns / 8, 16]) { stored.codes[$0 % 16 * columns + $0 / 16 * 8 + $1] },
                qzeros: Self.words([groups, 2]) { stored.points[($0 % 2 * 8 + $1) * groups + $0 / 2] }, scales: scales,
                groupIndices: Tensor([columns]) { Int32($0 / groupSize) }, groupSize: groupSize)
            #expect(!gptq.isActivationOrdered)
            try stored.expectValues(of: gptq.quantizedWeight(), "GPTQ, \(columns)")

            for rows in [1, 16] {
                // The same rows, with a number of columns that does not fill the last block.
                let columns = columns - 3
                let ragged = Stored(rows, columns, groupSize: groupSize, isSymmetric: isSymmetric)
                let blocks = ragged.groups
                let onnx = try MatMulNBitsLayout(
                    inFeatures: columns, blockSize: groupSize,
                    b: Tensor([rows, blocks, groupSize / 2]) { index in
                        let (row, byte) = (index / (blocks * groupSize / 2), index % (blocks * groupSize / 2))
                        // The codes that fill up the last block may be anything.
                        func code(_ k: Int) -> UInt8 { k < columns ? UInt8(ragged.codes[row * columns + k]) : 13 }
                        return code(2 * byte) | code(2 * byte + 1) << 4
                    }, scales: Tensor([rows, blocks], ragged.scales),
                    zeroPoints: Tensor([rows, (blocks + 1) / 2]) { index in
                        let (row, pair) = (index / ((blocks + 1) / 2), index % ((blocks + 1) / 2) * 2)
                        let high = pair + 1 < blocks ? ragged.points[row * blocks + pair + 1] : 0
                        return UInt8(ragged.points[row * blocks + pair] | high << 4)
                    })
                try ragged.expectValues(of: onnx.quantizedWeight(), "MatMulNBits, \(columns)")
            }
        }
    }

    @Test("a layer of a wide block computes its product", arguments: InstructionSet.available)
    func product(_ set: InstructionSet) throws {
        // Codes 2 with zero point 3 and scale ½ make every weight −½.
        let layout = try MatMulNBitsLayout(
            inFeatures: 256, blockSize: 256, b: Tensor([1, 1, 128]) { _ in 0x22 }, scales: Tensor([1, 1], [0.5]),
            zeroPoints: Tensor([1, 1], [0x03]))
        let layer = try QuantizedLinear(
            PackedWeight(layout.quantizedWeight(), instructionSet: set), activation: .float)
        #expect(try layer(Tensor<Float>([1, 256]) { _ in 1 }).elements == [-128])
    }

    @Test("an imported wide group is written as groups of 128, with the same values")
    func export() throws {
        let stored = Stored(8, 1024, groupSize: 512, isSymmetric: false)
        let weight = try AWQLayout(
            qweight: Self.words([1024, 1]) { stored.codes[[0, 2, 4, 6, 1, 3, 5, 7][$1] * 1024 + $0] },
            qzeros: Self.words([2, 1]) { stored.points[[0, 2, 4, 6, 1, 3, 5, 7][$1] * 2 + $0] },
            scales: Tensor([2, 8]) { stored.scales[$0 % 8 * 2 + $0 / 8] }, groupSize: 512
        ).quantizedWeight()
        #expect(try AWQLayout(weight).groupSize == 128 && AWQLayout(weight).scales.shape == [8, 8])
        try stored.expectValues(of: AWQLayout(weight).quantizedWeight(), "AWQ")
        try stored.expectValues(of: GPTQLayout(weight, version: .v1).quantizedWeight(), "GPTQ")
        #expect(try MatMulNBitsLayout(weight).blockSize == 128)
        try stored.expectValues(of: MatMulNBitsLayout(weight).quantizedWeight(), "MatMulNBits")
    }

    @Test("sizes that no kernel and no checkpoint has are refused", arguments: [0, -128, 1, 8, 48, 100, 192, 129, 1 << 40])
    func badSizes(_ size: Int) {
        expectError(.invalidArgument, "blockSize", containing: ["\(size)"]) {
            _ = try MatMulNBitsLayout(
                inFeatures: 8, blockSize: size, b: Tensor(zeros: [1, 1, 64]), scales: Tensor(zeros: [1, 1]))
        }
    }
}
