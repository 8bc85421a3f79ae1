import CATS
import DuoAttention
import LServe
import MInference
import PolarSparsity
import QServe
import Quest
import SVDQuant
import SpargeAttention
import SparseKernels
import SparseVideoGen
import Testing
import Twilight
import XAttention

/// Client code that passes results of throwing functions directly to a call. With views of such temporaries Swift 6.3.1 crashes
/// ("Instruction does not dominate all uses"), so every call has a form with tensors. The test is that this file compiles.
@Suite("Operands that are temporaries")
struct TemporaryOperandTests {
    static func pattern(_ shape: [Int], _ step: Int = 7) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    static func halves(_ shape: [Int], _ step: Int = 7) throws -> Tensor<Float16> { try pattern(shape, step).converted() }

    // MARK: - Caches

    @Test("appending to and overwriting in a cache")
    func cache() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 8, pageCapacity: 4, format: .float32))
        let sequence = cache.makeSequence()
        try cache.append(key: Self.pattern([1, 2, 8]), value: Self.pattern([1, 2, 8], 3), to: sequence)
        try cache.append(key: Self.halves([1, 1, 8]), value: Self.pattern([1, 1, 8]), to: sequence, on: .serial)
        try cache.overwrite(key: Self.pattern([1, 1, 8], 5), value: Self.pattern([1, 1, 8], 9), in: sequence, from: 1)
        #expect(try cache.length(of: sequence) == 3)
        let (keys, first, second) = try (cache.keys(of: sequence), Self.pattern([1, 2, 8]), Self.pattern([1, 1, 8], 5))
        #expect(Array(keys.elements[..<8]) == Array(first.elements[..<8]))
        #expect(Array(keys.elements[8..<16]) == second.elements)
        #expect(throws: SparseKernelsError.self) {
            try cache.append(key: Self.pattern([8]), value: Self.pattern([1, 1, 8]), to: sequence)
        }
    }

    /// Views of these operands are errors: "lifetime-dependent value escapes its scope".
    @Test("elements of collections and variable properties of classes")
    func places() throws {
        final class Model {
            var key: Tensor<Float>
            init() throws { key = try TemporaryOperandTests.pattern([1, 1, 8]) }
        }
        let model = try Model()
        let values = try ["v": Self.pattern([1, 1, 8], 3)]
        let layers = try [Self.pattern([1, 1, 8], 5)]
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 8, pageCapacity: 4))
        let sequence = cache.makeSequence()
        try cache.append(key: model.key, value: values["v"]!, to: sequence)
        try cache.append(key: layers[0], value: model.key, to: sequence)
        model.key[0, 0, 3] = 4
        try cache.overwrite(key: model.key, value: layers[0], in: sequence, from: 0)
        #expect(try cache.keys(of: sequence)[0, 0, 3] == 4)
    }

    @Test("attention over a cache, into a tensor")
    func pagedAttention() throws {
        let (cache, sequence) = try Self.filledCache(tokens: 40)
        let attention = try PagedAttention(queryHeads: 4, configuration: cache.configuration)
        var output = try Tensor<Float>(zeros: [4, 1, 16])
        try attention.run(query: Self.pattern([4, 1, 16]), cache: cache, sequences: [sequence], into: &output)
        #expect(try attention(query: Self.pattern([4, 1, 16]), cache: cache, sequences: [sequence]).output == output)
    }

    static func filledCache(layers: Int = 1, tokens: Int) throws -> (PagedKVCache, PagedKVCache.SequenceID) {
        let configuration = try TwilightDecode.cache(layers: layers, kvHeads: 2, headDim: 16, pageCapacity: 64)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        for layer in 0..<layers {
            try cache.append(key: pattern([2, tokens, 16], 11), value: pattern([2, tokens, 16]), to: sequence, layer: layer)
        }
        return (cache, sequence)
    }

    // MARK: - Selection

    @Test("selectors and the pruner")
    func selection() throws {
        let (cache, sequence) = try Self.filledCache(tokens: 400)
        let selector = try PageSelector(queryHeads: 4, configuration: cache.configuration, tokenBudget: 64)
        let query = try Self.pattern([4, 1, 16], 13)
        let pages = try selector.select(query: Self.pattern([4, 1, 16], 13), cache: cache, sequences: [sequence])
        #expect(try pages == selector.select(query: query.view(), cache: cache, sequences: [sequence]))
        let scores = try selector.pageScores(query: Self.pattern([4, 1, 16], 13), cache: cache, sequence: sequence)
        #expect(try scores == selector.pageScores(query: query.view(), cache: cache, sequence: sequence))
        var reusable = try ReusableSelection(selector, interval: 4)
        #expect(try pages == reusable.select(query: Self.pattern([4, 1, 16], 13), cache: cache, sequences: [sequence]))
        let pruner = try TokenPruner(queryHeads: 4, configuration: cache.configuration, topP: 0.85)
        let kept = try pruner.prune(
            query: Self.pattern([4, 1, 16], 13), cache: cache, sequences: [sequence], within: pages)
        let expected = try pruner.prune(query: query.view(), cache: cache, sequences: [sequence], within: pages)
        #expect(kept.selection == expected.selection)
    }

    @Test("the k largest and the mass, of arrays and tensors")
    func budgets() throws {
        func weights() throws -> Tensor<Float> { try Tensor([2, 2], [0.5, 0.1, 0.3, 0.1]) }
        #expect(try TopK.select(scores: weights(), count: 2) == [0, 2])
        #expect(try TopK.select(scores: weights().elements, count: 2) == [0, 2])
        #expect(try TopP.select(weights: weights(), mass: 0.7) == [0, 2])
        #expect(try TopP.select(weights: weights().elements, mass: 0.7) == [0, 2])
        let bisection = try TopP.bisection(weights: weights(), mass: 0.7)
        #expect(try bisection == TopP.bisection(weights: weights().elements, mass: 0.7))
        #expect(try bisection.indices(in: weights()) == [0, 2] && bisection.indices(in: weights().elements) == [0, 2])
    }

    // MARK: - Attention and scoring

    @Test("dense attention, with a bias and from the shape of temporaries")
    func attention() throws {
        let shape = try AttentionShape(
            query: Self.pattern([4, 6, 16]), key: Self.halves([2, 9, 16]), value: Self.pattern([2, 9, 8]))
        #expect(shape.queryHeads == 4 && shape.keyLength == 9 && shape.valueDim == 8)
        let attention = try DenseAttention(shape)
        var output = try Tensor<Float>(zeros: [4, 6, 8])
        try attention.run(
            query: Self.pattern([4, 6, 16]), key: Self.pattern([2, 9, 16]), value: Self.pattern([2, 9, 8]),
            bias: Self.pattern([1, 6, 9]), into: &output)
        let state = try attention(
            query: Self.pattern([4, 6, 16]), key: Self.pattern([2, 9, 16]), value: Self.pattern([2, 9, 8]),
            bias: Self.pattern([1, 6, 9]))
        #expect(state.output == output)
    }

    @Test("façades of prefill")
    func prefill() throws {
        let shape = try AttentionShape(queryLength: 256, keyLength: 256, queryHeads: 2, kvHeads: 1, headDim: 32)
        func query() throws -> Tensor<Float> { try Self.pattern([2, 256, 32]) }
        func key() throws -> Tensor<Float> { try Self.pattern([1, 256, 32], 5) }
        func value() throws -> Tensor<Float> { try Self.pattern([1, 256, 32], 3) }
        let xattention = try XAttentionPrefill(shape)
        #expect(try xattention(query: query(), key: key(), value: value()).state.output.shape == [2, 256, 32])
        #expect(try xattention.select(query: query(), key: key()).mask.grid.blockRows == 2)
        let minference = try MInferencePrefill(shape)
        #expect(try minference.select(query: query(), key: key()).patterns.count == 2)
        let duo = try DuoAttentionPrefill(shape, heads: [true])
        #expect(try duo(query: query(), key: key(), value: value()).output.shape == [2, 256, 32])
        let sparge = try SpargeAttentionPrefill(shape)
        let mask = try sparge.mask(query: sparge.querySummary(query()), key: sparge.keySummary(key()))
        #expect(try mask == sparge.select(query: query(), key: key()))
        let scoring = try AntidiagonalScoring(shape, grid: BlockGrid(queryLength: 256, keyLength: 256, isCausal: true))
        #expect(try scoring.run(query: query(), key: key()).values == scoring(query: query(), key: key()).values)
    }

    @Test("façades of video")
    func video() throws {
        let shape = try AttentionShape(queryLength: 60, keyLength: 60, queryHeads: 2, kvHeads: 2, headDim: 8)
        let geometry = try VideoGeometry(frames: 4, height: 3, width: 5)
        func operand() throws -> Tensor<Float> { try Self.pattern([2, 60, 8]) }
        let svg = try SVGAttention(shape, geometry: geometry, SVGConfiguration(density: 0.6))
        let kinds = try svg.select(query: operand(), key: operand(), value: operand(), sampledRows: [3, 50])
        #expect(kinds.patterns.count == 2)
        let svg2 = try SVG2Attention(shape, geometry: geometry, SVG2Configuration(queryClusters: 4, keyClusters: 6))
        var (state, output) = (SVG2State(), try operand())
        try svg2.track(query: operand(), key: operand(), in: &state)
        _ = try svg2.select(query: operand(), key: operand(), continuing: &state)
        try svg2.run(query: operand(), key: operand(), value: operand(), into: &output, state: &state)
        #expect(try svg2(query: operand(), key: operand(), value: operand()).masks.count == 2 && state.count == 1)
    }

    @Test("façades of decoding")
    func decoding() throws {
        let (cache, sequence) = try Self.filledCache(layers: 3, tokens: 400)
        let query = try Self.pattern([4, 1, 16], 13)
        let quest = try QuestDecode(queryHeads: 4, configuration: cache.configuration, tokenBudget: 64)
        let pages = try quest.select(query: Self.pattern([4, 1, 16], 13), cache: cache, sequences: [sequence], layer: 2)
        #expect(try pages == quest.select(query: query.view(), cache: cache, sequences: [sequence], layer: 2))
        let twilight = try TwilightDecode(queryHeads: 4, configuration: cache.configuration)
        let candidates = try twilight.select(query: Self.pattern([4, 1, 16], 13), cache: cache, sequences: [sequence])
        #expect(try candidates == twilight.select(query: query.view(), cache: cache, sequences: [sequence]))
        let pruning = try twilight.prune(query: Self.pattern([4, 1, 16], 13), cache: cache, sequences: [sequence])
        #expect(try pruning.masses == twilight.prune(query: query.view(), cache: cache, sequences: [sequence]).masses)

        let layer = try LServeLayer(
            queryHeads: 4, headDim: 16, isRetrieval: [true, false], tokenCapacity: 1024, sequenceCapacity: 2)
        let (prompt, stored) = try (layer.makeSequence(), layer.makeSequence())
        let state = try layer.prefill(
            query: Self.pattern([4, 9, 16]), key: Self.pattern([2, 9, 16]), value: Self.halves([2, 9, 16]), sequence: prompt)
        try layer.append(key: Self.pattern([2, 9, 16]), value: Self.halves([2, 9, 16]), to: stored)
        let next = try layer.decode(
            query: Self.pattern([4, 2, 16]), key: Self.pattern([2, 2, 16]), value: Self.pattern([2, 2, 16]),
            sequences: [prompt, stored])
        #expect(state.output.shape == [4, 9, 16] && next.output.shape == [4, 2, 16])
        #expect(try layer.length(of: stored) == 10)
    }

    // MARK: - Linear layers and dense algebra

    @Test("quantised layers into a tensor, and their codes")
    func layers() throws {
        let quantized = try ProgressiveQuantizer()(Self.pattern([64, 256]))
        let qserve = try QServeLinear(quantized: quantized, bias: Self.pattern([64]))
        var y = try Tensor<Float>(zeros: [3, 64])
        try qserve.run(Self.pattern([3, 256]), into: &y)
        #expect(try qserve(Self.pattern([3, 256])) == y)
        #expect(try qserve.linear.quantized(Self.pattern([3, 256])).codes.shape[0] == 3)
        let svdquant = try SVDQuantLinear(
            weight: Self.pattern([64, 64]), calibration: Self.pattern([32, 64], 11), rank: 4)
        var halves = try Tensor<Float16>(zeros: [3, 64])
        try svdquant.run(Self.halves([3, 64]), into: &halves)
        #expect(halves.elements.contains { $0 != 0 })
    }

    @Test("products, rotations and factors")
    func algebra() throws {
        var c = try Tensor<Float>(zeros: [3, 5])
        let gemm = try GEMM(m: 3, n: 5, k: 4, transposesB: true)
        try gemm.run(a: Self.pattern([3, 4]), b: Self.pattern([5, 4]), into: &c)
        if OpenBLAS.isAvailable {
            var d = try Tensor<Float>(zeros: [3, 5])
            try OpenBLAS.multiply(a: Self.pattern([3, 4]), b: Self.pattern([5, 4]), into: &d, transposesB: true)
            #expect(zip(c.elements, d.elements).allSatisfy { abs($0 - $1) < 1e-5 })
            var y = try Tensor<Float>(zeros: [3])
            try OpenBLAS.multiplyVector(a: Self.pattern([3, 4]), x: Self.pattern([4]), into: &y)
            #expect(abs(y[0] - c[0, 0]) < 1e-5)
        } else {
            #expect(throws: SparseKernelsError.self) {
                try OpenBLAS.multiply(a: Self.pattern([3, 4]), b: Self.pattern([4, 5]), into: &c)
            }
        }
        var rows = try Self.pattern([3, 64])
        let rotation = try HadamardRotation(count: 64, seed: 1)
        try rotation.run(rows: &rows)
        #expect(try rotation(Self.pattern([3, 64])) == rows)
        #expect(try LowRankFactorization(rank: 2)(Self.pattern([9, 7])).rank == 2)
        #expect(try InverseCholesky(of: Tensor<Float>([2, 2], [2, 0, 0, 3])) != nil)
    }

    // MARK: - Elements

    @Test("setting elements of a tensor without leaving safe Swift")
    func elements() throws {
        var tensor = try Tensor<Float>(zeros: [2, 3])
        tensor[1, 2] = 5
        tensor[0, 0] += 2
        tensor.update { position, element in element += Float(position) }
        #expect(tensor.elements == [2, 1, 2, 3, 4, 10])
    }

    // MARK: - Skipped activations and heads

    @Test("CATS and Polar Sparsity")
    func contextual() throws {
        let layer = try CATSLayer(
            gate: Self.pattern([6, 4]), up: Self.pattern([6, 4], 3), down: Self.pattern([4, 6]), threshold: 0.1)
        var (histogram, workspace) = (ActivationHistogram(), CATSWorkspace())
        try layer.record(Self.pattern([3, 4]), into: &histogram, workspace: &workspace)
        try histogram.add(Self.pattern([2, 6]))
        var y = try Tensor<Float>(zeros: [2, 4])
        #expect(try layer.run(Self.pattern([2, 4], 5), into: &y, workspace: &workspace) <= 6)
        #expect(histogram.count == 30)

        let fitting = try RouterFitting()
        let heads = try fitting.headRouter(inputs: Self.pattern([9, 4]), activity: Self.pattern([9, 3], 5))
        #expect(try heads.select(Self.pattern([2, 4]), count: 1).indices.count == 2)
        #expect(try HeadSelection.strongest(Self.pattern([2, 4]), count: 3).sequences == 2)
        let neurons = try fitting.neuronRouter(inputs: Self.pattern([9, 4]), activity: Self.pattern([9, 6], 5), rank: 2)
        #expect(try neurons.select(Self.pattern([2, 4]), .strongest(6)).isAll)
        let mlp = try PolarMLP(up: Self.pattern([6, 4]), down: Self.pattern([4, 6]))
        var rows = PolarMLP.Workspace()
        try mlp.run(Self.pattern([2, 4]), into: &y, workspace: &rows)
        #expect(try mlp.hidden(of: Self.pattern([2, 4]), workspace: &rows).shape == [2, 6])
        #expect(try HeadActivity.norms(of: Self.pattern([4, 2, 8]), heads: 2).shape == [2, 2])
        var channels = ChannelSubset(all: 0)
        try ActiveColumns().list(Self.pattern([2, 6]), into: &channels)
        #expect(channels.width == 6)
    }
}
