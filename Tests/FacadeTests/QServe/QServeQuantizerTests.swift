import QServe
import SparseKernelsReference
import TestSupport
import Testing

@Suite("QServe: progressive quantisation")
struct QServeQuantizerTests {
    static let groupSizes: [Int?] = [nil, 16, 32, 64, 128]

    /// Whether a value is rounded as in the oracle, or to the other side of a tie that `Float` cannot distinguish: quotients
    /// are below 16.5 or, for zeros, 120.5, and result from three operations.
    static func isRounded(_ value: Float, _ quotient: Double) -> Bool {
        abs(Double(value) - quotient) <= 0.5 + 3 * 128 * 0x1p-24
    }

    @Test("scales, zeros and codes are the oracle's", arguments: groupSizes, [119, 120])
    func oracle(_ groupSize: Int?, _ range: Int) throws {
        let quantizer = try ProgressiveQuantizer(groupSize: groupSize, range: range)
        for (rows, columns) in [(1, 1), (3, 7), (5, 130), (32, 128), (2, 300), (1, 4097)] {
            let weight = try Tensor<Float>.normal([rows, columns], seed: UInt64(rows * columns), scale: 0.05)
            let quantized = try quantizer(weight)
            #expect(quantized.format == (try WeightFormat(.uint4, groupSize: groupSize)))
            #expect((quantized.channelScales == nil) == (groupSize == nil))
            for row in 0..<rows {
                let values = (0..<columns).map { weight[flat: row * columns + $0] }
                let reference = ReferenceProgressiveQuantization(values, groupSize: groupSize, range: Double(range))
                #expect(quantized.channelScales.map { Double($0[flat: row]) } ?? 1 == reference.channelScale)
                for (index, group) in reference.groups.enumerated() {
                    let position = row * quantized.groups + index
                    let (scale, zero) = (quantized.scales[flat: position], quantized.offsets?[flat: position] ?? .nan)
                    if groupSize == nil {
                        #expect(Double(scale) == group.scale && Double(zero) == group.zero)
                    } else {
                        #expect(scale == 1 || Self.isRounded(scale, group.scaleQuotient))
                        #expect(Self.isRounded(zero, group.zeroQuotient))
                    }
                }
                let codes = (0..<columns).map { quantized.code(row: row, column: $0) }
                for (column, code) in codes.enumerated() where code != reference.codes[column] {
                    #expect(Self.isRounded(Float(code), reference.codeQuotients[column]), "(\(row), \(column))")
                }
                for column in columns..<quantized.paddedInFeatures { #expect(quantized.code(row: row, column: column) == 0) }
            }
        }
    }

    @Test("a weight is at most half a step from its value, or clipped by half a unit of s2's rounding", arguments: groupSizes)
    func error(_ groupSize: Int?) throws {
        let weight = try Tensor<Float>.normal([16, 256], seed: 11)
        let quantized = try ProgressiveQuantizer(groupSize: groupSize)(weight)
        for row in 0..<16 {
            for column in 0..<256 {
                let group = row * quantized.groups + (groupSize.map { column / $0 } ?? 0)
                let channel = quantized.channelScales?[flat: row] ?? 1
                // Per channel, the error of s1 is 2⁻¹¹ of itself, fifteen times, and that of the zero 2⁻¹¹ of at most 15 s1. In
                // groups, the errors of s2 and zero are ½, and that of the range of level 1 is 2⁻¹¹ of 120.
                let clipping: Float = groupSize == nil ? 30 * 0x1p-11 * quantized.scales[flat: group] : 15 * 0.5 + 0.5 + 0.06
                let bound = channel * (quantized.scales[flat: group] / 2 + clipping) * (1 + 0x1p-20)
                let value = weight[flat: row * 256 + column]
                #expect(abs(quantized.value(row: row, column: column) - value) <= bound)
            }
        }
    }

    @Test("results are the same for every number of threads", arguments: [nil, 128] as [Int?])
    func threads(_ groupSize: Int?) throws {
        let weight = try Tensor<Float>.normal([67, 2100], seed: 3)
        let quantizer = try ProgressiveQuantizer(groupSize: groupSize)
        let expected = try quantizer(weight, on: .serial)
        for threads in [2, 7] {
            let actual = try quantizer(weight, on: WorkerPool(threads: threads))
            #expect(actual.codes == expected.codes && actual.scales == expected.scales)
            #expect(actual.offsets == expected.offsets && actual.channelScales == expected.channelScales)
        }
    }

    @Test("rows of zeros stay zero, constant and one-sided groups keep their values", arguments: groupSizes)
    func degenerate(_ groupSize: Int?) throws {
        let rows: [(Int) -> Float] = [
            { _ in 0 }, { _ in 3 }, { _ in -3 }, { $0 < 128 ? 0 : 1 }, { 1 + Float($0) / 256 }, { -1 - Float($0) / 256 },
            { _ in 1e-9 }, { $0 == 17 ? -1000 : 0 },
        ]
        let weight = try Tensor<Float>([rows.count, 256]) { rows[$0 / 256]($0 % 256) }
        let quantized = try ProgressiveQuantizer(groupSize: groupSize)(weight)
        for (row, value) in rows.enumerated() {
            for column in 0..<256 {
                let (actual, expected) = (quantized.value(row: row, column: column), value(column))
                // One unit of s1 = max/120 and half a step of a fifteenth of it; 2⁻²⁵, which fp16 rounds to 0; and per channel
                // 2⁻¹¹ of scale and zero, whose difference the values are.
                let rounding = (0..<256).reduce(Float(0)) { max($0, abs(value($1))) } * (groupSize == nil ? 0x1p-10 : 0)
                let bound = abs(expected) / 15 + rounding + 0x1p-25
                #expect(abs(actual - expected) <= bound, "(\(row), \(column)): \(actual), \(expected)")
            }
        }
        #expect((0..<256).allSatisfy { quantized.value(row: 0, column: $0) == 0 })
    }

    @Test("no byte between the levels leaves its range, whatever the extremes of a group", arguments: [119, 120])
    func protectiveRange(_ range: Int) throws {
        // The first group has the row's maximum, which makes s1 = 1; the second one runs from its minimum to its maximum.
        let steps = 2 * range
        let lows = (0...steps).map { Float($0 - steps) / 2 }
        let quantizer = try ProgressiveQuantizer(groupSize: 16, range: range)
        var (lowest, highest) = (0, 0)
        for high in (0...steps).map({ Float($0) / 2 }) {
            let weight = try Tensor<Float>([lows.count, 32]) { index in
                let (row, column) = (index / 32, index % 32)
                if column < 16 { return column == 0 ? Float(range) : 0 }
                return lows[row] + (high - lows[row]) * Float(column - 16) / 15
            }
            let quantized = try quantizer(weight, on: .serial)
            let bytes = try IntermediateRange(quantized, on: .serial)
            #expect(bytes.fits)
            (lowest, highest) = (min(lowest, bytes.lowest), max(highest, bytes.highest))
        }
        #expect(lowest == -range && (120...127).contains(highest))
    }

    @Test("a wider range fails where it overflows, and only there")
    func widerRange() throws {
        // s2 = rne(239.5 / 15) = 16 and zero = 112: the largest code is rne(239 / 16) = 15, and 240 − 112 = 128.
        var weight = try Tensor<Float>(zeros: [3, 128])
        weight[flat: 128] = 127
        weight[flat: 129] = -112.5
        let error = #expect(throws: SparseKernelsError.self) { try ProgressiveQuantizer(range: 127)(weight) }
        #expect(error?.code == .invalidArgument && error?.argument == "weight" && error?.actual == "row 1")
        weight[flat: 129] = -113
        #expect(try IntermediateRange(ProgressiveQuantizer(range: 127)(weight)).fits)
    }

    @Test("bad input is an error that names it")
    func badInput() throws {
        for size in [0, -1, 48, 256] {
            expectError(.invalidArgument, "groupSize") { _ = try ProgressiveQuantizer(groupSize: size) }
        }
        for range in [0, -120, 128] { expectError(.invalidArgument, "range") { _ = try ProgressiveQuantizer(range: range) } }
        for groupSize in [nil, 128] as [Int?] {
            let quantizer = try ProgressiveQuantizer(groupSize: groupSize)
            for shape in [[128], [0, 128], [2, 0], [1, 2, 128]] {
                expectError(.invalidShape, "weight") { _ = try quantizer(Tensor<Float>(zeros: shape)) }
            }
            for value in [Float.nan, .infinity, -.infinity, 3e38, -3e38] {
                var weight = try Tensor<Float>.normal([4, 140], seed: 1)
                weight[flat: 2 * 140 + 139] = value
                expectError(.invalidArgument, "weight") { _ = try quantizer(weight) }
            }
        }
    }
}
