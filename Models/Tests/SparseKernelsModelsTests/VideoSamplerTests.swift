import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import SparseVideoGen
import Testing

/// Attention that notes where it was called, and attends to all keys.
private struct NotingAttention: VideoAttention {
    private(set) var places: [VideoAttentionPlace] = []
    let log: @Sendable (Int) -> Void

    mutating func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        places.append(place)
        log(places.count)
        _ = try DenseVideoAttention().attend(at: place, query: query, key: key, value: value, output: output, on: pool)
        return 0.25
    }

    mutating func reset() { places = [] }
}

@Suite("Making videos")
struct VideoSamplerTests {
    private let prompt = [1, 8, 3, 0]

    @Test("a seed gives the same bits on any pool, and another seed another video")
    func determinism() throws {
        let model = try TinyVideo().model()
        let sampler = try VideoSampler(steps: 3)
        let sample = try sampler(model, prompt: prompt, seed: 7)
        #expect(sample.clip.pixels.shape == [2, 3, 4, 4] && sample.density == 1)
        for pool in [WorkerPool.serial, WorkerPool(threads: 7)] {
            #expect(try sampler(model, prompt: prompt, seed: 7, on: pool).clip.pixels == sample.clip.pixels)
        }
        #expect(try sampler(model, prompt: prompt, seed: 8).clip.pixels != sample.clip.pixels)
        #expect(try sampler(model, prompt: [2, 8, 3, 0], seed: 7).clip.pixels != sample.clip.pixels)
    }

    @Test("one step is noise less the velocity at time 1")
    func euler() throws {
        let model = try TinyVideo().model()
        let noise = try VideoSampler.noise(model.configuration, seed: 3)
        let velocity = try model.velocity(of: noise, prompt: prompt, time: 1)
        let sample = try VideoSampler(steps: 1)(model, prompt: prompt, seed: 3)
        let expected = try Tensor(noise.shape) { noise[flat: $0] - velocity[flat: $0] }
        #expect(try VideoClip(patches: expected, model.configuration).pixels == sample.clip.pixels)
        #expect(try VideoSampler(steps: 4).time(ofStep: 3) == 0.25)
        #expect(throws: SparseKernelsError.self) { try VideoSampler(steps: 0) }
    }

    @Test("the first steps and layers stay dense, and each video starts with a method that has seen nothing")
    func warmUp() throws {
        let model = try TinyVideo().model()
        let counts = Counts()
        let attention = try WarmedUpVideoAttention(NotingAttention { counts.add($0) }, denseStepFraction: 0.3)
        let sampler = try VideoSampler(steps: 5)
        var events = 0
        let sample = try sampler(model, prompt: prompt, seed: 1, attention: attention) { _ in events += 1 }
        // Of five steps two are dense (0 and 1, as 1 < 0.3 · 5), and layer 0 of the others.
        #expect(sample.densities == [[1, 1], [1, 1], [1, 0.25], [1, 0.25], [1, 0.25]])
        #expect(sample.density(where: { step, layer in step >= 2 && layer >= 1 }) == 0.25)
        #expect(events == 5 * 3)
        _ = try sampler(model, prompt: prompt, seed: 1, attention: attention)
        #expect(counts.all == [1, 2, 3, 1, 2, 3])
        #expect(try sampler(model, prompt: prompt, seed: 1).clip.pixels == sample.clip.pixels)
        for fraction in [-0.1, 1.1, .nan] {
            #expect(throws: SparseKernelsError.self) {
                try WarmedUpVideoAttention(DenseVideoAttention(), denseStepFraction: fraction)
            }
        }
    }

    private final class Counts: @unchecked Sendable {
        private(set) var all: [Int] = []
        func add(_ count: Int) { all.append(count) }
    }

    @Test("sparse methods that keep everything give the video of dense attention, and others less of it")
    func methods() throws {
        let model = try TinyVideo().model()
        let sampler = try VideoSampler(steps: 2)
        let dense = try sampler(model, prompt: prompt, seed: 2)
        let c = model.configuration
        let methods: [any VideoAttention] = [
            try XVideoAttention(threshold: 1), try SpargeVideoAttention(keepRatio: 1),
            try SVGVideoAttention(c, SVGConfiguration(density: 1, sampledRows: 4)),
            try SVG2VideoAttention(c, SVG2Configuration(queryClusters: 3, keyClusters: 4, mass: 1, minimumKeyRatio: 1)),
        ]
        for method in methods {
            let sample = try sampler(model, prompt: prompt, seed: 2, attention: method)
            #expect(sample.density == 1)
            #expect(relativeDistance(sample.clip.pixels.elements, dense.clip.pixels.elements) < 1e-5)
        }
        let sparse: any VideoAttention = try SVG2VideoAttention(
            c, SVG2Configuration(queryClusters: 3, keyClusters: 6, mass: 0.4, minimumKeyRatio: 0))
        let sample = try sampler(model, prompt: prompt, seed: 2, attention: sparse)
        #expect(sample.density < 1 && sample.density > 0)
        #expect(try sampler(model, prompt: prompt, seed: 2, attention: sparse, on: .serial).clip.pixels == sample.clip.pixels)
        #expect(throws: SparseKernelsError.self) { try SVG2VideoAttention(c, SVG2Configuration(queryClusters: 100)) }
        #expect(throws: SparseKernelsError.self) { try XVideoAttention(threshold: 1.5) }
        #expect(throws: SparseKernelsError.self) { try SpargeVideoAttention(keepRatio: .nan) }
    }

    @Test("the recorder samples the same tokens of all layers over all steps")
    func recording() throws {
        let model = try TinyVideo().model()
        var (all, some) = (try CalibrationRecorder(capacity: 100), try CalibrationRecorder(capacity: 5, seed: 2))
        let sampler = try VideoSampler(steps: 3)
        let clip = try all.record(prompt: prompt, seed: 4, through: model, sampler: sampler)
        try some.record(prompt: prompt, seed: 4, through: model, sampler: sampler, on: .serial)
        #expect(try sampler(model, prompt: prompt, seed: 4).clip.pixels == clip.pixels)
        #expect(all.tokens == 36 && all.layers == model.linearLayers.sorted())
        func rows(_ recorder: CalibrationRecorder, _ layer: String) throws -> [[Float]] {
            let sample = try recorder.sample(of: layer)
            let width = sample.shape[1]
            return (0..<sample.shape[0]).map { Array(sample.elements[$0 * width..<($0 + 1) * width]) }
        }
        let places = try ["blocks.0.o", "blocks.1.down"].map { layer in
            let everything = try rows(all, layer)
            return try rows(some, layer).map { try #require(everything.firstIndex(of: $0)) }
        }
        #expect(places[0] == places[1] && Set(places[0]).count == 5)
        #expect(throws: SparseKernelsError.self) {
            try some.record(tokens: 3) { observe throws(SparseKernelsError) in try observe("other", Tensor(zeros: [2, 4])) }
        }
    }

    @Test("patches become pixels: colour, row and column within a square of a frame")
    func unpatchifying() throws {
        let c = try TinyVideo().model().configuration
        let clip = try VideoClip(patches: Tensor([8, 12]) { Float($0) }, c)
        // Frame 1, green, row 3, column 2: token (1, 1, 1) = 7, channel (1 · 2 + 1) · 2 + 0.
        #expect(clip.pixels[1, 1, 3, 2] == 7 * 12 + 6)
        #expect(clip.pixels[0, 2, 0, 1] == 9)
        #expect(throws: SparseKernelsError.self) { try VideoClip(patches: Tensor(zeros: [7, 12]), c) }
        let shades = try VideoClip(pixels: Tensor([1, 3, 1, 2], [-1, 1, 0, 7, -.infinity, .nan]))
        #expect(shades.bytes(ofFrame: 0) == [0, 128, 0, 255, 255, 0])
        #expect(shades.bytes(ofFrame: 0, scale: 2).count == 24)
        #expect(Array(shades.bytes(ofFrame: 0, scale: 2)[3..<9]) == [0, 128, 0, 255, 255, 0])
    }
}
