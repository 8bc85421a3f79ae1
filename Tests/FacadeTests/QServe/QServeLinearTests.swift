import QServe
import SparseKernelsReference
import TestSupport
import Testing

@Suite("QServe: linear layer")
struct QServeLinearTests {
    /// y in `Double` from codes, and the sum of the magnitudes of its terms.
    static func reference(
        _ x: [Float], _ weight: QuantizedWeight, row: Int, bias: Double, halfScale: Bool
    ) -> (value: Double, magnitude: Double) {
        let maximum = x.reduce(0) { max($0, abs($1)) }
        let scale = halfScale ? ReferenceProgressiveQuantization.half(Double(maximum / 127)) : Double(maximum / 127)
        var (value, magnitude) = (bias, abs(bias))
        for (column, element) in x.enumerated() {
            let code = scale == 0 ? 0 : Double((element / Float(scale)).rounded(.toNearestOrEven))
            let group = row * weight.groups + (weight.format.groupSize.map { column / $0 } ?? 0)
            let channel = Double(weight.channelScales?[flat: row] ?? 1)
            let (q, s, zero) = (
                Double(weight.code(row: row, column: column)), Double(weight.scales[flat: group]),
                Double(weight.offsets?[flat: group] ?? 0)
            )
            value += scale * code * channel * (s * q - zero)
            // The two parts of a bracket may be summed separately.
            magnitude += abs(scale * code) * channel * (s * q + abs(zero))
        }
        return (value, magnitude)
    }

    static func expectMatches<X: AttentionElement>(
        _ x: Tensor<X>, _ weight: QuantizedWeight, _ bias: Tensor<Float>, halfScale: Bool,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let layer = try QServeLinear(quantized: weight, bias: bias)
        let y = try layer(x)
        let (tokens, columns) = (x.shape[0], layer.inFeatures)
        #expect(y.shape == [tokens, layer.outFeatures], sourceLocation: sourceLocation)
        for token in 0..<tokens {
            let values = (0..<columns).map { x[flat: token * columns + $0].floatValue }
            for row in 0..<layer.outFeatures {
                let (expected, magnitude) = reference(
                    values, weight, row: row, bias: Double(bias[flat: row]), halfScale: halfScale)
                let bound = ReferenceMatrixProduct.errorBound(magnitude: magnitude, depth: columns + 4)
                let actual = Double(y[flat: token * layer.outFeatures + row])
                #expect(abs(actual - expected) <= bound, "(\(token), \(row))", sourceLocation: sourceLocation)
            }
        }
    }

    @Test("y is that of the codes", arguments: [nil, 16, 128] as [Int?])
    func oracle(_ groupSize: Int?) throws {
        for (tokens, rows, columns) in [(1, 1, 1), (3, 7, 130), (2, 33, 256), (5, 3, 97)] {
            let weight = try ProgressiveQuantizer(groupSize: groupSize)(
                Tensor<Float>.normal([rows, columns], seed: 1, scale: 0.1))
            let bias = try Tensor<Float>.normal([rows], seed: 2)
            try Self.expectMatches(Tensor<Float>.normal([tokens, columns], seed: 3), weight, bias, halfScale: false)
            #if !(os(macOS) && arch(x86_64))
                try Self.expectMatches(Tensor<Float16>.normal([tokens, columns], seed: 4), weight, bias, halfScale: true)
            #endif
        }
    }

    @Test("tokens of zeros give the bias, zero weights give zero")
    func zeros() throws {
        let bias = try Tensor<Float>.normal([8], seed: 1)
        let layer = try QServeLinear(weight: .normal([8, 256], seed: 2), bias: bias)
        #expect(try layer(Tensor<Float>(zeros: [2, 256])).elements == bias.elements + bias.elements)
        let nothing = try QServeLinear(weight: Tensor(zeros: [8, 256]))
        #expect(try nothing(Tensor<Float>.normal([2, 256], seed: 3)).elements.allSatisfy { $0 == 0 })
    }

    @Test("a layer of packed tensors gives the same bits", arguments: QServeTensors.Order.allCases, [nil, 128] as [Int?])
    func packed(_ order: QServeTensors.Order, _ groupSize: Int?) throws {
        let (weight, bias) = try (Tensor<Float>.normal([64, 256], seed: 1), Tensor<Float>.normal([64], seed: 2))
        let quantizer = try ProgressiveQuantizer(groupSize: groupSize)
        let x = try Tensor<Float>.normal([3, 256], seed: 3)
        let expected = try QServeLinear(weight: weight, bias: bias, quantizer: quantizer)(x)
        let again = try QServeLinear(QServeTensors(packing: quantizer(weight), order: order, bias: bias), order: order)
        #expect(try again(x) == expected)
        var y = try Tensor<Float>(zeros: [3, 64])
        try again.run(x: x.matrixView(), y: y.mutableMatrixView(), on: .serial)
        #expect(y == expected)
    }

    @Test("the wrong order of scales is noticed where bytes overflow, and changes the result where they do not")
    func wrongOrder() throws {
        let weight = try ProgressiveQuantizer()(Tensor<Float>.normal([64, 256], seed: 1))
        let tensors = try QServeTensors(packing: weight, order: .omniserve)
        do {
            #expect(try tensors.weight(order: .deepcompressor).scales != weight.scales)
        } catch {
            #expect(error.argument == "s2_zeros")
        }
    }

    @Test("bad input is an error that names it")
    func badInput() throws {
        let weight = try Tensor<Float>.normal([32, 128], seed: 1)
        expectError(.invalidShape, "bias") { _ = try QServeLinear(weight: weight, bias: Tensor(zeros: [31])) }
        expectError(.invalidArgument, "bias") {
            _ = try QServeLinear(weight: weight, bias: Tensor([32]) { _ in .nan })
        }
        let layer = try QServeLinear(weight: weight)
        expectError(.invalidShape, "x") { _ = try layer(Tensor<Float>(zeros: [1, 127])) }
        let other = try QuantizedWeight(
            format: .svdQuantInt4, inFeatures: 64, codes: Tensor(zeros: [4, 32]), scales: Tensor(zeros: [4, 1]))
        expectError(.invalidArgument, "weight") { _ = try QServeLinear(quantized: other) }
        let plain = try QuantizedWeight(
            format: WeightFormat(.uint4, groupSize: nil), inFeatures: 64, codes: Tensor(zeros: [4, 32]),
            scales: Tensor(zeros: [4, 1]))
        expectError(.invalidArgument, "weight") { _ = try QServeLinear(quantized: plain) }
    }

    @Test("no tokens give no outputs")
    func noTokens() throws {
        let layer = try QServeLinear(weight: .normal([5, 128], seed: 1))
        #expect(try layer(Tensor<Float>(zeros: [0, 128])).shape == [0, 5])
        let error = #expect(throws: SparseKernelsError.self) { try layer(Tensor<Float>(zeros: [0, 127])) }
        #expect(error?.code == .invalidShape && error?.argument == "x")
    }
}
