import Foundation
import QServe
import SparseKernelsReference
import TestSupport
import Testing

@Suite("QServe: packed tensors and files")
struct QServePackingTests {
    static func weight(_ rows: Int, _ columns: Int, groupSize: Int? = 128) throws -> QuantizedWeight {
        try ProgressiveQuantizer(groupSize: groupSize)(
            Tensor<Float>.normal([rows, columns], seed: UInt64(rows + columns), scale: 0.02))
    }

    /// Both packers reshape to [N/32, 2, 2, 8, K/32, 2, 4, 4], move the axes to [1, 0, 4, 3, 6, 5, 2, 7] and put the second
    /// half of the first axis into the high nibbles.
    @Test("codes lie where the released reshape and permute put them", arguments: [nil, 128] as [Int?])
    func bytes(_ groupSize: Int?) throws {
        let (rows, columns) = (96, 256)
        let weight = try Self.weight(rows, columns, groupSize: groupSize)
        let shape = [rows / 32, 2, 2, 8, columns / 32, 2, 4, 4]
        let strides = (0..<8).map { shape[($0 + 1)...].reduce(1, *) }
        var expected: [[UInt8]] = []
        for half in 0..<2 {
            var order = [0]
            for axis in [0, 4, 3, 6, 5, 2, 7] {
                order = order.flatMap { base in (0..<shape[axis]).map { base + $0 * strides[axis] } }
            }
            expected.append(
                order.map { index in
                    let position = index + half * strides[1]
                    return UInt8(weight.code(row: position / columns, column: position % columns))
                })
        }
        for order in QServeTensors.Order.allCases {
            let tensors = try QServeTensors(packing: weight, order: order)
            #expect(tensors.qweight.shape == [rows, columns / 2])
            #expect(tensors.qweight.elements == zip(expected[0], expected[1]).map { Int8(bitPattern: $0 | $1 << 4) })
            #expect(tensors.outFeatures == rows && tensors.inFeatures == columns)
        }
    }

    @Test("scales and zeros lie in the order of their packer")
    func order() throws {
        let weight = try Self.weight(64, 384)
        let orders: [QServeTensors.Order: [Int]] = [
            .omniserve: [
                0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27, 4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15,
                23, 31,
            ],
            .deepcompressor: [
                0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 16, 24, 17, 25, 18, 26, 19, 27, 20, 28, 21, 29, 22, 30,
                23, 31,
            ],
        ]
        for (order, channels) in orders {
            let tensors = try QServeTensors(packing: weight, order: order)
            let (scales, zeros) = (try #require(tensors.s2Scales), try #require(tensors.s2Zeros))
            #expect(scales.shape == [3, 64] && zeros.shape == [3, 64] && tensors.s1SZeros == nil)
            for index in 0..<3 * 64 {
                let (group, place) = (index / 64, index % 64)
                let logical = (place / 32 * 32 + channels[place % 32]) * 3 + group
                #expect(Float(scales[flat: index]) == weight.scales[flat: logical])
                #expect(-Float(zeros[flat: index]) == weight.offsets?[flat: logical])
            }
        }
    }

    @Test("what was packed comes back", arguments: QServeTensors.Order.allCases, [nil, 128] as [Int?])
    func roundTrip(_ order: QServeTensors.Order, _ groupSize: Int?) throws {
        let weight = try Self.weight(96, 384, groupSize: groupSize)
        let bias = try Tensor<Float>([96]) { Float($0) / 8 }
        let tensors = try QServeTensors(packing: weight, order: order, bias: bias)
        var writer = SafetensorsWriter()
        try tensors.write(to: &writer, prefix: "a")
        try tensors.write(to: &writer)
        let file = try SafetensorsFile(bytes: writer.encoded())
        #expect(file["a.s1_scales"]?.elementType == .float16 && file["a.qweight"]?.elementType == .int8)
        for prefix in ["", "a"] {
            let read = try QServeTensors(file: file, prefix: prefix)
            #expect(read.qweight == tensors.qweight && read.bias == bias)
            for pool in [WorkerPool.serial, WorkerPool(threads: 3)] {
                let back = try read.weight(order: order, on: pool)
                #expect(back.format == weight.format && back.codes == weight.codes && back.scales == weight.scales)
                #expect(back.offsets == weight.offsets && back.channelScales == weight.channelScales)
            }
        }
    }

    @Test("weights that the format does not have are errors")
    func unpackable() throws {
        func pack(_ weight: QuantizedWeight, bias: Tensor<Float>? = nil) throws {
            _ = try QServeTensors(packing: weight, order: .omniserve, bias: bias)
        }
        expectError(.invalidArgument, "weight") { try pack(Self.weight(32, 128, groupSize: 64)) }
        expectError(.invalidShape, "weight.outFeatures") { try pack(Self.weight(33, 128)) }
        expectError(.invalidShape, "weight.inFeatures") { try pack(Self.weight(32, 130)) }
        expectError(.invalidShape, "weight.inFeatures") { try pack(Self.weight(32, 48, groupSize: nil)) }
        expectError(.invalidShape, "bias") { try pack(Self.weight(32, 128), bias: Tensor(zeros: [31])) }
        expectError(.invalidArgument, "bias") { try pack(Self.weight(32, 128), bias: Tensor([32]) { _ in .infinity }) }

        let weight = try Self.weight(32, 128)
        func changed(
            scale: Float? = nil, offset: Float? = nil, channelScale: Float? = nil, hasOffsets: Bool = true
        ) throws -> QuantizedWeight {
            var (scales, offsets, channelScales) = (weight.scales, weight.offsets, weight.channelScales)
            if let scale { scales[flat: 5] = scale }
            if let offset { offsets?[flat: 5] = offset }
            if let channelScale { channelScales?[flat: 5] = channelScale }
            return try QuantizedWeight(
                format: weight.format, inFeatures: weight.inFeatures, codes: weight.codes, scales: scales,
                offsets: hasOffsets ? offsets : nil, channelScales: channelScales)
        }
        for scale in [-1, 128, 7.5] as [Float] {
            expectError(.invalidArgument, "weight.scales") { try pack(changed(scale: scale)) }
        }
        for offset in [-128, 129, 7.5] as [Float] {
            expectError(.invalidArgument, "weight.offsets") { try pack(changed(offset: offset)) }
        }
        expectError(.invalidArgument, "weight") { try pack(changed(scale: 127)) }
        expectError(.invalidArgument, "weight.channelScales") { try pack(changed(channelScale: 0.1)) }
        expectError(.invalidArgument, "weight") { try pack(changed(hasOffsets: false)) }
        expectError(.invalidArgument, "weight") { _ = try QServeLinear(quantized: changed(scale: 100)) }

        let bytes = try IntermediateRange(changed(scale: 127))
        #expect(!bytes.fits && bytes.firstViolatingRow == 5 && bytes.highest > 127 && bytes.violations <= 128)
    }

    @Test("files that are not QServe's are errors")
    func foreignFiles() throws {
        let tensors = try QServeTensors(packing: Self.weight(64, 256), order: .omniserve)
        let zeros = try #require(tensors.s2Zeros)
        let halves = try Tensor<BFloat16>([64]) { _ in BFloat16(0.5) }
        func read(without name: String? = nil, _ change: (inout SafetensorsWriter) throws -> Void = { _ in }) throws {
            var writer = SafetensorsWriter()
            var original = SafetensorsWriter()
            try tensors.write(to: &original)
            let file = try SafetensorsFile(bytes: original.encoded())
            for entry in file.tensors where entry.name != name {
                try writer.add(entry.name, elementType: entry.elementType, shape: entry.shape, bytes: file.bytes(entry.name))
            }
            try change(&writer)
            _ = try QServeLinear(file: SafetensorsFile(bytes: writer.encoded(), named: "f"), order: .omniserve)
        }
        try read()
        for name in ["qweight", "s1_scales", "s2_scales", "s2_zeros"] {
            expectError(.notFound, "f, tensor \"\(name)\"") { try read(without: name) }
        }
        expectError(.malformedFile, "f, tensor \"s1_szeros\"") { try read { try $0.add("s1_szeros", halves) } }
        // AWQ and GPTQ use 32-bit words under the same name.
        expectError(.invalidElementType, "f, tensor \"qweight\"") {
            try read(without: "qweight") { try $0.add("qweight", Tensor<Int32>(zeros: [64, 32])) }
        }
        expectError(.invalidElementType, "f, tensor \"s1_scales\"") {
            try read(without: "s1_scales") { try $0.add("s1_scales", Tensor<Int8>(zeros: [64])) }
        }
        for shape in [[63, 128], [64, 96], [64], [0, 128], [64, 0], [2, 32, 128]] {
            expectError(.malformedFile, "f, tensor \"qweight\"") {
                try read(without: "qweight") { try $0.add("qweight", Tensor<Int8>(zeros: shape)) }
            }
        }
        expectError(.malformedFile, "f, tensor \"s1_scales\"") {
            try read(without: "s1_scales") { try $0.add("s1_scales", Tensor<BFloat16>(zeros: [65])) }
        }
        expectError(.malformedFile, "f, tensor \"s2_scales\"") {
            try read(without: "s2_scales") { try $0.add("s2_scales", Tensor<Int8>(zeros: [64, 2])) }
        }
        expectError(.malformedFile, "f, tensor \"bias\"") { try read { try $0.add("bias", Tensor<Float>(zeros: [1])) } }
        for value in [Float.nan, .infinity] {
            expectError(.malformedFile, "f, tensor \"s1_scales\"") {
                try read(without: "s1_scales") { try $0.add("s1_scales", Tensor<Float>([64]) { $0 == 9 ? value : 1 }) }
            }
        }
        expectError(.malformedFile, "f, tensor \"s2_scales\"") {
            try read(without: "s2_scales") { try $0.add("s2_scales", Tensor<Int8>([2, 64]) { _ in -1 }) }
        }
        // With scales that are too large, and zeros of the other sign, the engine would wrap around.
        expectError(.malformedFile, "f, tensor \"s2_zeros\"") {
            try read(without: "s2_scales") { try $0.add("s2_scales", Tensor<Int8>([2, 64]) { _ in 100 }) }
        }
        expectError(.malformedFile, "f, tensor \"s2_zeros\"") {
            try read(without: "s2_zeros") { try $0.add("s2_zeros", Tensor<Int8>([2, 64]) { -zeros[flat: $0] }) }
        }
    }

    @Test("scales that fp16 does not hold are not written")
    func unwritable() throws {
        let tensors = try QServeTensors(packing: Self.weight(32, 128, groupSize: nil), order: .omniserve)
        func write(scale: Float = 1, bias: Float = 1) throws {
            let zeros = try #require(tensors.s1SZeros)
            var writer = SafetensorsWriter()
            try QServeTensors(
                qweight: tensors.qweight, s1Scales: Tensor([32]) { _ in scale }, s1SZeros: zeros,
                bias: Tensor([32]) { _ in bias }
            ).write(to: &writer)
        }
        try write()
        expectError(.invalidArgument, "s1_scales") { try write(scale: 0.1) }
        expectError(.invalidArgument, "bias") { try write(bias: 1e6) }
    }
}
