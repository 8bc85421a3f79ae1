import BenchmarkReport
import NVILA
import SparseKernels
import SparseKernelsReference

/// The prefill of 64 frames of 448² pixels, before and after compression: vision tower, projector and language model.
///
/// The tower has 27 layers of width 1152 with 16 heads of 72 channels and an MLP of 4304, in W8A8, over the 1024 tokens of a frame. The
/// language model has 28 layers of width 3584 with 28 query and 4 KV heads of 128 channels and an MLP of 18944, in W4A16 — with `--quick`
/// of a quarter of that. Each kind of work is timed on a part of it: a tower layer on one frame, the linear layers on 1024 tokens, causal
/// attention on 256 queries in the middle of the prompt, which see as many keys as a query does on the average. Rows are sums over layers,
/// frames and tokens; norms of the language model, which take less than a hundredth, are left out.
extension VisionCases {
    static let compressions: [(label: String, downsampling: NVILADownsampling?, pool: Int)] = [
        ("uncompressed", nil, 1), ("2×2", .twoByTwo, 1), ("3×3", .threeByThree, 1), ("2×2, 8 frames", .twoByTwo, 8),
        ("3×3, 8 frames", .threeByThree, 8),
    ]

    func prefillGroups() -> [CaseGroup] {
        let parts = ["tower", "projector", "language model", "prefill"]
        var group = CaseGroup(
            op: "vision.nvila", name: "NVILA 64×448²", amounts: .uncounted,
            labels: [parts[0]]
                + Self.compressions.flatMap { item in
                    parts[(item.downsampling == nil ? 2 : 1)...].map { "\(item.label) \($0)" }
                }
        ) { announce in
            announce("making the layers")
            let tower = try TowerWork(instructionSet, on: pool)
            let model = try LanguageModelWork(divisor: isQuick ? 4 : 1, instructionSet, on: pool)
            var variants = [hidden(tower.body), hidden(model.linears)]
            var rows: [Variant] = []
            func row(_ label: String, _ mixture: [(index: Int, weight: Double)]) -> Variant {
                var variant = Variant(isa: instructionSet.name, threads: pool.threads, verify: { nil }, label: label)
                variant.mixture = mixture
                return variant
            }
            let frames = 64
            let towerTime = (index: 0, weight: Double(frames * TowerWork.layers))
            rows.append(row(parts[0], [towerTime]))
            var uncompressed = 0
            for item in Self.compressions {
                var mixture: [(index: Int, weight: Double)] = [towerTime]
                var cells = 1024
                if let kind = item.downsampling {
                    let work = try ProjectorWork(
                        kind, frames: 8, pool: item.pool, hidden: model.width, instructionSet, on: pool)
                    cells = work.cells
                    variants.append(hidden(work.body))
                    let time = (index: variants.count - 1, weight: Double(frames) / 8)
                    mixture.append(time)
                    rows.append(row("\(item.label) \(parts[1])", [time]))
                }
                // A newline after each frame.
                let tokens = frames / item.pool * (cells + 1)
                variants.append(hidden(try model.attention(tokens: tokens)))
                let language = [
                    (index: 1, weight: Double(LanguageModelWork.layers * tokens) / 1024),
                    (index: variants.count - 1, weight: Double(LanguageModelWork.layers * tokens) / 256),
                ]
                var reading = row("\(item.label) \(parts[2])", language)
                var whole = row("\(item.label) \(parts[3])", mixture + language)
                if item.downsampling == nil {
                    uncompressed = rows.count
                } else {
                    reading.baseline = (uncompressed, VisionBaseline.uncompressed)
                    whole.baseline = (uncompressed + 1, VisionBaseline.uncompressed)
                }
                rows += [reading, whole]
            }
            // What is timed comes first; how much that is, is known now.
            for index in rows.indices { rows[index].baseline?.index += variants.count }
            return variants + rows
        }
        group.rounds = isQuick ? nil : 3
        return [group]
    }

    private func hidden(_ body: @escaping () -> Void) -> Variant {
        Variant(isa: instructionSet.name, threads: pool.threads, body: body, isHidden: true, verify: { nil })
    }
}

/// A layer of the vision tower over one frame.
private final class TowerWork {
    static let layers = 27
    private static let (tokens, width, heads, hidden) = (1024, 1152, 16, 4304)

    private let pool: WorkerPool
    private let layer: VisionLayer
    private let given: Tensor<Float>
    private var x: Tensor<Float>
    private var workspace = VisionWorkspace()

    init(_ set: InstructionSet, on pool: WorkerPool) throws {
        self.pool = pool
        typealias Affine = VisionLayerWeights.Affine
        func linear(_ outFeatures: Int, _ inFeatures: Int) throws -> Affine {
            Affine(weight: try ProjectorSource.matrix(outFeatures, inFeatures), bias: try Tensor(zeros: [outFeatures]))
        }
        let norm = try Affine(weight: Tensor([Self.width]) { _ in 1 }, bias: Tensor(zeros: [Self.width]))
        let weights = try VisionLayerWeights(
            attentionNorm: norm, queryKeyValue: linear(3 * Self.width, Self.width),
            projection: linear(Self.width, Self.width), mlpNorm: norm, up: linear(Self.hidden, Self.width),
            down: linear(Self.width, Self.hidden))
        layer = try VisionLayer(
            VisionLayerConfiguration(width: Self.width, heads: Self.heads, hidden: Self.hidden, activation: .geluTanh), weights,
            linear: .w8a8, instructionSet: set, on: pool)
        given = try .normal([Self.tokens, Self.width], seed: 1)
        x = given
    }

    var body: () -> Void { { [self] in run() } }

    private func run() {
        // The residual stream would grow from call to call. Copying the frame takes a thousandth of the layer.
        x = given
        try! layer.run(&x, workspace: &workspace, on: pool)
    }
}

/// The projector over some frames, and pooling of its tokens.
private final class ProjectorWork {
    let cells: Int
    private let projector: NVILAProjector
    private let encoder: NVILAVideoEncoder
    private let x: Tensor<Float>
    private var workspace: NVILAProjectorWorkspace
    private var (cellTokens, tokens): (Tensor<Float>, Tensor<Float>)
    private let pool: WorkerPool

    init(
        _ kind: NVILADownsampling, frames: Int, pool pooled: Int, hidden: Int, _ set: InstructionSet, on pool: WorkerPool
    ) throws {
        self.pool = pool
        projector = try NVILAProjector(
            ProjectorSource.weights(kind, channels: 1152, hidden: hidden), kind, grid: GridSize(side: 32), format: .float16,
            instructionSet: set, on: pool)
        cells = projector.reshape.cells.count
        encoder = try NVILAVideoEncoder(
            frames: frames, grid: projector.reshape.cells, channels: hidden, pools: [PoolingWindow(frames: pooled)],
            end: Tensor(zeros: [1, hidden]), instructionSet: set)
        workspace = try projector.makeWorkspace()
        x = try .normal([frames * 1024, 1152], seed: 1)
        cellTokens = try Tensor(zeros: [frames * cells, hidden])
        tokens = try Tensor(zeros: [encoder.tokenCount, hidden])
    }

    var body: () -> Void { { [self] in run() } }

    private func run() {
        try! projector.run(x, into: &cellTokens, workspace: &workspace, on: pool)
        Self.encode(encoder, cellTokens, &tokens, pool)
    }

    private static func encode(
        _ encoder: NVILAVideoEncoder, _ x: Tensor<Float>, _ y: inout Tensor<Float>, _ pool: WorkerPool
    ) {
        try! encoder.run(x.matrixView(), into: y.mutableMatrixView(), on: pool)
    }
}

/// Layers of the language model. Calls allocate what they return.
private final class LanguageModelWork {
    static let layers = 28

    let width: Int
    private let (queryHeads, kvHeads, inner): (Int, Int, Int)
    private let set: InstructionSet
    private let pool: WorkerPool
    private let (qkv, output, gateAndUp, down): (NVILALinear, NVILALinear, NVILALinear, NVILALinear)
    private let activation: GatedActivation

    /// - Parameter divisor: of widths and heads.
    init(divisor: Int, _ set: InstructionSet, on pool: WorkerPool) throws {
        (self.set, self.pool) = (set, pool)
        (width, queryHeads, kvHeads, inner) = (3584 / divisor, 28 / divisor, 4 / divisor, 18944 / divisor)
        func linear(_ outFeatures: Int, _ inFeatures: Int) throws -> NVILALinear {
            try NVILALinear(
                weight: ProjectorSource.matrix(outFeatures, inFeatures), format: .w4a16(), instructionSet: set, on: pool)
        }
        qkv = try linear((queryHeads + 2 * kvHeads) * 128, width)
        output = try linear(width, queryHeads * 128)
        gateAndUp = try linear(2 * inner, width)
        down = try linear(width, inner)
        activation = try GatedActivation(.silu, instructionSet: set)
    }

    /// The linear layers over 1024 tokens.
    var linears: () -> Void {
        let x = try! Tensor<Float>.normal([1024, width], seed: 1)
        var projected = try! Tensor<Float>(zeros: [1024, qkv.outFeatures])
        let attended = try! Tensor<Float>.normal([1024, output.inFeatures], seed: 2)
        var (y, both) = (x, try! Tensor<Float>(zeros: [1024, 2 * inner]))
        var gated = try! Tensor<Float>(zeros: [1024, inner])
        return { [self] in
            try! qkv.run(x, into: &projected, on: pool)
            try! output.run(attended, into: &y, on: pool)
            try! gateAndUp.run(x, into: &both, on: pool)
            try! activation.run(halvesOf: both, into: &gated, on: pool)
            try! down.run(gated, into: &y, on: pool)
        }
    }

    /// 256 queries that see half of the tokens, as a query of a causal prompt does on the average.
    func attention(tokens: Int) throws -> () -> Void {
        let shape = try AttentionShape(
            queryLength: 256, keyLength: max(256, tokens / 2), queryHeads: queryHeads, kvHeads: kvHeads, headDim: 128)
        let plan = try DenseAttention(shape, mask: .full, instructionSet: set)
        let query = try Tensor<Float>.normal([queryHeads, 256, 128], seed: 3)
        let (key, value) = try (
            Tensor<Float>.normal([kvHeads, shape.keyLength, 128], seed: 4),
            Tensor<Float>.normal([kvHeads, shape.keyLength, 128], seed: 5)
        )
        var result = query
        let pool = pool
        return { try! plan.run(query: query, key: key, value: value, into: &result, on: pool) }
    }
}
