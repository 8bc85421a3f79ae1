import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Weight quantiser")
struct WeightQuantizerTests {
    /// `value` rounded to a scale type, as a `Float`.
    private func rounded(_ value: Float, to type: ElementType) -> Float {
        switch type {
        case .float16: Float(Float16(value))
        case .bfloat16: BFloat16(value).floatValue
        default: value
        }
    }

    /// One group by the words of the rule: its scale, offset and codes.
    private func textbook(
        _ values: [Float], _ code: WeightFormat.Code, scaleType: ElementType, tensorScale: Float
    ) -> (scale: Float, offset: Float, codes: [Int]) {
        let largest = values.map(abs).max() ?? 0
        switch code {
        case .int4, .int8:
            let limit: Float = code == .int4 ? 7 : 127
            var scale = rounded(largest / limit, to: scaleType)
            if scale == 0 { scale = 1 }
            return (scale, 0, values.map { Int(max(-limit, min(limit, ($0 / scale).rounded(.toNearestOrEven)))) })
        case .uint4:
            let (low, high) = (values.min().map { min($0, 0) } ?? 0, values.max().map { max($0, 0) } ?? 0)
            var scale = rounded((high - low) / 15, to: scaleType)
            if scale == 0 { scale = 1 }
            let zero = max(0, min(15, (-low / scale).rounded(.toNearestOrEven)))
            return (
                scale, scale * zero,
                values.map { Int(max(0, min(15, ($0 / scale).rounded(.toNearestOrEven) + zero))) }
            )
        case .fp4:
            var scale = E4M3(largest / 6 / tensorScale).floatValue
            if scale == 0 { scale = 1 }
            return (
                scale, 0,
                values.map { E2M1.doubledValue(ofCode: E2M1.code(for: $0 / (scale * tensorScale), ties: .towardZero)) }
            )
        }
    }

    @Test(
        "scales, offsets and codes are those of the rule, in every format and scale type", arguments: WeightFormat.all,
        [ElementType.float16, .bfloat16, .float32])
    func definition(_ format: WeightFormat, _ scaleType: ElementType) throws {
        let quantizer = try WeightQuantizer(format, scaleType: scaleType)
        for (rows, columns) in [(1, 1), (3, 7), (2, 64), (5, 150), (4, 257)] {
            let weight = try Tensor<Float>.normal([rows, columns], seed: UInt64(columns), scale: 0.05)
            let result = try quantizer(weight)
            #expect(result.outFeatures == rows && result.inFeatures == columns)
            let largest = weight.elements.map(abs).max() ?? 0
            let tensorScale = rounded(largest / 6 / 448, to: scaleType)
            // Half of these weights have such a scale, which is below the normal range of F16.
            let expected = scaleType == .float16 && largest / 6 / 448 < 0x1p-14 ? largest / 6 / 448 : tensorScale
            let channelScales = [Float](repeating: expected, count: rows)
            #expect(result.channelScales?.elements == (format.code == .fp4 ? channelScales : nil))
            for row in 0..<rows {
                for group in 0..<result.groups {
                    let size = format.groupSize ?? columns
                    let range = group * size..<min(columns, (group + 1) * size)
                    let (scale, offset, codes) = textbook(
                        range.map { weight[flat: row * columns + $0] }, format.code, scaleType: scaleType,
                        tensorScale: expected)
                    #expect(result.scales[flat: row * result.groups + group] == scale)
                    #expect((result.offsets?[flat: row * result.groups + group] ?? 0) == offset)
                    #expect(range.map { result.code(row: row, column: $0) } == codes)
                }
                for column in columns..<result.paddedInFeatures { #expect(result.code(row: row, column: column) == 0) }
            }
        }
    }

    @Test("Gaussian weights lose what the format's levels predict")
    func statistics() throws {
        let weight = try Tensor<Float>.gaussian([64, 4096], seed: 1)
        let cases: [(WeightFormat.Code, Int?, Double)] = [
            (.int4, 32, 0.097), (.int4, 64, 0.108), (.int4, 128, 0.1175), (.int4, nil, 0.158), (.uint4, 64, 0.091),
            (.uint4, 128, 0.101), (.fp4, 16, 0.095), (.int8, nil, 0.0087), (.int8, 32, 0.0054),
        ]
        for (code, size, expected) in cases {
            let format = try WeightFormat(code, groupSize: size)
            let error = weight.relativeError(of: try WeightQuantizer(format)(weight).dequantized())
            #expect(abs(error / expected - 1) < 0.03, "\(format): \(error), expected \(expected)")
        }
    }

    @Test("zeros, tiny weights and scales that vanish give codes of zero, and no NaN", arguments: WeightFormat.all)
    func zeros(_ format: WeightFormat) throws {
        for value: Float in [0, -0.0, 1e-30, -1e-37, .leastNonzeroMagnitude] {
            var elements = [Float](repeating: value, count: 2 * 200)
            for scaleType in [ElementType.float16, .bfloat16, .float32] {
                let result = try WeightQuantizer(format, scaleType: scaleType)(Tensor([2, 200], elements))
                #expect(try result.dequantized().elements.allSatisfy { abs($0) <= 2 * abs(value) })
                #expect(result.scales.elements.allSatisfy { $0 > 0 })
            }
            // The same occurs in one group of a weight that is not small.
            elements[399] = 1
            let result = try WeightQuantizer(format)(Tensor([2, 200], elements))
            #expect(try result.dequantized().elements.prefix(200).allSatisfy { abs($0) <= 2 * abs(value) })
        }
    }

    @Test("a weight that is quantised again keeps its codes", arguments: WeightFormat.all)
    func idempotence(_ format: WeightFormat) throws {
        let weight = try Tensor<Float>.normal([7, 200], seed: 5)
        let once = try WeightQuantizer(format)(weight)
        // Both use the same grid. A new one would differ where rounding the scale clipped the largest weight.
        let grid = try WeightQuantizer(format).grid(for: weight)
        let again = try grid.quantize(once.dequantized())
        #expect(again.isIdentical(to: once))
    }

    @Test("the grid codes and values single weights as whole matrices", arguments: WeightFormat.all)
    func grid(_ format: WeightFormat) throws {
        let weight = try Tensor<Float>.normal([3, 150], seed: 6)
        let grid = try WeightQuantizer(format, scaleType: .bfloat16).grid(for: weight)
        let whole = try WeightQuantizer(format, scaleType: .bfloat16)(weight)
        let values = try whole.dequantized()
        for row in 0..<3 {
            for column in 0..<150 {
                let group = format.groupSize.map { column / $0 } ?? 0
                let code = grid.code(weight[flat: row * 150 + column], row: row, group: group)
                #expect(code == whole.code(row: row, column: column))
                #expect(grid.value(ofCode: code, row: row, group: group) == values[flat: row * 150 + column])
            }
            #expect(format.code.integers.contains(grid[row, 0].code(.nan)))
            #expect(format.code.integers.contains(grid[row, 0].code(.infinity)))
        }
        #expect(try QuantizedWeight(grid: grid, integers: whole.integers()).isIdentical(to: whole))
        let error = #expect(throws: SparseKernelsError.self) { try grid.quantize(Tensor(zeros: [3, 149])) }
        #expect(error?.code == .invalidShape && error?.argument == "weight")
    }

    @Test("threads and strides do not change a bit", arguments: WeightFormat.all)
    func bits(_ format: WeightFormat) throws {
        let weight = try Tensor<Float>.normal([300, 210], seed: 7)
        let quantizer = try WeightQuantizer(format)
        let expected = try quantizer(weight, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            let result = try quantizer(weight, on: pool)
            #expect(result.isIdentical(to: expected))
            #expect(try result.dequantized(on: pool).bits == expected.dequantized(on: .serial).bits)
            #expect(try result.integers(on: pool) == expected.integers(on: .serial))
        }
        let wide = try Tensor<Float>([300, 333]) { $0 % 333 < 210 ? weight[flat: $0 / 333 * 210 + $0 % 333] : .nan }
        let view = try MatrixView(wide.span, rows: 300, columns: 210, rowStride: 333)
        #expect(try quantizer(view).isIdentical(to: expected))
    }

    @Test("weights that are not finite or too large are errors that name the place", arguments: WeightFormat.all)
    func badWeights(_ format: WeightFormat) throws {
        for value in [Float.nan, -Float.nan, .infinity, -.infinity] {
            var weight = try Tensor<Float>.normal([5, 70], seed: 8)
            weight[flat: 3 * 70 + 66] = value
            let error = #expect(throws: SparseKernelsError.self) { try WeightQuantizer(format)(weight) }
            #expect(error?.code == .invalidArgument && error?.argument == "weight")
            #expect(error?.actual.contains("row 3, column 66") == true)
        }
        let large = try Tensor<Float>([2, 3], [0, 0, 0, 0, 1e9, -1e9])
        let error = #expect(throws: SparseKernelsError.self) { try WeightQuantizer(format)(large) }
        #expect(error?.code == .invalidArgument && error?.argument == "weight")
        #expect(error?.actual.contains("row 1") == true)
        #expect(try WeightQuantizer(format, scaleType: .bfloat16)(large).dequantized().elements.allSatisfy(\.isFinite))
    }

    @Test("other scale types are errors")
    func badScaleType() {
        let error = #expect(throws: SparseKernelsError.self) { try WeightQuantizer(.nvfp4, scaleType: .float8E4M3) }
        #expect(error?.code == .invalidElementType && error?.argument == "scaleType")
    }
}
