internal import SparseKernels

/// The small convolutional network that sees more detail than the low resolution: patches, LayerNorm, ConvNeXt blocks, a linear layer.
///
///     block:   x ← x + γ · (contract(GELU(expand(LayerNorm(convolution(x))))))
///
/// Features are rows of channels from the patches on, so that norms and linear layers are those of tokens. γ is part of the contraction.
///
/// - Source: `ShallowConvNet` of the released code, over `ConvNeXtBlock` (Liu et al., 2022, arXiv 2201.03545).
struct PS3DetailNetwork: Sendable {
    private struct Block: Sendable {
        let convolution: DepthwiseConvolution
        let norm: LayerNorm
        let expansion: FloatLinear
        let contraction: FloatLinear
    }

    /// The grid of the features.
    let grid: GridSize
    /// Channels of a feature.
    let features: Int
    private let hidden: Int
    private let resizeSide: Int
    private let stem: PatchEmbedding
    private let stemNorm: LayerNorm
    private let blocks: [Block]
    private let output: FloatLinear
    private let gelu: GatedActivation
    private let prompt: FloatLinear
    private let instructionSet: InstructionSet

    /// ε of the layer norms, which the released code does not take from its configuration.
    private static let epsilon: Float = 1e-6

    init(
        _ weights: PS3Weights.Detail, side: Int, width: Int, scales: Int, instructionSet: InstructionSet,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let shape = weights.stem.weight.shape
        try require(
            shape.count == 4 && shape[2] == shape[3] && shape[2] >= 1 && shape[2] <= side, .invalidShape, "detail.stem.weight",
            expected: "[hidden, channels, patch, patch], the patch at most \(side)", actual: "\(shape)")
        grid = GridSize(side: side / shape[2])
        hidden = shape[0]
        resizeSide = side
        self.instructionSet = instructionSet
        let hidden = hidden
        stem = try naming("detail.stem") { () throws(SparseKernelsError) in
            try PatchEmbedding(
                weight: weights.stem.weight, bias: weights.stem.bias, instructionSet: instructionSet, on: pool)
        }
        stemNorm = try naming("detail.stemNorm") { () throws(SparseKernelsError) in
            try LayerNorm(
                channels: hidden, weight: weights.stemNorm.weight, bias: weights.stemNorm.bias, epsilon: Self.epsilon,
                instructionSet: instructionSet)
        }
        var blocks: [Block] = []
        for (index, block) in weights.blocks.enumerated() {
            blocks.append(
                try Self.block(
                    block, named: "detail.blocks[\(index)]", hidden: hidden, instructionSet: instructionSet, on: pool))
        }
        self.blocks = blocks
        gelu = try GatedActivation(.gelu, instructionSet: instructionSet)
        let matrix = weights.output.weight.shape
        try require(
            matrix.count >= 2 && matrix[1] == hidden && matrix.dropFirst(2).allSatisfy { $0 == 1 }, .invalidShape,
            "detail.output.weight", expected: "[features, \(hidden)], or with two more axes of 1", actual: "\(matrix)")
        output = try naming("detail.output") { () throws(SparseKernelsError) in
            try FloatLinear(
                weight: Tensor([matrix[0], hidden], weights.output.weight.elements), bias: weights.output.bias,
                instructionSet: instructionSet, on: pool)
        }
        features = matrix[0]
        try require(
            weights.prompt.weight.shape == [scales * features, width], .invalidShape, "detail.prompt.weight",
            expected: "\([scales * features, width])", actual: "\(weights.prompt.weight.shape)")
        prompt = try naming("detail.prompt") { () throws(SparseKernelsError) in
            try FloatLinear(weights.prompt, instructionSet: instructionSet, on: pool)
        }
    }

    private static func block(
        _ weights: PS3Weights.Detail.Block, named name: String, hidden: Int, instructionSet: InstructionSet,
        on pool: WorkerPool
    ) throws(SparseKernelsError) -> Block {
        let (expansion, contraction) = (weights.expansion.weight.shape, weights.contraction.weight.shape)
        try require(
            expansion.count == 2 && expansion[1] == hidden, .invalidShape, name + ".expansion.weight",
            expected: "[inner, \(hidden)]", actual: "\(expansion)")
        try require(
            contraction == [hidden, expansion[0]], .invalidShape, name + ".contraction.weight",
            expected: "\([hidden, expansion[0]])", actual: "\(contraction)")
        try require(
            weights.convolution.weight.shape.first == hidden, .invalidShape, name + ".convolution.weight",
            expected: "[\(hidden), 1, k, k]", actual: "\(weights.convolution.weight.shape)")
        var last = weights.contraction
        if let gamma = weights.gamma {
            try require(
                gamma.shape == [hidden], .invalidShape, name + ".gamma", expected: "\([hidden])", actual: "\(gamma.shape)")
            if let bias = last.bias {
                try require(
                    bias.shape == [hidden], .invalidShape, name + ".contraction.bias", expected: "\([hidden])",
                    actual: "\(bias.shape)")
            }
            let (weight, bias, inner) = (last.weight, last.bias, expansion[0])
            last.weight = try Tensor(weight.shape) { weight[flat: $0] * gamma[flat: $0 / inner] }
            last.bias = try bias.map { bias throws(SparseKernelsError) in
                try Tensor(bias.shape) { bias[flat: $0] * gamma[flat: $0] }
            }
        }
        let folded = last
        return Block(
            convolution: try naming(name + ".convolution") { () throws(SparseKernelsError) in
                try DepthwiseConvolution(
                    weight: weights.convolution.weight, bias: weights.convolution.bias, instructionSet: instructionSet)
            },
            norm: try naming(name + ".norm") { () throws(SparseKernelsError) in
                try LayerNorm(
                    channels: hidden, weight: weights.norm.weight, bias: weights.norm.bias, epsilon: epsilon,
                    instructionSet: instructionSet)
            },
            expansion: try naming(name + ".expansion") { () throws(SparseKernelsError) in
                try FloatLinear(weights.expansion, instructionSet: instructionSet, on: pool)
            },
            contraction: try naming(name + ".contraction") { () throws(SparseKernelsError) in
                try FloatLinear(folded, instructionSet: instructionSet, on: pool)
            })
    }

    /// The features of a picture, `[cells of grid, features]`.
    /// - Parameter picture: `[channels, rows, columns]`, of any size.
    func callAsFunction(_ picture: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        let size = GridSize(rows: picture.shape[1], columns: picture.shape[2])
        let square = try resizedPicture(
            picture, from: size, to: GridSize(side: resizeSide), instructionSet: instructionSet, on: pool)
        let patches = try stem(square, on: pool)
        var x = try stemNorm(patches, on: pool)
        for block in blocks {
            let cells = try Tensor([grid.rows, grid.columns, hidden], x.elements)
            let convolved = try block.convolution(cells, on: pool)
            let normalized = try block.norm(Tensor([grid.count, hidden], convolved.elements), on: pool)
            let expanded = try block.expansion(normalized, on: pool)
            var activated = try Tensor<Float>(zeros: expanded.shape)
            try gelu.run(expanded, into: &activated, on: pool)
            let update = try block.contraction(activated, on: pool)
            x.addRows((0..<Int32(grid.count)).map { $0 }, of: update, firstRow: 0, on: pool)
        }
        return try output(x, on: pool)
    }

    /// The prompt among the features, `[features]`, for the map of the first scale.
    func projected(_ prompt: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        let all = try self.prompt(Tensor([1, prompt.count], prompt.elements), on: pool)
        return try Tensor([features]) { all[flat: $0] }
    }
}

/// A picture in another size, bicubic without antialiasing, as the released code resizes; the picture itself in its own size.
func resizedPicture(
    _ picture: Tensor<Float>, from size: GridSize, to target: GridSize, instructionSet: InstructionSet, on pool: WorkerPool
) throws(SparseKernelsError) -> Tensor<Float> {
    if size == target { return picture }
    return try ImageResize(size, to: target, filter: .bicubic, instructionSet: instructionSet)(picture, on: pool)
}

extension FloatLinear {
    init(
        _ weights: PS3Weights.Affine, instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try self.init(weight: weights.weight, bias: weights.bias, instructionSet: instructionSet, on: pool)
    }
}

/// What `make` returns. Its errors say of which part of the weights their argument is.
func naming<Result>(
    _ part: String, _ make: () throws(SparseKernelsError) -> Result
) throws(SparseKernelsError) -> Result {
    do {
        return try make()
    } catch {
        throw SparseKernelsError(
            error.code, part + "." + error.argument, expected: error.expected, actual: error.actual)
    }
}
