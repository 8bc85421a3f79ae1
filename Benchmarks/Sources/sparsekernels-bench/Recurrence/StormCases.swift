import BenchmarkReport
import STORM
import SparseKernels
import SparseKernelsReference

/// Token reduction of STORM by 1, 2, 4 and 8: what it takes, and what a layer of a language model after it takes for the tokens that
/// are left. The layer is causal attention of 16 heads × 64 channels and a gated MLP of 1024 × 2816, for 32 frames of 256 tokens.
///
/// `encoder` is one bidirectional Mamba layer over all tokens. Rows of the layer are compared with that over all tokens.
extension RecurrenceCases {
    func stormGroups() -> [CaseGroup] {
        let frames = isQuick ? 8 : 32
        var group = CaseGroup(
            op: "recurrence.storm", name: "STORM \(frames) × 256", amounts: .uncounted,
            labels: ["encoder", StormProblem.whole, "pool 2", "stack 2", "pool 4", "stack 4", "pool 8", "stack 8"]
        ) { announce in
            announce("making the layers")
            let problem = try StormProblem(frames: frames, instructionSet, on: pool)
            func variant(_ label: String, _ body: @escaping () -> Void) -> Variant {
                Variant(isa: instructionSet.name, threads: pool.threads, body: body, verify: { nil }, label: label)
            }
            var variants = [
                variant("encoder", problem.encoder()), variant(StormProblem.whole, try problem.stack(tokens: frames * 256)),
            ]
            for (ratio, reduction) in [
                (2, try STORMTokenReduction(temporalPool: 2)), (4, try STORMTokenReduction(temporalPool: 4)),
                (8, try STORMTokenReduction(temporalPool: 4, samplingRate: 2)),
            ] {
                variants.append(variant("pool \(ratio)", try problem.reduce(reduction)))
                var stack = variant("stack \(ratio)", try problem.stack(tokens: frames * 256 / ratio))
                stack.baseline = (1, StormProblem.whole)
                variants.append(stack)
            }
            return variants
        }
        group.rounds = isQuick ? nil : 5
        return [group]
    }
}

final class StormProblem {
    static let whole = "stack 1"
    static let (width, heads, headDim, hidden) = (1024, 16, 64, 2816)

    private let frames: Int
    private let set: InstructionSet
    private let pool: WorkerPool
    private let storm: STORMEncoder
    private let video: Tensor<Float>
    private let qkv: FloatLinear
    private let output: FloatLinear
    private let gateAndUp: FloatLinear
    private let down: FloatLinear
    private let activation: GatedActivation

    init(frames: Int, _ set: InstructionSet, on pool: WorkerPool) throws {
        (self.frames, self.set, self.pool) = (frames, set, pool)
        let configuration = STORMConfiguration(width: Self.width)
        let inner = configuration.innerWidth
        func direction(_ seed: UInt64) throws -> STORMDirectionWeights {
            try STORMDirectionWeights(
                convolution: .normal([inner, 4], seed: seed, scale: 0.5), convolutionBias: .init(zeros: [inner]),
                projection: .normal([configuration.dtRank + 32, inner], seed: seed + 1, scale: 0.02),
                stepProjection: .normal([inner, configuration.dtRank], seed: seed + 2, scale: 0.1),
                stepBias: Tensor([inner]) { -6.9 + Float($0 % 16) / 16 * 4.6 },
                aLog: Tensor([inner, 16]) { Float($0 % 16) / 16 * 2.77 }, skip: Tensor([inner]) { _ in 1 })
        }
        let layer = try STORMLayerWeights(
            normWeight: Tensor([Self.width]) { _ in 1 }, normBias: .init(zeros: [Self.width]),
            inputProjection: .normal([2 * inner, Self.width], seed: 1, scale: 0.02), forward: direction(10),
            backward: direction(20),
            outputProjection: .normal([Self.width, inner], seed: 2, scale: 0.02))
        storm = try STORMEncoder([layer], configuration, instructionSet: set)
        video = try .normal([frames, 16, 16, Self.width], seed: 3)
        func linear(_ outFeatures: Int, _ inFeatures: Int) throws -> FloatLinear {
            try FloatLinear(
                weight: Tensor<Float>.normal([outFeatures, inFeatures], seed: 4, scale: 0.02), instructionSet: set, on: pool)
        }
        qkv = try linear(3 * Self.width, Self.width)
        output = try linear(Self.width, Self.width)
        gateAndUp = try linear(2 * Self.hidden, Self.width)
        down = try linear(Self.width, Self.hidden)
        activation = try GatedActivation(.silu, instructionSet: set)
    }

    func encoder() -> () -> Void {
        var tokens = try! Tensor([frames * 256, Self.width], video.elements)
        let states = try! storm.makeStates()
        let (storm, pool) = (storm, pool)
        return { try! storm.run(&tokens, states: states, on: pool) }
    }

    func reduce(_ reduction: STORMTokenReduction) throws -> () -> Void {
        let (video, pool) = (video, pool)
        var result = try Tensor<Float>(zeros: reduction.shape(of: video.shape))
        return { try! reduction.run(video, into: &result, on: pool) }
    }

    /// Attention and MLP of a layer, without norms and residual stream. Calls allocate what they return.
    func stack(tokens: Int) throws -> () -> Void {
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: Self.heads, kvHeads: Self.heads, headDim: Self.headDim)
        let attention = try DenseAttention(shape, mask: .causal, instructionSet: set)
        let x = try Tensor<Float>.normal([tokens, Self.width], seed: 5)
        let heads = try (6...8).map { try Tensor<Float>.normal([Self.heads, tokens, Self.headDim], seed: $0) }
        return { [self] in
            StormResult.keep(try! qkv(x, on: pool))
            StormResult.keep(try! attention(query: heads[0], key: heads[1], value: heads[2], on: pool).output)
            StormResult.keep(try! output(x, on: pool))
            let both = try! gateAndUp(x, on: pool)
            var gated = try! Tensor<Float>(zeros: [tokens, Self.hidden])
            try! activation.run(halvesOf: both.matrixView(), into: gated.mutableMatrixView(), on: pool)
            StormResult.keep(try! down(gated, on: pool))
        }
    }
}

private enum StormResult {
    @inline(never)
    static func keep(_ tensor: Tensor<Float>) { _ = tensor.count }
}
