import SparseKernels
import SparseKernelsModels
import SparseVideoGen
import Testing

/// The snippets of Docs/Operators/VideoModel.md.
@Suite("Snippets: the video model")
struct VideoModelSnippets {
    @Test("two videos, by sparse and by dense attention")
    func videos() throws {
        let tiny = try TinyVideo(configuration: TinyVideo.sprites, text: (32, 64))
        let folder = tiny.folder

        let model = try VideoTransformer(folder: folder)
        let prompt = try SpritePrompt(sprites: ["circle,red,x=2,y=2,right"], background: "texture=1,colour=2")
        let clusters = SVG2Configuration(queryClusters: 64, keyClusters: 256, mass: 0.9)
        let attention = try WarmedUpVideoAttention(SVG2VideoAttention(model.configuration, clusters))
        let sampler = try VideoSampler(steps: 8)
        let sparse = try sampler(model, prompt: prompt.tokens, seed: 1, attention: attention)
        let dense = try sampler(model, prompt: prompt.tokens, seed: 1)
        print(try VideoQuality(sparse.clip, against: dense.clip).psnr, sparse.density)

        #expect(sparse.density < 1 && dense.density == 1)
        #expect(try VideoQuality(sparse.clip, against: dense.clip).psnr > 20)
    }
}
