public import SparseKernels

/// A vision transformer of the SigLIP or CLIP family: patches of pictures become tokens, which all see each other in every layer.
///
/// ```swift
/// let model = try VisionTransformer(folder: folder, linear: .w8a8)           // config.json and safetensors
/// let picture = try Picture(path: "picture.png")
/// let output = try model(picture.planes())                                   // [3, rows, columns]
/// ```
///
/// Pictures may have any extents of at least a patch; rows and columns of pixels that fill no patch are not seen. Copies of a model share
/// its weights.
///
/// - Results are bitwise equal for every number of threads, and those of a picture do not depend on the other pictures.
/// - Complexity: that of the layers, see `VisionLayer`; patches take 3 · patchSize² · width multiply-adds each.
public struct VisionTransformer: Sendable {
    public let configuration: VisionTransformerConfiguration
    /// The form of the linear layers in the blocks.
    public let linear: VisionLinearFormat
    public let layers: [VisionLayer]

    private let patches: PictureEmbedding
    private let preNorm: LayerNorm?
    private let postNorm: LayerNorm
    private let head: VisionPoolingHead?
    private let projection: FloatLinear?

    /// Loads `config.json` and the weights of a folder, of a whole SigLIP or CLIP model or of its vision tower.
    ///
    /// - Parameters:
    ///   - folder: with `config.json`, and `model.safetensors` or the files of `model.safetensors.index.json`.
    ///   - linear: the form of the linear layers in the blocks.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that pack and quantise.
    ///   - progress: called after each layer with the number of layers that are loaded, and of all.
    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read; `.notFound`, `.invalidElementType` and
    ///   `.invalidShape` for a weight that is missing or does not fit the configuration.
    public init(
        folder: String, linear: VisionLinearFormat = .float32, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared, progress: (_ loaded: Int, _ layers: Int) -> Void = { _, _ in }
    ) throws(SparseKernelsError) {
        try self.init(
            VisionTransformerWeights(folder: folder), linear: linear, instructionSet: instructionSet, on: pool,
            progress: progress)
    }

    /// Makes a model of weights, such as random ones. Parameters and errors are those of the initialiser with a folder.
    public init(
        _ weights: VisionTransformerWeights, linear: VisionLinearFormat = .float32, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared, progress: (_ loaded: Int, _ layers: Int) -> Void = { _, _ in }
    ) throws(SparseKernelsError) {
        let c = weights.configuration
        let set: InstructionSet
        if let instructionSet { set = instructionSet } else { set = try InstructionSet.selected() }
        configuration = c
        self.linear = linear
        patches = try PictureEmbedding(weights, instructionSet: set, on: pool)
        func norm(_ weights: VisionLayerWeights.Affine) throws(SparseKernelsError) -> LayerNorm {
            try LayerNorm(
                channels: c.width, weight: weights.weight, bias: weights.bias, epsilon: c.layer.epsilon, instructionSet: set)
        }
        preNorm = try weights.preNorm().map(norm)
        postNorm = try norm(weights.postNorm())
        head = try weights.poolingHead().map { head throws(SparseKernelsError) in
            try VisionPoolingHead(head, c.layer, instructionSet: set, on: pool)
        }
        projection = try weights.projection().map { weight throws(SparseKernelsError) in
            try FloatLinear(weight: weight, instructionSet: set, on: pool)
        }
        var layers: [VisionLayer] = []
        for number in 0..<c.layers {
            layers.append(
                try VisionLayer(c.layer, weights.layer(number), linear: linear, instructionSet: set, on: pool))
            progress(number + 1, c.layers)
        }
        self.layers = layers
    }

    /// Bytes of the weights of the layers, as they are in memory.
    public var byteCount: Int { layers.reduce(0) { $0 + $1.byteCount } }

    /// What a pass computes.
    public struct Output: Sendable {
        /// `[pictures · tokens, width]`: the tokens after the last layer, picture by picture, CLIP's class token first. SigLIP's are
        /// normalised.
        public var tokens: Tensor<Float>
        /// `[pictures, width]`, by SigLIP's head or from CLIP's class token; nil for SigLIP without a head.
        public var pooled: Tensor<Float>?
        /// `[pictures, projectionSize]`: the projection of CLIP's class token, for models that have one.
        public var projected: Tensor<Float>?
        /// The patches of each picture.
        public var grid: GridSize
    }

    // MARK: - Run

    /// Computes the features of pictures.
    ///
    /// - Parameters:
    ///   - pictures: `[3, rows, columns]`, or `[pictures, 3, rows, columns]`, as `Picture.planes` gives them.
    ///   - workspace: memory that is used again from call to call.
    ///   - pool: the threads to use. The call blocks until they are done.
    ///   - finishedLayer: called with each layer and its tokens, `[pictures · tokens, width]`, for hidden states, progress, and to stop.
    /// - Throws: `.invalidShape` for other pictures or ones without a patch, and the errors of `finishedLayer`.
    public func callAsFunction(
        _ pictures: Tensor<Float>, workspace: inout VisionWorkspace, on pool: WorkerPool = .shared,
        finishedLayer: (_ layer: Int, _ tokens: Tensor<Float>) throws(SparseKernelsError) -> Void = {
            _, _ throws(SparseKernelsError) in
        }
    ) throws(SparseKernelsError) -> Output {
        let (embedded, count, grid) = try embedding(of: pictures, on: pool)
        var tokens = embedded
        for (number, layer) in layers.enumerated() {
            try layer.run(&tokens, pictures: count, workspace: &workspace, on: pool)
            try finishedLayer(number, tokens)
        }
        if configuration.family == .clip {
            let length = tokens.shape[0] / count
            let width = configuration.width
            let first = try Tensor<Float>([count, width]) { tokens[flat: $0 / width * length * width + $0 % width] }
            let pooled = try postNorm(first, on: pool)
            let projected = try projection.map { layer throws(SparseKernelsError) in try layer(pooled, on: pool) }
            return Output(tokens: tokens, pooled: pooled, projected: projected, grid: grid)
        }
        let normalized = try postNorm(tokens, on: pool)
        let pooled = try head.map { head throws(SparseKernelsError) in try head(normalized, pictures: count, on: pool) }
        return Output(tokens: normalized, pooled: pooled, projected: nil, grid: grid)
    }

    /// Computes the features of pictures with new memory.
    /// - Throws: as the call with a workspace.
    public func callAsFunction(
        _ pictures: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Output {
        var workspace = VisionWorkspace()
        return try self(pictures, workspace: &workspace, on: pool)
    }

    /// The tokens that enter the first layer, `[pictures · tokens, width]`, the number of pictures and the patches of each.
    func embedding(
        of pictures: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> (tokens: Tensor<Float>, pictures: Int, grid: GridSize) {
        let embedded = try patches(pictures, on: pool)
        guard let preNorm else { return embedded }
        return (try preNorm(embedded.tokens, on: pool), embedded.pictures, embedded.grid)
    }
}
