import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// GPTQ compared with the textbook and with rounding to nearest, and its edge cases.
@Suite("GPTQ")
struct GPTQTests {
    struct Size: Sendable, CustomTestStringConvertible {
        var outFeatures: Int
        var inFeatures: Int
        var tokens: Int
        var testDescription: String { "\(outFeatures)×\(inFeatures), \(tokens) tokens" }
    }

    static let sizes = [
        Size(outFeatures: 1, inFeatures: 1, tokens: 1), Size(outFeatures: 3, inFeatures: 7, tokens: 2),
        Size(outFeatures: 7, inFeatures: 65, tokens: 100), Size(outFeatures: 5, inFeatures: 130, tokens: 60),
    ]
    static let formats = [
        WeightFormat.svdQuantInt4, .int8PerChannel, .nvfp4, try! WeightFormat(.uint4, groupSize: 32),
    ]

    @Test("codes are the textbook's", arguments: sizes, formats)
    func codes(_ size: Size, _ format: WeightFormat) throws {
        let layer = try OutlierLayer(size.outFeatures, size.inFeatures, tokens: size.tokens, seed: 20, outliers: 3)
        let quantizer = try WeightQuantizer(format)
        let grid = try quantizer.grid(for: layer.weight.matrixView())
        let group = format.groupSize ?? size.inFeatures
        let expected = ReferenceGPTQ.rounded(layer.weight.rows, inputs: layer.inputs.rows, damping: 0.01) {
            value, row, column in
            let group = grid[row, column / group]
            return Double(group.value(ofCode: group.code(Float(value))))
        }
        let result = try GPTQ(quantizer, blockSize: 16)(layer.weight, calibration: layer.inputs).dequantized()
        // Errors are carried in single precision. At a tie a code may differ, and so may the codes after it in the row.
        let different = zip(result.rows, expected).count { row in zip(row.0, row.1).contains { abs($0 - $1) > 1e-6 } }
        #expect(different * 5 <= size.outFeatures, "\(different) of \(size.outFeatures) rows")
    }

    @Test(
        "output errors are those of the textbook and below those of rounding to nearest",
        arguments: [WeightFormat.svdQuantInt4, .nvfp4])
    func outputErrors(_ format: WeightFormat) throws {
        let layer = try OutlierLayer(48, 192, tokens: 150, seed: 21)
        let quantizer = try WeightQuantizer(format)
        let exact = exactLayer(layer.weight, layer.inputs)
        func error(_ weight: Tensor<Float>) -> Double { relativeDistance(exactLayer(weight, layer.inputs), exact) }
        let grid = try quantizer.grid(for: layer.weight.matrixView())
        let textbook = ReferenceGPTQ.rounded(layer.weight.rows, inputs: layer.inputs.rows, damping: 0.01) {
            value, row, column in
            let group = grid[row, column / (format.groupSize ?? 192)]
            return Double(group.value(ofCode: group.code(Float(value))))
        }
        let ours = error(try GPTQ(quantizer)(layer.weight, calibration: layer.inputs).dequantized())
        let nearest = error(try quantizer(layer.weight).dequantized())
        let expected = error(try Tensor(rows: textbook))
        #expect(abs(ours - expected) <= 0.02 * expected)
        #expect(ours < 0.8 * nearest, "\(ours) against \(nearest)")
    }

    @Test("blocks change nothing but rounding", arguments: [1, 7, 64, 1000])
    func blocks(_ blockSize: Int) throws {
        let layer = try OutlierLayer(20, 150, tokens: 80, seed: 22)
        let quantizer = try WeightQuantizer(.svdQuantInt4)
        let expected = try GPTQ(quantizer)(layer.weight, calibration: layer.inputs).integers()
        let codes = try GPTQ(quantizer, blockSize: blockSize)(layer.weight, calibration: layer.inputs).integers()
        let different = zip(codes.elements, expected.elements).count { $0 != $1 }
        #expect(different * 50 <= expected.count)
    }

    @Test("scales are those of rounding to nearest")
    func scales() throws {
        let layer = try OutlierLayer(9, 70, tokens: 40, seed: 23)
        for format in Self.formats {
            let quantizer = try WeightQuantizer(format)
            let ours = try GPTQ(quantizer)(layer.weight, calibration: layer.inputs)
            let nearest = try quantizer(layer.weight)
            #expect(ours.scales == nearest.scales && ours.offsets == nearest.offsets)
            #expect(ours.channelScales == nearest.channelScales)
        }
    }

    @Test("columns that no token excites become 0, and no token at all rounds nothing")
    func deadChannels() throws {
        let layer = try OutlierLayer(6, 80, tokens: 30, seed: 24)
        var inputs = layer.inputs
        for m in 0..<30 { inputs[flat: m * 80 + 5] = 0 }
        let quantizer = try WeightQuantizer(.svdQuantInt4)
        let result = try GPTQ(quantizer)(layer.weight, calibration: inputs).dequantized()
        for n in 0..<6 { #expect(result[flat: n * 80 + 5] == 0) }
        #expect(result.elements.contains { $0 != 0 })
        let silent = try GPTQ(quantizer)(layer.weight, calibration: .init(zeros: [3, 80])).dequantized()
        #expect(silent.elements.allSatisfy { $0 == 0 })
    }

    @Test("zero weights and fewer tokens than channels give finite weights")
    func degenerate() throws {
        let quantizer = try WeightQuantizer(.svdQuantInt4)
        let zero = try GPTQ(quantizer)(.init(zeros: [4, 100]), calibration: .normal([2, 100], seed: 25))
        #expect(try zero.dequantized().elements.allSatisfy { $0 == 0 })
        // With a single direction, H has rank 1, and damping makes it invertible.
        let one = try GPTQ(quantizer)(.normal([4, 100], seed: 26), calibration: Tensor([5, 100]) { _ in 3 })
        #expect(try one.dequantized().elements.allSatisfy { $0.isFinite })
    }

    @Test("results are the same bits on any number of threads")
    func threads() throws {
        let layer = try OutlierLayer(130, 300, tokens: 90, seed: 27)
        let gptq = try GPTQ(WeightQuantizer(.svdQuantInt4))
        let codes = try [1, 2, 7].map { try gptq(layer.weight, calibration: layer.inputs, on: WorkerPool(threads: $0)).codes }
        #expect(codes[1] == codes[0] && codes[2] == codes[0])
    }

    @Test("bad options and operands are named")
    func errors() throws {
        let quantizer = try WeightQuantizer(.svdQuantInt4)
        expectError(.invalidArgument, "damping") { _ = try GPTQ(quantizer, damping: 0) }
        expectError(.invalidArgument, "attempts") { _ = try GPTQ(quantizer, attempts: 0) }
        expectError(.invalidArgument, "blockSize") { _ = try GPTQ(quantizer, blockSize: 0) }
        let weight = try Tensor<Float>.normal([3, 10], seed: 1)
        expectError(.invalidShape, "weight") { _ = try GPTQ(quantizer)(weight, calibration: .normal([2, 9], seed: 2)) }
        expectError(.invalidShape, "calibration") { _ = try GPTQ(quantizer)(weight, calibration: .init(zeros: [0, 10])) }
        expectError(.invalidArgument, "calibration") {
            _ = try GPTQ(quantizer)(weight, calibration: Tensor([2, 10]) { $0 == 4 ? .infinity : 1 })
        }
        expectError(.invalidArgument, "calibration") {
            _ = try GPTQ(quantizer)(weight, calibration: Tensor([2, 10]) { _ in 1e25 })
        }
    }
}
