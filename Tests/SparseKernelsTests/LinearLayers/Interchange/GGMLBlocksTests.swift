import SparseKernels
import SparseKernelsReference
import Testing

@Suite("ggml blocks")
struct GGMLBlocksTests {
    /// A block of 32 weights and its bytes, computed by hand in Docs/Layouts/GGML.md.
    @Test("bytes are those of the worked example")
    func example() throws {
        // −8, −7 … 7, then 7, 6 … −8, so that every code occurs once in each half.
        let weight = try Tensor<Float>([1, 32]) { (index: Int) -> Float in Float(index < 16 ? index - 8 : 23 - index) / 4 }
        let codes: [UInt8] = [
            0xf0, 0xe1, 0xd2, 0xc3, 0xb4, 0xa5, 0x96, 0x87, 0x78, 0x69, 0x5a, 0x4b, 0x3c, 0x2d, 0x1e, 0x0f,
        ]
        let q4 = try GGMLBlocks(quantizing: weight, as: .q4_0)
        // d = −2 / −8 = ¼ = 0x3400.
        #expect(q4.bytes.elements == [0x00, 0x34] + codes)
        let q1 = try GGMLBlocks(quantizing: weight, as: .q4_1)
        // d = (1¾ + 2) / 15 = ¼, m = −2 = 0xc000.
        #expect(q1.bytes.elements == [0x00, 0x34, 0x00, 0xc0] + codes)
        #expect(try q4.quantizedWeight().dequantized() == weight)
        #expect(try q1.quantizedWeight().dequantized() == weight)
        let q8 = try GGMLBlocks(
            quantizing: Tensor([1, 32]) { (index: Int) -> Float in index == 0 ? -127 : Float(index) / 2 }, as: .q8_0)
        // d = 1 = 0x3c00. Halves are rounded away from zero.
        let bytes: [UInt8] = (1..<32).map { (index: Int) -> UInt8 in UInt8((index + 1) / 2) }
        #expect(q8.bytes.elements == [0x00, 0x3c, 0x81] + bytes)
    }

    @Test("sizes are blocks times bytes", arguments: GGMLBlocks.Kind.allCases)
    func sizes(_ kind: GGMLBlocks.Kind) throws {
        let blocks = try GGMLBlocks(quantizing: .normal([3, 96], seed: 1), as: kind)
        let bytes = [GGMLBlocks.Kind.q4_0: 18, .q4_1: 20, .q8_0: 34][kind] ?? 0
        #expect(blocks.bytes.shape == [3, 3 * bytes] && kind.byteCount == bytes)
        #expect(blocks.outFeatures == 3 && blocks.inFeatures == 96 && blocks.blocks == 3)
    }

    @Test("Gaussian weights lose what each kind predicts")
    func statistics() throws {
        let weight = try Tensor<Float>.gaussian([32, 4096], seed: 2)
        for (kind, expected) in [(GGMLBlocks.Kind.q4_0, 0.086), (.q8_0, 0.0054)] {
            let values = try GGMLBlocks(quantizing: weight, as: kind).quantizedWeight().dequantized()
            let error = weight.relativeError(of: values)
            #expect(abs(error / expected - 1) < 0.03, "\(kind): \(error), expected \(expected)")
        }
    }

    @Test("blocks come back from a weight byte for byte, also special ones", arguments: GGMLBlocks.Kind.allCases)
    func roundTrip(_ kind: GGMLBlocks.Kind) throws {
        var weight = try Tensor<Float>.normal([4, 128], seed: 3)
        for index in 0..<32 {
            weight[flat: index] = 0
            weight[flat: 128 + index] = index % 2 == 0 ? 3 : -3
            weight[flat: 256 + index] = 1e-9 * Float(index)
            weight[flat: 384 + index] = 0x1p-140 * Float(index)
        }
        let blocks = try GGMLBlocks(quantizing: weight, as: kind)
        let read = try blocks.quantizedWeight()
        #expect(try read.dequantized().elements.allSatisfy(\.isFinite))
        #expect(read.format == (try kind.format))
        #expect(try GGMLBlocks(read).bytes == blocks.bytes)
        for threads in [1, 2, 7] {
            let pool = WorkerPool(threads: threads)
            let wide = try Tensor<Float>.normal([300, 256], seed: 4)
            let again = try GGMLBlocks(quantizing: wide, as: kind, on: pool)
            #expect(again.bytes == (try GGMLBlocks(quantizing: wide, as: kind, on: .serial).bytes))
            #expect(try GGMLBlocks(again.quantizedWeight(on: pool), on: pool).bytes == again.bytes)
        }
    }

    @Test("every scale that F16 has survives, and others are errors")
    func scales() throws {
        var bytes = try Tensor<UInt8>(zeros: [0x7c00, 18])
        for row in 0..<0x7c00 {
            bytes[flat: row * 18] = UInt8(row & 255)
            bytes[flat: row * 18 + 1] = UInt8(row >> 8)
        }
        let blocks = try GGMLBlocks(.q4_0, inFeatures: 32, bytes: bytes)
        #expect(try GGMLBlocks(blocks.quantizedWeight()).bytes == bytes)
        for bits: [UInt8] in [[0, 0x7c], [0, 0xfc], [1, 0x7e]] {
            var bad = try Tensor<UInt8>(zeros: [1, 18])
            (bad[flat: 0], bad[flat: 1]) = (bits[0], bits[1])
            let foreign = try GGMLBlocks(.q4_0, inFeatures: 32, bytes: bad)
            let error = #expect(throws: SparseKernelsError.self) { try foreign.quantizedWeight() }
            #expect(error?.code == .invalidArgument && error?.argument == "scales")
        }
    }

    @Test("weights that are not finite or too large are errors that name the place", arguments: GGMLBlocks.Kind.allCases)
    func badWeights(_ kind: GGMLBlocks.Kind) throws {
        for value in [Float.nan, .infinity, -.infinity, 3e38] {
            var weight = try Tensor<Float>.normal([3, 64], seed: 5)
            weight[flat: 2 * 64 + 40] = value
            weight[flat: 2 * 64 + 63] = -1
            let error = #expect(throws: SparseKernelsError.self) { try GGMLBlocks(quantizing: weight, as: kind) }
            #expect(error?.code == .invalidArgument && error?.argument == "weight")
            #expect(error?.actual.contains(value.isFinite ? "row 2" : "row 2, column 40") == true)
        }
    }

    @Test("shapes without whole blocks, wrong sizes and other formats are errors", arguments: GGMLBlocks.Kind.allCases)
    func badShapes(_ kind: GGMLBlocks.Kind) throws {
        var error = #expect(throws: SparseKernelsError.self) { try GGMLBlocks(quantizing: Tensor(zeros: [2, 33]), as: kind) }
        #expect(error?.code == .invalidShape && error?.argument == "weight.columns")
        for columns in [0, -32, 31, Int.max] {
            error = #expect(throws: SparseKernelsError.self) {
                try GGMLBlocks(kind, inFeatures: columns, bytes: Tensor(zeros: [1, 1]))
            }
            #expect(error?.code == .invalidShape && error?.argument == "inFeatures")
        }
        for shape in [[2, kind.byteCount - 1], [0, kind.byteCount], [kind.byteCount]] {
            error = #expect(throws: SparseKernelsError.self) {
                try GGMLBlocks(kind, inFeatures: 32, bytes: Tensor(zeros: shape))
            }
            #expect(error?.code == .invalidShape && error?.argument == "bytes")
        }
        let format = try kind.format
        let codes = try Tensor<Int8>(zeros: [1, 40])
        let short = try QuantizedWeight(format: format, integers: codes, scales: Tensor(zeros: [1, 2]))
        error = #expect(throws: SparseKernelsError.self) { try GGMLBlocks(short) }
        #expect(error?.code == .invalidShape && error?.argument == "weight.inFeatures")
        let other = try QuantizedWeight(format: .svdQuantInt4, integers: codes, scales: Tensor(zeros: [1, 1]))
        let inexact = try QuantizedWeight(
            format: format, integers: Tensor(zeros: [1, 32]), scales: Tensor([1, 1], [0.1]))
        let scaled = try QuantizedWeight(
            format: format, integers: Tensor(zeros: [1, 32]), scales: Tensor(zeros: [1, 1]), channelScales: Tensor([1], [2]))
        for bad in [other, inexact, scaled] {
            error = #expect(throws: SparseKernelsError.self) { try GGMLBlocks(bad) }
            #expect(error?.code == .invalidArgument && error?.argument == "weight")
        }
    }
}
