import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("config.json")
struct ConfigurationTests {
    private static let required = [
        "vocab_size": "256", "hidden_size": "64", "intermediate_size": "96", "num_hidden_layers": "2",
        "num_attention_heads": "4",
    ]

    private func read(_ changes: [String: String?] = [:]) throws -> LanguageModelConfiguration {
        let fields = Self.required.merging(changes.compactMapValues { $0 }) { $1 }.filter { changes[$0.key] != .some(nil) }
        return try read(text: "{\(fields.map { "\"\($0.key)\": \($0.value)" }.joined(separator: ", "))}")
    }

    private func read(text: String) throws -> LanguageModelConfiguration {
        let path = NSTemporaryDirectory() + "config-\(UUID().uuidString).json"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try Data(text.utf8).write(to: URL(fileURLWithPath: path))
        return try LanguageModelConfiguration(path: path)
    }

    private func expectError(_ fragments: String..., body: () throws -> LanguageModelConfiguration) {
        let error = #expect(throws: SparseKernelsError.self) { try body() }
        let text = error?.description ?? ""
        #expect(error?.code == .malformedFile && error?.argument.contains("config-") == true)
        #expect(
            !text.contains("\n") && !text.contains("DecodingError") && !text.contains("CodingKeys") && text.count < 300,
            "\(text)")
        for fragment in fragments { #expect(text.contains(fragment), "\(text)") }
    }

    @Test("keys that may be left out, or are null, have the defaults of the library that writes them")
    func defaults() throws {
        for nothing in [nil, "null"] as [String?] {
            let optional = [
                "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "rope_scaling",
                "hidden_act",
            ]
            let read = try read(nothing.map { text in Dictionary(uniqueKeysWithValues: optional.map { ($0, text) }) } ?? [:])
            #expect(read.vocabularySize == 256 && read.hiddenSize == 64 && read.intermediateSize == 96 && read.layers == 2)
            #expect(read.queryHeads == 4 && read.kvHeads == 4 && read.headDim == 16)
            #expect(read.ropeTheta == 10_000 && read.rmsNormEpsilon == 1e-6 && read.tiesWordEmbeddings == nil)
        }
        let read = try read([
            "num_key_value_heads": "2", "head_dim": "32", "rope_theta": "5e5", "rms_norm_eps": "1e-5",
            "tie_word_embeddings": "true",
            "hidden_size": "64.0", "unknown": #"{"a": [1, {"b": null}]}"#,
        ])
        #expect(read.kvHeads == 2 && read.headDim == 32 && read.ropeTheta == 5e5 && read.rmsNormEpsilon == 1e-5)
        #expect(read.tiesWordEmbeddings == true && read.hiddenSize == 64)
        let newer = try self.read(["rope_parameters": #"{"rope_theta": 500000.0, "rope_type": "default"}"#])
        #expect(newer.ropeTheta == 500_000)
    }

    @Test("a key that is needed is named when it is missing or null", arguments: required.keys.sorted())
    func missingKeys(_ key: String) {
        expectError("key \"\(key)\"", "no such key") { try read([key: nil]) }
        expectError("key \"\(key)\"", "got null") { try read([key: "null"]) }
        for (value, shown) in [
            ("\"64\"", "\"64\""), ("true", "true"), ("[64]", "an array"), ("{}", "an object"), ("0", "0"), ("-4", "-4"),
            ("4.5", "4.5"), ("1e300", "1e+300"),
        ] {
            expectError("key \"\(key)\"", "a whole number from 1 to", "got \(shown)") { try read([key: value]) }
        }
    }

    @Test("architectures differ in what they have where a file is silent")
    func architectures() throws {
        let llama = try read(["sliding_window": "8"])
        #expect(llama.architecture == .llama && llama.slidingWindows == [nil, nil] && llama.softmaxScale == 0.25)
        let mistral = try read(["model_type": "\"mistral\"", "num_attention_heads": "8", "head_dim": "8"])
        #expect(mistral.slidingWindows == [4096, 4096] && mistral.kvHeads == 8 && !mistral.hasQKVBias)
        #expect(
            try read(["model_type": "\"mistral\"", "num_key_value_heads": "2", "sliding_window": "null"]).slidingWindows == [
                nil, nil,
            ])
        let qwen2 = try read(["model_type": "\"qwen2\"", "sliding_window": "8"])
        #expect(qwen2.hasQKVBias && !qwen2.hasOutputBias && qwen2.slidingWindows == [nil, nil])
        let qwen3 = try read(["model_type": "\"qwen3\""])
        #expect(qwen3.normalizesQueriesAndKeys && qwen3.headDim == 128 && !qwen3.hasQKVBias)
        let gemma = try read(["model_type": "\"gemma2\"", "final_logit_softcapping": "null"])
        #expect(
            gemma.attentionSoftCap == 50 && gemma.logitSoftCap == nil && gemma.headDim == 256 && gemma.softmaxScale == 1.0 / 16)
        #expect(gemma.slidingWindows == [4096, nil] && gemma.embeddingScale == 8 && gemma.tiesWordEmbeddings == true)
        #expect(gemma.normAddsOne && gemma.normPlacement == .beforeAndAfter && gemma.activation == .geluTanh)
    }

    @Test("values that no model can have, and arithmetic that is not done here, are named by their key")
    func refusals() {
        for (key, value, expected) in [
            ("num_key_value_heads", "3", "a divisor of num_attention_heads (4)"), ("head_dim", "15", "even"),
            ("rope_theta", "0", "above 0"), ("rope_theta", "\"big\"", "above 0"), ("rms_norm_eps", "-1e-6", "0 or more"),
            ("tie_word_embeddings", "1", "true or false"), ("attention_bias", "1", "true or false"),
            ("hidden_act", "\"elu\"", "\"silu\""), ("partial_rotary_factor", "0.05", "even"),
        ] {
            expectError("key \"\(key)\"", expected) { try read([key: value]) }
        }
        for (scaling, key, expected) in [
            (#"{"rope_type": "longrope", "factor": 8}"#, "rope_type", "\"llama3\""), (#"{"type": "su"}"#, "type", "\"yarn\""),
            (#"{"type": "linear"}"#, "factor", "no such key"), (#"{"type": "linear", "factor": 0.5}"#, "factor", "1 or more"),
            (#"{"type": "dynamic", "factor": 2}"#, "original_max_position_embeddings", "no such key"),
            (
                #"{"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 9, "low_freq_factor": 4, "high_freq_factor": 4}"#,
                "high_freq_factor", "above low_freq_factor"
            ),
        ] {
            expectError("rope_scaling, key \"\(key)\"", expected) { try read(["rope_scaling": scaling]) }
        }
        for (key, value, expected) in [
            ("model_type", "\"phi3\"", "\"gemma2\""), ("num_experts", "8", "experts"), ("residual_multiplier", "0.2", "1"),
            ("quantization_config", "{}", "absent"), ("attention_multiplier", "0.1", "absent"),
            ("layer_types", "[\"full_attention\"]", "2 texts"), ("layer_types", "[1, 2]", "texts"),
            ("layer_types", "[\"full_attention\", \"linear_attention\"]", "\"sliding_attention\""),
        ] {
            expectError("key \"\(key)\"", expected) { try read([key: value]) }
        }
        expectError("key \"head_dim\"", "no multiple") { try read(["num_attention_heads": "5", "num_key_value_heads": nil]) }
    }

    @Test(
        "what is no JSON object is told on one line",
        arguments: [
            ("", "an empty file"), ("[]", "an array"), ("7", "7"), ("{\"vocab_size\": 256,", "breaks off"),
            ("hello", "not JSON"),
            ("<html>", "HTML"), ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
            ("\u{0}\u{1}", "not JSON"),
        ])
    func otherFiles(_ text: String, _ nature: String) {
        expectError("a JSON object", nature) { try read(text: text) }
    }

    @Test("a file that is not there, and a folder")
    func unreadable() throws {
        for (path, reason) in [("/nowhere/config.json", "No such file"), (NSTemporaryDirectory(), "a folder")] {
            let error = #expect(throws: SparseKernelsError.self) { try LanguageModelConfiguration(path: path) }
            #expect(error?.code == .inputOutput && error?.argument == path && error!.actual.contains(reason), "\(error!)")
        }
    }

    @Test("the output projection is the embedding where the file says so, or has no other")
    func projection() throws {
        func logits(ties: Bool?, projection: Bool) throws -> [Float] {
            let tiny = try TinyLlama(projection: projection)
            var fields = try #require(
                JSONSerialization.jsonObject(with: Data(contentsOf: URL(fileURLWithPath: tiny.folder + "/config.json")))
                    as? [String: Any])
            fields["tie_word_embeddings"] = ties
            let text = String(decoding: try JSONSerialization.data(withJSONObject: fields), as: UTF8.self)
            try tiny.write(configuration: text)
            return try LanguageModel(folder: tiny.folder).logits([1, 2, 3]).elements
        }
        // Tensors are drawn in the order of their names, of which lm_head.weight is the first.
        let own = try logits(ties: nil, projection: true)
        #expect(try logits(ties: false, projection: true) == own)
        #expect(try logits(ties: true, projection: true) != own)
        #expect(try logits(ties: true, projection: false) == logits(ties: nil, projection: false))
        let error = #expect(throws: SparseKernelsError.self) { try logits(ties: false, projection: false) }
        #expect(error?.code == .notFound && error!.argument.contains("lm_head.weight"))
    }
}
