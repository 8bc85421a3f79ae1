import Foundation
import SVDQuant
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("Loading a language model")
struct LanguageModelLoadingTests {
    private let tokens = Array(LanguageSessionTests.tokens[..<9])

    private func expect(
        _ code: SparseKernelsError.Code, _ fragments: String..., folder: String, linear: LinearFormat = .float16
    ) {
        let error = #expect(throws: SparseKernelsError.self) { try LanguageModel(folder: folder, linear: linear) }
        #expect(error?.code == code, "\(error!)")
        for fragment in fragments { #expect(error!.description.contains(fragment), "\(error!)") }
        #expect(!error!.description.contains("\n"))
    }

    @Test("parts by their index are the model of one file")
    func parts() throws {
        let tiny = try TinyLanguageModel()
        let whole = try LanguageModel(folder: tiny.folder).logits(tokens)
        try tiny.shard()
        #expect(try LanguageModel(folder: tiny.folder).logits(tokens) == whole)
    }

    @Test("a missing part, one that is cut off, and an index with faults are told apart")
    func badParts() throws {
        let first = "model-00001-of-00002.safetensors"
        let tiny = try TinyLanguageModel()
        try tiny.shard()
        let path = URL(fileURLWithPath: "\(tiny.folder)/\(first)")
        let bytes = try Data(contentsOf: path)
        try FileManager.default.removeItem(at: path)
        expect(.inputOutput, first, "9 tensors", "no such file", folder: tiny.folder)
        try bytes.prefix(bytes.count - 100).write(to: path)
        expect(.malformedFile, first, folder: tiny.folder)
        try bytes.write(to: path)

        let norm = #""model.norm.weight": "model-00002-of-00002.safetensors""#
        try tiny.write(index: [norm, #""model.norm.weight": "model-00001-of-00002.safetensors""#])
        expect(.malformedFile, "index.json", #"tensor "model.norm.weight""#, "second entry", folder: tiny.folder)
        try tiny.write(index: [norm, #""model.other.weight": "model-00002-of-00002.safetensors""#])
        expect(.malformedFile, "index.json", #"tensor "model.other.weight""#, "lacks", folder: tiny.folder)
        try tiny.write(index: [norm])
        expect(.notFound, "index.json", #"tensor "model.embed_tokens.weight""#, folder: tiny.folder)
        try tiny.write(index: [#""model.norm.weight": "../model.safetensors""#])
        expect(.malformedFile, "index.json", "in the folder of the index", folder: tiny.folder)
        for text in [
            "", "[]", "{}", #"{"weight_map": 3}"#, #"{"weight_map": {}, "weight_map": {}}"#, #"{"weight_map": {"a": 1}}"#,
        ] {
            try tiny.write(text: text, to: "model.safetensors.index.json")
            expect(.malformedFile, "index.json", folder: tiny.folder)
        }
        try FileManager.default.removeItem(atPath: tiny.folder + "/model.safetensors.index.json")
        expect(.inputOutput, "model.safetensors", folder: tiny.folder)
    }

    @Test(
        "a tensor that is missing, or of another shape or type, is named",
        arguments: TinyLanguageModel.shapes(.plain).keys.sorted())
    func badTensors(_ name: String) throws {
        let tiny = try TinyLanguageModel()
        try tiny.write(tiny.weights.keys.filter { $0 != name }, to: "model.safetensors")
        expect(.notFound, "model.safetensors", name, folder: tiny.folder)
        func replace(_ add: (inout SafetensorsWriter) throws -> Void) throws {
            var writer = SafetensorsWriter()
            for (other, weight) in tiny.weights where other != name { try writer.add(other, weight) }
            try add(&writer)
            try writer.write(to: tiny.folder + "/model.safetensors")
        }
        try replace { try $0.add(name, Tensor<Float16>(zeros: [5, 5])) }
        expect(.invalidShape, "model.safetensors", name, "[5, 5]", "\(tiny.weights[name]!.shape)", folder: tiny.folder)
        try replace { try $0.add(name, Tensor<Int32>(zeros: tiny.weights[name]!.shape)) }
        expect(.invalidElementType, "model.safetensors", name, "I32", folder: tiny.folder)
    }

    @Test("biases, norms of heads and sinks are read where the architecture has them")
    func optionalTensors() throws {
        for option in TinyOptions.all {
            for name in TinyLanguageModel.shapes(option).keys where name.hasSuffix("bias") || name.contains("k_norm") {
                let tiny = try TinyLanguageModel(option)
                try tiny.write(tiny.weights.keys.filter { $0 != name }, to: "model.safetensors")
                expect(.notFound, name, folder: tiny.folder)
            }
        }
    }

    @Test("formats of the linear layers differ as their precision does", arguments: LinearFormat.allCases)
    func formats(_ format: LinearFormat) throws {
        let tiny = try TinyLanguageModel()
        if format == .w4a4 {
            expect(.invalidArgument, "linear", "w4a4", folder: tiny.folder, linear: format)
            return
        }
        let exact = try LanguageModel(folder: tiny.folder, linear: .float32)
        let model = try LanguageModel(folder: tiny.folder, linear: format)
        #expect(model.linear == format && !model.isQuantized)
        let distance = relativeDistance(try model.logits(tokens).elements, try exact.logits(tokens).elements)
        let limit: [LinearFormat: Double] = [.float32: 0, .float16: 1e-5, .bfloat16: 2e-2, .fp8: 0.2, .w4a16: 0.8, .w4a8: 0.8]
        #expect(distance <= limit[format]!, "\(distance)")
    }

    @Test("FP8 takes a byte per weight, and layers at both ends may have bfloat16")
    func float8() throws {
        let tiny = try TinyLanguageModel()
        let wide = try LanguageModel(folder: tiny.folder, linear: .bfloat16)
        let narrow = try LanguageModel(folder: tiny.folder, linear: .fp8)
        let some = try LanguageModel(folder: tiny.folder, linear: .fp8, wideLayers: 1)
        #expect(narrow.byteCount < some.byteCount && some.byteCount < wide.byteCount && some.wideLayers == 1)
        let all = try LanguageModel(folder: tiny.folder, linear: .fp8, wideLayers: 2)
        #expect(all.byteCount == wide.byteCount)
        let exact = try LanguageModel(folder: tiny.folder, linear: .float32).logits(tokens).elements
        let errors = try [narrow, some, all].map { relativeDistance(try $0.logits(tokens).elements, exact) }
        #expect(errors[2] < errors[1] && errors[1] < errors[0], "\(errors)")
        for (linear, layers) in [(LinearFormat.float16, 1), (.fp8, -1)] {
            let error = #expect(throws: SparseKernelsError.self) {
                try LanguageModel(folder: tiny.folder, linear: linear, wideLayers: layers)
            }
            #expect(error?.code == .invalidArgument && error?.argument == "wideLayers")
        }
    }

    @Test("low-rank branches are made of 16-bit weights, and bring them nearer", arguments: [LinearFormat.w4a16, .w4a8, .w4a4])
    func lowRank(_ format: LinearFormat) throws {
        let tiny = try TinyLanguageModel()
        let exact = try LanguageModel(folder: tiny.folder, linear: .float32).logits(tokens)
        var layers: [Int] = []
        let distances = try [0, 8, 16].map { rank in
            let model = try LanguageModel(folder: tiny.folder, linear: format, rank: rank) { loaded, all in
                layers += [loaded, all]
            }
            #expect(model.rank == rank && model.linear == format && !model.isQuantized)
            return relativeDistance(try model.logits(tokens).elements, exact.elements)
        }
        #expect(distances[2] < distances[1] && distances[1] < distances[0], "\(distances)")
        #expect(Array(layers.prefix(6)) == [1, 3, 2, 3, 3, 3])
        for (linear, rank) in [(LinearFormat.float16, 8), (format, -1), (format, 1000)] {
            let error = #expect(throws: SparseKernelsError.self) {
                try LanguageModel(folder: tiny.folder, linear: linear, rank: rank)
            }
            #expect(error?.code == .invalidArgument && error?.argument == "rank")
        }
    }

    @Test("a file that was quantised has the 4-bit forms, and no other")
    func quantized() throws {
        let tiny = try TinyLanguageModel()
        let exact = try LanguageModel(folder: tiny.folder, linear: .float32).logits(tokens)
        var writer = SafetensorsWriter()
        for (name, weight) in tiny.weights {
            let layer = String(name.dropLast(".weight".count))
            if name.contains("_proj") {
                try SVDQuantLinear(
                    weight: weight.converted(to: Float.self), calibration: .normal([32, weight.shape[1]], seed: 3), rank: 8
                ).write(to: &writer, prefix: layer)
            } else {
                try writer.add(name, weight)
            }
        }
        try writer.write(to: tiny.folder + "/model.safetensors")
        for format in [LinearFormat.w4a4, .w4a8, .w4a16] {
            let model = try LanguageModel(folder: tiny.folder, linear: format)
            #expect(model.isQuantized)
            let distance = relativeDistance(try model.logits(tokens).elements, exact.elements)
            #expect(distance < 0.5 && distance > 1e-4, "\(format): \(distance)")
        }
        for format in [LinearFormat.float16, .float32, .bfloat16, .fp8] {
            expect(.invalidArgument, "linear", "w4a4", folder: tiny.folder, linear: format)
        }
        let error = #expect(throws: SparseKernelsError.self) {
            try LanguageModel(folder: tiny.folder, linear: .w4a4, rank: 8)
        }
        #expect(error?.argument == "rank" && error?.actual.contains("4 bits") ?? false)
    }

    @Test(
        "the trained model has the logits of an implementation in Double",
        .enabled(if: ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"] != nil, "SPARSEKERNELS_DATA is not set"))
    func golden() throws {
        let data = try #require(ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"])
        let golden = try SafetensorsFile(path: data + "/goldens/models/code_lm_short.safetensors")
        let tokens = try golden.tensor("in.tokens", as: Int32.self).elements.map(Int.init)
        let expected = try golden.floatTensor("out.logits")
        for format in [LinearFormat.float32, .float16] {
            let model = try LanguageModel(folder: data + "/models/code-lm", linear: format)
            #expect(largestDifference(try model.logits(tokens), expected) < 2e-3)
            var options = SessionOptions(keyFormat: .float32, valueFormat: .float32, tokenCapacity: 256)
            options.chunk = 50
            let session = try LanguageSession(model, options)
            let sequence = session.makeSequence()
            var rows = try session.append([Array(tokens[..<120])], to: [sequence], logits: .all).elements
            for token in tokens[120...] { rows += try session.append([[token]], to: [sequence]).elements }
            #expect(largestDifference(try Tensor(expected.shape, rows), expected) < 2e-3)
        }
    }
}
