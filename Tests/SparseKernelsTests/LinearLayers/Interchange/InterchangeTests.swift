import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("AWQ, GPTQ and MatMulNBits tensors")
struct InterchangeTests {
    /// A weight with zero points 0…15, and the same without zero points.
    private static func weights(_ rows: Int, _ columns: Int, groupSize: Int?) throws -> [QuantizedWeight] {
        let unsigned = try WeightFormat(.uint4, groupSize: groupSize)
        let signed = try WeightFormat(.int4, groupSize: groupSize)
        let groups = unsigned.groups(inFeatures: columns)
        var generator = SplitMix64(seed: UInt64(rows * columns))
        let codes = try Tensor<Int8>([rows, columns]) { _ in Int8(generator.next() % 16) }
        let scales = try Tensor<Float>([rows, groups]) { _ in Float(Float16(generator.uniform() + 0.1)) }
        let zeros = (0..<rows * groups).map { Float($0 % 16) }
        return [
            try QuantizedWeight(
                format: unsigned, integers: codes, scales: scales,
                offsets: Tensor(scales.shape) { scales[flat: $0] * zeros[$0] }),
            try QuantizedWeight(
                format: signed, integers: Tensor(codes.shape) { codes[flat: $0] - 8 }, scales: scales),
        ]
    }

    @Test("weights come back from every layout, bit for bit", arguments: [16, 32, 64, 128, nil] as [Int?])
    func roundTrips(_ groupSize: Int?) throws {
        for (rows, columns) in [(8, 8), (16, 200), (136, 72), (24, 264)] {
            for weight in try Self.weights(rows, columns, groupSize: groupSize) {
                #expect(try AWQLayout(weight).quantizedWeight().isIdentical(to: weight))
                for version in GPTQLayout.Version.allCases {
                    let layout = try GPTQLayout(weight, version: version)
                    #expect(try layout.quantizedWeight().isIdentical(to: weight))
                    #expect(try layout.dequantized() == weight.dequantized())
                }
            }
        }
        guard let groupSize else { return }
        for (rows, columns) in [(1, 1), (3, 7), (8, 200), (5, 129)] {
            for weight in try Self.weights(rows, columns, groupSize: groupSize) {
                let layout = try MatMulNBitsLayout(weight)
                #expect((layout.zeroPoints == nil) == (weight.format.code == .int4))
                #expect(try layout.quantizedWeight().isIdentical(to: weight))
            }
        }
    }

    @Test("nibbles are where the formats say")
    func nibbles() throws {
        let weight = try Self.weights(24, 64, groupSize: 32)[0]
        func nibble(_ word: Int32, _ index: Int) -> Int { Int(UInt32(bitPattern: word) >> UInt32(4 * index) & 15) }
        let awq = try AWQLayout(weight)
        let (v1, v2) = (try GPTQLayout(weight, version: .v1), try GPTQLayout(weight, version: .v2))
        let onnx = try MatMulNBitsLayout(weight)
        let place = [0, 4, 1, 5, 2, 6, 3, 7]
        for n in 0..<24 {
            for k in 0..<64 {
                let expected = weight.code(row: n, column: k)
                let (awqCode, gptqCode) = (
                    nibble(awq.qweight[flat: k * 3 + n / 8], place[n % 8]), nibble(v1.qweight[flat: k / 8 * 24 + n], k % 8)
                )
                let byte = onnx.b[flat: n * 32 + k / 2]
                let onnxCode = Int(k % 2 == 0 ? byte & 15 : byte >> 4)
                #expect(awqCode == expected && gptqCode == expected && onnxCode == expected)
            }
            let points = try #require(onnx.zeroPoints)[flat: n]
            for g in 0..<2 {
                let expected = (2 * n + g) % 16
                let awqZero = nibble(awq.qzeros[flat: g * 3 + n / 8], place[n % 8])
                let (v1Zero, v2Zero) = (
                    nibble(v1.qzeros[flat: g * 3 + n / 8], n % 8), nibble(v2.qzeros[flat: g * 3 + n / 8], n % 8)
                )
                let onnxZero = Int(g == 0 ? points & 15 : points >> 4)
                #expect(awqZero == expected && v1Zero == (expected + 15) % 16)
                #expect(v2Zero == expected && onnxZero == expected)
                let scale = weight.scales[flat: n * 2 + g]
                #expect(awq.scales[flat: g * 24 + n] == scale && onnx.scales[flat: n * 2 + g] == scale)
            }
        }
        #expect(v1.qweight == v2.qweight && v1.scales == awq.scales)
    }

    @Test("threads do not change a bit")
    func threads() throws {
        let weight = try Self.weights(320, 512, groupSize: 128)[0]
        let (awq, gptq) = (try AWQLayout(weight, on: .serial), try GPTQLayout(weight, version: .v2, on: .serial))
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            #expect(try AWQLayout(weight, on: pool).qweight == awq.qweight)
            #expect(try GPTQLayout(weight, version: .v2, on: pool).qweight == gptq.qweight)
            #expect(try awq.quantizedWeight(on: pool).isIdentical(to: weight))
            #expect(try gptq.quantizedWeight(on: pool).isIdentical(to: weight))
            #expect(try MatMulNBitsLayout(weight, on: pool).quantizedWeight(on: pool).isIdentical(to: weight))
        }
    }

    @Test("a checkpoint in activation order is an error, and its values can be read")
    func activationOrder() throws {
        let layout = try GPTQLayout(Self.weights(8, 64, groupSize: 16)[0], version: .v2)
        func regrouped(_ indices: [Int32]) throws -> GPTQLayout {
            try GPTQLayout(
                version: .v2, qweight: layout.qweight, qzeros: layout.qzeros, scales: layout.scales,
                groupIndices: Tensor([indices.count], indices), groupSize: 16)
        }
        let ordered = try regrouped((0..<64).map { Int32($0 / 16) })
        #expect(!ordered.isActivationOrdered)
        #expect(try ordered.quantizedWeight().isIdentical(to: layout.quantizedWeight()))

        let indices: [Int32] = (0..<64).map { (column: Int) -> Int32 in Int32((column * 7 + column / 5) % 4) }
        let shuffled = try regrouped(indices)
        #expect(shuffled.isActivationOrdered)
        let error = #expect(throws: SparseKernelsError.self) { try shuffled.quantizedWeight() }
        #expect(error?.code == .invalidArgument && error?.argument == "groupIndices")
        let values = try shuffled.dequantized()
        let codes = try layout.quantizedWeight().integers()
        for n in 0..<8 {
            for k in 0..<64 {
                let group = Int(indices[k])
                let zero = Float((4 * n + group) % 16)
                let expected = layout.scales[flat: group * 8 + n] * (Float(codes[flat: n * 64 + k]) - zero)
                #expect(values[flat: n * 64 + k] == expected)
            }
        }
        for bad: Int32 in [-1, 4] {
            let error = #expect(throws: SparseKernelsError.self) { try regrouped([Int32](repeating: bad, count: 64)) }
            #expect(error?.code == .invalidArgument && error?.argument == "groupIndices")
        }
    }

    @Test("tensors that disagree are errors that name them")
    func badTensors() throws {
        func words(_ shape: [Int]) throws -> Tensor<Int32> { try Tensor(zeros: shape) }
        func floats(_ shape: [Int]) throws -> Tensor<Float> { try Tensor(zeros: shape) }
        func awq(_ q: [Int], _ z: [Int], _ s: [Int], _ groupSize: Int? = 32) throws {
            _ = try AWQLayout(qweight: words(q), qzeros: words(z), scales: floats(s), groupSize: groupSize)
        }
        expectError(.invalidShape, "qweight") { try awq([64], [2, 1], [2, 8]) }
        expectError(.invalidShape, "qweight") { try awq([0, 1], [2, 1], [2, 8]) }
        expectError(.invalidShape, "qzeros") { try awq([64, 1], [3, 1], [2, 8]) }
        expectError(.invalidShape, "scales") { try awq([64, 1], [2, 1], [2, 7]) }
        expectError(.invalidArgument, "groupSize") { try awq([64, 1], [2, 1], [2, 8], 48) }
        func gptq(_ q: [Int], _ z: [Int], _ s: [Int], _ g: [Int]? = nil) throws {
            _ = try GPTQLayout(
                version: .v1, qweight: words(q), qzeros: words(z), scales: floats(s), groupIndices: g.map { try words($0) },
                groupSize: 32)
        }
        expectError(.invalidShape, "qweight") { try gptq([8], [2, 1], [2, 8]) }
        expectError(.invalidShape, "qweight.outFeatures") { try gptq([8, 9], [2, 1], [2, 9]) }
        expectError(.invalidShape, "qzeros") { try gptq([8, 8], [2, 2], [2, 8]) }
        expectError(.invalidShape, "scales") { try gptq([8, 8], [2, 1], [1, 8]) }
        expectError(.invalidShape, "groupIndices") { try gptq([8, 8], [2, 1], [2, 8], [63]) }
        func onnx(_ b: [Int], _ s: [Int], _ z: [Int]? = nil, k: Int = 40, blockSize: Int = 16) throws {
            _ = try MatMulNBitsLayout(
                inFeatures: k, blockSize: blockSize, b: Tensor(zeros: b), scales: floats(s),
                zeroPoints: z.map { try Tensor(zeros: $0) })
        }
        #expect(throws: Never.self) { try onnx([5, 3, 8], [15], [10]) }
        expectError(.invalidShape, "b") { try onnx([5, 2, 8], [5, 3]) }
        expectError(.invalidShape, "b") { try onnx([5, 24], [5, 3]) }
        expectError(.invalidShape, "scales") { try onnx([5, 3, 8], [5, 2]) }
        expectError(.invalidShape, "zeroPoints") { try onnx([5, 3, 8], [5, 3], [5, 3]) }
        expectError(.invalidShape, "inFeatures") { try onnx([5, 3, 8], [5, 3], k: 0) }
        #expect(throws: Never.self) { try onnx([5, 1, 128], [5, 1], blockSize: 256) }
        expectError(.invalidArgument, "blockSize") { try onnx([5, 1, 20], [5, 1], blockSize: 40) }
        var scales = try floats([2, 8])
        scales[flat: 3] = .infinity
        expectError(.invalidArgument, "scales") {
            _ = try AWQLayout(qweight: words([64, 1]), qzeros: words([2, 1]), scales: scales, groupSize: 32).quantizedWeight()
        }
    }

    @Test("weights that a layout cannot hold exactly are errors")
    func badWeights() throws {
        let weight = try Tensor<Float>.normal([9, 20], seed: 3)
        let q4 = try WeightQuantizer(WeightFormat(.uint4, groupSize: 16))(weight)
        let int8 = try WeightQuantizer(.int8PerChannel)(weight)
        let uneven = try QuantizedWeight(
            format: q4.format, inFeatures: 20, codes: q4.codes, scales: q4.scales,
            offsets: Tensor([9, 2]) { q4.scales[flat: $0] * 2.5 })
        let scaled = try QuantizedWeight(
            format: q4.format, inFeatures: 20, codes: q4.codes, scales: q4.scales, channelScales: .normal([9], seed: 4))
        for bad in [int8, uneven, scaled] {
            let error = #expect(throws: SparseKernelsError.self) { try MatMulNBitsLayout(bad) }
            #expect(error?.code == .invalidArgument && error?.argument == "weight")
        }
        var error = #expect(throws: SparseKernelsError.self) { try AWQLayout(q4) }
        #expect(error?.code == .invalidShape && error?.argument == "weight.outFeatures")
        error = #expect(throws: SparseKernelsError.self) { try GPTQLayout(q4, version: .v2) }
        #expect(error?.code == .invalidShape && error?.argument == "weight.outFeatures")
        let eight = try WeightQuantizer(WeightFormat(.uint4, groupSize: 16))(Tensor.normal([8, 20], seed: 3))
        error = #expect(throws: SparseKernelsError.self) { try GPTQLayout(eight, version: .v2) }
        #expect(error?.code == .invalidShape && error?.argument == "weight.inFeatures")
        let channel = try WeightQuantizer(WeightFormat(.uint4, groupSize: nil))(Tensor.normal([8, 16], seed: 3))
        error = #expect(throws: SparseKernelsError.self) { try MatMulNBitsLayout(channel) }
        #expect(error?.code == .invalidArgument && error?.argument == "weight")
    }
}
