public import PS3
public import SparseKernels
internal import SparseKernelsReference

/// PS3's selection of patches on the weights of any SigLIP model, without training.
///
/// A released PS3 checkpoint has a trained network that makes the features which are compared with a prompt. A SigLIP model has none, so
/// the features of a layer are taken as they are: a cell is worth a closer look when they resemble those of a prompt, such as a region of
/// the picture that someone points at. On random weights the features say what patches look like and not what they mean.
///
/// ```swift
/// let model = try PS3VisionModel(VisionTransformerWeights(folder: folder), sides: [378, 756, 1512], budget: 1280)
/// let picture = try model.encoder.look(at: Picture(path: path).planes())
/// let prompt = try model.prompt(like: PictureBox(x: 90, y: 60, width: 200, height: 120), in: picture)
/// let encoding = try model.encoder.encode(picture, prompt: prompt)
/// ```
public struct PS3VisionModel: Sendable {
    public let encoder: PS3Encoder
    /// The layer, from 0, whose outputs are compared with a prompt.
    public let selectionLayer: Int

    /// - Parameters:
    ///   - weights: of a SigLIP model, or random ones.
    ///   - sides: of the square pictures of all scales in pixels, the low resolution first.
    ///   - budget: patches of a pass.
    ///   - selectionLayer: the layer whose outputs are compared with a prompt; nil means the one in the middle.
    ///   - linear: the form of the linear layers in the blocks.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that pack and quantise.
    ///   - progress: called after each layer with the number of layers that are read, and of all.
    /// - Throws: `.invalidArgument` for a CLIP model, whose class token has no place in a grid, or a layer that is not there; the errors
    ///   of `PS3Scales`, `PS3Budget`, `PS3Encoder` and of reading the weights.
    public init(
        _ weights: VisionTransformerWeights, sides: [Int], budget: Int, selectionLayer: Int? = nil,
        linear: VisionLinearFormat = .float32, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared,
        progress: (_ loaded: Int, _ layers: Int) -> Void = { _, _ in }
    ) throws(SparseKernelsError) {
        let c = weights.configuration
        guard c.family == .siglip else {
            throw SparseKernelsError(
                .invalidArgument, "weights", expected: "those of a SigLIP model", actual: "a CLIP model, with a class token")
        }
        let layer = selectionLayer ?? c.layers / 2
        guard (0..<c.layers).contains(layer) else {
            throw SparseKernelsError(
                .invalidArgument, "selectionLayer", expected: "0 to \(c.layers - 1)", actual: "\(layer)")
        }
        let scales = try PS3Scales(sides, patch: c.patchSize)
        let configuration = PS3Configuration(
            scales: scales, budget: try PS3Budget(budget, scales), heads: c.layer.heads, selectionLayers: [layer],
            epsilon: c.layer.epsilon, activation: c.layer.activation, detailSide: sides[sides.count - 1])
        var layers: [VisionLayerWeights] = []
        for number in 0..<c.layers {
            layers.append(try weights.layer(number))
            progress(number + 1, c.layers)
        }
        let table = try PositionTable(weights).rows(
            for: scales.squareGrid(0), instructionSet: instructionSet, on: pool)
        let parameters = PS3Weights(
            patches: try weights.patchEmbedding(), positions: table, layers: layers,
            selection: try Self.selection(width: c.width, scales: scales.highScales),
            prompt: try Tensor([c.width], Array(repeating: 1, count: c.width)), positionResiduals: [], detail: nil)
        encoder = try PS3Encoder(parameters, configuration, linear: linear, instructionSet: instructionSet, on: pool)
        self.selectionLayer = layer
    }

    /// A network that passes features on: identities around GELU and a norm.
    private static func selection(width: Int, scales: Int) throws(SparseKernelsError) -> PS3Weights.Selection {
        let identity = try Tensor<Float>([width, width]) { $0 / width == $0 % width ? 1 : 0 }
        let stacked = try Tensor<Float>([scales * width, width]) { $0 / width % width == $0 % width ? 1 : 0 }
        let zeros = try Tensor<Float>(zeros: [width])
        return PS3Weights.Selection(
            first: .init(weight: identity, bias: zeros),
            norm: .init(weight: try Tensor([width], Array(repeating: 1, count: width)), bias: zeros),
            second: .init(weight: stacked, bias: try Tensor(zeros: [scales * width])))
    }

    // MARK: - Prompts

    /// A prompt for parts of a picture that resemble one of its regions: the mean of the features of its cells, each of length 1, less the
    /// mean of all cells, which says nothing about the region.
    ///
    /// - Parameters:
    ///   - box: in pixels of the picture. Cells of the low resolution that it touches count.
    ///   - picture: what the encoder has looked at.
    /// - Returns: `[width]`.
    /// - Throws: `.invalidArgument` for a box without pixels or one that leaves the picture.
    public func prompt(like box: PictureBox, in picture: PS3Picture) throws(SparseKernelsError) -> Tensor<Float> {
        let (size, grid) = (picture.size, encoder.configuration.scales.squareGrid(0))
        guard box.width >= 1, box.height >= 1, box.x >= 0, box.y >= 0, box.x <= size.columns - box.width,
            box.y <= size.rows - box.height
        else {
            throw SparseKernelsError(
                .invalidArgument, "box", expected: "pixels of a picture of \(size)", actual: "\(box)")
        }
        let rows = box.y * grid.rows / size.rows...(box.y + box.height - 1) * grid.rows / size.rows
        let columns = box.x * grid.columns / size.columns...(box.x + box.width - 1) * grid.columns / size.columns
        let all = mean(of: picture) { _, _ in true }
        let part = mean(of: picture) { row, column in rows.contains(row) && columns.contains(column) }
        let difference = zip(part, all).map { Float($0 - $1) }
        // A box that is the whole picture has no difference.
        return try Tensor([encoder.width], difference.contains { $0 != 0 } ? difference : part.map(Float.init))
    }

    /// A prompt for what stands out: the opposite of the mean of all features.
    /// - Returns: `[width]`.
    public func promptForWhatStandsOut(in picture: PS3Picture) throws(SparseKernelsError) -> Tensor<Float> {
        try Tensor([encoder.width], mean(of: picture) { _, _ in true }.map { Float(-$0) })
    }

    /// The mean of the features of some cells, each of length 1.
    private func mean(of picture: PS3Picture, where isCounted: (Int, Int) -> Bool) -> [Double] {
        let (grid, width) = (encoder.configuration.scales.squareGrid(0), encoder.width)
        let features = picture.selectionFeatures
        let stride = features.shape[1]
        var (sum, count) = ([Double](repeating: 0, count: width), 0)
        for cell in 0..<grid.count where isCounted(cell / grid.columns, cell % grid.columns) {
            let row = (0..<width).map { Double(features[flat: cell * stride + $0]) }
            let norm = max(1e-12, row.reduce(0) { $0 + $1 * $1 }.squareRoot())
            for channel in 0..<width { sum[channel] += row[channel] / norm }
            count += 1
        }
        return sum.map { $0 / Double(max(1, count)) }
    }
}

/// A rectangle of pixels.
public struct PictureBox: Hashable, Sendable, CustomStringConvertible {
    /// The first column.
    public var x: Int
    /// The first row.
    public var y: Int
    public var width: Int
    public var height: Int

    public init(x: Int, y: Int, width: Int, height: Int) {
        self.x = x
        self.y = y
        self.width = width
        self.height = height
    }

    public var description: String { "\(width) × \(height) from column \(x) and row \(y)" }
}
