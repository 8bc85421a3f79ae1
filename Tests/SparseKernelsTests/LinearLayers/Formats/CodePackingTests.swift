import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Codes of quantised weights")
struct CodePackingTests {
    /// All integers of a code, repeated.
    private func integers(_ code: WeightFormat.Code, rows: Int, columns: Int) throws -> Tensor<Int8> {
        let all =
            code == .fp4 ? Array(Set((0..<16).map { E2M1.doubledValue(ofCode: $0) })).sorted() : Array(code.integers)
        return try Tensor([rows, columns]) { Int8(all[($0 + $0 / columns) % all.count]) }
    }

    @Test("integers come back as they were packed, padded with zeros", arguments: WeightFormat.all)
    func roundTrip(_ format: WeightFormat) throws {
        for columns in [1, 2, 31, 64, 259] {
            let integers = try integers(format.code, rows: 3, columns: columns)
            let groups = [3, format.groups(inFeatures: columns)]
            let weight = try QuantizedWeight(format: format, integers: integers, scales: Tensor(groups) { _ in 1 })
            #expect(try weight.integers() == integers)
            for row in 0..<3 {
                for column in 0..<weight.paddedInFeatures {
                    let expected = column < columns ? Int(integers[flat: row * columns + column]) : 0
                    #expect(weight.code(row: row, column: column) == expected)
                }
            }
        }
    }

    @Test("dequantised elements are the values of single ones, bit for bit", arguments: WeightFormat.all)
    func values(_ format: WeightFormat) throws {
        let columns = 141
        let groups = [4, format.groups(inFeatures: columns)]
        let weight = try QuantizedWeight(
            format: format, integers: integers(format.code, rows: 4, columns: columns), scales: .normal(groups, seed: 1),
            offsets: .normal(groups, seed: 2), channelScales: .normal([4], seed: 3))
        let expected = try Tensor<Float>([4, columns]) { weight.value(row: $0 / columns, column: $0 % columns) }
        #expect(try weight.dequantized().bits == expected.bits)
    }

    @Test("an integer without a code is an error that names its place")
    func badIntegers() throws {
        for (code, value) in [(WeightFormat.Code.int4, 8), (.int4, -9), (.uint4, -1), (.uint4, 16), (.fp4, 5), (.fp4, 13)] {
            var integers = try Tensor<Int8>(zeros: [3, 20])
            integers[flat: 33] = Int8(value)
            let format = try WeightFormat(code, groupSize: 16)
            let error = #expect(throws: SparseKernelsError.self) {
                try QuantizedWeight(format: format, integers: integers, scales: Tensor(zeros: [3, 2]))
            }
            #expect(error?.code == .invalidArgument && error?.argument == "integers")
            #expect(error?.actual == "\(value) in row 1, column 13")
        }
        for shape in [[6], [0, 4], [2, 0], [1, 2, 3]] {
            let error = #expect(throws: SparseKernelsError.self) {
                try QuantizedWeight(format: .nvfp4, integers: Tensor(zeros: shape), scales: Tensor(zeros: [1, 1]))
            }
            #expect(error?.code == .invalidShape && error?.argument == "integers")
        }
    }
}
