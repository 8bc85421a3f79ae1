import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Terminal
import Testing

@testable import VideoGeneration

/// The model of the repository, which is read once.
private let shipped = Result { () throws -> VideoTransformer in
    guard let folder = ModelData.video else {
        throw SparseKernelsError(.notFound, "model", expected: "in the repository", actual: "nothing")
    }
    return try VideoTransformer(folder: folder)
}

@Suite("Methods and tables of videos")
struct VideoMethodTests {
    @Test("the model of the repository is in 4 bits, small, and computes a step by itself")
    func shippedModel() throws {
        let model = try shipped.get()
        #expect(model.isQuantized && model.linear == .w4a4 && model.layers == 10)
        #expect(model.blockByteCount < 20_000_000)
        let noise = try VideoSampler.noise(model.configuration, seed: 1)
        let velocity = try model.velocity(of: noise, prompt: SpritePrompt(seed: 1).tokens, time: 1)
        // At time 1 the video is not seen yet, and the velocity is the noise less the mean of all videos.
        let elements = zip(velocity.elements, noise.elements)
        let product = elements.reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
        let norms = elements.reduce(into: (0.0, 0.0)) {
            $0.0 += Double($1.0) * Double($1.0)
            $0.1 += Double($1.1) * Double($1.1)
        }
        #expect(product / (norms.0 * norms.1).squareRoot() > 0.8)
    }

    @Test("every method has its options checked")
    func methods() throws {
        let configuration = try shipped.get().configuration
        var options = VideoMethodOptions()
        for method in VideoMethod.allCases {
            let attention = try options.attention(method, for: configuration)
            #expect((attention is WarmedUpVideoAttention) == (method != .dense))
        }
        options.threshold = 2
        #expect(throws: SparseKernelsError.self) { try options.attention(.xattention, for: configuration) }
        options.threshold = 0.5
        options.denseLayers = -1
        #expect(throws: SparseKernelsError.self) { try options.attention(.sparge, for: configuration) }
    }

    @Test("rows have the width of the header, also those of means and of the reference")
    func rows() throws {
        let clip = try VideoClip(pixels: .normal([1, 3, 16, 16], seed: 1))
        func sample(_ density: Double) -> VideoSample {
            VideoSample(clip: clip, densities: [[1, 1], [1, density]], seconds: StageSeconds())
        }
        let warmUp = try WarmedUpVideoAttention(DenseVideoAttention(), denseStepFraction: 0.5)
        let rows = try [0.2, 0.4].map { density in
            VideoRow(
                method: .sparge, linear: "w4a4", sample: sample(density), quality: try VideoQuality(clip, against: clip),
                warmUp: warmUp)
        }
        let mean = VideoRow.mean(rows)
        #expect(abs(mean.density - 0.825) < 1e-12 && abs(mean.sparseDensity! - 0.3) < 1e-12)
        #expect(mean.quality?.psnr == VideoQuality.maximumPSNR)
        let dense = VideoRow(method: .dense, linear: "float", sample: sample(1), quality: nil, warmUp: nil)
        for row in rows + [mean, dense] { #expect(row.line.count == VideoRow.table.header[0].count, "\(row.line)") }
    }
}
