import Foundation
import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

/// Every fact about a pair of factors in adapter files, and every tensor beside them, is applied or rejected by name.
@Suite("LoRA files: what decides the result")
struct LoRAFactsTests {
    private typealias Support = SVDQuantSupport

    /// A = 1 (rank × 64) and B = 1 (2 × rank), under the names of PEFT by default, and more tensors.
    static func writer(
        _ layer: String = "l", rank: Int = 1, names: (String, String) = ("lora_A.weight", "lora_B.weight"),
        metadata: [String: String] = [:], _ more: (inout SafetensorsWriter) throws -> Void = { _ in }
    ) throws -> SafetensorsWriter {
        var writer = SafetensorsWriter(metadata: metadata)
        try writer.add("\(layer).\(names.0)", Tensor<Float>([rank, 64]) { _ in 1 })
        try writer.add("\(layer).\(names.1)", Tensor<Float>([2, rank]) { _ in 1 })
        try more(&writer)
        return writer
    }

    static func file(_ writer: SafetensorsWriter) throws -> SafetensorsFile {
        try SafetensorsFile(bytes: writer.encoded(), named: "f")
    }

    /// The outputs of a layer of zeros with the adapter for inputs of one: rank · 64 · scale.
    static func output(_ adapter: LoRAAdapter) throws -> [Float] {
        let layer = try SVDQuantLinear(
            weight: WeightQuantizer(.svdQuantInt4)(Tensor<Float>(zeros: [2, 64])), activation: .float)
        return try layer.adding(adapter)(Tensor<Float>([1, 64]) { _ in 1 }).elements
    }

    // MARK: - Alpha

    @Test(
        "alpha and rank in the metadata",
        arguments: [
            ["lora_adapter_metadata": #"{"transformer.r": 1, "transformer.lora_alpha": 4}"#],
            ["lora_adapter_metadata": #"{"r": 1, "lora_alpha": 4.0}"#],
            ["lora_adapter_metadata": #"{"transformer": {"r": 1, "lora_alpha": 4}, "text_encoder": {"lora_alpha": 7}}"#],
            ["lora_adapter_metadata": #"{"text_encoder.lora_alpha": 7, "transformer.lora_alpha": 4, "text_encoder.r": 9}"#],
            ["transformer.r": "1", "transformer.lora_alpha": "4"], ["r": "1", "lora_alpha": "4"],
            ["lora_alpha": "4", "unet.lora_alpha": "9", "format": "pt"],
            ["lora_adapter_metadata": #"{"transformer.lora_alpha": 4}"#, "transformer.lora_alpha": "9"],
            ["lora_alpha": "4", "use_rslora": "False", "rank_pattern": "{}", "alpha_pattern": "{}"],
        ])
    func metadata(_ metadata: [String: String]) throws {
        let file = try Self.file(Self.writer("transformer.l", metadata: metadata))
        let adapter = try LoRAAdapter(file: file, layer: "transformer.l")
        #expect(adapter.scale == 4)
        #expect(try Self.output(adapter) == [256, 256])
        // The file precedes the caller's alpha, and a tensor precedes both.
        #expect(try LoRAAdapter(file: file, layer: "transformer.l", alpha: 3).scale == 4)
        let withTensor = try Self.writer("transformer.l", metadata: metadata) {
            try $0.add("transformer.l.alpha", Tensor<Float>([], [2]))
        }
        #expect(try LoRAAdapter(file: Self.file(withTensor), layer: "transformer.l").scale == 2)
    }

    @Test("metadata that disagree with the factors, or are no configuration, are errors that name the entry")
    func badMetadata() throws {
        func expect(
            _ key: String, _ metadata: [String: String], layer: String = "l", sourceLocation: SourceLocation = #_sourceLocation
        ) {
            let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) {
                try LoRAAdapter(file: Self.file(Self.writer(layer, metadata: metadata)), layer: layer)
            }
            #expect(
                error?.code == .malformedFile && error?.argument.contains(key) == true, "\(error?.description ?? "")",
                sourceLocation: sourceLocation)
        }
        expect("\"r\"", ["r": "2", "lora_alpha": "4"])
        expect("\"r\"", ["r": "zero", "lora_alpha": "4"])
        expect("\"r\"", ["r": "0.5", "lora_alpha": "4"])
        expect("\"lora_alpha\"", ["lora_alpha": "four"])
        expect("\"lora_alpha\"", ["lora_alpha": "1e99"])
        expect("\"use_rslora\"", ["use_rslora": "perhaps"])
        expect("\"use_dora\"", ["use_dora": "True"])
        expect("\"alpha_pattern\"", ["alpha_pattern": "[]"])
        expect("\"alpha_pattern\"", ["alpha_pattern": #"{"(?=l)": 4}"#])
        expect("\"rank_pattern, l\"", ["rank_pattern": #"{"l": "one"}"#])
        expect("lora_adapter_metadata", ["lora_adapter_metadata": "{"])
        expect("lora_adapter_metadata", ["lora_adapter_metadata": #"["r"]"#])
        // A key whose comparison takes time quadratic in its marks.
        let marks = String(repeating: "\u{301}", count: 200_000)
        expect("lora_adapter_metadata", ["lora_adapter_metadata": "{\"a\(marks)\": 1, \"r\": 1}"])
        expect("\"peft_type\"", ["lora_adapter_metadata": #"{"peft_type": "LOHA"}"#])
        expect("\"init_lora_weights\"", ["lora_adapter_metadata": #"{"init_lora_weights": "pissa_niter_16"}"#])
        // Two components, and a layer whose name states neither.
        expect("metadata", ["unet.lora_alpha": "4", "text_encoder.lora_alpha": "2"])
    }

    @Test("a configuration: patterns, ranks, rank-stabilised scales")
    func configuration() throws {
        let text = """
            {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": false, "use_rslora": false, "target_modules": ["q", "k"],
             "init_lora_weights": true, "layer_replication": null, "bias": "none", "modules_to_save": null,
             "rank_pattern": {"up": 16, "blocks.1.attn.q": 9}, "alpha_pattern": {"^blocks\\\\.0\\\\.attn.k": 6, "attn.(k|v)": 12, "k": 99}}
            """
        let configuration = try LoRAConfiguration(json: text)
        for (layer, rank, scale) in [
            ("blocks.0.attn.q", 4, 2), ("blocks.0.attn.k", 4, 1.5), ("blocks.1.attn.k", 4, 3), ("attn.v", 4, 3),
            ("blocks.0.up", 16, 0.5), ("blocks.1.attn.q", 9, 8 / 9), ("blocks.0.attn.kk", 4, 2), ("blocks.0.lookup", 4, 2),
            ("mlp.k", 4, 24.75),
        ] as [(String, Int, Float)] {
            #expect(try configuration.scale(ofLayer: layer, rank: rank) == scale, "\(layer)")
        }
        expectError(.malformedFile, "JSON, \"r\"") { _ = try configuration.scale(ofLayer: "blocks.0.up", rank: 4) }
        var stabilised = configuration
        stabilised.isRankStabilized = true
        #expect(try stabilised.scale(ofLayer: "blocks.0.up", rank: 16) == 2)
        #expect(try stabilised.scale(ofLayer: "blocks.1.attn.q", rank: 9) == Float(8.0 / 3))
        #expect(try LoRAConfiguration().scale(ofLayer: "a", rank: 3) == nil)
        #expect(try LoRAConfiguration(alpha: 6).scale(ofLayer: "a", rank: 3) == 2)
        // This is PEFT's default.
        #expect(try LoRAConfiguration(json: #"{"r": 2}"#).scale(ofLayer: "a", rank: 2) == 4)

        let file = try Self.file(Self.writer("base_model.model.blocks.1.attn.k", rank: 4))
        let layer = "base_model.model.blocks.1.attn.k"
        #expect(try LoRAAdapter(file: file, layer: layer, configuration: configuration).scale == 3)
        #expect(try LoRAAdapter(file: file, layer: layer, alpha: 5, configuration: configuration).scale == 3)
        #expect(try LoRAAdapter(file: file, layer: layer, alpha: 5, configuration: LoRAConfiguration()).scale == 1.25)
        expectError(.malformedFile, "JSON, \"r\"") {
            _ = try LoRAAdapter(file: Self.file(Self.writer(rank: 3)), layer: "l", configuration: configuration)
        }
    }

    @Test("patterns match as PEFT's do")
    func patterns() throws {
        func matches(_ pattern: String, _ name: String) throws -> Bool {
            try LoRAConfiguration(alphaPatterns: [(pattern, 1)]).scale(ofLayer: name, rank: 1) != nil
        }
        for (pattern, name, expected) in [
            ("q", "a.q", true), ("q", "q", true), ("q", "a.qq", false), ("q", "a.q.b", false), ("a.q", "b.a.q", true),
            ("a.q", "b.axq", true), (#"a\.q"#, "b.axq", false), (".*", "anything.at.all", true), ("^a.q", "b.a.q", false),
            ("^a.q", "a.q", true), ("q$", "a.q", true), ("[qkv]_proj", "a.k_proj", true), ("[^qk]_proj", "a.k_proj", false),
            (#"layers\.\d+\.q"#, "m.layers.17.q", true), (#"layers\.\d{1}\.q"#, "m.layers.17.q", false),
            (#"layers\.\d{1,2}\.q"#, "m.layers.17.q", true), ("(q|k)", "a.k", true), ("(?:to_)?q", "a.to_q", true),
            ("(?:to_)?q", "a.q", true), ("q+", "a.qqq", true), ("x*", "a.", true), ("q|k_proj", "a.k_proj", true),
            ("", "a.", true),
            (#"\w+\.q"#, "b.a_1.q", true), ("a-b", "a-b", true), ("[a-c0]x", "b.0x", true), ("(a+)+b", "aaab", true),
        ] {
            #expect(try matches(pattern, name) == expected, "\(pattern), \(name)")
        }
        // Every pattern in a file is read or rejected quickly.
        let long = String(repeating: "a", count: 4000)
        #expect(try !matches("(a+)+b", long) && !matches("(a|aa)*(a|aa)*b", long))
        for bad in [
            "(", ")", "[a", "a{2", "a{3,2}", "*", #"\1"#, "(?=a)", "(?P<n>a)", #"\"#, "a{9999}{9999}",
            "(((()*){9999}){9999}){9999}",
            String(repeating: "(", count: 100_000), #"\b"#,
        ] {
            expectError(.invalidArgument, "configuration, \"alpha_pattern\"") { _ = try matches(bad, "a") }
        }
    }

    @Test("adapter_config.json beside a file that was opened by its path")
    func besideTheFile() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("lora-\(UInt64.random(in: 0 ... .max))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let path = folder.appendingPathComponent("adapter_model.safetensors").path
        try Self.writer("base_model.model.l", rank: 4).write(to: path)
        let config = folder.appendingPathComponent("adapter_config.json").path
        let file = try SafetensorsFile(path: path)
        #expect(try LoRAAdapter(file: file, layer: "base_model.model.l").scale == 1)
        try #"{"r": 4, "lora_alpha": 16, "use_rslora": true}"#.write(toFile: config, atomically: true, encoding: .utf8)
        #expect(try LoRAAdapter(file: file, layer: "base_model.model.l").scale == 8)
        #expect(try LoRAAdapter(file: file, layer: "base_model.model.l", alpha: 2).scale == 0.5)
        #expect(try LoRAAdapter(file: file, layer: "l", configuration: LoRAConfiguration(alpha: 4)).scale == 1)
        #expect(try LoRAConfiguration(path: config).isRankStabilized)
        try #"{"r": 4, "lora_alpha": "#.write(toFile: config, atomically: true, encoding: .utf8)
        expectError(.malformedFile, config) { _ = try LoRAAdapter(file: file, layer: "base_model.model.l") }
        expectError(.inputOutput, path + "/none") { _ = try LoRAConfiguration(path: path + "/none") }
    }

    @Test("alpha of every type of numbers")
    func alphaTypes() throws {
        func scale<Element: TensorElement>(_ value: Element, shape: [Int] = []) throws -> Float {
            let writer = try Self.writer(rank: 2) { try $0.add("l.alpha", Tensor<Element>(shape) { _ in value }) }
            return try LoRAAdapter(file: Self.file(writer), layer: "l").scale
        }
        #expect(try scale(Double(3)) == 1.5 && scale(Float(3)) == 1.5 && scale(BFloat16(3)) == 1.5)
        #expect(try scale(Int64(3)) == 1.5 && scale(Int32(-3)) == -1.5 && scale(Int16(3)) == 1.5 && scale(Int8(-3)) == -1.5)
        #expect(try scale(UInt64(3)) == 1.5 && scale(UInt32(3)) == 1.5 && scale(UInt16(3)) == 1.5 && scale(UInt8(200)) == 100)
        #expect(try scale(E4M3(0.5), shape: [1]) == 0.25 && scale(Float16(0.5), shape: [1, 1]) == 0.25)
        func raw(_ type: ElementType, _ bytes: [UInt8]) throws -> Float {
            let writer = try Self.writer { try $0.add("l.alpha", elementType: type, shape: [], bytes: bytes) }
            return try LoRAAdapter(file: Self.file(writer), layer: "l").scale
        }
        #expect(try raw(.float8E5M2, [0x42]) == 3)
        expectError(.invalidElementType, "f, tensor \"l.alpha\"") { _ = try raw(.bool, [1]) }
        expectError(.malformedFile, "f, tensor \"l.alpha\"") { _ = try scale(Float.nan) }
        expectError(.malformedFile, "f, tensor \"l.alpha\"") { _ = try scale(Double(1), shape: [2]) }
    }

    // MARK: - Tensors beside a pair

    @Test(
        "what a pair cannot do is refused by its name",
        arguments: [
            "lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight", "dora_scale",
            "lokr_w1", "lokr_w2_a", "hada_w1_a", "hada_t1", "lora_mid.weight", "lora_E", "lora_A.bias", "lora_embedding_A",
            "oft_blocks", "oft_R.weight", "boft_R", "ia3_l", "vera_lambda_b", "diff", "set_weight", "reshape_weight", "w_norm",
            "scalar", "bias", "base_layer.bias", "modules_to_save.weight", "rescale", "lora_a",
        ])
    func foreign(_ name: String) throws {
        for layer in ["l", "transformer.l", "lora_unet_l"] {
            let beside = try Self.writer(layer) { try $0.add("\(layer).\(name)", Tensor<Float>([2], [5, 7])) }
            expectError(.malformedFile, "f, tensor \"\(layer).\(name)\"") {
                _ = try LoRAAdapter(file: Self.file(beside), layer: layer)
            }
            // A tensor of a neighbour does not concern the layer.
            let elsewhere = try Self.writer(layer) {
                try $0.add("\(layer)2.\(name)", Tensor<Float>([2], [5, 7]))
                try $0.add("m.\(name)", Tensor<Float>([2], [5, 7]))
            }
            #expect(throws: Never.self) { try LoRAAdapter(file: Self.file(elsewhere), layer: layer) }
        }
        // The same without a pair: the layer exists in a form that is not supported.
        if name.hasPrefix("lokr") || name.hasPrefix("hada") {
            var writer = SafetensorsWriter()
            try writer.add("l.\(name)", Tensor<Float>(zeros: [2, 2]))
            expectError(.malformedFile, "f, tensor \"l.\(name)\"") {
                _ = try LoRAAdapter(file: Self.file(writer), layer: "l")
            }
        }
    }

    @Test("a model's own weight and bias, and modules inside the layer, are left alone")
    func ownWeights() throws {
        let writer = try Self.writer {
            try $0.add("l.weight", Tensor<Float>(zeros: [2, 64]))
            try $0.add("l.bias", Tensor<Float>(zeros: [2]))
            try $0.add("l.inner.lora_A.weight", Tensor<Float>(zeros: [1, 8]))
            try $0.add("l.inner.lora_B.weight", Tensor<Float>(zeros: [8, 1]))
            try $0.add("l.inner.dora_scale", Tensor<Float>(zeros: [8]))
        }
        #expect(try Self.output(LoRAAdapter(file: Self.file(writer), layer: "l")) == [64, 64])
    }

    @Test("biases: of the up factor they are scaled, differences of the layer's own are not")
    func biases() throws {
        let writer = try Self.writer {
            try $0.add("l.lora_B.bias", Tensor<Float>([2], [1, 2]))
            try $0.add("l.diff_b", Tensor<Float16>([2], [16, 32]))
            try $0.add("l.alpha", Tensor<Float>([], [0.5]))
        }
        #expect(try Self.output(LoRAAdapter(file: Self.file(writer), layer: "l")) == [32 + 0.5 + 16, 32 + 1 + 32])
    }

    @Test("factors of convolutions and of 64-bit and 8-bit floats")
    func factors() throws {
        for tail in [[], [1], [1, 1], [1, 1, 1]] as [[Int]] {
            var writer = SafetensorsWriter()
            try writer.add("l.lora_down.weight", Tensor<Float>([1, 64] + tail) { _ in 1 })
            try writer.add("l.lora_up.weight", Tensor<Double>([2, 1] + tail) { _ in 1 })
            try writer.add("l.alpha", Tensor<Float>([], [0.5]))
            #expect(try Self.output(LoRAAdapter(file: Self.file(writer), layer: "l")) == [32, 32])
        }
        var writer = SafetensorsWriter()
        try writer.add("l.lora_down.weight", Tensor<E4M3>([1, 64]) { _ in E4M3(1) })
        try writer.add("l.lora_up.weight", elementType: .float8E5M2, shape: [2, 1], bytes: [0x3c, 0xc0])
        #expect(try Self.output(LoRAAdapter(file: Self.file(writer), layer: "l")) == [64, -128])
    }

    @Test("ranks to 8192, and totals of several adapters")
    func ranks() throws {
        let layer = try Support.layer(3, 70, rank: 5, activation: .float)
        let x = try Tensor<Float>.normal([2, 70], seed: 9)
        func adapter(_ rank: Int, seed: UInt64) throws -> LoRAAdapter {
            try LoRAAdapter(down: .normal([rank, 70], seed: seed), up: .normal([3, rank], seed: seed + 1), alpha: 2)
        }
        let (a, b) = (try adapter(4096, seed: 1), try adapter(4091, seed: 5))
        let both = try layer.adding([(a, 1), (b, -0.5)])
        #expect(both.rank == 8192)
        let (y, before) = (try both(x), try layer(x))
        for m in 0..<2 {
            for n in 0..<3 {
                var (expected, magnitude) = (Double(before[flat: m * 3 + n]), abs(Double(before[flat: m * 3 + n])))
                for (adapter, strength) in [(a, 1.0), (b, -0.5)] {
                    for i in 0..<adapter.rank {
                        var sum = 0.0
                        for k in 0..<70 {
                            sum += Double(x[flat: m * 70 + k]) * Double(adapter.factors.down[flat: i * 70 + k])
                        }
                        let factor =
                            strength * Double(adapter.scale) * Double(adapter.factors.up[flat: n * adapter.rank + i])
                        expected += factor * sum
                        magnitude += abs(factor * sum)
                    }
                }
                // The relative tolerance is about 10⁻⁵ of the summed magnitudes.
                #expect(abs(Double(y[flat: m * 3 + n]) - expected) <= 1e-5 * magnitude)
            }
        }
        #expect(try LoRAAdapter(down: Tensor(zeros: [8192, 64]), up: Tensor(zeros: [2, 8192])).rank == 8192)
        expectError(.invalidShape, "adapters") { _ = try both.adding(a) }
        expectError(.invalidShape, "down") {
            _ = try LoRAAdapter(down: Tensor(zeros: [8193, 64]), up: Tensor(zeros: [2, 8193]))
        }
    }
}
