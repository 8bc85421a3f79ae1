/// Scores some query groups of one head against all key groups: block sums of the softmax over strided antidiagonals.
///
/// A group is `stride` adjacent tokens. Let Q̃_i be the concatenated tokens of query group i in reverse order, and K̃_j those
/// of key group j in order. Then x_ij = scale·Q̃_i·K̃_j, and group i sees the key groups j < i + `visibleTo`.
public struct AntidiagonalArguments {
    /// Row 0 is the first token of the first group.
    public var query: RowOperand
    /// Tokens from row 0 on. A last group with fewer than `stride` is filled with zeros.
    public var queryTokens: Int
    /// Row 0 is key 0 of the sequence.
    public var key: RowOperand
    public var keyTokens: Int
    public var headDim: Int
    public var stride: Int
    /// Query groups of this task: whole blocks, except at the end of the sequence.
    public var groups: Int
    public var groupsPerQueryBlock: Int
    public var groupsPerKeyBlock: Int
    public var visibleTo: Int
    public var scale: Float

    /// Codes of every key group, `AntidiagonalScratch.codeDepth` apart, or nil for float arithmetic.
    public var keyCodes: UnsafePointer<UInt8>?
    /// The value of one step of the codes, per key group.
    public var keyScales: UnsafePointer<Float>?

    /// Sums of the probabilities over query block × key block, one row per query block. Whole rows are written.
    public var sums: UnsafeMutablePointer<Float>
    /// The number of key blocks, which is also the stride of `sums` in floats.
    public var keyBlocks: Int

    /// `AntidiagonalScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        query: RowOperand, queryTokens: Int, key: RowOperand, keyTokens: Int, headDim: Int, stride: Int, groups: Int,
        groupsPerQueryBlock: Int, groupsPerKeyBlock: Int, visibleTo: Int, scale: Float, keyCodes: UnsafePointer<UInt8>?,
        keyScales: UnsafePointer<Float>?, sums: UnsafeMutablePointer<Float>, keyBlocks: Int, scratch: UnsafeMutableRawPointer
    ) {
        self.query = query
        self.queryTokens = queryTokens
        self.key = key
        self.keyTokens = keyTokens
        self.headDim = headDim
        self.stride = stride
        self.groups = groups
        self.groupsPerQueryBlock = groupsPerQueryBlock
        self.groupsPerKeyBlock = groupsPerKeyBlock
        self.visibleTo = visibleTo
        self.scale = scale
        self.keyCodes = keyCodes
        self.keyScales = keyScales
        self.sums = sums
        self.keyBlocks = keyBlocks
        self.scratch = scratch
    }
}

/// Converts key groups to integer codes: u = round(31·(k − mean)/max|k − mean|) + 31.
public struct KeyCodeArguments {
    public var key: RowOperand
    public var keyTokens: Int
    public var headDim: Int
    public var stride: Int
    /// The first group of this task, and the one after its last.
    public var firstGroup: Int
    public var endGroup: Int
    /// One value per channel, subtracted from every token.
    public var mean: UnsafePointer<Float>
    /// `AntidiagonalScratch.codeDepth` bytes per group; `scales` has one scale per group.
    public var codes: UnsafeMutablePointer<UInt8>
    public var scales: UnsafeMutablePointer<Float>
    /// `stride · headDim` floats.
    public var scratch: UnsafeMutableRawPointer

    public init(
        key: RowOperand, keyTokens: Int, headDim: Int, stride: Int, firstGroup: Int, endGroup: Int,
        mean: UnsafePointer<Float>, codes: UnsafeMutablePointer<UInt8>, scales: UnsafeMutablePointer<Float>,
        scratch: UnsafeMutableRawPointer
    ) {
        self.key = key
        self.keyTokens = keyTokens
        self.headDim = headDim
        self.stride = stride
        self.firstGroup = firstGroup
        self.endGroup = endGroup
        self.mean = mean
        self.codes = codes
        self.scales = scales
        self.scratch = scratch
    }
}

/// The offsets of the scratch of antidiagonal scoring, in floats, and the cut of the keys into steps.
public struct AntidiagonalScratch: Sendable {
    /// Bytes of a group's codes. Channels are padded so that narrow sums need no tail.
    public static func codeDepth(headDim: Int, stride: Int) -> Int { (headDim * stride + 31) / 32 * 32 }

    /// Floats of keys per step: 256 KiB, half of a small second-level cache, from which all panels of a task read the step.
    static let stepFloats = 65536

    /// Key groups scored at once: whole blocks of keys, at least one, and so few that the scores stay in the first-level cache.
    public var stepGroups: Int
    /// Steps over all keys.
    public var steps: Int
    public var packedQuery: Int
    public var packedCodes: Int
    public var codeScales: Int
    public var codeOffsets: Int
    public var scores: Int
    public var blockSums: Int
    public var stepMaxima: Int
    public var statistics: Int
    public var keys: Int
    public var byteCount: Int

    public init(
        headDim: Int, stride: Int, groups: Int, keyGroups: Int, groupsPerKeyBlock: Int, usesCodes: Bool
    ) {
        let depth = headDim * stride
        let lanes = (groups + AttentionScratch.maximumLanes - 1) / AttentionScratch.maximumLanes * AttentionScratch.maximumLanes
        let target = Swift.max(1, Swift.min(128, Self.stepFloats / depth) / groupsPerKeyBlock)
        stepGroups = target * groupsPerKeyBlock
        steps = (keyGroups + stepGroups - 1) / stepGroups
        var offset = 0
        // With codes, one panel at a time is packed as floats first.
        packedQuery = Self.take(depth * (usesCodes ? 3 * AttentionScratch.maximumLanes : lanes), &offset)
        packedCodes = Self.take(usesCodes ? Self.codeDepth(headDim: headDim, stride: stride) * lanes / 4 : 0, &offset)
        codeScales = Self.take(usesCodes ? lanes : 0, &offset)
        codeOffsets = Self.take(usesCodes ? lanes : 0, &offset)
        scores = Self.take((stepGroups + AttentionScratch.maximumTileRows) * 3 * AttentionScratch.maximumLanes, &offset)
        blockSums = Self.take(steps * target * lanes, &offset)
        stepMaxima = Self.take(steps * lanes, &offset)
        statistics = Self.take(3 * lanes, &offset)
        keys = Self.take(Swift.max(usesCodes ? 0 : stepGroups * depth, 3 * AttentionScratch.maximumLanes * headDim), &offset)
        byteCount = offset * 4
    }

    private static func take(_ floats: Int, _ offset: inout Int) -> Int {
        defer { offset += (floats + 15) / 16 * 16 }
        return offset
    }
}
