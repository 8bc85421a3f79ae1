import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

/// The folder of the model and its recorded step; nil without the external data.
private let data: String? = {
    guard let folder = ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"],
        FileManager.default.fileExists(atPath: folder + "/models/video-dit/model.safetensors")
    else { return nil }
    return folder
}()

@Suite("Running the video model", .enabled(if: data != nil))
struct VideoTransformerTests {
    @Test("a recorded step comes out, and every linear layer shows its input")
    func recordedStep() throws {
        let model = try VideoTransformer(folder: data! + "/models/video-dit")
        let golden = try SafetensorsFile(path: data! + "/goldens/models/video_dit_step.safetensors")
        let prompt = try golden.tensor("in.tokens", as: Int32.self).elements.map(Int.init)
        var seen: [String: [Int]] = [:]
        let velocity = try model.velocity(of: golden.floatTensor("in.x"), prompt: prompt, time: 0.7) { seen[$0] = $1.shape }
        let expected = try golden.floatTensor("out.velocity").elements
        let distance = zip(velocity.elements, expected).reduce(0.0) { $0 + pow(Double($1.0) - Double($1.1), 2) }
        let norm = expected.reduce(0.0) { $0 + pow(Double($1), 2) }
        // The tolerance of the case.
        #expect((distance / norm).squareRoot() <= 2e-3)
        #expect(seen.count == 4 * model.layers && seen["blocks.3.down"] == [4128, 1536])
    }

    @Test("other patches and prompts are refused")
    func refusals() throws {
        let model = try VideoTransformer(folder: data! + "/models/video-dit")
        let (patches, prompt) = (try Tensor<Float>(zeros: [4096, 48]), [Int](repeating: 0, count: 32))
        #expect(throws: SparseKernelsError.self) { try model.velocity(of: Tensor(zeros: [1, 48]), prompt: prompt, time: 1) }
        #expect(throws: SparseKernelsError.self) { try model.velocity(of: patches, prompt: [64] + prompt.dropLast(), time: 1) }
        #expect(throws: SparseKernelsError.self) { try VideoTransformer(folder: data!) }
    }
}
