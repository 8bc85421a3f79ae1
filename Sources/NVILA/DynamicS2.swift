public import SparseKernels

/// Dynamic-S²: a picture at several scales, cut into tiles that a vision tower of fixed input size takes.
///
/// The lower scales are squares of (scale / smallest scale)² tiles. The largest keeps the picture's aspect ratio: as many tiles across and
/// down as come closest to it, among all with at least (largest / smallest)² and at most `maximumTiles` tiles. Features of the tiles are
/// put together scale by scale, resized to the grid of one of the scales, and concatenated by ``DynamicS2Merge``.
///
/// ```swift
/// let tiling = try DynamicS2().tiling(width: 1920, height: 1080)
/// print(tiling.blocks)  // [1 × 1, 2 × 2, 3 × 4]
/// ```
///
/// - Source: NVILA (arXiv 2412.04468), section 2.2; `dynamic_s2_preprocess` and `find_closest_aspect_ratio`.
public struct DynamicS2: Hashable, Sendable {
    /// Pixels along a side of a tile.
    public let tileSize: Int
    /// Pixels of each scale, ascending.
    public let scales: [Int]
    /// The most tiles of the largest scale.
    public let maximumTiles: Int
    /// The scale, by position, to whose grid features are resized.
    public let outputScale: Int

    /// - Parameters:
    ///   - tileSize: pixels along a side of a tile.
    ///   - scales: multiples of the first one, ascending.
    ///   - maximumTiles: of the largest scale, at least (largest / smallest)².
    ///   - outputScale: the position of the scale to whose grid features are resized; −1 is the largest, as in the released training
    ///     scripts. The released code's own default is 0, the smallest.
    /// - Throws: `.invalidArgument` naming the option that breaks these rules.
    public init(
        tileSize: Int = 448, scales: [Int] = [448, 896, 1344], maximumTiles: Int = 12, outputScale: Int = -1
    ) throws(SparseKernelsError) {
        try require(
            tileSize >= 1 && tileSize <= 1 << 16, .invalidArgument, "tileSize", expected: "from 1 to 65536",
            actual: "\(tileSize)")
        try require(
            !scales.isEmpty && scales[0] >= 1, .invalidArgument, "scales", expected: "at least one, of 1 or more",
            actual: "\(scales)")
        for index in scales.indices.dropFirst() {
            try require(
                scales[index] > scales[index - 1] && scales[index] % scales[0] == 0, .invalidArgument, "scales[\(index)]",
                expected: "a multiple of \(scales[0]) above \(scales[index - 1])", actual: "\(scales[index])")
        }
        let ratio = scales[scales.count - 1] / scales[0]
        try require(ratio <= 64, .invalidArgument, "scales", expected: "a ratio of at most 64", actual: "\(ratio)")
        try require(
            maximumTiles >= ratio * ratio && maximumTiles <= 1 << 12, .invalidArgument, "maximumTiles",
            expected: "from \(ratio * ratio), the square of the ratio of scales, to 4096", actual: "\(maximumTiles)")
        let position = outputScale < 0 ? outputScale + scales.count : outputScale
        try require(
            scales.indices.contains(position), .invalidArgument, "outputScale",
            expected: "from \(-scales.count) to \(scales.count - 1)", actual: "\(outputScale)")
        self.tileSize = tileSize
        self.scales = scales
        self.maximumTiles = maximumTiles
        self.outputScale = position
    }

    /// The fewest tiles of the largest scale.
    public var minimumTiles: Int {
        let ratio = scales[scales.count - 1] / scales[0]
        return ratio * ratio
    }

    /// Tiles across and down of a scale that is not the largest.
    func squareBlocks(ofScale index: Int) -> GridSize { GridSize(side: scales[index] / scales[0]) }

    /// How a picture is cut.
    ///
    /// Of two aspect ratios that are equally close, the later in order of tiles is taken if the picture has more than half of its pixels.
    /// - Parameters:
    ///   - width: pixels across.
    ///   - height: pixels down.
    /// - Throws: `.invalidShape` for a picture without pixels.
    /// - Complexity: O(`maximumTiles`²).
    public func tiling(width: Int, height: Int) throws(SparseKernelsError) -> DynamicS2Tiling {
        for (name, extent) in [("width", width), ("height", height)] {
            try require(
                extent >= 1 && extent < 1 << 31, .invalidShape, name, expected: "from 1 to 2³¹ − 1", actual: "\(extent)")
        }
        let squares = scales.indices.dropLast().map { squareBlocks(ofScale: $0) }
        return DynamicS2Tiling(tileSize: tileSize, blocks: squares + [closest(width: width, height: height)])
    }

    /// The tiles of the largest scale. All arithmetic is in `Double`, as in the released code.
    private func closest(width: Int, height: Int) -> GridSize {
        let aspect = Double(width) / Double(height)
        let area = Double(width) * Double(height)
        var (best, smallest) = (GridSize(side: 1), Double.infinity)
        for tiles in minimumTiles...maximumTiles {
            for columns in 1...tiles where tiles % columns == 0 {
                let rows = tiles / columns
                let difference = abs(aspect - Double(columns) / Double(rows))
                if difference < smallest {
                    (best, smallest) = (GridSize(rows: rows, columns: columns), difference)
                } else if difference == smallest, area > 0.5 * Double(tileSize * tileSize * tiles) {
                    best = GridSize(rows: rows, columns: columns)
                }
            }
        }
        return best
    }
}

/// The tiles of a picture, scale after scale, small first; in raster order within a scale.
public struct DynamicS2Tiling: Hashable, Sendable {
    /// Pixels along a side of a tile.
    public let tileSize: Int
    /// Tiles of each scale.
    public let blocks: [GridSize]

    /// A rectangle of pixels of the resized picture of a scale.
    public struct Box: Hashable, Sendable {
        /// The position of the scale.
        public let scale: Int
        public let left: Int
        public let upper: Int
        /// One beyond the last column, and one beyond the last row.
        public let right: Int
        public let lower: Int
    }

    /// Tiles of all scales.
    public var count: Int { blocks.reduce(0) { $0 + $1.count } }

    /// Tiles of the largest scale.
    public var largest: GridSize { blocks[blocks.count - 1] }

    /// The size to which the picture is resized for a scale.
    public func pictureSize(ofScale index: Int) -> GridSize {
        GridSize(rows: blocks[index].rows * tileSize, columns: blocks[index].columns * tileSize)
    }

    /// Where each tile lies in the resized picture of its scale.
    public var boxes: [Box] {
        blocks.indices.flatMap { scale in
            (0..<blocks[scale].count).map { tile in
                let (row, column) = tile.quotientAndRemainder(dividingBy: blocks[scale].columns)
                return Box(
                    scale: scale, left: column * tileSize, upper: row * tileSize, right: (column + 1) * tileSize,
                    lower: (row + 1) * tileSize)
            }
        }
    }

    /// Pieces of the size of a tile into which the merged map is split.
    public func boards(of configuration: DynamicS2) -> GridSize { blocks[configuration.outputScale] }
}
