/// A run of tokens of one sequence through the selective scan of a block of channels:
///
///     Δ = softplus(delta + bias)          h[n] ← 2^(Δ·decay[n]) · h[n] + Δ·x·B[n]          y = (skip·x + Σ C[n]·h[n]) · silu(gate)
///
/// Row 0 of every operand is the first token that is scanned, and a stride is negative when the scan runs backward. Strides count
/// elements.
public struct ScanArguments {
    /// Rows of tokens, from the first channel of the block on. The memory of `y` may be that of `x`, `delta` or `gate`, with the same
    /// stride and element size.
    public var x: RowOperand
    public var delta: RowOperand
    /// Read only if `hasGate`.
    public var gate: RowOperand
    public var hasGate = false
    /// Rows of `stateSize` numbers, those of the block's group. Not read with `fixedInput`.
    public var b: RowOperand
    public var c: RowOperand
    public var y: RowTarget
    public var tokens: Int
    /// Channels of the block, at most `ScanScratch.blockChannels`.
    public var channels: Int
    public var stateSize: Int
    /// `[stateSize]` rows of `ScanScratch.blockChannels` floats: A · log₂e, and 0 beyond the channels.
    public var decays: UnsafePointer<Float>
    /// The largest |decay| of every channel, `ScanScratch.blockChannels` floats.
    public var fastest: UnsafePointer<Float>
    /// B and C of every channel, the same for all tokens, in the layout of `decays`; nil when the tokens bring them.
    public var fixedInput: UnsafePointer<Float>?
    public var fixedOutput: UnsafePointer<Float>?
    /// `ScanScratch.blockChannels` floats each, or nil for 0.
    public var skip: UnsafePointer<Float>?
    public var bias: UnsafePointer<Float>?
    public var appliesSoftplus = true
    /// `[stateSize]` rows of the block's channels, read and written.
    public var states: UnsafeMutableRawPointer
    public var stateStride: Int
    public var stateType: StorageType
    /// Memory of `ScanScratch.byteCount` bytes, 64-byte aligned.
    public var scratch: UnsafeMutablePointer<Float>

    public init(
        x: RowOperand, delta: RowOperand, b: RowOperand, c: RowOperand, y: RowTarget, tokens: Int, channels: Int,
        stateSize: Int, decays: UnsafePointer<Float>, fastest: UnsafePointer<Float>, states: UnsafeMutableRawPointer,
        stateStride: Int, stateType: StorageType, scratch: UnsafeMutablePointer<Float>
    ) {
        self.x = x
        self.delta = delta
        gate = x
        self.b = b
        self.c = c
        self.y = y
        self.tokens = tokens
        self.channels = channels
        self.stateSize = stateSize
        self.decays = decays
        self.fastest = fastest
        self.states = states
        self.stateStride = stateStride
        self.stateType = stateType
        self.scratch = scratch
    }
}

/// The scratch of a scan: what is computed for a block of tokens, and the states of the block of channels.
public struct ScanScratch: Sendable {
    /// Channels of a task. Their floats are 512 adjacent bytes of a row, so that lines of memory come in runs.
    public static let blockChannels = 128
    /// Tokens that are staged at a time. Three arrays of them are 24 KB, half of a first-level cache; loads of states and decays are
    /// shared by this many tokens.
    public static let blockTokens = 16

    // Offsets in floats.
    public let delta = 0
    public let input = Self.blockTokens * Self.blockChannels
    public let sums = 2 * Self.blockTokens * Self.blockChannels
    public let states = 3 * Self.blockTokens * Self.blockChannels
    public let b: Int
    public let c: Int
    public let byteCount: Int

    public init(stateSize: Int) {
        b = states + stateSize * Self.blockChannels
        c = b + Self.blockTokens * stateSize
        byteCount = (c + Self.blockTokens * stateSize) * 4
    }
}
