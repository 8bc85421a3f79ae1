import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@testable import LanguageMeasuring

@Suite("Methods and caches as people write them")
struct SpecTests {
    @Test("names, values and their defaults")
    func methods() throws {
        func check(_ text: String, _ prefill: PrefillMethod, _ decoding: DecodingMethod) throws {
            let spec = try MethodSpec(text)
            #expect(try spec.prefill(at: 8192) == prefill && spec.decoding(at: 8192) == decoding, "\(text)")
            #expect(spec.description == text)
        }
        try check("dense", .dense, .dense)
        try check("xattention", .xAttention(threshold: 0.9, stride: 16), .dense)
        try check("xattention:0.8:8+dense", .xAttention(threshold: 0.8, stride: 8), .dense)
        try check("minference:12.5%:2000", .mInference(vertical: 1024, slash: 2000), .dense)
        try check("sparge:0.25", .sparge(keepRatio: 0.25), .dense)
        try check("streaming:64:256+streaming:1:2", .streaming(sink: 64, local: 256), .streaming(sink: 1, local: 2))
        try check("dense+quest", .dense, .quest(tokens: 2048))
        try check("dense+quest:100", .dense, .quest(tokens: 100))
        try check("dense+polar:4", .dense, .polar(heads: 4))
        try check("dense+polar:1:groups", .dense, .polar(heads: 1))
        try check("dense+twilight:25%:0.85", .dense, .twilight(tokens: 2048, topP: 0.85))
        try check("lserve:128:512+lserve:10%:1", .lServe(sink: 128, local: 512), .lServe(tokens: 832, interval: 1))
        #expect(try MethodSpec("dense+quest:1%").decoding(at: 1024) == .quest(tokens: 64))
        #expect(try MethodSpec.list("dense,sparge").map(\.description) == ["dense", "sparge"])
        #expect(try MethodSpec("dense+dense").isDense && !MethodSpec("dense+quest").hasDenseDecoding)
        #expect(try MethodSpec.list(TableCase.methods).count > 5 && CacheSpec.list(TableCase.caches).count > 2)
    }

    @Test(
        "what is none is refused",
        arguments: [
            "", "+", "dense+", "quest", "dense+xattention", "dense:1", "xattention:2", "xattention:-0.1", "xattention:nan",
            "xattention:0.9:0", "xattention:0.9:16:3", "streaming:0:5", "streaming:5:x", "dense+quest:0%", "dense+quest:101%",
            "dense+quest:%", "dense+quest:1:2", "dense+twilight:5:1.5", "dense+lserve:5:0", "dense+polar", "dense+polar:0",
            "dense+polar:1:heads", "dense+dense+dense", "sparge:",
        ])
    func refusals(text: String) {
        let error = #expect(throws: SparseKernelsError.self) { try MethodSpec(text) }
        #expect(error?.argument == "method")
    }

    @Test("linear layers: a form, and a rank behind 4-bit ones")
    func linearLayers() throws {
        for format in LinearFormat.allCases { #expect(try LinearSpec(format.rawValue) == LinearSpec(format)) }
        #expect(try LinearSpec("w4a4:32") == LinearSpec(.w4a4, rank: 32) && LinearSpec("w4a8:0").description == "w4a8:0")
        #expect(try LinearSpec("fp8:1") == LinearSpec(.fp8, wideLayers: 1) && LinearSpec("fp8:0") == LinearSpec(.fp8))
        #expect(LinearSpec(.fp8, wideLayers: 2).description == "fp8:2" && LinearSpec(.fp8).description == "fp8")
        #expect(try LinearChoice.list("float16,w4a16:8") == [LinearSpec(.float16), LinearSpec(.w4a16, rank: 8)])
        for text in ["", "w4", "w4a4:", "w4a4:x", "w4a4:-1", "w4a4:1:2", "float16:8", ":8"] {
            let error = #expect(throws: SparseKernelsError.self) { try LinearSpec(text) }
            #expect(error?.expected.contains("w4a4") ?? false, "\(text)")
        }
    }

    @Test("MLPs: dense, CATS at a sparsity, or with the thresholds of a file")
    func mlps() throws {
        #expect(
            try MLPSpec.list("dense,cats:0.5,cats:0,cats:a/b.json")
                == [.dense, .cats(sparsity: 0.5), .cats(sparsity: 0), .thresholds(file: "a/b.json")])
        #expect(MLPSpec.cats(sparsity: 0.5).description == "cats:0.5")
        for text in ["", "cats", "cats:", "cats:1", "cats:-0.5", "cats:nan", "sparse"] {
            let error = #expect(throws: SparseKernelsError.self) { try MLPSpec(text) }
            #expect(error?.argument == "mlp", "\(text)")
        }
    }

    @Test("retrieval heads are those with the highest gates of a file")
    func retrievalHeads() throws {
        let path = NSTemporaryDirectory() + "sparsekernels-heads-\(UUID().uuidString).tsv"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try RetrievalHeads.text([[0.5, 0.25], [0.125, 1], [0, 0.75]]).write(toFile: path, atomically: true, encoding: .utf8)
        #expect(try RetrievalHeads.read(path, streaming: 0.5) == [[true, false], [false, true], [false, true]])
        #expect(try RetrievalHeads.read(path, streaming: 0) == [[true, true], [true, true], [true, true]])
        var spec = SessionSpec(method: try MethodSpec("lserve+lserve"))
        spec.retrievalHeads = try RetrievalHeads.read(path, streaming: 1)
        #expect(try spec.options(context: 100).retrievalHeads == [[false, false], [false, false], [false, false]])
        try "1\t2\nx\t3\n".write(toFile: path, atomically: true, encoding: .utf8)
        let error = #expect(throws: SparseKernelsError.self) { try RetrievalHeads.read(path, streaming: 0.5) }
        #expect(error?.argument.contains(path) ?? false)
        #expect(throws: SparseKernelsError.self) { try RetrievalHeads.read("/nowhere", streaming: 0.5) }
    }

    @Test("caches: one format, or two, each rotated or not")
    func caches() throws {
        #expect(try CacheSpec("int8").description == "int8" && CacheSpec("float16") == .float16)
        let spec = try CacheSpec("int8/int4r")
        #expect(spec.key == .int8 && spec.value == .int4 && !spec.rotatesKeys && spec.rotatesValues)
        #expect(spec.description == "int8/int4r")
        let options = try SessionSpec(method: MethodSpec("dense"), cache: spec).options(context: 100, sequences: 3, extra: 50)
        #expect(
            options.keyFormat == .int8 && options.rotatesValues && options.tokenCapacity == 150 && options.sequenceCapacity == 3
        )
        let tiny = try TinyBytes()
        let configuration = try LanguageModelConfiguration(path: tiny.folder + "/config.json")
        // Two layers of two heads of 16 channels.
        #expect(CacheSpec.float16.bytesPerToken(configuration) == 256)
        #expect(spec.bytesPerToken(configuration) == 4 * (16 + 4 + 8 + 4))
        for text in ["", "int5", "int8/", "int8/int4/int4", "r"] {
            #expect(throws: SparseKernelsError.self) { try CacheSpec(text) }
        }
    }
}
