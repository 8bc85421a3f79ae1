/// The kernels of one instruction set. Every instruction set fills every slot from the same sources.
public struct KernelTable: Sendable {
    /// Floats in one vector register.
    public var laneCount: Int
    /// Floats across a full register tile (queries of a panel, columns of a packed matrix panel).
    public var panelWidth: Int
    /// Rows of the register tile.
    public var tileRows: Int
    /// Floats across a panel of quantised weights.
    public var weightPanelWidth: Int

    /// Attention of one query block. See `AttentionArguments`.
    public var attendBlock: @Sendable (UnsafePointer<AttentionArguments>) -> Void
    /// A block of a matrix product. See `GEMMArguments`.
    public var multiplyBlock: @Sendable (UnsafePointer<GEMMArguments>) -> Void
    /// A few rows of a matrix product. See `GEMMArguments`.
    public var multiplyRows: @Sendable (UnsafePointer<GEMMArguments>) -> Void
    /// Rows of any storage type as adjacent floats: (rows, first, count, channels, destination).
    public var stageRows: @Sendable (RowOperand, Int, Int, Int, UnsafeMutablePointer<Float>) -> Void

    /// Block scores of some groups of queries. See `AntidiagonalArguments`.
    public var scoreAntidiagonals: @Sendable (UnsafePointer<AntidiagonalArguments>) -> Void
    /// Codes of some groups of keys. See `KeyCodeArguments`.
    public var encodeKeyGroups: @Sendable (UnsafePointer<KeyCodeArguments>) -> Void
    /// Sums of columns: (rows, first row, end, channels, room for one row, sums).
    public var sumRows:
        @Sendable (
            UnsafePointer<RowOperand>, Int, Int, Int, UnsafeMutablePointer<Float>, UnsafeMutablePointer<Float>
        ) -> Void

    /// Activations of a quantised product. See `QuantizeArguments`.
    public var quantizeActivations: @Sendable (UnsafePointer<QuantizeArguments>) -> Void
    /// A panel of a quantised product. See `QuantizedProductArguments`.
    public var multiplyQuantized: @Sendable (UnsafePointer<QuantizedProductArguments>) -> Void
    /// What is added to signed codes of activations that meet weights of whole bytes.
    public var byteZero: Int32

    /// Keys and values of a cache.
    public var tokens: TokenKernels

    /// Roofs: (iterations) → `3·tileRows` chains of multiply-adds of codes, `4·laneCount` wide.
    public var codeProductChains: @Sendable (Int) -> Int32
    /// Roofs: (iterations, seed) → `3·tileRows` chains of multiply-adds, `laneCount` wide.
    public var multiplyAddChains: @Sendable (Int, Float) -> Float
    /// Roofs: (pointer, count) → reads every float once; count is a multiple of 3·panelWidth.
    public var readAll: @Sendable (UnsafePointer<Float>, Int) -> Float
    /// The micro-kernel alone: (strip, panel, C, depth, iterations).
    public var multiplyTile:
        @Sendable (UnsafePointer<Float>, UnsafePointer<Float>, UnsafeMutablePointer<Float>, Int, Int) -> Void
    /// Elementary functions over arrays, for operators and tests: (primitive, source, destination, count).
    public var applyPrimitive: @Sendable (Primitive, UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void

    public init(
        laneCount: Int, panelWidth: Int, tileRows: Int, weightPanelWidth: Int,
        attendBlock: @escaping @Sendable (UnsafePointer<AttentionArguments>) -> Void,
        multiplyBlock: @escaping @Sendable (UnsafePointer<GEMMArguments>) -> Void,
        multiplyRows: @escaping @Sendable (UnsafePointer<GEMMArguments>) -> Void,
        stageRows: @escaping @Sendable (RowOperand, Int, Int, Int, UnsafeMutablePointer<Float>) -> Void,
        scoreAntidiagonals: @escaping @Sendable (UnsafePointer<AntidiagonalArguments>) -> Void,
        encodeKeyGroups: @escaping @Sendable (UnsafePointer<KeyCodeArguments>) -> Void,
        sumRows:
            @escaping @Sendable (
                UnsafePointer<RowOperand>, Int, Int, Int, UnsafeMutablePointer<Float>, UnsafeMutablePointer<Float>
            ) -> Void,
        quantizeActivations: @escaping @Sendable (UnsafePointer<QuantizeArguments>) -> Void,
        multiplyQuantized: @escaping @Sendable (UnsafePointer<QuantizedProductArguments>) -> Void, byteZero: Int32,
        tokens: TokenKernels, codeProductChains: @escaping @Sendable (Int) -> Int32,
        multiplyAddChains: @escaping @Sendable (Int, Float) -> Float,
        readAll: @escaping @Sendable (UnsafePointer<Float>, Int) -> Float,
        multiplyTile:
            @escaping @Sendable (UnsafePointer<Float>, UnsafePointer<Float>, UnsafeMutablePointer<Float>, Int, Int) -> Void,
        applyPrimitive: @escaping @Sendable (Primitive, UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void
    ) {
        self.laneCount = laneCount
        self.panelWidth = panelWidth
        self.tileRows = tileRows
        self.weightPanelWidth = weightPanelWidth
        self.attendBlock = attendBlock
        self.multiplyBlock = multiplyBlock
        self.multiplyRows = multiplyRows
        self.stageRows = stageRows
        self.scoreAntidiagonals = scoreAntidiagonals
        self.encodeKeyGroups = encodeKeyGroups
        self.sumRows = sumRows
        self.quantizeActivations = quantizeActivations
        self.multiplyQuantized = multiplyQuantized
        self.byteZero = byteZero
        self.tokens = tokens
        self.codeProductChains = codeProductChains
        self.multiplyAddChains = multiplyAddChains
        self.readAll = readAll
        self.multiplyTile = multiplyTile
        self.applyPrimitive = applyPrimitive
    }
}
