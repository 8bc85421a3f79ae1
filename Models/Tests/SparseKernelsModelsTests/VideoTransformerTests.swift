import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

/// The folder of the model and its recorded step; nil without the external data.
private let data: String? = {
    guard let folder = ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"],
        FileManager.default.fileExists(atPath: folder + "/models/video-dit/model.safetensors")
    else { return nil }
    return folder
}()

@Suite("Running a video model")
struct VideoTransformerTests {
    private let prompt = [1, 8, 3, 0]

    @Test("a step is that of the description, computed in Double, for every number of threads")
    func oracle() throws {
        let tiny = try TinyVideo()
        let model = try VideoTransformer(folder: tiny.folder)
        let patches = try Tensor<Float>.normal([8, 12], seed: 5)
        let velocity = try model.velocity(of: patches, prompt: prompt, time: 0.35)
        let rows = (0..<8).map { row in (0..<12).map { Double(patches[flat: row * 12 + $0]) } }
        let expected = tiny.velocity(of: rows, prompt: prompt, time: 0.35).flatMap { $0 }.map(Float.init)
        #expect(velocity.shape == [8, 12])
        // Some hundred roundings of 6 · 10⁻⁸ through two blocks.
        #expect(relativeDistance(velocity.elements, expected) < 1e-5)
        for pool in [WorkerPool.serial, WorkerPool(threads: 2), WorkerPool(threads: 7)] {
            #expect(try model.velocity(of: patches, prompt: prompt, time: 0.35, on: pool) == velocity)
        }
    }

    @Test("4-bit layers are near, nearer with activations of 8 bits, and say what they are")
    func quantized() throws {
        let tiny = try TinyVideo()
        let patches = try Tensor<Float>.normal([8, 12], seed: 5)
        let exact = try VideoTransformer(folder: tiny.folder)
        let expected = try exact.velocity(of: patches, prompt: prompt, time: 0.6).elements
        func error(_ linear: VideoLinearFormat?) throws -> Double {
            let model = try VideoTransformer(folder: tiny.folder, linear: linear)
            return relativeDistance(try model.velocity(of: patches, prompt: prompt, time: 0.6).elements, expected)
        }
        // Weights of 4 bits alone err by a few percent per layer, activations of 4 bits by more.
        #expect(try error(.w4a8) < 0.15)
        let refused = try #require(throws: SparseKernelsError.self) {
            try VideoTransformer(folder: tiny.folder, linear: .w4a4)
        }
        #expect(refused.code == .invalidArgument && refused.argument == "linear layers")
        try tiny.quantize()
        #expect(try error(nil) < 0.25 && error(.w4a8) < 0.12 && error(.float) < 0.12)
        let model = try VideoTransformer(folder: tiny.folder)
        #expect(model.linear == .w4a4 && model.isQuantized && model.blockByteCount < exact.blockByteCount)
        let one = try model.velocity(of: patches, prompt: prompt, time: 0.6, on: .serial)
        #expect(try model.velocity(of: patches, prompt: prompt, time: 0.6, on: WorkerPool(threads: 7)) == one)
    }

    @Test("every linear layer shows its input, in the order of its list; an observer that throws stops the run")
    func observer() throws {
        let tiny = try TinyVideo()
        let model = try VideoTransformer(folder: tiny.folder)
        let patches = try Tensor<Float>.normal([8, 12], seed: 5)
        var seen: [(String, [Int])] = []
        _ = try model.velocity(of: patches, prompt: prompt, time: 1) { seen.append(($0, $1.shape)) }
        #expect(seen.map(\.0) == model.linearLayers)
        #expect(seen.map { $0.1[1] } == [24, 24, 24, 72, 24, 24, 24, 72] && seen.allSatisfy { $0.1[0] == 12 })
        let stop = SparseKernelsError(.inputOutput, "test", expected: "going on", actual: "stopped")
        #expect(throws: stop) {
            try model.velocity(of: patches, prompt: prompt, time: 1) { _, _ throws(SparseKernelsError) in throw stop }
        }
    }

    @Test("other patches, prompts, times and files are refused by name")
    func refusals() throws {
        func expect(_ code: SparseKernelsError.Code, _ argument: String, _ body: () throws -> Void) throws {
            let error = try #require(throws: SparseKernelsError.self) { try body() }
            #expect(error.code == code && error.argument.contains(argument), "\(error)")
        }
        let tiny = try TinyVideo()
        let model = try VideoTransformer(folder: tiny.folder)
        let patches = try Tensor<Float>(zeros: [8, 12])
        for shape in [[1, 12], [8, 11], [96]] {
            try expect(.invalidShape, "patches") { _ = try model.velocity(of: Tensor(zeros: shape), prompt: prompt, time: 1) }
        }
        for other in [[], [1, 2, 3], [9, 0, 0, 0], [-1, 0, 0, 0]] {
            try expect(.invalidArgument, "prompt") { _ = try model.velocity(of: patches, prompt: other, time: 1) }
        }
        try expect(.invalidArgument, "time") { _ = try model.velocity(of: patches, prompt: prompt, time: .nan) }
        try expect(.inputOutput, "config.json") { _ = try VideoTransformer(folder: tiny.folder + "/none") }
        for name in ["blocks.1.up.bias", "t1.weight", "tpos", "blocks.0.qn", "out.weight"] {
            let without = try TinyVideo(leavingOut: name)
            try expect(.notFound, name) { _ = try VideoTransformer(folder: without.folder) }
            let other = try TinyVideo(changing: name)
            try expect(.invalidShape, name) { _ = try VideoTransformer(folder: other.folder) }
        }
        for (key, text) in [
            ("frames", "\"frames\": 0"), ("patch_size", "\"patch_size\": 3"), ("head_dim", "\"head_dim\": 10"),
            ("video_tokens", "\"video_tokens\": 9"), ("grid", "\"grid\": 4"), ("patch_dim", "\"patch_dim\": 48"),
            ("frames", "\"frames\": 1e300"), ("text_vocab", "\"text_vocab\": null"),
        ] {
            let pattern = try Regex("\"\(key)\": [^,]*")
            let file = try TinyVideo(configuration: TinyVideo.configuration.replacing(pattern, with: text))
            try expect(.malformedFile, key) { _ = try VideoTransformer(folder: file.folder) }
        }
        for axes in ["[4, 6]", "[4, 5, 3]", "[4, 6, 4]", "12", "[4, 6, \"2\"]"] {
            let text = TinyVideo.configuration.replacing("[4, 6, 2]", with: axes)
            let file = try TinyVideo(configuration: text)
            try expect(.malformedFile, "rope_axes_dim") { _ = try VideoTransformer(folder: file.folder) }
        }
    }

    @Test("the recorded step of video-dit comes out, and every linear layer shows its input", .enabled(if: data != nil))
    func recordedStep() throws {
        let model = try VideoTransformer(folder: data! + "/models/video-dit")
        let golden = try SafetensorsFile(path: data! + "/goldens/models/video_dit_step.safetensors")
        let prompt = try golden.tensor("in.tokens", as: Int32.self).elements.map(Int.init)
        var seen: [String: [Int]] = [:]
        let velocity = try model.velocity(of: golden.floatTensor("in.x"), prompt: prompt, time: 0.7) { seen[$0] = $1.shape }
        // The tolerance of the case.
        #expect(relativeDistance(velocity.elements, try golden.floatTensor("out.velocity").elements) <= 2e-3)
        #expect(seen.count == 4 * model.layers && seen["blocks.3.down"] == [4128, 1536])
    }
}
