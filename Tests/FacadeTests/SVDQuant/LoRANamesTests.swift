import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

@Suite("LoRA files: names")
struct LoRANamesTests {
    private typealias Facts = LoRAFactsTests
    private typealias Support = SVDQuantSupport

    private static func file(_ names: (String, String), alpha: String? = nil) throws -> SafetensorsFile {
        var writer = SafetensorsWriter()
        try writer.add(names.0, Tensor<Float>([2, 64]) { _ in 1 })
        try writer.add(names.1, Tensor<Float>([2, 2]) { _ in 1 })
        if let alpha { try writer.add(alpha, Tensor<Int64>([], [1])) }
        return try SafetensorsFile(bytes: writer.encoded(), named: "f")
    }

    /// A layer of the model, and the names before `down.weight` and `up.weight`, or before `lora_A` and `lora_B`.
    @Test(
        "old names of diffusers: what attention processors call a module",
        arguments: [
            ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "to_q_lora"),
            ("unet.down_blocks.0.attn1.to_k", "to_k_lora"), ("attn2.to_v", "to_v_lora"), ("attn1.to_out.0", "to_out_lora"),
            ("mid.attn2.add_k_proj", "add_k_proj_lora"), ("mid.attn2.add_v_proj", "add_v_proj_lora"),
            ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "to_q_lora"),
            ("text_model.encoder.layers.3.self_attn.k_proj", "to_k_lora"),
            ("text_model.encoder.layers.3.self_attn.v_proj", "to_v_lora"),
            ("text_model.encoder.layers.3.self_attn.out_proj", "to_out_lora"),
        ])
    func processors(_ layer: String, _ old: String) throws {
        let parent = String(layer.hasSuffix(".to_out.0") ? layer.dropLast(9) : layer[..<layer.lastIndex(of: ".")!])
        for middle in layer.contains("self_attn") ? [""] : ["processor.", ""] {
            let stem = "\(parent).\(middle)\(old)"
            let file = try Self.file(("\(stem).down.weight", "\(stem).up.weight"), alpha: "\(stem).alpha")
            #expect(LoRAAdapter.layers(in: file) == [layer])
            for name in [layer, stem] {
                #expect(try Facts.output(LoRAAdapter(file: file, layer: name)) == [64, 64], "\(name)")
            }
        }
    }

    @Test(
        "names behind the layer's",
        arguments: [
            ("lora_A.weight", "lora_B.weight"), ("lora_A.default.weight", "lora_B.default.weight"),
            ("lora_A.my-style.weight", "lora_B.my-style.weight"), ("lora_down.weight", "lora_up.weight"),
            ("lora.down.weight", "lora.up.weight"), ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ])
    func endings(_ down: String, _ up: String) throws {
        for layer in ["l", "base_model.model.a.l", "lora_unet_double_blocks_0_img_mlp_0", "diffusion_model.a.0.l"] {
            let file = try Self.file(("\(layer).\(down)", "\(layer).\(up)"), alpha: "\(layer).alpha")
            #expect(LoRAAdapter.layers(in: file) == [layer])
            #expect(try Facts.output(LoRAAdapter(file: file, layer: layer)) == [64, 64])
            for (names, missing) in [(("\(layer).\(down)", "x"), up), (("x", "\(layer).\(up)"), down)] {
                expectError(.notFound, "f, tensor \"\(layer).\(missing)\"") {
                    _ = try LoRAAdapter(file: Self.file(names), layer: layer)
                }
            }
        }
    }

    @Test("a layer is found by the model's name for it")
    func spellings() throws {
        for stored in [
            "base_model.model.blocks.0.attn.q", "transformer.blocks.0.attn.q", "unet.blocks.0.attn.q",
            "diffusion_model.blocks.0.attn.q", "model.diffusion_model.blocks.0.attn.q", "lora_unet_blocks_0_attn_q",
            "lora_transformer_blocks_0_attn_q", "lora_te_blocks_0_attn_q", "lora_te2_blocks_0_attn_q",
            "lycoris_blocks_0_attn_q",
        ] {
            let names = ("\(stored).lora_A.weight", "\(stored).lora_B.weight")
            let file = try Self.file(names, alpha: "\(stored).alpha")
            #expect(try LoRAAdapter(file: file, layer: "blocks.0.attn.q").scale == 0.5, "\(stored)")
            expectError(.notFound, "f, layer \"blocks.0.attn.k\"") {
                _ = try LoRAAdapter(file: file, layer: "blocks.0.attn.k")
            }
            // A magnitude under the stored name also counts.
            var writer = SafetensorsWriter()
            try writer.add(names.0, Tensor<Float>(zeros: [2, 64]))
            try writer.add(names.1, Tensor<Float>(zeros: [2, 2]))
            try writer.add("\(stored).dora_scale", Tensor<Float>(zeros: [2]))
            expectError(.malformedFile, "f, tensor \"\(stored).dora_scale\"") {
                _ = try LoRAAdapter(
                    file: SafetensorsFile(bytes: writer.encoded(), named: "f"), layer: "blocks.0.attn.q")
            }
        }
        // Two components with a layer of that name.
        var writer = SafetensorsWriter()
        for component in ["transformer", "unet"] {
            try writer.add("\(component).l.lora_A.weight", Tensor<Float>(zeros: [2, 64]))
            try writer.add("\(component).l.lora_B.weight", Tensor<Float>(zeros: [2, 2]))
        }
        let file = try SafetensorsFile(bytes: writer.encoded(), named: "f")
        expectError(.notFound, "f, layer \"l\"") { _ = try LoRAAdapter(file: file, layer: "l") }
        #expect(throws: Never.self) { try LoRAAdapter(file: file, layer: "unet.l") }
    }

    @Test("factors under two names are an error that names one")
    func twoNames() throws {
        for (first, second) in [
            ("l.lora_A.weight", "l.lora_down.weight"), ("l.lora_A.one.weight", "l.lora_A.two.weight"),
            ("a.q.lora_A.weight", "a.processor.q_lora.down.weight"),
        ] {
            var writer = SafetensorsWriter()
            try writer.add(first, Tensor<Float>(zeros: [2, 64]))
            try writer.add(second, Tensor<Float>(zeros: [2, 64]))
            let layer = first.hasPrefix("a") ? "a.q" : "l"
            expectError(.malformedFile, "f, tensor \"\(first)\"") {
                _ = try LoRAAdapter(file: SafetensorsFile(bytes: writer.encoded(), named: "f"), layer: layer)
            }
        }
    }
}
