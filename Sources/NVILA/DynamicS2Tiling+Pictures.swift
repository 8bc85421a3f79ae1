public import SparseKernels

extension DynamicS2Tiling {
    /// The tiles of a picture: it is resized for each scale, and cut.
    ///
    /// - Parameters:
    ///   - picture: `[channels, rows, columns]`, of any size; the tiling need not have been made for it.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: `[count, channels, tileSize, tileSize]`, in the order of `boxes`.
    /// - Throws: `.invalidShape` for another rank, no channels or no pixels; `.unsupportedInstructionSet`.
    /// - Exactness: bicubic with antialiasing, as the released code resizes pictures; but in `Float`, without rounding to 8 bits.
    /// - Complexity: O(pixels of picture and tiles). It makes plans and results, and so allocates.
    public func tiles(
        of picture: Tensor<Float>, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let shape = picture.shape
        try require(
            shape.count == 3 && shape.allSatisfy { $0 >= 1 }, .invalidShape, "picture",
            expected: "[channels, rows, columns], at least 1 each", actual: "\(shape)")
        let source = GridSize(rows: shape[1], columns: shape[2])
        var result = try Tensor<Float>(zeros: [count, shape[0], tileSize, tileSize])
        var first = 0
        for scale in blocks.indices {
            let target = pictureSize(ofScale: scale)
            let resize = try ImageResize(
                source, to: target, filter: .bicubic, antialias: true, instructionSet: instructionSet)
            let resized = try resize(picture, on: pool)
            cut(resized, scale: scale, into: &result, from: first, on: pool)
            first += blocks[scale].count
        }
        return result
    }

    /// Copies the tiles of a scale, line by line.
    private func cut(
        _ picture: Tensor<Float>, scale: Int, into tiles: inout Tensor<Float>, from first: Int, on pool: WorkerPool
    ) {
        let (channels, rows, columns) = (picture.shape[0], picture.shape[1], picture.shape[2])
        let (size, across) = (tileSize, blocks[scale].columns)
        picture.span.withUnsafeBufferPointer { source in
            var span = tiles.mutableSpan
            span.withUnsafeMutableBufferPointer { target in
                let memory = TileMemory(source: source.baseAddress!, target: target.baseAddress!)
                // Items are the planes of tiles.
                pool.forEachRange(of: blocks[scale].count * channels, workPerItem: 8 * size * size) { range in
                    for item in range {
                        let (tile, channel) = item.quotientAndRemainder(dividingBy: channels)
                        let (top, left) = (tile / across * size, tile % across * size)
                        for row in 0..<size {
                            let line = memory.source + (channel * rows + top + row) * columns + left
                            let place = ((first + tile) * channels + channel) * size + row
                            (memory.target + place * size).update(from: line, count: size)
                        }
                    }
                }
            }
        }
    }
}

/// Memory that tasks of a call share, each its own part of the target.
private struct TileMemory: @unchecked Sendable {
    let source: UnsafePointer<Float>
    let target: UnsafeMutablePointer<Float>
}
