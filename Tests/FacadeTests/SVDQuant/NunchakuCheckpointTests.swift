import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Checkpoints of nunchaku")
struct NunchakuCheckpointTests {
    private typealias Support = SVDQuantSupport

    /// A layer whose tensors are values of bfloat16, so that export loses nothing.
    private static func layer(_ outFeatures: Int, _ inFeatures: Int, _ format: WeightFormat, rank: Int = 20) throws
        -> SVDQuantLinear
    {
        try SVDQuantSupport.layer(
            outFeatures, inFeatures, format, rank: rank, activation: format == .nvfp4 ? .fp4 : .int4, scaleType: .bfloat16)
    }

    private static func export(
        _ layer: SVDQuantLinear, names: NunchakuNames = .v1, elementType: ElementType = .bfloat16
    ) throws -> SafetensorsWriter {
        var writer = SafetensorsWriter()
        try layer.writeNunchaku(to: &writer, prefix: "b.0", elementType: elementType, names: names)
        return writer
    }

    @Test("import undoes export", arguments: [WeightFormat.svdQuantInt4, .nvfp4], NunchakuNames.allCases)
    func roundTrip(_ format: WeightFormat, _ names: NunchakuNames) throws {
        for (outFeatures, inFeatures) in [(128, 256), (130, 100), (1, 17)] {
            let layer = try Self.layer(outFeatures, inFeatures, format)
            let file = try SafetensorsFile(bytes: Self.export(layer, names: names).encoded())
            #expect(file["b.0.\(names == .v1 ? "lora_down" : "proj_down")"]?.shape[1] == 32)
            let padded = try SVDQuantLinear(nunchaku: file, prefix: "b.0")
            #expect(padded.outFeatures % 128 == 0 && padded.inFeatures % 128 == 0 && padded.rank == 32)
            let imported = try SVDQuantLinear(
                nunchaku: file, prefix: "b.0", outFeatures: outFeatures, inFeatures: inFeatures)
            #expect(imported.weight.codes == layer.weight.codes && imported.weight.scales == layer.weight.scales)
            #expect(imported.weight.channelScales == layer.weight.channelScales)
            #expect(imported.smooth == layer.smooth && imported.bias == layer.bias && imported.activation == layer.activation)
            let x = try Tensor<BFloat16>.normal([3, inFeatures], seed: 3)
            let wide = try Tensor<BFloat16>([3, padded.inFeatures]) {
                let (row, column) = ($0 / padded.inFeatures, $0 % padded.inFeatures)
                return column < inFeatures ? x[flat: row * inFeatures + column] : .zero
            }
            let (y, expected, all) = (try imported(x), try layer(x), try padded(wide))
            for index in 0..<y.count {
                // Padded ranks add zeros, which may change the order of a sum.
                #expect(abs(y[flat: index] - expected[flat: index]) <= 1e-4)
                #expect(
                    abs(all[flat: index / outFeatures * padded.outFeatures + index % outFeatures] - expected[flat: index])
                        <= 1e-4)
            }
        }
    }

    @Test("channel scales, missing parts, and what the engine does with activations")
    func parts() throws {
        let weight = try Support.weight(128, 128, scaleType: .bfloat16)
        let scaled = try QuantizedWeight(
            format: weight.format, inFeatures: 128, codes: weight.codes, scales: weight.scales,
            channelScales: Tensor([128]) { Float($0 % 5 + 1) })
        let layer = try SVDQuantLinear(weight: scaled)
        var writer = SafetensorsWriter()
        for name in ["up.mlp_fc1", "up.mlp_fc2", "mlp_context_fc2", "ff.net.2", "amlp_fc2"] {
            try layer.writeNunchaku(to: &writer, prefix: name)
        }
        let file = try SafetensorsFile(bytes: writer.encoded())
        let plain = try SVDQuantLinear(nunchaku: file, prefix: "up.mlp_fc1")
        #expect(plain.weight.channelScales == scaled.channelScales && plain.smooth == nil && plain.rank == 16)
        #expect(plain.activation == .int4 && plain.bias?.elements.allSatisfy { $0 == 0 } == true)
        #expect(try SVDQuantLinear(nunchaku: file, prefix: "amlp_fc2").activation == .int4)
        for name in ["up.mlp_fc2", "mlp_context_fc2", "ff.net.2"] {
            #expect(try SVDQuantLinear(nunchaku: file, prefix: name).activation == .uint4(shift: 0.171875))
        }
        #expect(try SVDQuantLinear(nunchaku: file, prefix: "ff.net.2", activation: .float).activation == .float)
    }

    // MARK: - Invalid files

    /// An exported layer with some tensors replaced or removed, and other metadata.
    private static func file(
        _ format: WeightFormat = .svdQuantInt4, without removed: [String] = [], metadata: [String: String] = [:],
        _ change: (inout SafetensorsWriter) throws -> Void = { _ in }
    ) throws -> SafetensorsFile {
        let source = try SafetensorsFile(bytes: export(layer(128, 128, format)).encoded())
        var writer = SafetensorsWriter(metadata: source.metadata.merging(metadata) { $1 })
        try change(&writer)
        let replaced = try Set(SafetensorsFile(bytes: writer.encoded()).tensors.map(\.name))
        for entry in source.tensors where !replaced.contains(entry.name) && !removed.contains(entry.name) {
            try writer.add(
                entry.name, elementType: entry.elementType, shape: entry.shape,
                bytes: source.bytes(entry.name).withUnsafeBytes { Array($0) })
        }
        return try SafetensorsFile(bytes: writer.encoded(), named: "f")
    }

    private func expect(
        _ code: SparseKernelsError.Code, _ argument: String, _ format: WeightFormat = .svdQuantInt4,
        without removed: [String] = [],
        metadata: [String: String] = [:], sourceLocation: SourceLocation = #_sourceLocation,
        _ change: (inout SafetensorsWriter) throws -> Void = { _ in }
    ) {
        expectError(code, "f, \(argument)", sourceLocation: sourceLocation) {
            _ = try SVDQuantLinear(nunchaku: Self.file(format, without: removed, metadata: metadata, change), prefix: "b.0")
        }
    }

    @Test("a configuration of the other precision is an error")
    func precision() throws {
        #expect(try SVDQuantLinear(nunchaku: Self.file(), prefix: "b.0").rank == 32)
        let key = "quantization_config"
        let int4 = try #require(Self.file().metadata[key])
        let fp4 = try #require(Self.file(.nvfp4).metadata[key])
        #expect(int4.contains("\"int4\"") && fp4.contains("\"fp4_e2m1_all\""))
        expect(.malformedFile, "metadata \"\(key)\"", metadata: [key: fp4])
        expect(.malformedFile, "metadata \"\(key)\"", .nvfp4, metadata: [key: int4])
        for text in [
            "", "[]", #"{"method": "awq"}"#, #"{"weight": {"dtype": "int8"}}"#, #"{"weight": {"group_size": 128}}"#,
            #"{"activation": {"dtype": "int8"}}"#, #"{"weight": 4}"#,
        ] { expect(.malformedFile, "metadata \"\(key)\"", metadata: [key: text]) }
        #expect(try SVDQuantLinear(nunchaku: Self.file(metadata: [key: "{}"]), prefix: "b.0").rank == 32)

        // Scales of one precision with the shape or type of the other.
        expect(.malformedFile, "tensor \"b.0.wscales\"") { try $0.add("b.0.wscales", Tensor<BFloat16>(zeros: [8, 128])) }
        expect(.malformedFile, "tensor \"b.0.wscales\"") { try $0.add("b.0.wscales", Tensor<E4M3>(zeros: [2, 128])) }
        expect(.malformedFile, "tensor \"b.0.wscales\"", .nvfp4) { try $0.add("b.0.wscales", Tensor<E4M3>(zeros: [2, 128])) }
        expect(.malformedFile, "metadata \"\(key)\"", .nvfp4) { try $0.add("b.0.wscales", Tensor<BFloat16>(zeros: [2, 128])) }
        expect(.invalidElementType, "tensor \"b.0.wscales\"") { try $0.add("b.0.wscales", Tensor<Float>(zeros: [2, 128])) }
        let text = try #require(throws: SparseKernelsError.self) {
            let file = try Self.file { try $0.add("b.0.wscales", Tensor<BFloat16>(zeros: [8, 128])) }
            _ = try SVDQuantLinear(nunchaku: file, prefix: "b.0")
        }
        #expect(text.description.contains("the shape of fp4_e2m1_all"))
    }

    @Test("tensors that are wrong are errors that name them")
    func tensors() throws {
        for name in ["qweight", "wscales", "smooth", "lora_down", "lora_up"] {
            expect(.notFound, "tensor \"b.0.\(name)\"", without: ["b.0.\(name)"])
        }
        #expect(try SVDQuantLinear(nunchaku: Self.file(without: ["b.0.bias", "b.0.smooth_orig"]), prefix: "b.0").bias == nil)
        expect(.malformedFile, "tensor \"b.0.smooth\"") { try $0.add("b.0.smooth_factor", Tensor<BFloat16>(zeros: [128])) }
        for shape in [[128, 63], [127, 64], [64, 128], [128], [0, 64]] {
            expect(.malformedFile, "tensor \"b.0.qweight\"") { try $0.add("b.0.qweight", Tensor<Int8>(zeros: shape)) }
        }
        expect(.invalidElementType, "tensor \"b.0.qweight\"") { try $0.add("b.0.qweight", Tensor<Int32>(zeros: [128, 16])) }
        for shape in [[128, 17], [128], [128, 0], [256, 16], [128, 8208]] {
            expect(.malformedFile, "tensor \"b.0.lora_down\"") { try $0.add("b.0.lora_down", Tensor<BFloat16>(zeros: shape)) }
        }
        expect(.malformedFile, "tensor \"b.0.lora_up\"") { try $0.add("b.0.lora_up", Tensor<BFloat16>(zeros: [128, 16])) }
        expect(.malformedFile, "tensor \"b.0.bias\"") { try $0.add("b.0.bias", Tensor<BFloat16>(zeros: [256])) }
        // FP16 together with BF16.
        for name in ["smooth", "bias", "wcscales"] {
            expect(.invalidElementType, "tensor \"b.0.\(name)\"") {
                try $0.add("b.0.\(name)", elementType: .float16, shape: [128], bytes: [UInt8](repeating: 0, count: 256))
            }
        }
        let nan = BFloat16(.nan)
        expect(.malformedFile, "tensor \"b.0.wscales\"") { try $0.add("b.0.wscales", Tensor<BFloat16>([2, 128]) { _ in nan }) }
        expect(.malformedFile, "tensor \"b.0.wscales\"", .nvfp4) {
            try $0.add("b.0.wscales", Tensor<E4M3>([8, 128]) { E4M3(bitPattern: $0 == 9 ? 0xff : 8) })
        }
        expect(.malformedFile, "tensor \"b.0.smooth\"") { try $0.add("b.0.smooth", Tensor<BFloat16>(zeros: [128])) }
        expect(.malformedFile, "tensor \"b.0.lora_up\"") {
            try $0.add("b.0.lora_up", Tensor<BFloat16>([128, 32]) { _ in nan })
        }
        expect(.malformedFile, "tensor \"b.0.bias\"") { try $0.add("b.0.bias", Tensor<BFloat16>([128]) { _ in nan }) }
        expect(.malformedFile, "tensor \"b.0.wtscale\"", .nvfp4) { try $0.add("b.0.wtscale", Tensor<Float>([2], [1, 1])) }
        expect(.malformedFile, "tensor \"b.0.wtscale\"", .nvfp4) { try $0.add("b.0.wtscale", Tensor<Float>([1], [.nan])) }
        expect(.malformedFile, "tensor \"b.0.wcscales\"") { try $0.add("b.0.wcscales", Tensor<BFloat16>([128]) { _ in nan }) }
    }

    @Test("an FP4 layer without a scale of the whole weight is an error that names it")
    func missingScales() throws {
        let (scale, channels) = ("b.0.wtscale", "b.0.wcscales")
        let file = try SafetensorsFile(bytes: Self.export(Self.layer(128, 128, .nvfp4)).encoded(), named: "f")
        func copy(without names: [String], adding extra: [(String, Tensor<BFloat16>)] = []) throws -> SafetensorsFile {
            var writer = SafetensorsWriter(metadata: file.metadata)
            for entry in file.tensors where !names.contains(entry.name) {
                try writer.add(
                    entry.name, elementType: entry.elementType, shape: entry.shape,
                    bytes: file.bytes(entry.name).withUnsafeBytes { Array($0) })
            }
            for (name, tensor) in extra { try writer.add(name, tensor) }
            return try SafetensorsFile(bytes: writer.encoded(), named: "f")
        }
        let error = #expect(throws: SparseKernelsError.self) {
            try SVDQuantLinear(nunchaku: copy(without: [scale, channels]), prefix: "b.0")
        }
        #expect(error?.code == .notFound && error?.argument == "f, tensor \"\(scale)\"")
        #expect(error?.expected.contains(channels) == true)
        // One of the two is enough.
        let scales = try Tensor<BFloat16>([128]) { _ in BFloat16(0.5) }
        let scaled = try SVDQuantLinear(nunchaku: copy(without: [scale], adding: [(channels, scales)]), prefix: "b.0")
        #expect(scaled.weight.channelScales?.elements.allSatisfy { $0 == 0.5 } == true)
        #expect(throws: Never.self) { try SVDQuantLinear(nunchaku: copy(without: [channels]), prefix: "b.0") }
        // A scale of 1 is also written.
        let weight = try Support.weight(128, 128, .nvfp4)
        let one = try SVDQuantLinear(
            weight: QuantizedWeight(format: .nvfp4, inFeatures: 128, codes: weight.codes, scales: weight.scales),
            activation: .fp4)
        let back = try SVDQuantLinear(nunchaku: SafetensorsFile(bytes: Self.export(one).encoded()), prefix: "b.0")
        #expect(back.weight.scales == weight.scales && back.weight.channelScales == nil)
    }

    @Test("scales of F16 go into a checkpoint of BF16 where that is exact, and else the error says what does")
    func scalesOfAnotherType() throws {
        let weight = try Support.weight(128, 128, scaleType: .float16)
        let layer = try SVDQuantLinear(weight: weight)
        let error = #expect(throws: SparseKernelsError.self) { try Self.export(layer) }
        #expect(error?.argument == "weight.scales" && error?.expected.contains("elementType .float16") == true)
        let back = try SVDQuantLinear(
            nunchaku: SafetensorsFile(bytes: Self.export(layer, elementType: .float16).encoded()), prefix: "b.0")
        #expect(back.weight.scales == weight.scales)
        // Both types represent powers of two.
        let coarse = try QuantizedWeight(
            format: weight.format, inFeatures: 128, codes: weight.codes,
            scales: Tensor(weight.scales.shape) { $0 % 2 == 0 ? 0.25 : 0.03125 })
        let exact = try SVDQuantLinear(
            nunchaku: SafetensorsFile(bytes: Self.export(SVDQuantLinear(weight: coarse)).encoded()), prefix: "b.0")
        #expect(exact.weight.scales == coarse.scales)
        // Neither type represents thirds.
        let thirds = try QuantizedWeight(
            format: weight.format, inFeatures: 128, codes: weight.codes, scales: Tensor(weight.scales.shape) { _ in 1 / 3 })
        let neither = #expect(throws: SparseKernelsError.self) { try Self.export(SVDQuantLinear(weight: thirds)) }
        #expect(neither?.expected.contains("scaleType") == true)
    }

    @Test("features that the layer does not have, and padding with codes in it, are errors")
    func padding() throws {
        let file = try Self.file()
        for (outFeatures, inFeatures, argument) in [(0, 1, "outFeatures"), (129, 1, "outFeatures"), (1, 129, "inFeatures")] {
            expectError(.invalidArgument, argument) {
                _ = try SVDQuantLinear(nunchaku: file, prefix: "b.0", outFeatures: outFeatures, inFeatures: inFeatures)
            }
        }
        for (outFeatures, inFeatures) in [(127, 128), (128, 127), (128, 126)] {
            expectError(.malformedFile, "f, tensor \"b.0.qweight\"") {
                _ = try SVDQuantLinear(nunchaku: file, prefix: "b.0", outFeatures: outFeatures, inFeatures: inFeatures)
            }
        }
    }

    @Test("no truncated checkpoint does anything but throw")
    func truncated() throws {
        let bytes = try Self.export(Self.layer(128, 128, .svdQuantInt4)).encoded()
        for length in stride(from: 0, to: bytes.count, by: 97) {
            #expect(throws: SparseKernelsError.self) {
                _ = try SVDQuantLinear(nunchaku: SafetensorsFile(bytes: Array(bytes[..<length])), prefix: "b.0")
            }
        }
    }

    @Test("what cannot be exported is an error")
    func badExport() throws {
        var writer = SafetensorsWriter()
        let layer = try Self.layer(4, 64, .svdQuantInt4)
        expectError(.invalidElementType, "elementType") {
            try layer.writeNunchaku(to: &writer, prefix: "a", elementType: .float32)
        }
        expectError(.invalidArgument, "weight") {
            try Support.layer(4, 64, .int8PerChannel).writeNunchaku(to: &writer, prefix: "a")
        }
        expectError(.invalidArgument, "weight.scales") {
            try Support.layer(4, 64, scaleType: .float16).writeNunchaku(to: &writer, prefix: "a")
        }
        #expect(try SafetensorsFile(bytes: writer.encoded()).tensors.isEmpty && writer.metadata.isEmpty)
        try layer.writeNunchaku(to: &writer, prefix: "a")
        let before = try writer.encoded()
        expectError(.invalidArgument, "tensor name") { try layer.writeNunchaku(to: &writer, prefix: "a") }
        expectError(.invalidArgument, "metadata \"quantization_config\"") {
            try Self.layer(4, 64, .nvfp4).writeNunchaku(to: &writer, prefix: "b")
        }
        #expect(try writer.encoded() == before)
    }

    // MARK: - Modulation

    /// A modulation linear of given codes, packed word by word as specified.
    private static func modulation(
        splits: Int, _ outFeatures: Int, _ inFeatures: Int, code: (Int, Int) -> Int, scale: (Int, Int) -> Float,
        bias: (Int) -> Float
    ) throws -> SafetensorsWriter {
        let groups = inFeatures / 64
        // Output i of split s is row i · splits + s.
        func model(_ row: Int) -> Int { row % splits * (outFeatures / splits) + row / splits }
        var words: [UInt16] = []
        for block in 0..<outFeatures / 4 {
            for group in 0..<groups {
                for row in 4 * block..<4 * block + 4 {
                    for half in 0..<2 {
                        for j in 0..<8 {
                            words.append(
                                (0..<4).reduce(0) {
                                    $0 | UInt16(code(model(row), 64 * group + 32 * half + 8 * $1 + j)) << (4 * $1)
                                })
                        }
                    }
                }
            }
        }
        var writer = SafetensorsWriter()
        let bytes = words.flatMap { [UInt8(truncatingIfNeeded: $0), UInt8(truncatingIfNeeded: $0 >> 8)] }
        try writer.add("n.qweight", elementType: .int32, shape: [outFeatures / 4, inFeatures / 2], bytes: bytes)
        let scales = try Tensor<BFloat16>([groups, outFeatures]) {
            BFloat16(scale(model($0 % outFeatures), $0 / outFeatures))
        }
        try writer.add("n.wscales", scales)
        try writer.add(
            "n.wzeros", Tensor<BFloat16>(scales.shape) { BFloat16(-7 * scales[flat: $0].floatValue) })
        try writer.add(
            "n.bias",
            Tensor<BFloat16>([outFeatures]) { row in
                let isScale = splits >= 3 && [1, splits - 2].contains(row % splits)
                return BFloat16(bias(model(row)) + (isScale ? 1 : 0))
            })
        return writer
    }

    @Test("modulation linears get the model's own rows and bias", arguments: [1, 3, 6])
    func modulation(_ splits: Int) throws {
        let (outFeatures, inFeatures) = (24, 128)
        func code(_ n: Int, _ k: Int) -> Int { (n * 5 + k * 3 + k / 16) % 16 }
        func scale(_ n: Int, _ group: Int) -> Float { Float(n + 1) * (group == 0 ? 0.5 : 2) }
        func bias(_ n: Int) -> Float { Float(n) / 4 }
        let writer = try Self.modulation(splits: splits, outFeatures, inFeatures, code: code, scale: scale, bias: bias)
        let layer = try SVDQuantLinear(
            nunchakuModulation: SafetensorsFile(bytes: writer.encoded()), prefix: "n", splits: splits)
        #expect(layer.activation == .float && layer.smooth == nil && layer.rank == 0)
        for n in 0..<outFeatures {
            #expect(layer.bias?[flat: n] == bias(n))
            for k in 0..<inFeatures {
                #expect(layer.weight.value(row: n, column: k) == scale(n, k / 64) * Float(code(n, k) - 7))
            }
        }

        var extended = writer
        try extended.add("n.lora_down", Tensor<BFloat16>.normal([2, inFeatures], seed: 1))
        let up = try Tensor<BFloat16>([outFeatures, 2]) { BFloat16(Float($0)) }
        try extended.add("n.lora_up", up)
        let branch = try SVDQuantLinear(
            nunchakuModulation: SafetensorsFile(bytes: extended.encoded()), prefix: "n", splits: splits
        ).lowRank
        // Row 1 of the checkpoint is output 0 of split 1.
        let row = splits == 1 ? 1 : outFeatures / splits
        #expect(branch?.up[flat: row * 2] == 2 && branch?.up[flat: row * 2 + 1] == 3)
    }

    @Test("modulation linears that are wrong are errors")
    func badModulation() throws {
        let writer = try Self.modulation(splits: 3, 12, 64, code: { _, _ in 7 }, scale: { _, _ in 1 }, bias: { _ in 0 })
        let file = try SafetensorsFile(bytes: writer.encoded(), named: "f")
        for splits in [0, 5, -3] {
            expectError(.invalidArgument, "splits") {
                _ = try SVDQuantLinear(nunchakuModulation: file, prefix: "n", splits: splits)
            }
        }
        expectError(.notFound, "f, tensor \"m.qweight\"") {
            _ = try SVDQuantLinear(nunchakuModulation: file, prefix: "m", splits: 3)
        }
        expectError(.invalidElementType, "f, tensor \"b.0.qweight\"") {
            _ = try SVDQuantLinear(nunchakuModulation: Self.file(), prefix: "b.0", splits: 3)
        }
        expectError(.invalidElementType, "f, tensor \"n.qweight\"") {
            _ = try SVDQuantLinear(nunchaku: file, prefix: "n")
        }
        func expect(
            _ code: SparseKernelsError.Code, _ name: String, sourceLocation: SourceLocation = #_sourceLocation,
            _ change: (inout SafetensorsWriter) throws -> Void
        ) {
            expectError(code, "f, tensor \"n.\(name)\"", sourceLocation: sourceLocation) {
                var damaged = SafetensorsWriter()
                try change(&damaged)
                for entry in file.tensors where entry.name != "n.\(name)" {
                    try damaged.add(
                        entry.name, elementType: entry.elementType, shape: entry.shape,
                        bytes: file.bytes(entry.name).withUnsafeBytes { Array($0) })
                }
                _ = try SVDQuantLinear(
                    nunchakuModulation: SafetensorsFile(bytes: damaged.encoded(), named: "f"), prefix: "n", splits: 3)
            }
        }
        expect(.malformedFile, "qweight") { try $0.add("n.qweight", Tensor<Int32>(zeros: [3, 33])) }
        expect(.notFound, "wzeros") { _ in }
        expect(.malformedFile, "wzeros") { try $0.add("n.wzeros", Tensor<BFloat16>(zeros: [2, 12])) }
        expect(.malformedFile, "wzeros") { try $0.add("n.wzeros", Tensor<BFloat16>([1, 12]) { _ in BFloat16(.infinity) }) }
        expect(.malformedFile, "wscales") { try $0.add("n.wscales", Tensor<BFloat16>([1, 12]) { _ in BFloat16(.nan) }) }
        expect(.notFound, "lora_down") { try $0.add("n.lora_up", Tensor<BFloat16>(zeros: [12, 2])) }
    }
}
