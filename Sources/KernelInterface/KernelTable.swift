// The kernels that every level has, grouped by subject, one line per kernel. No other place lists them.
//
// A level's module has a type `Kernels` that conforms to `KernelTable`. Each body is a static function of it, so a level that
// lacks a kernel does not compile. Operators hold `any KernelTable.Type`; its witness table has the pointers.

/// All kernels of one level.
public protocol KernelTable: AttentionKernels, GEMMKernels, ScoringKernels, QuantizedKernels, TokenKernels, RowKernels,
    RecurrenceKernels, SparseLinearKernels, VisionKernels, TrainingKernels, RoofKernels, PrimitiveKernels
{
    static var sizes: TileSizes { get }
}

/// The sizes of a level's register tiles, as far as operators need them.
public struct TileSizes: Sendable {
    /// Floats in a vector register.
    public var laneCount: Int
    /// Floats across a full register tile, which is a panel of queries or of matrix columns.
    public var panelWidth: Int
    /// Rows of the register tile.
    public var tileRows: Int
    /// Floats across a panel of quantised weights.
    public var weightPanelWidth: Int
    /// The number that is added to signed codes of activations, for products with weights of whole bytes.
    public var byteZero: Int32
    /// Whether products with whole bytes are faster with quiet weights, whose adjacent pairs do not overflow 16 bits.
    public var prefersQuietWeights: Bool

    public init(
        laneCount: Int, panelWidth: Int, tileRows: Int, weightPanelWidth: Int, byteZero: Int32, prefersQuietWeights: Bool
    ) {
        self.laneCount = laneCount
        self.panelWidth = panelWidth
        self.tileRows = tileRows
        self.weightPanelWidth = weightPanelWidth
        self.byteZero = byteZero
        self.prefersQuietWeights = prefersQuietWeights
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

/// Block scores of attention, and clusters.
public protocol ScoringKernels: SendableMetatype {
    static func scoreAntidiagonals(_ arguments: UnsafePointer<AntidiagonalArguments>)
    static func encodeKeyGroups(_ arguments: UnsafePointer<KeyCodeArguments>)
    /// sums[c] = Σ of channel c over rows [first, end), in order. `staging` has memory for one row.
    static func sumRows(
        _ operand: UnsafePointer<RowOperand>, from first: Int, to end: Int, channels: Int,
        staging: UnsafeMutablePointer<Float>, into sums: UnsafeMutablePointer<Float>)
    /// sums[c] = Σ of channel c over `count` rows given by index, in order. `staging` has memory for one row.
    static func sumListedRows(
        _ operand: UnsafePointer<RowOperand>, rows: UnsafePointer<Int32>, count: Int, channels: Int,
        staging: UnsafeMutablePointer<Float>, into sums: UnsafeMutablePointer<Float>)
    static func assignRows(_ arguments: UnsafePointer<AssignArguments>)
}

/// Linear layers with quantised weights.
public protocol QuantizedKernels: SendableMetatype {
    static func quantizeActivations(_ arguments: UnsafePointer<QuantizeArguments>)
    static func multiplyQuantized(_ arguments: UnsafePointer<QuantizedProductArguments>)
    static func castToFloat8(_ arguments: UnsafePointer<Float8CastArguments>)
    static func castFromFloat8(_ arguments: UnsafePointer<Float8CastArguments>)
    /// The largest |x| of some rows, 0 for none; NaN when one is NaN.
    static func largestMagnitude(_ x: RowOperand, rows: Int, columns: Int) -> Float
}

/// Tokens of a cache: keys, values and page metadata.
public protocol TokenKernels: SendableMetatype {
    static func attendTokens(_ arguments: UnsafePointer<AttendTokensArguments>)
    static func scoreTokens(_ arguments: UnsafePointer<ScoreTokensArguments>)
    static func mergeTokens(_ arguments: UnsafePointer<MergeTokensArguments>)
    static func storeTokens(_ arguments: UnsafePointer<StoreTokensArguments>)
    /// Writes adjacent slots as adjacent rows of floats.
    static func loadTokens(_ source: TokenOperand, slot: Int, count: Int, into destination: UnsafeMutablePointer<Float>)
    static func summarizeTokens(_ arguments: UnsafePointer<SummarizeTokensArguments>)
    static func pruneWeights(_ arguments: UnsafePointer<PruneArguments>)
}

/// Operators that work row by row: normalisation, rotary embedding, activations, embedding, logits.
public protocol RowKernels: SendableMetatype {
    static func normalizeRows(_ arguments: UnsafePointer<NormalizeArguments>)
    static func makeRotations(_ arguments: UnsafePointer<MakeRotationsArguments>)
    static func rotateRows(_ arguments: UnsafePointer<RotateArguments>)
    static func activateRows(_ arguments: UnsafePointer<ActivateArguments>)
    static func embedTokens(_ arguments: UnsafePointer<EmbedArguments>)
    static func summarizeLogits(_ arguments: UnsafePointer<SummarizeLogitsArguments>)
    static func rankLogits(_ arguments: UnsafePointer<RankLogitsArguments>)
}

/// Recurrences over tokens: state-space models, linear attention, and what stands around them.
public protocol RecurrenceKernels: SendableMetatype {
    static func convolveRows(_ arguments: UnsafePointer<ConvolveArguments>)
    /// `scratch` has `GatedNormArguments.scratchFloats` floats.
    static func normalizeGated(_ arguments: UnsafePointer<GatedNormArguments>, scratch: UnsafeMutablePointer<Float>)
    /// Takes states over tokens, a chunk at a time.
    static func recurChunks(_ arguments: UnsafePointer<LinearRecurrenceArguments>)
    /// Takes states over tokens, one at a time.
    static func recurSteps(_ arguments: UnsafePointer<LinearRecurrenceArguments>)
    static func chunkDeltaRule(_ arguments: UnsafePointer<DeltaRuleArguments>)
    static func stepDeltaRule(_ arguments: UnsafePointer<DeltaRuleArguments>)
    /// Scans tokens of one sequence in a block of channels.
    static func scanTokens(_ arguments: UnsafePointer<ScanArguments>)
    /// The same for a single token, with the same bits, on the states where they are.
    static func stepScan(_ arguments: UnsafePointer<ScanArguments>)
}

/// Products with picked channels, and experts.
public protocol SparseLinearKernels: SendableMetatype {
    static func multiplyPicked(_ arguments: UnsafePointer<PickedProductArguments>)
    /// The same for few rows. `scratch` has `PickedScratch.rowByteCount` bytes.
    static func multiplyPickedRows(_ arguments: UnsafePointer<PickedProductArguments>)
    static func addPickedParts(_ arguments: UnsafePointer<PickedPartsArguments>)
    static func moveColumns(_ arguments: UnsafePointer<MoveColumnsArguments>)
    static func routeTokens(_ arguments: UnsafePointer<RouteTokensArguments>)
    static func combineRows(_ arguments: UnsafePointer<CombineRowsArguments>)
    /// Returns the number of columns.
    static func listActiveColumns(_ arguments: UnsafePointer<ActiveColumnsArguments>) -> Int
    static func gateListedColumns(_ arguments: UnsafePointer<GateColumnsArguments>)
    /// `scratch` has 16 floats.
    static func sumHiddenSquares(
        _ arguments: UnsafePointer<HiddenSquaresArguments>, scratch: UnsafeMutablePointer<Float>)
}

/// Pictures and grids of tokens.
public protocol VisionKernels: SendableMetatype {
    static func normalizeCells(_ arguments: UnsafePointer<NormalizeCellsArguments>)
    static func averageRows(_ arguments: UnsafePointer<AverageRowsArguments>)
    /// Adds up probabilities per key, or takes the maximum and the sum of exponentials of every row.
    static func sumColumnMass(_ arguments: UnsafePointer<ColumnMassArguments>)
    static func compareRowChain(_ arguments: UnsafePointer<RowChainArguments>)
    /// Replaces the first of some listed rows, at least two, by their mean. The stride counts floats.
    static func averageListedRows(
        _ x: UnsafeMutablePointer<Float>, stride: Int, rows: UnsafePointer<Int32>, count: Int, channels: Int)
    static func resizeRows(_ arguments: UnsafePointer<ResizeArguments>)
    static func convolveDepthwise(_ arguments: UnsafePointer<DepthwiseArguments>)
    static func copyPatches(_ arguments: UnsafePointer<PatchArguments>)
    static func scoreCosines(_ arguments: UnsafePointer<CosineArguments>)
}

/// Gradients. Only the product for training calls them.
public protocol TrainingKernels: SendableMetatype {
    static func differentiateActivation(_ arguments: UnsafePointer<ActivationGradientArguments>)
    static func differentiateNorm(_ arguments: UnsafePointer<NormGradientArguments>)
    /// gradient = e^(logit − maximum) · factor, for a finite maximum that no logit exceeds. Both may be the same memory.
    static func differentiateLogits(
        _ logits: UnsafePointer<Float>, count: Int, maximum: Float, factor: Float, into gradient: UnsafeMutablePointer<Float>)
    static func stepAdamW(_ arguments: UnsafePointer<AdamWArguments>)
    /// Vision layers call it, too.
    static func addScaledRows(_ arguments: UnsafePointer<AddRowsArguments>)
    static func transposeRows(_ arguments: UnsafePointer<TransposeArguments>)
    static func packPanels(_ arguments: UnsafePointer<PackPanelsArguments>)
    static func multiplyPanels(_ arguments: UnsafePointer<PanelProductArguments>)
    static func addThinProduct(_ arguments: UnsafePointer<ThinProductArguments>)
    /// Σ x², in `Double` and in a fixed order.
    static func sumSquares(_ x: UnsafePointer<Float>, count: Int) -> Double
    static func differentiateAttention(_ arguments: UnsafePointer<AttentionGradientArguments>)
    /// Adds `count` rows of floats, with adjacent channels, to others. Strides count floats.
    static func addPartialRows(
        _ source: RowOperand, count: Int, channels: Int, to target: UnsafeMutablePointer<Float>, stride: Int)
}

/// Roofs: the most that a core can do with the vectors of the kernels. Their bodies are in MachineRoofs.swift.
public protocol RoofKernels: SendableMetatype {
    /// Runs multiply-adds in 3·`tileRows` chains, `laneCount` wide, in registers.
    static func multiplyAddChains(iterations: Int, seed: Float) -> Float
    /// Runs multiply-adds of codes in 3·`tileRows` chains, 4·`laneCount` wide, in registers.
    static func codeProductChains(iterations: Int) -> Int32
    /// Replaces floats by their exponentials, `rounds` times. They are at most 0 and a multiple of `laneCount`, in the nearest cache.
    static func exponentials(_ source: UnsafePointer<Float>, into target: UnsafeMutablePointer<Float>, count: Int, rounds: Int)
    /// Reads every float once. `count` is a multiple of 3·`panelWidth`.
    static func readAll(_ pointer: UnsafePointer<Float>, count: Int) -> Float
    /// Runs only the register tile of a packed matrix product.
    static func multiplyTile(
        strip: UnsafePointer<Float>, panel: UnsafePointer<Float>, c: UnsafeMutablePointer<Float>, depth: Int, iterations: Int)
}

/// Conversions and elementary functions over arrays.
public protocol PrimitiveKernels: SendableMetatype {
    /// Copies rows of any storage type to adjacent floats.
    static func stageRows(
        _ operand: RowOperand, first: Int, count: Int, channels: Int, into destination: UnsafeMutablePointer<Float>)
    /// Copies rows of any storage type, in the order of their indices, to adjacent floats.
    static func gatherRows(
        _ operand: RowOperand, order: UnsafePointer<Int32>, count: Int, channels: Int,
        into destination: UnsafeMutablePointer<Float>)
    /// Writes adjacent rows of floats as rows of any storage type, each at its index. Strides count elements.
    static func scatterRows(
        _ source: UnsafePointer<Float>, order: UnsafePointer<Int32>, count: Int, channels: Int,
        into destination: UnsafeMutableRawPointer, stride: Int, type: StorageType)
    static func applyPrimitive(
        _ primitive: Primitive, from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer, count: Int)
}
