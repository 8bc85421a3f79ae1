internal import SparseKernels

/// The tokens of pictures: a linear function of every patch, CLIP's class token, and positions.
struct PictureEmbedding: Sendable {
    private let configuration: VisionTransformerConfiguration
    /// Of patches, whose values are in the order channel, row, column.
    private let linear: FloatLinear
    private let classEmbedding: Tensor<Float>?
    /// `[classTokens + patches, width]`.
    private let positions: Tensor<Float>

    init(
        _ weights: VisionTransformerWeights, instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        configuration = weights.configuration
        let embedding = try weights.patchEmbedding()
        let depth = embedding.weight.count / embedding.weight.shape[0]
        linear = try FloatLinear(
            weight: Tensor<Float>([embedding.weight.shape[0], depth], embedding.weight.elements), bias: embedding.bias,
            instructionSet: instructionSet, on: pool)
        classEmbedding = try weights.classEmbedding()
        positions = try weights.positions()
    }

    /// - Parameter pictures: `[3, rows, columns]`, or `[pictures, 3, rows, columns]`.
    /// - Throws: `.invalidShape` for other pictures or ones without a patch.
    func callAsFunction(
        _ pictures: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> (tokens: Tensor<Float>, pictures: Int, grid: GridSize) {
        let (c, shape, side) = (configuration, pictures.shape, configuration.patchSize)
        let channels = VisionTransformerConfiguration.colourChannels
        guard shape.count == 3 || shape.count == 4, shape[shape.count - 3] == channels, shape.count == 3 || shape[0] >= 1,
            shape[shape.count - 2] >= side, shape[shape.count - 1] >= side
        else {
            throw SparseKernelsError(
                .invalidShape, "pictures",
                expected: "[3, rows, columns] or [pictures, 3, rows, columns], with at least \(side) × \(side) pixels",
                actual: "\(shape)")
        }
        let (rows, columns) = (shape[shape.count - 2], shape[shape.count - 1])
        let (count, grid) = (shape.count == 4 ? shape[0] : 1, GridSize(rows: rows / side, columns: columns / side))
        let table = try positions(for: grid)
        let patches = try gather(pictures, count, grid, on: pool)
        let embedded = try linear(patches, on: pool)
        let (first, width) = (c.classTokens, c.width)
        let length = first + grid.count
        let tokens = try Tensor<Float>([count * length, width]) { index in
            let (row, channel) = (index / width, index % width)
            let (picture, token) = (row / length, row % length)
            let value =
                token < first
                ? classEmbedding![flat: channel] : embedded[flat: (picture * grid.count + token - first) * width + channel]
            return value + table[flat: token * width + channel]
        }
        return (tokens, count, grid)
    }

    /// The positions of the tokens of a grid.
    private func positions(for grid: GridSize) throws(SparseKernelsError) -> Tensor<Float> {
        guard grid == configuration.grid else {
            throw SparseKernelsError(
                .invalidShape, "pictures", expected: "\(configuration.grid) patches of \(configuration.patchSize) pixels",
                actual: "\(grid)")
        }
        return positions
    }

    /// `[pictures · patches, 3 · patchSize²]`.
    private func gather(
        _ pictures: Tensor<Float>, _ count: Int, _ grid: GridSize, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (side, channels) = (configuration.patchSize, VisionTransformerConfiguration.colourChannels)
        let (rows, columns) = (pictures.shape[pictures.shape.count - 2], pictures.shape[pictures.shape.count - 1])
        let depth = channels * side * side
        var patches = try Tensor<Float>(zeros: [count * grid.count, depth])
        var elements = patches.mutableSpan
        elements.withUnsafeMutableBufferPointer { target in
            pictures.span.withUnsafeBufferPointer { source in
                // Every task writes patches of its own, and both tensors outlive the call.
                nonisolated(unsafe) let target = target.baseAddress!
                nonisolated(unsafe) let source = source.baseAddress!
                pool.forEachRange(of: count * grid.count, workPerItem: 8 * depth) { range in
                    for patch in range {
                        let (picture, cell) = (patch / grid.count, patch % grid.count)
                        let corner = cell / grid.columns * side * columns + cell % grid.columns * side
                        for line in 0..<channels * side {
                            let (channel, row) = (line / side, line % side)
                            let start = (picture * channels + channel) * rows * columns + corner + row * columns
                            (target + patch * depth + line * side).update(from: source + start, count: side)
                        }
                    }
                }
            }
        }
        return patches
    }
}
