import BenchmarkReport
import PS3
import SparseKernels
import SparseKernelsReference

/// PS3 with the sizes of SigLIP so400m against encoding everything, at several resolutions and budgets.
///
/// What is not a layer is timed as it is, with one layer: resizing, embedding, features, score map, selection. The other 26 layers are 26
/// times a low-resolution and a high-resolution layer. `tiles` encodes all patches of the largest scale in tiles of 729 tokens, as AnyRes
/// does: their embedding, and 27 times a layer over five tiles, times the number of tiles. `in passes` encodes the same patches by PS3
/// itself, pass after pass, and `at once` as one picture whose tokens all see each other, of which the attention of 512 queries is timed.
///
/// Pictures are 1/15 larger than the largest scale, so that every scale is resized.
extension VisionCases {
    func ps3Groups() -> [CaseGroup] {
        let sizes = isQuick ? PS3Sizes.quick : PS3Sizes.so400m
        var labels: [String] = []
        for side in sizes.sides {
            labels += ["tiles \(side)"] + sizes.budgets.flatMap { ["\(side) K \($0)", "select \(side) K \($0)"] }
        }
        let largest = "\(sizes.sides.last!) K \(sizes.budgets.last!)"
        labels += ["in passes", "at once", "\(largest) / in passes", "\(largest) / at once", "\(largest) / half the side"]
        return [
            CaseGroup(
                op: "vision.ps3", name: "PS3", amounts: .uncounted, labels: labels, rounds: isQuick ? nil : 3
            ) { announce in
                try PS3Rows(sizes, instructionSet, pool, announce).variants()
            }
        ]
    }
}

/// The sizes of an encoder and of what it is asked for.
private struct PS3Sizes {
    var width: Int
    var heads: Int
    var hidden: Int
    var depth: Int
    var lowSide: Int
    /// The largest scales; the smaller ones of each are those before it.
    var sides: [Int]
    var budgets: [Int]
    var detailSide: Int
    var detailWidth: Int

    static let so400m = PS3Sizes(
        width: 1152, heads: 16, hidden: 4304, depth: 27, lowSide: 378, sides: [756, 1512, 3780], budgets: [1280, 2560],
        detailSide: 1512, detailWidth: 512)
    static let quick = PS3Sizes(
        width: 144, heads: 2, hidden: 288, depth: 27, lowSide: 126, sides: [252, 504], budgets: [96], detailSide: 504,
        detailWidth: 32)

    var lowTokens: Int { lowSide / 14 * (lowSide / 14) }
    func tiles(_ side: Int) -> Int { side / lowSide * (side / lowSide) }

    /// Multiply-adds of a layer over tokens that see each other and a prefix.
    func layerWork(tokens: Int, prefix: Int) -> Double {
        Double(tokens * width * (4 * width + 2 * hidden)) + Double(tokens * (tokens + prefix) * 2 * width)
    }
}

private final class PS3Rows {
    private let sizes: PS3Sizes
    private let set: InstructionSet
    private let pool: WorkerPool
    private var encoders: [PS3Encoder] = []
    private var pictures: [PS3Picture] = []
    private var workspace = VisionWorkspace()
    private var variantsSoFar: [Variant] = []
    /// Tiles that a timed layer takes at once.
    private let tileBatch = 5

    init(_ sizes: PS3Sizes, _ set: InstructionSet, _ pool: WorkerPool, _ announce: (String) -> Void) throws {
        (self.sizes, self.set, self.pool) = (sizes, set, pool)
        for (index, side) in sizes.sides.enumerated() {
            announce("making the encoder for \(side) × \(side)")
            let encoder = try PS3Encoder(
                Self.weights(sizes, scales: index + 1),
                PS3Configuration(
                    scales: PS3Scales([sizes.lowSide] + sizes.sides.prefix(index + 1)),
                    budget: PS3Budget(sizes.budgets[0], PS3Scales([sizes.lowSide] + sizes.sides.prefix(index + 1))),
                    heads: sizes.heads, selectionLayers: [0, 0, 0, 0], detailSide: sizes.detailSide),
                instructionSet: set, on: pool)
            let pixels = try Tensor<Float>.normal([3, side * 16 / 15, side * 16 / 15], seed: UInt64(index) + 40)
            encoders.append(encoder)
            pictures.append(try encoder.look(at: pixels, on: pool))
        }
    }

    /// Random weights of one layer and of all that is not a layer.
    private static func weights(_ sizes: PS3Sizes, scales: Int) throws -> PS3Weights {
        var seed: UInt64 = 1
        func affine(_ shape: [Int], around center: Float = 0) throws -> PS3Weights.Affine {
            seed += 1
            let inner = shape.dropFirst().reduce(1, *)
            let noise = try Tensor<Float>.normal(shape, seed: seed, scale: 1 / Float(inner).squareRoot())
            return PS3Weights.Affine(
                weight: center == 0 ? noise : try Tensor(shape) { _ in center }, bias: try Tensor(zeros: [shape[0]]))
        }
        let (width, hidden, detail, inner) = (sizes.width, sizes.hidden, sizes.detailWidth, 4 * sizes.width)
        let layer = try VisionLayerWeights(
            attentionNorm: affine([width], around: 1), queryKeyValue: affine([3 * width, width]),
            projection: affine([width, width]), mlpNorm: affine([width], around: 1), up: affine([hidden, width]),
            down: affine([width, hidden]))
        func block() throws -> PS3Weights.Detail.Block {
            PS3Weights.Detail.Block(
                convolution: try affine([detail, 1, 7, 7]), norm: try affine([detail], around: 1),
                expansion: try affine([4 * detail, detail]), contraction: try affine([detail, 4 * detail]))
        }
        return PS3Weights(
            patches: try affine([width, 3, 14, 14]), positions: try .normal([sizes.lowTokens, width], seed: 2), layers: [layer],
            selection: PS3Weights.Selection(
                first: try affine([inner, inner]), norm: try affine([inner], around: 1),
                second: try affine([scales * width, inner])),
            prompt: try .normal([width], seed: 3),
            detail: PS3Weights.Detail(
                stem: try affine([detail, 3, 28, 28]), stemNorm: try affine([detail], around: 1),
                blocks: [try block(), try block(), try block()], output: try affine([detail, detail, 1, 1]),
                prompt: try affine([scales * detail, width])))
    }

    // MARK: - Rows

    func variants() throws -> [Variant] {
        let layer = encoders[0].layers[0]
        let (depth, batch, tokens) = (Double(sizes.depth), tileBatch, sizes.lowTokens)
        let low = add(hidden: try layerBody(layer, tokens: tokens, pictures: 1))
        let tile = add(hidden: try layerBody(layer, tokens: tokens, pictures: batch))
        var high: [Int] = []
        for budget in sizes.budgets { high.append(add(hidden: try highBody(layer, tokens: budget))) }
        var (last, half, tiles, embedding) = (0, 0, 0, 0)
        for (index, side) in sizes.sides.enumerated() {
            let (encoder, picture) = (encoders[index], pictures[index])
            embedding = add(hidden: try embeddingBody(encoder, picture))
            let count = Double(sizes.tiles(side))
            tiles = add(
                mixture: [(embedding, 1), (tile, depth * count / Double(batch))], label: "tiles \(side)",
                work: depth * count * sizes.layerWork(tokens: tokens, prefix: 0))
            for (position, budget) in sizes.budgets.enumerated() {
                let perPass = try PS3Budget(budget, encoder.configuration.scales)
                let once = add(hidden: { [pool] in
                    let looked = try! encoder.look(at: picture.pixels, on: pool)
                    _ = try! Self.pass(encoder, looked, perPass, on: pool)
                })
                (half, last) = (position == sizes.budgets.count - 1 ? last : half, 0)
                last = add(
                    mixture: [(once, 1), (low, depth - 1), (high[position], depth - 1)], label: "\(side) K \(budget)",
                    work: depth
                        * (sizes.layerWork(tokens: tokens, prefix: 0) + sizes.layerWork(tokens: budget, prefix: tokens)),
                    baseline: (tiles, "tiles"))
                add(label: "select \(side) K \(budget)") { [pool] in
                    let map = try! encoder.scoreMap(of: picture, on: pool)
                    var selector = try! encoder.selector(for: picture, map, on: pool)
                    _ = try! selector.next(perPass)
                }
            }
        }
        try addWholePicture(low: low, tile: tile, high: high.last!, embedding: embedding, last: last, half: half)
        return variantsSoFar
    }

    /// All patches of the largest scale, pass by pass and at once, and the largest row beside them.
    private func addWholePicture(low: Int, tile: Int, high: Int, embedding: Int, last: Int, half: Int) throws {
        let (depth, tokens) = (Double(sizes.depth), sizes.lowTokens)
        let (side, budget) = (sizes.sides.last!, sizes.budgets.last!)
        let cells = sizes.tiles(side) * tokens
        let passes = Double(cells) / Double(budget)
        let largest = "\(side) K \(budget)"
        let inPasses = add(
            mixture: [(embedding, 1), (low, depth), (high, depth * passes)], label: "in passes",
            work: depth
                * (sizes.layerWork(tokens: tokens, prefix: 0) + passes * sizes.layerWork(tokens: budget, prefix: tokens)))
        let queries = min(512, cells)
        let sample = add(hidden: try attentionBody(queries: queries, keys: cells))
        let atOnce = add(
            mixture: [
                (embedding, 1), (tile, depth * Double(sizes.tiles(side)) / Double(tileBatch)),
                (sample, depth * Double(cells) / Double(queries)),
            ], label: "at once", work: depth * sizes.layerWork(tokens: cells, prefix: 0))
        let row = variantsSoFar[last]
        let work = (row.amounts?[.actualGFLOPS] ?? 0) / 2
        for (baseline, name) in [(inPasses, "in passes"), (atOnce, "at once"), (half, "half the side")] {
            add(mixture: row.mixture, label: "\(largest) / \(name)", work: work, baseline: (baseline, name))
        }
    }

    private func variant(_ label: String?) -> Variant {
        var variant = Variant(isa: set.name, threads: pool.threads, verify: { nil })
        variant.label = label
        return variant
    }

    @discardableResult
    private func add(hidden body: @escaping () -> Void) -> Int {
        var row = variant(nil)
        row.body = body
        row.isHidden = true
        variantsSoFar.append(row)
        return variantsSoFar.count - 1
    }

    private func add(label: String, _ body: @escaping () -> Void) {
        var row = variant(label)
        row.body = body
        variantsSoFar.append(row)
    }

    /// - Parameter work: multiply-adds of the layers, of which the roof is a share.
    @discardableResult
    private func add(
        mixture: [(index: Int, weight: Double)], label: String, work: Double, baseline: (index: Int, name: String)? = nil
    ) -> Int {
        var row = variant(label)
        row.mixture = mixture
        row.amounts = .operations(2 * work)
        row.baseline = baseline
        row.roof = { [set, pool] in MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }
        variantsSoFar.append(row)
        return variantsSoFar.count - 1
    }

    // MARK: - Parts. Shapes agree by construction, so no call can throw.

    private static func pass(
        _ encoder: PS3Encoder, _ picture: PS3Picture, _ budget: PS3Budget, on pool: WorkerPool
    ) throws -> PS3Pass {
        let map = try encoder.scoreMap(of: picture, on: pool)
        var selector = try encoder.selector(for: picture, map, on: pool)
        return try encoder.encode(selector.next(budget), of: picture, on: pool)
    }

    private func layerBody(_ layer: VisionLayer, tokens: Int, pictures: Int) throws -> () -> Void {
        let x = try Tensor<Float>.normal([pictures * tokens, sizes.width], seed: 5)
        return { [self] in
            var y = x
            try! layer.run(&y, pictures: pictures, workspace: &workspace, on: pool)
        }
    }

    private func highBody(_ layer: VisionLayer, tokens: Int) throws -> () -> Void {
        let x = try Tensor<Float>.normal([tokens, sizes.width], seed: 6)
        let keys = pictures[0].keys[0]
        return { [self] in
            var y = x
            try! layer.run(&y, after: keys, workspace: &workspace, on: pool)
        }
    }

    /// Resizes a picture to its largest scale and embeds all of its patches.
    private func embeddingBody(_ encoder: PS3Encoder, _ picture: PS3Picture) throws -> () -> Void {
        let scales = encoder.configuration.scales
        let target = try scales.pixels(scales.highScales, of: picture.size)
        let resize = try ImageResize(picture.size, to: target, filter: .bicubic, instructionSet: set)
        let embedding = try PatchEmbedding(
            weight: Tensor<Float>.normal([sizes.width, 3, 14, 14], seed: 7, scale: 0.04), instructionSet: set, on: pool)
        return { [pool] in
            let pixels = try! resize(picture.pixels, on: pool)
            _ = try! embedding(pixels, on: pool)
        }
    }

    private func attentionBody(queries: Int, keys: Int) throws -> () -> Void {
        let headDim = sizes.width / sizes.heads
        let attention = try DenseAttention(
            AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: sizes.heads, kvHeads: sizes.heads, headDim: headDim),
            instructionSet: set)
        let query = try Tensor<Float>.normal([sizes.heads, queries, headDim], seed: 8)
        let key = try Tensor<Float>.normal([sizes.heads, keys, headDim], seed: 9)
        var output = try Tensor<Float>(zeros: [sizes.heads, queries, headDim])
        return { [pool] in try! attention.run(query: query, key: key, value: key, into: &output, on: pool) }
    }
}
