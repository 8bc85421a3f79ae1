import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Reduction of tokens, and decoding of action tokens: attention mass beside a prefill of the same keys, merging of frames at the speed of
/// memory, and a block of action tokens beside as many steps.
extension VisionCases {
    func tokenGroups() -> [CaseGroup] {
        let shapes = isQuick ? [(4096, 8, 2)] : run.isLong ? [(32768, 8, 2), (32768, 28, 4)] : [(32768, 8, 2)]
        return shapes.map { massGroup(length: $0, heads: $1, kvHeads: $2) } + [
            memoryGroup(op: "vision.merge", name: "similarities \(frames)×196×3584") { [frames] in
                try SimilarityProblem(frames: frames)
            },
            memoryGroup(op: "vision.merge", name: "means of pairs \(frames)×196×3584") { [frames] in
                try PairMeanProblem(frames: frames)
            },
            memoryGroup(op: "vision.merge", name: "every other row \(frames)×196×3584") { [frames] in
                try CompactionProblem(frames: frames)
            },
            actionGroup,
        ]
    }

    private var frames: Int { isQuick ? 8 : 64 }

    // MARK: - Column mass

    /// The baseline is causal attention of all tokens. With all queries, the mass is a second pass over the same pairs.
    private func massGroup(length: Int, heads: Int, kvHeads: Int) -> CaseGroup {
        let labels = [VisionBaseline.prefill, "32 queries", "32 queries, LSE given", "all queries, LSE given"]
        let shape = try! AttentionShape(
            queryLength: length, keyLength: length, queryHeads: heads, kvHeads: kvHeads, headDim: 128)
        var group = CaseGroup(
            op: "vision.mass", name: "N \(length) d 128 H \(heads)/\(kvHeads)", amounts: .uncounted, labels: labels
        ) { announce in
            announce("making queries and keys, and a prefill")
            let problem = try MassProblem(shape, instructionSet, on: pool)
            let few = Double(heads * 32 * length * 128)
            let all = Double(problem.attention.visiblePairs * 128)
            func variant(_ label: String, products: Double, _ body: @escaping () -> Void) -> Variant {
                var variant = Variant(
                    isa: instructionSet.name, threads: pool.threads, body: body, verify: { nil },
                    roof: { MachineRoofs.multiplyAdd(instructionSet: instructionSet, on: pool, duration: .zero) }, label: label)
                variant.baseline = label == VisionBaseline.prefill ? nil : (0, VisionBaseline.prefill)
                variant.amounts = .operations(2 * products)
                return variant
            }
            var variants = [
                variant(labels[0], products: 2 * all, problem.attend),
                variant(labels[1], products: 2 * few) { problem.sum(problem.last, given: false) },
                variant(labels[2], products: few) { problem.sum(problem.last, given: true) },
                variant(labels[3], products: all) { problem.sum(problem.all, given: true) },
            ]
            variants[1].verify = { problem.check(given: false) }
            variants[2].verify = { problem.check(given: true) }
            variants[3].verify = { problem.checkTotal() }
            return variants
        }
        group.rounds = isQuick ? nil : 2
        return group
    }

    // MARK: - Actions

    /// A layer of a language model: 70 action tokens in one pass, beside 70 passes of one token.
    private var actionGroup: CaseGroup {
        let (tokens, cached, width, inner) = (70, isQuick ? 1024 : 8192, 2048, 5632)
        return CaseGroup(
            op: "vision.actions", name: "\(tokens) over \(cached), width \(width)", amounts: .uncounted,
            labels: [VisionBaseline.steps, "one block"]
        ) { announce in
            announce("making a layer and a cache")
            let layer = try ActionLayer(
                tokens: tokens, cached: cached, width: width, inner: inner, heads: 16, kvHeads: 4, instructionSet, on: pool)
            let operations = 2 * layer.products
            var steps = Variant(
                isa: instructionSet.name, threads: pool.threads, body: layer.runSteps, verify: { nil },
                label: VisionBaseline.steps)
            steps.amounts = .operations(operations)
            var block = Variant(
                isa: instructionSet.name, threads: pool.threads, body: layer.runBlock, verify: { nil },
                baseline: (0, VisionBaseline.steps),
                roof: { MachineRoofs.multiplyAdd(instructionSet: instructionSet, on: pool, duration: .zero) },
                label: "one block")
            block.amounts = .operations(operations)
            block.verify = { layer.check() }
            return [steps, block]
        }
    }
}

extension VisionBaseline {
    static let prefill = "prefill"
    static let steps = "steps"
}

/// Random queries and keys, and what attention says of them.
private final class MassProblem {
    let attention: DenseAttention
    let last: AttentionColumnMass
    let all: AttentionColumnMass
    private let shape: AttentionShape
    private let query: Tensor<Float>
    private let key: Tensor<Float>
    private var output: Tensor<Float>
    private let state: AttentionState
    private var mass: Tensor<Float>
    private let pool: WorkerPool

    init(_ shape: AttentionShape, _ set: InstructionSet, on pool: WorkerPool) throws {
        (self.shape, self.pool) = (shape, pool)
        attention = try DenseAttention(shape, mask: .causal, instructionSet: set)
        let queries = Array(shape.queryLength - 32..<shape.queryLength)
        last = try AttentionColumnMass(shape, queries: queries, instructionSet: set)
        all = try AttentionColumnMass(shape, instructionSet: set)
        query = try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1)
        key = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2)
        state = try attention(query: query, key: key, value: key, on: pool)
        output = state.output
        mass = try Tensor(zeros: [shape.queryHeads, shape.keyLength])
    }

    func attend() { try! attention.run(query: query, key: key, value: key, into: &output, on: pool) }

    func sum(_ plan: AttentionColumnMass, given: Bool) {
        try! plan.run(query: query, key: key, logSumExp: given ? state.logSumExp : nil, into: &mass, on: pool)
    }

    /// Compares the first and the last head with the oracle.
    func check(given: Bool) -> Verification {
        sum(last, given: given)
        let (query, key) = (self.query, self.key)
        let (queries, keys) = (try! query.view(), try! key.view())
        var verification = Verification.none
        for head in [0, shape.queryHeads - 1] {
            let oracle = try! ReferenceColumnMass(
                shape, head: head, queries: last.queries, hasLogSumExp: given, query: queries, key: keys
            ) { key, query in query <= key }
            for index in 0..<shape.keyLength {
                verification.add(
                    error: abs(Double(mass[flat: head * shape.keyLength + index]) - oracle.mass[index]),
                    bound: oracle.bounds[index])
            }
        }
        return verification
    }

    /// The mass of all keys is the number of queries. Each probability is within 10⁻⁵.
    func checkTotal() -> Verification {
        sum(all, given: true)
        var verification = Verification.none
        for head in 0..<shape.queryHeads {
            var total = 0.0
            for index in 0..<shape.keyLength { total += Double(mass[flat: head * shape.keyLength + index]) }
            verification.add(error: abs(total / Double(shape.queryLength) - 1), bound: 1e-5)
        }
        return verification
    }
}

/// Hidden states of a video. Which numbers they are does not matter to speed.
private func video(frames: Int) throws -> Tensor<Float> {
    try Tensor([frames * 196, 3584]) { Float(($0 &* 2_654_435_761) >> 7 & 0xffff) / 65536 - 0.5 }
}

private final class SimilarityProblem: RowProblem {
    private let x: Tensor<Float>
    private let chains: FrameChains
    private var similarities: Tensor<Float>

    init(frames: Int) throws {
        x = try video(frames: frames)
        chains = try FrameChains(frames: frames, places: 196)
        similarities = try Tensor(zeros: [x.shape[0]])
    }

    var elements: Int { x.count }
    var bytes: Int { x.count * 4 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let merge = try FrameMerge(channels: 3584, instructionSet: set)
        return { [self] in similarities = try! merge.similarities(x, chains, on: pool) }
    }

    func check() -> Verification {
        var verification = Verification.none
        for token in [196, x.shape[0] / 2, x.shape[0] - 1] {
            func row(_ index: Int) -> [Double] { (0..<3584).map { Double(x[flat: index * 3584 + $0]) } }
            let oracle = ReferenceCosine(row(token), row(token - 196))
            verification.add(error: abs(Double(similarities[flat: token]) - oracle.value), bound: oracle.bound)
        }
        return verification
    }
}

private final class PairMeanProblem: RowProblem {
    private let given: Tensor<Float>
    private var x: Tensor<Float>
    private let chains: FrameChains
    private let merged: [Int]

    init(frames: Int) throws {
        given = try video(frames: frames)
        x = given
        chains = try FrameChains(frames: frames, places: 196)
        merged = (0..<given.shape[0]).filter { $0 / 196 % 2 == 1 }
    }

    var elements: Int { given.count }
    // Both rows of a pair are read, and one is written.
    var bytes: Int { given.count * 6 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let merge = try FrameMerge(channels: 3584, instructionSet: set)
        return { [self] in _ = try! merge(&x, chains, merging: merged, on: pool) }
    }

    func reset() { x = given }

    func check() -> Verification {
        var verification = Verification.none
        for element in stride(from: 0, to: 196 * 3584, by: 97) {
            let (a, b) = (Double(given[flat: element]), Double(given[flat: element + 196 * 3584]))
            verification.add(
                error: abs(Double(x[flat: element]) - (a + b) / 2), bound: 0x1p-24 * (abs(a) + abs(b)))
        }
        return verification
    }
}

private final class CompactionProblem: RowProblem {
    private let x: Tensor<Float>
    private var y: Tensor<Float>
    private let compaction: TokenCompaction

    init(frames: Int) throws {
        x = try video(frames: frames)
        compaction = try TokenCompaction(length: x.shape[0], keeping: Array(stride(from: 0, to: x.shape[0], by: 2)))
        y = try Tensor(zeros: [compaction.kept.count, 3584])
    }

    var elements: Int { y.count }
    var bytes: Int { y.count * 8 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        { [self] in Self.compact(x, into: &y, compaction, pool) }
    }

    private static func compact(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, _ compaction: TokenCompaction, _ pool: WorkerPool
    ) {
        try! compaction.run(x.matrixView(), into: y.mutableMatrixView(), on: pool)
    }

    func check() -> Verification {
        var verification = Verification.none
        for row in [0, 1, y.shape[0] - 1] {
            for channel in 0..<3584 {
                let (a, b) = (y[flat: row * 3584 + channel], x[flat: 2 * row * 3584 + channel])
                verification.add(error: Double(abs(a - b)), bound: 0)
            }
        }
        return verification
    }
}

/// A layer with half-precision weights and cache, without norms and rotation, which are small.
private final class ActionLayer {
    let products: Double
    private let projection: FloatLinear
    private let output: FloatLinear
    private let gateUp: FloatLinear
    private let down: FloatLinear
    private let activation: GatedActivation
    private let stepAttention: PagedAttention
    private let blockAttention: DenseAttention
    private let cache: PagedKVCache
    private let sequence: PagedKVCache.SequenceID
    private let rows: Tensor<Float>
    private let singles: [Tensor<Float>]
    private let heads: Int
    private let pool: WorkerPool
    private var results: [Tensor<Float>] = []
    private var blockResult: Tensor<Float>

    init(
        tokens: Int, cached: Int, width: Int, inner: Int, heads: Int, kvHeads: Int, _ set: InstructionSet, on pool: WorkerPool
    ) throws {
        (self.heads, self.pool) = (heads, pool)
        let columns = (heads + 2 * kvHeads) * 128
        func weight(_ rows: Int, _ columns: Int) throws -> FloatLinear {
            let weight = try Tensor<Float16>([rows, columns]) {
                Float16(Float(($0 &* 2_654_435_761) >> 9 & 0x3ff) / 16384 - 0.03125)
            }
            return try FloatLinear(weight: weight, instructionSet: set, on: pool)
        }
        projection = try weight(columns, width)
        output = try weight(width, heads * 128)
        gateUp = try weight(2 * inner, width)
        down = try weight(width, inner)
        activation = try GatedActivation(.silu, instructionSet: set)
        cache = try PagedKVCache(
            KVCacheConfiguration(kvHeads: kvHeads, headDim: 128, pageCapacity: (cached + tokens) / 64 + 2), instructionSet: set)
        stepAttention = try PagedAttention(
            queryHeads: heads, configuration: cache.configuration, mask: .full, instructionSet: set)
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: cached + tokens, queryHeads: heads, kvHeads: kvHeads, headDim: 128)
        blockAttention = try DenseAttention(shape, instructionSet: set)
        sequence = cache.makeSequence()
        let keys = try Tensor<Float>.normal([kvHeads, cached + tokens, 128], seed: 1)
        try cache.append(key: keys, value: keys, to: sequence, on: pool)
        let rows = try Tensor<Float>.normal([tokens, width], seed: 2)
        self.rows = rows
        singles = try (0..<tokens).map { row in try Tensor([1, width]) { rows[flat: row * width + $0] } }
        blockResult = rows
        let weights = columns * width + width * heads * 128 + 3 * width * inner
        products = Double(tokens) * Double(weights + 2 * heads * 128 * (cached + tokens))
    }

    func runSteps() { results = singles.map(run) }

    func runBlock() { blockResult = run(rows) }

    private func run(_ x: Tensor<Float>) -> Tensor<Float> {
        let tokens = x.shape[0]
        let queries = try! projection(x, on: pool)
        var attended = try! Tensor<Float>(zeros: [tokens, heads * 128])
        let view = try! queries.view(headDim: 128)
        if tokens == 1 {
            try! stepAttention.run(
                query: view.heads(0..<heads), cache: cache, sequences: [sequence],
                output: attended.mutableView(headDim: 128), on: pool)
        } else {
            let cached = try! cache.rows(of: sequence)
            try! blockAttention.run(
                query: view.heads(0..<heads), key: cached.key, value: cached.value,
                output: attended.mutableView(headDim: 128), on: pool)
        }
        let hidden = try! gateUp(output(attended, on: pool), on: pool)
        var gated = try! Tensor<Float>(zeros: [tokens, hidden.shape[1] / 2])
        try! activation.run(halvesOf: hidden, into: &gated, on: pool)
        return try! down(gated, on: pool)
    }

    /// The rows of the block are those of the steps, up to the order of sums.
    func check() -> Verification {
        runSteps()
        runBlock()
        var verification = Verification.none
        let (width, size) = (rows.shape[1], blockResult.elements.reduce(0) { max($0, abs($1)) })
        for (row, result) in results.enumerated() {
            for channel in 0..<width {
                let difference = abs(result[flat: channel] - blockResult[flat: row * width + channel])
                verification.add(error: Double(difference), bound: 1e-5 * Double(size))
            }
        }
        return verification
    }
}
