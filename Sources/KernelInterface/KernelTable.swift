// The kernels that every level has, grouped by subject: one line per kernel, and this is the only place that lists them.
//
// A level's module has a type `Kernels` that conforms. Each body is a static function of it, so a level without one of the kernels does
// not compile. Operators hold the type itself, `any KernelTable.Type`, whose witness table is the table of function pointers.

/// All kernels of one level.
public protocol KernelTable: AttentionKernels, GEMMKernels, ScoringKernels, QuantizedKernels, TokenKernels, RoofKernels,
    PrimitiveKernels
{
    static var sizes: TileSizes { get }
}

/// What operators know of a level's register tiles.
public struct TileSizes: Sendable {
    /// Floats in one vector register.
    public var laneCount: Int
    /// Floats across a full register tile (queries of a panel, columns of a packed matrix panel).
    public var panelWidth: Int
    /// Rows of the register tile.
    public var tileRows: Int
    /// Floats across a panel of quantised weights.
    public var weightPanelWidth: Int
    /// The number that is added to signed codes of activations that meet weights of whole bytes.
    public var byteZero: Int32

    public init(laneCount: Int, panelWidth: Int, tileRows: Int, weightPanelWidth: Int, byteZero: Int32) {
        self.laneCount = laneCount
        self.panelWidth = panelWidth
        self.tileRows = tileRows
        self.weightPanelWidth = weightPanelWidth
        self.byteZero = byteZero
    }
}

/// Attention of a block of queries.
public protocol AttentionKernels: SendableMetatype {
    static func attendBlock(_ arguments: UnsafePointer<AttentionArguments>)
}

/// Products of matrices in single precision.
public protocol GEMMKernels: SendableMetatype {
    static func multiplyBlock(_ arguments: UnsafePointer<GEMMArguments>)
    static func multiplyRows(_ arguments: UnsafePointer<GEMMArguments>)
}

/// Block scores of attention.
public protocol ScoringKernels: SendableMetatype {
    static func scoreAntidiagonals(_ arguments: UnsafePointer<AntidiagonalArguments>)
    static func encodeKeyGroups(_ arguments: UnsafePointer<KeyCodeArguments>)
    /// sums[c] = Σ of channel c over rows [first, end), in order. `staging` has room for one row.
    static func sumRows(
        _ operand: UnsafePointer<RowOperand>, from first: Int, to end: Int, channels: Int,
        staging: UnsafeMutablePointer<Float>, into sums: UnsafeMutablePointer<Float>)
}

/// Linear layers with quantised weights.
public protocol QuantizedKernels: SendableMetatype {
    static func quantizeActivations(_ arguments: UnsafePointer<QuantizeArguments>)
    static func multiplyQuantized(_ arguments: UnsafePointer<QuantizedProductArguments>)
}

/// Keys and values of a cache.
public protocol TokenKernels: SendableMetatype {
    static func attendTokens(_ arguments: UnsafePointer<AttendTokensArguments>)
    static func scoreTokens(_ arguments: UnsafePointer<ScoreTokensArguments>)
    static func mergeTokens(_ arguments: UnsafePointer<MergeTokensArguments>)
    static func storeTokens(_ arguments: UnsafePointer<StoreTokensArguments>)
    /// Adjacent slots as adjacent rows of floats.
    static func loadTokens(_ source: TokenOperand, slot: Int, count: Int, into destination: UnsafeMutablePointer<Float>)
    static func summarizeTokens(_ arguments: UnsafePointer<SummarizeTokensArguments>)
    static func pruneWeights(_ arguments: UnsafePointer<PruneArguments>)
}

/// Roofs: what a core can do at best, by the same vectors that the kernels use. Their bodies share MachineRoofs.swift.
public protocol RoofKernels: SendableMetatype {
    /// 3·`tileRows` chains of multiply-adds, `laneCount` wide, out of registers.
    static func multiplyAddChains(iterations: Int, seed: Float) -> Float
    /// 3·`tileRows` chains of multiply-adds of codes, 4·`laneCount` wide, out of registers.
    static func codeProductChains(iterations: Int) -> Int32
    /// Reads every float once; `count` is a multiple of 3·`panelWidth`.
    static func readAll(_ pointer: UnsafePointer<Float>, count: Int) -> Float
    /// The register tile of a packed matrix product alone.
    static func multiplyTile(
        strip: UnsafePointer<Float>, panel: UnsafePointer<Float>, c: UnsafeMutablePointer<Float>, depth: Int, iterations: Int)
}

/// Conversions and elementary functions over arrays.
public protocol PrimitiveKernels: SendableMetatype {
    /// Rows of any storage type as adjacent floats.
    static func stageRows(
        _ operand: RowOperand, first: Int, count: Int, channels: Int, into destination: UnsafeMutablePointer<Float>)
    static func applyPrimitive(
        _ primitive: Primitive, from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer, count: Int)
}
