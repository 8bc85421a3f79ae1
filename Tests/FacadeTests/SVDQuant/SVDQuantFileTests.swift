import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

@Suite("SVDQuant files")
struct SVDQuantFileTests {
    private typealias Support = SVDQuantSupport

    private static let layers: [(name: String, layer: @Sendable () throws -> SVDQuantLinear)] = [
        ("int4", { try SVDQuantSupport.layer(5, 70) }),
        ("int4, bfloat16", { try SVDQuantSupport.layer(3, 130, scaleType: .bfloat16, epilogue: .gelu) }),
        ("int4, float", { try SVDQuantSupport.layer(3, 64, activation: .int8PerGroup, scaleType: .float32) }),
        ("uint4", { try SVDQuantSupport.layer(4, 40, WeightFormat(.uint4, groupSize: 32), activation: .float) }),
        ("int8", { try SVDQuantSupport.layer(4, 33, .int8PerChannel, activation: .int8PerToken, epilogue: .silu) }),
        ("nvfp4", { try SVDQuantSupport.layer(6, 50, .nvfp4, activation: .fp4) }),
        ("shifted", { try SVDQuantSupport.layer(4, 64, activation: .uint4(shift: ActivationFormat.geluShift)) }),
        ("bare", { try SVDQuantLinear(weight: SVDQuantSupport.weight(2, 16)) }),
    ]

    private static func bytes(_ layer: SVDQuantLinear, prefix: String = "") throws -> [UInt8] {
        var writer = SafetensorsWriter()
        try layer.write(to: &writer, prefix: prefix)
        return try writer.encoded()
    }

    @Test("reading gives back the same bits, also beside other layers", arguments: layers.indices)
    func roundTrip(_ index: Int) throws {
        let layer = try Self.layers[index].layer()
        let file = try SafetensorsFile(bytes: Self.bytes(layer))
        let read = try SVDQuantLinear(file: file)
        #expect(Support.areIdentical(layer, read), "\(Self.layers[index].name)")
        #expect(try Self.bytes(read) == Self.bytes(layer))
        #expect(try SVDQuantLinear.layers(in: file) == [""])
        let x = try Tensor<Float>.normal([3, layer.inFeatures], seed: 1)
        #expect(try layer(x) == read(x))

        var writer = SafetensorsWriter(metadata: ["model": "test"])
        try writer.add("norm.weight", Tensor<Float>(zeros: [3]))
        try Support.layer(2, 8, seed: 50).write(to: &writer, prefix: "blocks.0.other")
        try layer.write(to: &writer, prefix: "blocks.0.up")
        let together = try SafetensorsFile(bytes: writer.encoded())
        #expect(try SVDQuantLinear.layers(in: together) == ["blocks.0.other", "blocks.0.up"])
        #expect(Support.areIdentical(layer, try SVDQuantLinear(file: together, prefix: "blocks.0.up")))
        #expect(together.metadata["model"] == "test" && together["norm.weight"] != nil)
    }

    @Test("tensors take no more bytes than their values need")
    func types() throws {
        let file = try SafetensorsFile(bytes: Self.bytes(Support.layer(4, 64)))
        #expect(file["codes"]?.elementType == .uint8 && file["codes"]?.shape == [4, 32])
        #expect(file["scales"]?.elementType == .float16 && file["scales"]?.shape == [4, 1])
        #expect(file["smooth"]?.elementType == .float16)
        let bfloat = try Support.weight(4, 64, scaleType: .bfloat16, seed: 3)
        let tiny = try QuantizedWeight(
            format: .svdQuantInt4, inFeatures: 64, codes: bfloat.codes, scales: Tensor([4, 1], [0x1p-30, 1, 1, 1]))
        #expect(try SafetensorsFile(bytes: Self.bytes(SVDQuantLinear(weight: tiny)))["scales"]?.elementType == .bfloat16)
        #expect(
            try SafetensorsFile(bytes: Self.bytes(Support.layer(4, 64, .nvfp4, activation: .fp4)))["scales"]?.elementType
                == .float8E4M3)
    }

    @Test("a name that is taken leaves the writer as it was")
    func takenNames() throws {
        let layer = try Support.layer(2, 8)
        var writer = SafetensorsWriter()
        try layer.write(to: &writer, prefix: "a")
        let before = try writer.encoded()
        expectError(.invalidArgument, "tensor name") { try layer.write(to: &writer, prefix: "a") }
        #expect(try writer.encoded() == before)
        var foreign = SafetensorsWriter(metadata: ["format": "pt"])
        expectError(.invalidArgument, "metadata \"format\"") { try layer.write(to: &foreign, prefix: "a") }
    }

    // MARK: - Invalid files

    /// A file with some metadata entries replaced or removed.
    private static func file(_ changes: [String: String?], tensors: (inout SafetensorsWriter) throws -> Void = { _ in }) throws
        -> SafetensorsFile
    {
        let source = try SafetensorsFile(bytes: bytes(SVDQuantSupport.layer(4, 70, rank: 3), prefix: "a"))
        var writer = SafetensorsWriter(metadata: source.metadata)
        for (key, value) in changes { writer.metadata[key] = value }
        try tensors(&writer)
        let replaced = try Set(SafetensorsFile(bytes: writer.encoded()).tensors.map(\.name))
        for entry in source.tensors where !replaced.contains(entry.name) && changes["tensor " + entry.name] == nil {
            try writer.add(
                entry.name, elementType: entry.elementType, shape: entry.shape,
                bytes: source.bytes(entry.name).withUnsafeBytes { Array($0) })
        }
        writer.metadata = writer.metadata.filter { !$0.key.hasPrefix("tensor ") }
        return try SafetensorsFile(bytes: writer.encoded(), named: "f")
    }

    @Test("metadata that are wrong are errors that name the entry")
    func metadata() throws {
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, _ changes: [String: String?],
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, "f, \(argument)", sourceLocation: sourceLocation) {
                _ = try SVDQuantLinear(file: Self.file(changes), prefix: "a")
            }
        }
        #expect(try SVDQuantLinear(file: Self.file([:]), prefix: "a").rank == 3)
        expect(.notFound, "metadata \"format\"", ["format": nil])
        expect(.malformedFile, "metadata \"format\"", ["format": "pt"])
        expect(.malformedFile, "metadata \"version\"", ["version": "2"])
        for key in ["code", "groupSize", "outFeatures", "inFeatures", "rank", "activation", "epilogue"] {
            expect(.notFound, "metadata \"a.\(key)\"", ["a.\(key)": nil])
            expect(.malformedFile, "metadata \"a.\(key)\"", ["a.\(key)": "x"])
        }
        expect(.notFound, "layer \"a\"", ["a.tensors": nil])
        for text in ["", "codes", "codes scales", "codes  scales", "codes scales down up x", "codes scales down up up"] {
            expect(.malformedFile, "metadata \"a.tensors\"", ["a.tensors": text])
        }
        expect(.malformedFile, "metadata \"a.tensors\"", ["a.rank": "0"])
        expect(.notFound, "metadata \"a.shift\"", ["a.activation": "uint4"])
        for text in ["nan", "inf", "-1", "0.10", "", "1e400"] {
            expect(.malformedFile, "metadata \"a.shift\"", ["a.activation": "uint4", "a.shift": text])
        }
        for extent in ["0", "-1", "2147483648", "9223372036854775807", "9223372036854775808", " 70", "070", "+70"] {
            expect(.malformedFile, "metadata \"a.inFeatures\"", ["a.inFeatures": extent])
            expect(.malformedFile, "metadata \"a.outFeatures\"", ["a.outFeatures": extent])
        }
        expect(.malformedFile, "tensor \"a.scales\"", ["a.inFeatures": "2147483647"])
        expect(.malformedFile, "tensor \"a.scales\"", ["a.outFeatures": "5"])
        expect(.malformedFile, "tensor \"a.down\"", ["a.rank": "4"])
        expect(.malformedFile, "tensor \"a.scales\"", ["a.groupSize": "32"])
        expect(.notFound, "tensor \"a.offsets\"", ["a.tensors": "codes down offsets scales up"])
        for tensor in ["codes", "scales", "smooth", "down", "up", "bias"] {
            expect(.notFound, "tensor \"a.\(tensor)\"", ["tensor a.\(tensor)": ""])
        }
    }

    @Test("tensors that are wrong are errors that name the tensor")
    func tensors() throws {
        func expect(
            _ code: SparseKernelsError.Code, _ name: String, prefix: String = "tensor ",
            sourceLocation: SourceLocation = #_sourceLocation, _ change: (inout SafetensorsWriter) throws -> Void
        ) {
            expectError(code, "f, \(prefix)\"a.\(name)\"", sourceLocation: sourceLocation) {
                _ = try SVDQuantLinear(file: Self.file([:], tensors: change), prefix: "a")
            }
        }
        expect(.invalidElementType, "codes") { try $0.add("a.codes", Tensor<Int32>(zeros: [4, 64])) }
        expect(.invalidElementType, "bias") { try $0.add("a.bias", Tensor<Double>(zeros: [4])) }
        expect(.malformedFile, "codes") { try $0.add("a.codes", Tensor<UInt8>(zeros: [4, 35])) }
        expect(.malformedFile, "codes") { try $0.add("a.codes", Tensor<UInt8>(zeros: [256])) }
        expect(.malformedFile, "up") { try $0.add("a.up", Tensor<Float>(zeros: [3, 4])) }
        expect(.malformedFile, "smooth", prefix: "") { try $0.add("a.smooth", Tensor<Float>(zeros: [70])) }
        expect(.malformedFile, "bias", prefix: "") { try $0.add("a.bias", Tensor<Float>([4], [0, 0, 0, .nan])) }
        expect(.malformedFile, "scales", prefix: "") {
            try $0.add("a.scales", Tensor<Float>([4, 2]) { $0 == 3 ? .infinity : 1 })
        }
        expect(.malformedFile, "down", prefix: "") { try $0.add("a.down", Tensor<Float>([3, 70]) { _ in -.infinity }) }
    }

    @Test("no truncated or damaged file does anything but throw, or give a layer of finite numbers")
    func damagedFiles() throws {
        let bytes = try Self.bytes(Support.layer(8, 96, rank: 4), prefix: "a")
        for length in stride(from: 0, to: bytes.count, by: 97) {
            #expect(throws: SparseKernelsError.self) {
                _ = try SVDQuantLinear(file: SafetensorsFile(bytes: Array(bytes[..<length])), prefix: "a")
            }
        }
        let header = bytes[..<8].enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
        for position in 8..<8 + header {
            for replacement in [UInt8(ascii: "9"), UInt8(ascii: "0"), UInt8(ascii: "-"), bytes[position] ^ 1] {
                var damaged = bytes
                damaged[position] = replacement
                Self.readOrThrow(damaged)
            }
        }
        for position in stride(from: 8 + header, to: bytes.count, by: 3) {
            var damaged = bytes
            damaged[position] = 0xff
            Self.readOrThrow(damaged)
        }
    }

    private static func readOrThrow(_ bytes: [UInt8]) {
        // The type shows that all errors are errors of this package.
        func read() throws(SparseKernelsError) {
            let layer = try SVDQuantLinear(file: SafetensorsFile(bytes: bytes), prefix: "a")
            _ = try layer(Tensor<Float>(zeros: [1, layer.inFeatures]))
        }
        try? read()
    }
}
