public import SparseKernels

/// The features of the tiles of pictures as one map per picture: stitched scale by scale, resized to one grid by area, and concatenated on
/// the channels; then split back into boards of the size of a tile, which the projector takes.
///
/// Neither the stitched nor the resized maps are in memory: each element of a board is a mean of elements of tiles, and is read there.
///
/// ```swift
/// let tiling = try DynamicS2().tiling(width: 1920, height: 1080)
/// let merge = try DynamicS2Merge(DynamicS2(), images: [tiling.largest], tokens: GridSize(side: 32))
/// let boards = try merge(features)  // [17 tiles, 1024, channels] → [12 boards, 1024, 3 · channels]
/// ```
///
/// A picture without tiles has a single map, which is repeated for every scale.
///
/// - Exactness: means over the windows of adaptive average pooling, ⌊i·n/m⌋ to ⌈(i + 1)·n/m⌉, in `Float`; where nothing is resized, copies.
/// - Non-finite features stay in their channel of the elements whose window has them.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: each feature is read once per window that has it. Scratch: none. The plan has about 4 bytes per token and scale.
/// - Source: NVILA (arXiv 2412.04468); `merge_features_for_dynamic_s2`, `merge_chessboard` and `split_chessboard`.
public struct DynamicS2Merge: Sendable {
    /// Boards of each picture, across and down. They follow each other in raster order, picture after picture.
    public let boards: [GridSize]
    /// Tokens of a tile, and of a board.
    public let tokens: GridSize
    /// Scales, each of which has channels of its own in the result.
    public let scaleCount: Int
    /// Tiles of all pictures.
    public let tileCount: Int
    /// Boards of all pictures.
    public let boardCount: Int
    private let means: [RowMeans]

    /// - Parameters:
    ///   - configuration: scales, and to which of them features are resized.
    ///   - images: the tiles of the largest scale of each picture, or nil for a picture without tiles, which has one.
    ///   - tokens: tokens of a tile.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for grids without cells or more tokens than 32-bit indices name, `.unsupportedInstructionSet`.
    public init(
        _ configuration: DynamicS2, images: [GridSize?], tokens: GridSize, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try tokens.validate("tokens")
        for (index, image) in images.enumerated() { try image?.validate("images[\(index)]") }
        let tilings = images.map { image -> [GridSize] in
            guard let image else { return configuration.scales.map { _ in GridSize(side: 1) } }
            return configuration.scales.indices.dropLast().map { configuration.squareBlocks(ofScale: $0) } + [image]
        }
        boards = tilings.map { $0[configuration.outputScale] }
        boardCount = boards.reduce(0) { $0 + $1.count }
        scaleCount = configuration.scales.count
        self.tokens = tokens
        var (tiles, maps) = (0, [[StitchedMap]](repeating: [], count: scaleCount))
        for (image, blocks) in zip(images, tilings) {
            for (scale, block) in blocks.enumerated() {
                maps[scale].append(StitchedMap(blocks: block, tokens: tokens, firstTile: tiles))
                // Without tiles, one map serves all scales.
                let isShared = image == nil && scale + 1 < blocks.count
                let (sum, overflow) = tiles.addingReportingOverflow(isShared ? 0 : block.count)
                try require(
                    !overflow && sum < 1 << 31, .invalidShape, "images", expected: "fewer than 2³¹ tiles", actual: "\(block)")
                tiles = sum
            }
        }
        tileCount = tiles
        let (rows, overflow) = tiles.multipliedReportingOverflow(by: tokens.count)
        try require(
            !overflow && rows < 1 << 31, .invalidShape, "images", expected: "fewer than 2³¹ tokens", actual: "\(tiles) tiles")
        var plans: [RowMeans] = []
        for scale in 0..<scaleCount {
            var (offsets, sources): ([Int32], [Int32]) = ([0], [])
            for (map, board) in zip(maps[scale], boards) { map.appendWindows(for: board, &offsets, &sources) }
            plans.append(try RowMeans(of: rows, offsets: offsets, rows: sources, instructionSet: instructionSet))
        }
        means = plans
    }

    /// The boards of a picture.
    public func boards(ofImage image: Int) -> Range<Int> {
        let first = boards[..<image].reduce(0) { $0 + $1.count }
        return first..<first + boards[image].count
    }

    /// Merges and splits features.
    ///
    /// - Parameters:
    ///   - x: a row per token of each tile, tile after tile: picture after picture, scale after scale, small first.
    ///   - y: a row of `scaleCount` times the channels per token of each board, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let channels = x.columns
        try require(
            x.rows == tileCount * tokens.count, .invalidShape, "x",
            expected: "\(tileCount * tokens.count) rows, the tokens of \(tileCount) tiles", actual: "\(x.rows)")
        try requireMatrix(
            "y", rows: y.rows, columns: y.columns, expected: (boardCount * tokens.count, scaleCount * channels))
        for scale in 0..<scaleCount {
            try means[scale].run(x, into: y.columns(scale * channels..<(scale + 1) * channels), on: pool)
        }
    }

    /// The boards, `[boards, tokens, scales · channels]`, in a new tensor.
    /// - Parameter x: `[tiles, tokens, channels]`.
    /// - Throws: `.invalidShape` for other tiles.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            x.shape.count == 3 && x.shape[0] == tileCount && x.shape[1] == tokens.count, .invalidShape, "x",
            expected: "[\(tileCount), \(tokens.count), channels]", actual: "\(x.shape)")
        var y = try Tensor<Float>(zeros: [boardCount, tokens.count, scaleCount * x.shape[2]])
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), on: pool)
        return y
    }
}

/// Tiles of one scale of a picture side by side.
private struct StitchedMap {
    let blocks: GridSize
    let tokens: GridSize
    let firstTile: Int

    /// Adds a list of tokens for every element of the boards, board after board.
    func appendWindows(for boards: GridSize, _ offsets: inout [Int32], _ rows: inout [Int32]) {
        let (height, width) = (blocks.rows * tokens.rows, blocks.columns * tokens.columns)
        let (down, across) = (boards.rows * tokens.rows, boards.columns * tokens.columns)
        for board in 0..<boards.count {
            let (boardRow, boardColumn) = board.quotientAndRemainder(dividingBy: boards.columns)
            for token in 0..<tokens.count {
                let (tokenRow, tokenColumn) = token.quotientAndRemainder(dividingBy: tokens.columns)
                for row in Self.window(boardRow * tokens.rows + tokenRow, of: height, in: down) {
                    for column in Self.window(boardColumn * tokens.columns + tokenColumn, of: width, in: across) {
                        rows.append(Int32(index(row, column)))
                    }
                }
                offsets.append(Int32(rows.count))
            }
        }
    }

    /// What element i of m covers of n: the window of adaptive average pooling.
    private static func window(_ i: Int, of n: Int, in m: Int) -> Range<Int> { i * n / m..<((i + 1) * n + m - 1) / m }

    /// The token at a place of the stitched map.
    private func index(_ row: Int, _ column: Int) -> Int {
        let tile = firstTile + row / tokens.rows * blocks.columns + column / tokens.columns
        return tile * tokens.count + row % tokens.rows * tokens.columns + column % tokens.columns
    }
}
