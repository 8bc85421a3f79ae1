public import SparseKernels

/// What NVILA chooses: how pictures and videos are scaled and then compressed, and in which formats layers run.
///
/// The defaults are those of the released models with tiles: three scales of 448 pixels, at most 12 tiles, cells of 2 × 2 tokens, a tower in
/// W8A8 and a language model in W4A16.
public struct NVILAConfiguration: Hashable, Sendable {
    /// How pictures become tiles, and tiles one map.
    public var tiles: DynamicS2
    /// How the projector compresses tokens.
    public var downsampling: NVILADownsampling
    /// The poolings of a video. Each gives tokens of its own; released models have one.
    public var temporalPools: [PoolingWindow]
    /// The linear layers of the vision tower.
    public var tower: NVILALinearFormat
    /// The linear layers of the projector.
    public var projector: NVILALinearFormat
    /// The linear layers of the language model.
    public var languageModel: NVILALinearFormat

    /// - Parameters:
    ///   - tiles: how pictures become tiles; nil means the defaults of ``DynamicS2``.
    ///   - downsampling: how the projector compresses tokens.
    ///   - temporalPools: the poolings of a video.
    ///   - tower: the vision tower's linear layers.
    ///   - projector: the projector's linear layers.
    ///   - languageModel: the language model's linear layers.
    /// - Throws: `.invalidArgument` for no poolings.
    public init(
        tiles: DynamicS2? = nil, downsampling: NVILADownsampling = .twoByTwo,
        temporalPools: [PoolingWindow] = [PoolingWindow(frames: 8)], tower: NVILALinearFormat = .w8a8,
        projector: NVILALinearFormat = .float16, languageModel: NVILALinearFormat = .w4a16()
    ) throws(SparseKernelsError) {
        try require(
            !temporalPools.isEmpty, .invalidArgument, "temporalPools", expected: "at least one", actual: "none")
        if let tiles { self.tiles = tiles } else { self.tiles = try DynamicS2() }
        self.downsampling = downsampling
        self.temporalPools = temporalPools
        self.tower = tower
        self.projector = projector
        self.languageModel = languageModel
    }

    /// Tokens that a language model sees of a picture with such a tower, before those that mark its beginning and end.
    ///
    /// - Parameters:
    ///   - width: pixels across.
    ///   - height: pixels down.
    ///   - tokens: tokens of a tile.
    /// - Throws: `.invalidShape` for a picture without pixels or a grid without tokens.
    public func tokenCount(width: Int, height: Int, tokens: GridSize) throws(SparseKernelsError) -> Int {
        let pieces = try tiles.tiling(width: width, height: height).boards(of: tiles)
        let cells = try SpaceToChannel(grid: tokens, factor: downsampling.factor, channels: 1).cells
        return pieces.count * cells.count
    }
}
