public import SparseKernels

/// A vision encoder for pictures of high resolution that encodes only the patches worth it: PS3, the encoder of VILA-HD.
///
/// The picture is encoded at low resolution first. Features of some layers, compared with a prompt, say which of its parts matter. Only the
/// best patches of the high resolutions are then embedded and encoded, by the same layers, in which they also attend to the keys and values
/// of the low resolution. The cost follows from the budget and hardly from the resolution.
///
/// ```swift
/// let encoder = try PS3Encoder(PS3Weights(file), .so400m(sides: [378, 756, 1512, 3780]))
/// let picture = try encoder.look(at: pixels)                    // [3, rows, columns], once per picture
/// let encoding = try encoder.encode(picture, prompt: question)  // once per prompt
/// let tokens = try encoding.tokens()                            // [729 + 2560, 1152]
/// ```
///
/// - Exactness: single precision, or the numbers of `linear` in the layers' matrices. Results are bitwise equal for every number of threads.
///   Equal probabilities are taken in the order of cells.
/// - Complexity: of a pass with M patches over P low-resolution tokens, per layer: M · width · (4 · width + 2 · hidden) multiply-adds of
///   linear layers, and M · (P + M) · 2 · width of attention.
/// - Memory: keys and values of the low resolution, 2 · P · width floats per layer; position tables, width floats per cell of the square
///   grids; a resized picture at a time.
/// - Source: "Scaling Vision Pre-Training to 4K Resolution" (Shi et al., 2025), arXiv 2503.19903.
public struct PS3Encoder: Sendable {
    public let configuration: PS3Configuration
    public let layers: [VisionLayer]
    /// Channels of a token.
    public let width: Int
    /// The prompt that stands for none, `[width]`.
    public let prompt: Tensor<Float>
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet

    private let patches: PatchEmbedding
    private let channels: Int
    private let positions: PS3Positions
    private let selectionFirst: FloatLinear
    private let selectionNorm: LayerNorm
    private let selectionSecond: FloatLinear
    private let gelu: GatedActivation
    private let cosines: CosineScores
    private let detail: PS3DetailNetwork?

    /// - Parameters:
    ///   - weights: the parameters.
    ///   - configuration: sizes and rules.
    ///   - linear: the numbers of the layers' matrices.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` naming the tensor that does not fit the others or the configuration; `.invalidArgument` for a number that
    ///   is not finite, or a selection layer that is not there; `.unsupportedInstructionSet`.
    public init(
        _ weights: PS3Weights, _ configuration: PS3Configuration, linear: VisionLinearFormat = .float32,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let set = try InstructionSet.resolve(instructionSet)
        let (scales, embedding) = (configuration.scales, weights.patches.weight.shape)
        try require(
            embedding.count == 4 && embedding[2] == scales.patch && embedding[3] == scales.patch, .invalidShape,
            "patches.weight", expected: "[width, channels, \(scales.patch), \(scales.patch)]", actual: "\(embedding)")
        let width = embedding[0]
        try require(
            configuration.heads >= 1 && width % configuration.heads == 0, .invalidShape, "heads",
            expected: "a divisor of the width (\(width))", actual: "\(configuration.heads)")
        try require(
            configuration.budget.perScale.count == scales.highScales, .invalidShape, "budget",
            expected: "\(scales.highScales) scales", actual: "\(configuration.budget.perScale.count)")
        try require(!weights.layers.isEmpty, .invalidShape, "layers", expected: "one or more", actual: "none")
        try require(
            !configuration.selectionLayers.isEmpty, .invalidArgument, "selectionLayers", expected: "one or more",
            actual: "none")
        for layer in configuration.selectionLayers {
            try require(
                weights.layers.indices.contains(layer), .invalidArgument, "selectionLayers",
                expected: "layers 0 to \(weights.layers.count - 1)", actual: "\(layer)")
        }
        try require(
            weights.prompt.shape == [width], .invalidShape, "prompt", expected: "\([width])",
            actual: "\(weights.prompt.shape)")
        self.configuration = configuration
        self.width = width
        self.instructionSet = set
        prompt = weights.prompt
        channels = embedding[1]
        patches = try naming("patches") { () throws(SparseKernelsError) in
            try PatchEmbedding(
                weight: weights.patches.weight, bias: weights.patches.bias, instructionSet: set, on: pool)
        }
        positions = try PS3Positions(weights, scales, width: width, instructionSet: set, on: pool)
        var layers: [VisionLayer] = []
        for (index, layer) in weights.layers.enumerated() {
            let sizes = VisionLayerConfiguration(
                width: width, heads: configuration.heads, hidden: layer.up.weight.shape.first ?? 0,
                epsilon: configuration.epsilon, activation: configuration.activation)
            layers.append(
                try naming("layers[\(index)]") { () throws(SparseKernelsError) in
                    try VisionLayer(sizes, layer, linear: linear, instructionSet: set, on: pool)
                })
        }
        self.layers = layers

        let (inner, selection) = (configuration.selectionLayers.count * width, weights.selection)
        for (name, shape, expected) in [
            ("selection.first.weight", selection.first.weight.shape, [inner, inner]),
            ("selection.second.weight", selection.second.weight.shape, [scales.highScales * width, inner]),
        ] {
            try require(shape == expected, .invalidShape, name, expected: "\(expected)", actual: "\(shape)")
        }
        selectionFirst = try naming("selection.first") { () throws(SparseKernelsError) in
            try FloatLinear(selection.first, instructionSet: set, on: pool)
        }
        selectionNorm = try naming("selection.norm") { () throws(SparseKernelsError) in
            try LayerNorm(
                channels: inner, weight: selection.norm.weight, bias: selection.norm.bias, epsilon: 1e-5, instructionSet: set)
        }
        selectionSecond = try naming("selection.second") { () throws(SparseKernelsError) in
            try FloatLinear(selection.second, instructionSet: set, on: pool)
        }
        gelu = try GatedActivation(.gelu, instructionSet: set)
        cosines = try CosineScores(channels: width, instructionSet: set)
        detail = try weights.detail.map { detail throws(SparseKernelsError) in
            try PS3DetailNetwork(
                detail, side: configuration.detailSide, width: width, scales: scales.highScales, instructionSet: set, on: pool)
        }
    }

    // MARK: - Low resolution

    /// Encodes a picture at low resolution.
    ///
    /// - Parameters:
    ///   - pixels: `[channels, rows, columns]`, normalised as the model wants it, of any size.
    ///   - kept: layers whose outputs the result keeps, beside what it needs itself.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for another rank or number of channels, or a picture without pixels.
    public func look(
        at pixels: Tensor<Float>, keeping kept: Set<Int> = [], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PS3Picture {
        try require(
            pixels.shape.count == 3 && pixels.shape[0] == channels, .invalidShape, "pixels",
            expected: "[\(channels), rows, columns]", actual: "\(pixels.shape)")
        let size = GridSize(rows: pixels.shape[1], columns: pixels.shape[2])
        let grids = try configuration.scales.highGrids(of: size)
        let square = try resizedPicture(
            pixels, from: size, to: configuration.scales.pixels(0, of: size), instructionSet: instructionSet, on: pool)
        let grid = configuration.scales.squareGrid(0)
        var x = try patches(square, on: pool)
        positions.add((0..<Int32(grid.count)).map { $0 }, scale: 0, grid: grid, to: &x, firstRow: 0, on: pool)
        let needed = kept.union(configuration.selectionLayers)
        var (hidden, keys) = ([Int: Tensor<Float>](), [VisionKeys]())
        var workspace = VisionWorkspace()
        for (index, layer) in layers.enumerated() {
            var rows = VisionKeys()
            try layer.run(&x, keeping: &rows, workspace: &workspace, on: pool)
            keys.append(rows)
            if needed.contains(index) { hidden[index] = x }
        }
        let features = try selectionFeatures(of: hidden, cells: grid.count, on: pool)
        return PS3Picture(
            pixels: pixels, grids: grids, tokens: x, hiddenStates: hidden.filter { kept.contains($0.key) }, keys: keys,
            selectionFeatures: features,
            detailFeatures: try detail.map { network throws(SparseKernelsError) in
                try network(pixels, on: pool)
            }, detailGrid: detail?.grid)
    }

    /// The features that are compared with a prompt, from the outputs of the selection layers side by side.
    private func selectionFeatures(
        of hidden: [Int: Tensor<Float>], cells: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let inner = configuration.selectionLayers.count * width
        var rows = try Tensor<Float>(zeros: [cells, inner])
        for (index, layer) in configuration.selectionLayers.enumerated() {
            guard let source = hidden[layer] else { continue }
            for cell in 0..<cells {
                rows.copy(width, from: source, at: cell * width, to: cell * inner + index * width)
            }
        }
        let first = try selectionFirst(rows, on: pool)
        var activated = try Tensor<Float>(zeros: [cells, inner])
        try gelu.run(first, into: &activated, on: pool)
        return try selectionSecond(selectionNorm(activated, on: pool), on: pool)
    }

    // MARK: - Selection

    /// How much each cell of the low resolution is worth a closer look.
    ///
    /// - Parameters:
    ///   - picture: the result of ``look(at:keeping:on:)``.
    ///   - prompt: `[width]`, what is looked for; nil means the learned prompt that stands for none.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for a prompt of another size or a picture of another encoder; `.invalidArgument` for a prompt or features
    ///   that are not finite.
    public func scoreMap(
        of picture: PS3Picture, prompt: Tensor<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PS3ScoreMap {
        let vector = prompt ?? self.prompt
        try require(vector.shape == [width], .invalidShape, "prompt", expected: "\([width])", actual: "\(vector.shape)")
        let grid = configuration.scales.squareGrid(0)
        try require(
            picture.selectionFeatures.shape == [grid.count, configuration.scales.highScales * width], .invalidShape,
            "picture.selectionFeatures", expected: "\([grid.count, configuration.scales.highScales * width])",
            actual: "\(picture.selectionFeatures.shape)")
        var low = try Tensor<Float>(zeros: [grid.rows, grid.columns])
        try cosines.run(
            picture.selectionFeatures.matrixView(named: "picture.selectionFeatures").columns(0..<width), vector.span,
            into: low.mutableSpan, on: pool)
        var high: Tensor<Float>?
        if let detail, let features = picture.detailFeatures {
            let scores = try CosineScores(channels: detail.features, instructionSet: instructionSet)(
                features, detail.projected(vector, on: pool), on: pool)
            high = try Tensor([detail.grid.rows, detail.grid.columns], scores.elements)
        }
        return try PS3ScoreMap(cosines: low, detail: high, instructionSet: instructionSet, on: pool)
    }

    /// A selector of patches of a picture by its score map.
    /// - Throws: the errors of ``PS3Selector``.
    public func selector(
        for picture: PS3Picture, _ map: PS3ScoreMap, smooths: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PS3Selector {
        try PS3Selector(
            map, configuration.scales, picture: picture.size, smooths: smooths, instructionSet: instructionSet, on: pool)
    }

    // MARK: - High resolution

    /// The tokens of selected patches before the first layer: patches of the resized pictures, and their positions.
    ///
    /// - Parameters:
    ///   - selection: cells of the picture's grids.
    ///   - picture: the result of ``look(at:keeping:on:)``.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: `[patches, width]`, in raster order, scale by scale.
    /// - Throws: `.invalidShape` for a selection of another number of scales, `.invalidArgument` for a cell outside its grid.
    public func embed(
        _ selection: PS3Selection, of picture: PS3Picture, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try selection.validate(picture.grids)
        var (tokens, row) = (try Tensor<Float>(zeros: [selection.count, width]), 0)
        for (index, cells) in selection.cells.enumerated() where !cells.isEmpty {
            let target = try configuration.scales.pixels(index + 1, of: picture.size)
            let pixels = try resizedPicture(
                picture.pixels, from: picture.size, to: target, instructionSet: instructionSet, on: pool)
            let source = try pixels.pictureView(named: "pixels")
            try embed(source, cells, into: &tokens, firstRow: row, on: pool)
            positions.add(cells, scale: index + 1, grid: picture.grids[index], to: &tokens, firstRow: row, on: pool)
            row += cells.count
        }
        return tokens
    }

    /// Embeds patches of one picture as rows of a larger matrix.
    private func embed(
        _ picture: PictureView<Float>, _ cells: [Int32], into tokens: inout Tensor<Float>, firstRow: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        var rows = try tokens.mutableMatrixView(named: "tokens")
        try patches.run(picture, patches: cells, into: rows.rows(firstRow..<firstRow + cells.count), on: pool)
    }

    /// Encodes selected patches in one pass: they attend to each other and to the low resolution.
    ///
    /// - Parameters:
    ///   - selection: cells of the picture's grids.
    ///   - picture: the result of ``look(at:keeping:on:)``, which is only read.
    ///   - kept: layers whose outputs the result keeps.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of ``embed(_:of:on:)``, and `.invalidShape` for a picture of another encoder.
    public func encode(
        _ selection: PS3Selection, of picture: PS3Picture, keeping kept: Set<Int> = [], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PS3Pass {
        try require(
            picture.keys.count == layers.count, .invalidShape, "picture.keys", expected: "\(layers.count) layers",
            actual: "\(picture.keys.count)")
        var x = try embed(selection, of: picture, on: pool)
        var (hidden, workspace) = ([Int: Tensor<Float>](), VisionWorkspace())
        for (index, layer) in layers.enumerated() {
            try layer.run(&x, after: picture.keys[index], workspace: &workspace, on: pool)
            if kept.contains(index) { hidden[index] = x }
        }
        return try PS3Pass(selection: selection, tokens: x, hiddenStates: hidden)
    }

    /// Selects and encodes patches of a picture for a prompt.
    ///
    /// - Parameters:
    ///   - picture: the result of ``look(at:keeping:on:)``.
    ///   - prompt: `[width]`, what is looked for; nil means the learned prompt that stands for none.
    ///   - request: how many patches, and of which scales.
    ///   - kept: layers whose outputs the passes keep.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for no passes, no patches or more than the picture has; the errors of ``scoreMap(of:prompt:on:)`` and
    ///   ``encode(_:of:keeping:on:)``.
    public func encode(
        _ picture: PS3Picture, prompt: Tensor<Float>? = nil, request: PS3Request = PS3Request(), keeping kept: Set<Int> = [],
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PS3Encoding {
        let budgets = try request.budgets(configuration.budget, picture.grids)
        let map = try scoreMap(of: picture, prompt: prompt, on: pool)
        var selector = try selector(for: picture, map, smooths: request.smooths, on: pool)
        var passes: [PS3Pass] = []
        for budget in budgets {
            let selection = try selector.next(budget)
            if selection.count == 0 { break }
            passes.append(try encode(selection, of: picture, keeping: kept, on: pool))
        }
        return try PS3Encoding(picture: picture, map: map, passes: passes)
    }

    /// Bytes of the layers' matrices, as they are in memory.
    public var layerByteCount: Int { layers.reduce(0) { $0 + $1.byteCount } }
}
