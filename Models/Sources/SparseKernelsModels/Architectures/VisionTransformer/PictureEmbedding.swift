internal import SparseKernels

/// The tokens of pictures: a linear function of every patch, CLIP's class token, and positions.
struct PictureEmbedding: Sendable {
    private let configuration: VisionTransformerConfiguration
    private let patches: PatchEmbedding
    /// `[width]`.
    private let classEmbedding: Tensor<Float>?
    private let positions: PositionTable

    init(
        _ weights: VisionTransformerWeights, instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        configuration = weights.configuration
        let embedding = try weights.patchEmbedding()
        patches = try PatchEmbedding(
            weight: embedding.weight, bias: embedding.bias, instructionSet: instructionSet, on: pool)
        classEmbedding = try weights.classEmbedding()
        positions = try PositionTable(weights)
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
        let size = GridSize(rows: shape[shape.count - 2], columns: shape[shape.count - 1])
        let (count, grid) = (shape.count == 4 ? shape[0] : 1, patches.grid(of: size))
        let table = try positions.rows(for: grid, instructionSet: patches.instructionSet, on: pool)
        let (first, width) = (c.classTokens, c.width)
        let length = first + grid.count
        var tokens = try Tensor<Float>(zeros: [count * length, width])
        for picture in 0..<count {
            let pixels = pictures.span.extracting((picture * channels * size.count)...)
            let view = try PictureView(pixels, channels: channels, size: size, named: "pictures")
            var rows = try tokens.mutableMatrixView(named: "tokens")
            let start = picture * length + first
            try patches.run(view, into: rows.rows(start..<start + grid.count), on: pool)
        }
        add(table, length, to: &tokens, on: pool)
        return (tokens, count, grid)
    }

    /// Adds positions to the rows of every picture, and CLIP's class token to its first one.
    private func add(_ table: Tensor<Float>, _ length: Int, to tokens: inout Tensor<Float>, on pool: WorkerPool) {
        let (first, width, count) = (configuration.classTokens, configuration.width, tokens.shape[0])
        var elements = tokens.mutableSpan
        elements.withUnsafeMutableBufferPointer { target in
            table.span.withUnsafeBufferPointer { source in
                // Every task writes rows of its own, and the tensors outlive the call.
                nonisolated(unsafe) let (target, source) = (target.baseAddress!, source.baseAddress!)
                pool.forEachRange(of: count, workPerItem: 8 * width) { rows in
                    for row in rows {
                        let token = row % length
                        for channel in 0..<width {
                            var value = target[row * width + channel] + source[token * width + channel]
                            if token < first { value += classEmbedding![flat: channel] }
                            target[row * width + channel] = value
                        }
                    }
                }
            }
        }
    }
}
