import SparseKernelsReference
import SparseLoRA
import TestSupport
import Testing

@Suite("SparseLoRA: estimators")
struct EstimatorTests {
    /// A weight of rank 5, so that estimators of rank 8 are exact.
    static func weight(_ rows: Int, _ columns: Int, seed: UInt64) throws -> Tensor<Float> {
        let (u, v) = (try Tensor<Float>.normal([rows, 5], seed: seed), try Tensor<Float>.normal([5, columns], seed: seed + 1))
        return try Tensor([rows, columns]) { index in
            (0..<5).reduce(0) { $0 + u[index / columns, $1] * v[$1, index % columns] } / 5
        }
    }

    static func mlp(_ channels: Int = 70, _ width: Int = 40) throws -> (MLPEstimator, gate: Tensor<Float>, up: Tensor<Float>) {
        let (gate, up) = (try weight(channels, width, seed: 1), try weight(channels, width, seed: 11))
        return (try MLPEstimator(gate: gate, up: up), gate, up)
    }

    @Test("an estimator of a weight of low rank is the layer", arguments: InstructionSet.available)
    func exact(_ set: InstructionSet) throws {
        let w = try Self.weight(30, 40, seed: 3)
        let estimator = try ChannelEstimator(weight: w)
        #expect(estimator.rank == 8 && estimator.inFeatures == 40 && estimator.outFeatures == 30)
        let x = try Tensor<Float>.normal([6, 40], seed: 4)
        var y = try Tensor<Float>(zeros: [6, 30])
        try estimator.estimate(x.matrixView(), into: y.mutableMatrixView(), instructionSet: set)
        let expected = BoundedMatrix(x).timesTransposed(BoundedMatrix(w))
        for (a, e) in zip(y.elements, expected.values) { #expect(abs(Double(a) - e) < 1e-4) }
        // Both factors have the same norm, as in the released code.
        let norms = [estimator.down, estimator.up].map { $0.elements.reduce(0) { $0 + $1 * $1 } }
        #expect(abs(norms[0] - norms[1]) < 1e-3 * norms[0])
    }

    @Test("norms of hidden values are those of the layer", arguments: InstructionSet.available)
    func hidden(_ set: InstructionSet) throws {
        let (estimator, gate, up) = try Self.mlp()
        let x = try Tensor<Float>.normal([70, 40], seed: 5)
        let scores = try estimator.scores(x.matrixView(), tokens: .all, instructionSet: set)
        let expected = ReferenceSparseLoRA.hiddenNorms(
            x: BoundedMatrix(x), gate: BoundedMatrix(gate), up: BoundedMatrix(up))
        let largest = expected.max()!
        for (score, norm) in zip(scores, expected) { #expect(abs(Double(score) - norm) < 2e-5 * largest, "\(set)") }
        // Every third token is what it says.
        let some = try Tensor([24, 40]) { x[flat: $0 / 40 * 3 * 40 + $0 % 40] }
        #expect(
            try estimator.scores(x.matrixView(), tokens: .every(3), instructionSet: set)
                == estimator.scores(some.matrixView(), tokens: .all, instructionSet: set))
        // Means of five sequences of fourteen tokens.
        let means = try Tensor<Float>([5, 40]) { index in
            (0..<14).reduce(0) { $0 + x[index / 40 * 14 + $1, index % 40] } / 14
        }
        let averaged = try estimator.scores(x.matrixView(), batch: 5, instructionSet: set)
        for (a, b) in zip(averaged, try estimator.scores(means.matrixView(), tokens: .all, instructionSet: set)) {
            #expect(abs(a - b) < 1e-4 * averaged.max()!)
        }
    }

    @Test("norms with every function and any numbers of tokens and channels", arguments: InstructionSet.available)
    func functions(_ set: InstructionSet) throws {
        for (index, function) in GatedActivation.Function.allCases.enumerated() {
            for (tokens, channels, rank) in [(1, 1, 1), (3, 16, 8), (66, 37, 3), (131, 150, 9)] {
                func estimator(_ seed: UInt64) throws -> ChannelEstimator {
                    try ChannelEstimator(
                        down: .normal([rank, 12], seed: seed, scale: 0.3), up: .normal([channels, rank], seed: seed + 1))
                }
                let (gate, up) = (try estimator(UInt64(index)), try estimator(UInt64(index) + 10))
                let x = try Tensor<Float>.normal([tokens, 12], seed: 20)
                let scores = try MLPEstimator(gate: gate, up: up, function: function).scores(
                    x.matrixView(), tokens: .all, instructionSet: set)
                func weight(_ e: ChannelEstimator) -> BoundedMatrix { BoundedMatrix(e.up).times(BoundedMatrix(e.down)) }
                let expected = ReferenceSparseLoRA.hiddenNorms(
                    x: BoundedMatrix(x), gate: weight(gate), up: weight(up), function: function)
                let largest = expected.max()!
                #expect(scores.count == channels)
                for (score, norm) in zip(scores, expected) {
                    #expect(abs(Double(score) - norm) <= 1e-5 * largest, "\(set), \(function), \(tokens) × \(channels)")
                }
            }
        }
    }

    @Test("scores have the same bits on any number of threads, and of rows with a stride")
    func threads() throws {
        let (estimator, _, _) = try Self.mlp(600, 40)
        let x = try Tensor<Float>.normal([150, 55], seed: 5)
        let view = try MatrixView(x.span, rows: 150, columns: 40, rowStride: 55)
        let copy = try Tensor<Float>([150, 40]) { x[$0 / 40, $0 % 40] }
        for tokens in [MLPEstimator.Tokens.all, .sequenceMeans, .every(2)] {
            let first = try estimator.scores(view, batch: 3, tokens: tokens, on: .serial)
            #expect(try estimator.scores(copy.matrixView(), batch: 3, tokens: tokens, on: .serial) == first)
            for threads in [2, 7] {
                #expect(try estimator.scores(view, batch: 3, tokens: tokens, on: WorkerPool(threads: threads)) == first)
            }
        }
    }

    @Test("scores of attention are products of norms, by heads or as released", arguments: InstructionSet.available)
    func attention(_ set: InstructionSet) throws {
        let (heads, kvHeads, d, width) = (6, 2, 5, 40)
        let weights = try [heads, kvHeads, kvHeads].enumerated().map {
            try Self.weight($1 * d, width, seed: UInt64(20 * $0 + 1))
        }
        let estimator = try AttentionEstimator(
            query: weights[0], key: weights[1], value: weights[2], heads: heads, kvHeads: kvHeads)
        let x = try Tensor<Float>.normal([33, width], seed: 9)
        let norms = weights.map { BoundedMatrix(x).timesTransposed(BoundedMatrix($0)).columnNorms }
        for mode in SparseLoRAConfiguration.Mode.allCases {
            let scores = try estimator.scores(x.matrixView(), mode: mode, instructionSet: set)
            for channel in 0..<kvHeads * d {
                let queries = (0..<3).map { t in
                    mode == .intended ? (channel / d * 3 + t) * d + channel % d : t * kvHeads * d + channel
                }
                let expected = queries.reduce(0) { $0 + norms[0][$1] } / 3 * norms[1][channel]
                #expect(abs(Double(scores.queryKey[channel]) - expected) < 1e-4 * expected, "\(set)")
                #expect(abs(Double(scores.value[channel]) - norms[2][channel]) < 1e-4 * norms[2][channel])
            }
            let kept = try estimator.channels(x.matrixView(), sparsity: 0.6, mode: mode, instructionSet: set)
            #expect(kept.key.count == 4 && kept.value.count == 4 && kept.query.count == 12)
            let mapped = kept.key.indices.flatMap { key in
                (0..<3).map { t in
                    mode == .intended ? (Int(key) / d * 3 + t) * d + Int(key) % d : Int(key) * 3 + t
                }
            }
            #expect(kept.query.indices.map(Int.init) == mapped.sorted())
            #expect(kept.output.count == (mode == .intended ? 12 : 4))
            if mode == .released { #expect(kept.output.indices == kept.value.indices) }
        }
        let all = try estimator.channels(x.matrixView(), sparsity: 0)
        #expect(all.query.isAll && all.key.isAll && all.value.isAll && all.output.isAll)
    }

    @Test("files hold estimators under the released names")
    func files() throws {
        let (estimator, _, _) = try Self.mlp()
        let attention = try AttentionEstimator(
            query: Self.weight(30, 40, seed: 1), key: Self.weight(10, 40, seed: 2), value: Self.weight(10, 40, seed: 3),
            heads: 6, kvHeads: 2)
        var writer = SafetensorsWriter()
        try estimator.add(to: &writer, prefix: "model.layers.3.mlp")
        try attention.add(to: &writer, prefix: "model.layers.3.self_attn")
        let folder = try TemporaryDirectory()
        try writer.write(to: folder.path + "/model.safetensors")
        let file = try SafetensorsFile(path: folder.path + "/model.safetensors")
        #expect(file.tensors.map(\.name).contains("model.layers.3.mlp.gate_proj.w1"))
        #expect(try file.entry(named: "model.layers.3.mlp.gate_proj.w1").shape == [40, 8])
        #expect(try file.entry(named: "model.layers.3.self_attn.k_proj.w2").shape == [8, 10])
        #expect(try MLPEstimator(file, prefix: "model.layers.3.mlp") == estimator)
        #expect(try AttentionEstimator(file, prefix: "model.layers.3.self_attn", heads: 6, kvHeads: 2) == attention)
        expectError(.notFound, describing: "model.layers.4.mlp.gate_proj.w1") {
            _ = try MLPEstimator(file, prefix: "model.layers.4.mlp")
        }
        expectError(.malformedFile, describing: "query", "30") {
            _ = try AttentionEstimator(file, prefix: "model.layers.3.self_attn", heads: 4, kvHeads: 2)
        }
        var damaged = SafetensorsWriter()
        try damaged.add("p.w1", Tensor<Float>([2, 1], [1, .nan]))
        try damaged.add("p.w2", Tensor<Float>([1, 2], [1, 2]))
        try damaged.add("q.w1", Tensor<Float>([2, 1], [1, 2]))
        try damaged.add("q.w2", Tensor<Float>([3, 2], [1, 2, 3, 4, 5, 6]))
        try damaged.write(to: folder.path + "/damaged.safetensors")
        let broken = try SafetensorsFile(path: folder.path + "/damaged.safetensors")
        expectError(.malformedFile, describing: "p.w1", "finite") { _ = try ChannelEstimator(broken, prefix: "p") }
        expectError(.malformedFile, describing: "q.w2", "[3, 2]") { _ = try ChannelEstimator(broken, prefix: "q") }
    }

    @Test("empty input, NaN and wrong extents")
    func errors() throws {
        let (estimator, gate, _) = try Self.mlp()
        let none = try Tensor<Float>(zeros: [0, 40])
        for tokens in [MLPEstimator.Tokens.all, .sequenceMeans, .every(3)] {
            #expect(try estimator.scores(none.matrixView(), tokens: tokens) == Array(repeating: 0, count: 70))
        }
        // Of equal scores, the first channels.
        #expect(try estimator.channels(none.matrixView(), sparsity: 0.9).indices == Array(0..<6))
        var x = try Tensor<Float>.normal([6, 40], seed: 5)
        expectError(.invalidArgument, describing: "sparsity", "1.0") {
            _ = try estimator.channels(x.matrixView(), sparsity: 1)
        }
        expectError(.invalidShape, "x.rows", containing: "4 sequences", "6") {
            _ = try estimator.scores(x.matrixView(), batch: 4)
        }
        expectError(.invalidArgument, "tokens", containing: "0") { _ = try estimator.scores(x.matrixView(), tokens: .every(0)) }
        let narrow = try Tensor<Float>.normal([6, 39], seed: 5)
        expectError(.invalidShape, "x", containing: "40", "39") { _ = try estimator.scores(narrow.matrixView()) }
        x[2, 3] = .nan
        expectError(.invalidArgument, describing: "NaN") { _ = try estimator.channels(x.matrixView(), sparsity: 0.5) }
        expectError(.invalidShape, "up", containing: "40 inputs", "41 inputs") {
            _ = try MLPEstimator(gate: gate, up: Self.weight(70, 41, seed: 4))
        }
        expectError(.invalidArgument, "rank", containing: "5") { _ = try ChannelEstimator(weight: Self.weight(5, 40, seed: 1)) }
        expectError(.invalidArgument, "heads", containing: "2", "5") {
            _ = try AttentionEstimator(query: gate, key: gate, value: gate, heads: 5, kvHeads: 2)
        }
        let nanKey = try AttentionEstimator(query: gate, key: gate, value: gate, heads: 2, kvHeads: 2)
        expectError(.invalidArgument, describing: "NaN") { _ = try nanKey.channels(x.matrixView(), sparsity: 0.5) }
    }
}
