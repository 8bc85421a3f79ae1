internal import KernelInterface

/// Rows of an operand, widened to floats, less a mean of their head. The operators of SpargeAttention read them.
///
/// Holds the address of the operand, which must outlive it.
package struct CentredRows {
    private let operand: AttentionOperand
    /// `[heads, channels]`; nil subtracts nothing.
    private var mean: UnsafePointer<Float>?
    /// The type to which differences from the mean are rounded.
    private let rounding: StorageType
    private let kernels: any KernelTable.Type

    /// - Parameter roundsToElement: rounds differences to the mean to the element type of the operand.
    package init<Element: AttentionElement>(
        _ view: TensorView<Element>, roundsToElement: Bool, instructionSet: InstructionSet
    ) {
        operand = AttentionOperand(view)
        // Cached rows have no element type to round to.
        rounding = roundsToElement && !operand.isCached ? operand.type : .float32
        kernels = instructionSet.kernels
    }

    package var geometry: TensorGeometry { operand.geometry }

    /// These rows less a mean `[heads, channels]`, which must outlive them.
    package func subtracting(_ mean: UnsafePointer<Float>?) -> CentredRows {
        var rows = self
        rows.mean = mean
        return rows
    }

    /// A value rounded as the differences are.
    package func rounded(_ value: Float) -> Float { rounding.rounded(value) }

    /// The number of rows that are widened at a time, so that they are read from the first-level cache.
    private static let rowsPerStage = 16

    /// Bytes of scratch that `forEachStage` needs.
    package var scratchByteCount: Int { Self.rowsPerStage * operand.geometry.channels * 4 }

    /// Calls `body(token, count, rows)` for runs of up to `rowsPerStage` tokens, in order.
    package func forEachStage(
        of tokens: Range<Int>, head: Int, scratch: UnsafeMutableRawPointer,
        _ body: (_ token: Int, _ count: Int, _ rows: UnsafeMutablePointer<Float>) -> Void
    ) {
        let channels = operand.geometry.channels
        let rows = scratch.assumingMemoryBound(to: Float.self)
        for token in stride(from: tokens.lowerBound, to: tokens.upperBound, by: Self.rowsPerStage) {
            let count = min(Self.rowsPerStage, tokens.upperBound - token)
            kernels.stageRows(operand.rows(head: head), first: token, count: count, channels: channels, into: rows)
            if let mean {
                let mean = mean + head * channels
                for row in 0..<count {
                    let row = rows + row * channels
                    for channel in 0..<channels { row[channel] -= mean[channel] }
                }
                if rounding != .float32 {
                    for index in 0..<count * channels { rows[index] = rounding.rounded(rows[index]) }
                }
            }
            body(token, count, rows)
        }
    }

    /// Throws unless a partition and a mean `[heads, 1, channels]` fit an operand.
    package static func check(
        _ geometry: TensorGeometry, blocks partition: BlockPartition, mean: Tensor<Float>?
    ) throws(SparseKernelsError) {
        try require(
            partition.length == geometry.tokens, .invalidShape, "blocks.length",
            expected: "\(geometry.tokens), the tokens of the operand",
            actual: "\(partition.length)")
        if let mean {
            try require(
                mean.shape == [geometry.heads, 1, geometry.channels], .invalidShape, "mean",
                expected: "[\(geometry.heads), 1, \(geometry.channels)]", actual: "\(mean.shape)")
        }
    }
}
