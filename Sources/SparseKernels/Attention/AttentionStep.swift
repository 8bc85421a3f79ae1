internal import KernelInterface

/// Attention of rows of floats at raw addresses on the calling thread, for tasks of operators that gather their operands.
///
/// All rows are adjacent. It allocates nothing and checks nothing.
package struct AttentionStep {
    private let headDim: Int
    private let valueDim: Int
    private let softmaxScale: Float
    private let kernels: any KernelTable.Type

    package init(headDim: Int, valueDim: Int, softmaxScale: Float, instructionSet: InstructionSet) {
        self.headDim = headDim
        self.valueDim = valueDim
        self.softmaxScale = softmaxScale
        kernels = instructionSet.kernels
    }

    /// The most rows that the kernel takes at once.
    package static let maximumRows = AttentionScratch.maximumQueryRows

    /// Bytes of scratch that `attend` needs.
    package var scratchByteCount: Int {
        AttentionScratch(
            headDim: headDim, valueDim: valueDim, queryRows: Self.maximumRows, stagesKeys: true, stagesValues: true
        ).byteCount
    }

    /// Writes output and LSE of `rows` queries over `keys` keys; without keys these are 0 and −∞.
    ///
    /// - Parameters:
    ///   - bias: rows of at least `keys` floats that are added to the scores, `biasStride` floats apart; −∞ hides a pair.
    ///   - scratch: `scratchByteCount` bytes, 64-byte aligned.
    package func attend(
        query: UnsafePointer<Float>, rows: Int, key: UnsafePointer<Float>, value: UnsafePointer<Float>, keys: Int,
        bias: UnsafePointer<Float>?, biasStride: Int, output: UnsafeMutablePointer<Float>,
        logSumExp: UnsafeMutablePointer<Float>, scratch: UnsafeMutableRawPointer
    ) {
        var range = KeyRange(begin: 0, end: keys)
        let blocks = AttentionSchedule.TaskRows(panelWidth: kernels.sizes.panelWidth)
        withUnsafePointer(to: &range) { ranges in
            blocks.cut(0..<rows) { block in
                let first = block.lowerBound
                var arguments = AttentionArguments(
                    query: RowOperand(base: query + first * headDim, stride: headDim, type: .float32),
                    key: RowOperand(base: key, stride: headDim, type: .float32),
                    value: RowOperand(base: value, stride: valueDim, type: .float32),
                    output: UnsafeMutableRawPointer(output + first * valueDim), outputStride: valueDim, outputType: .float32,
                    logSumExp: logSumExp + first, queryRows: block.count, headDim: headDim, valueDim: valueDim,
                    scratch: scratch)
                arguments.keyRanges = ranges
                arguments.keyRangeCount = keys == 0 ? 0 : 1
                arguments.softmaxScale = softmaxScale
                arguments.bias = bias.map { $0 + first * biasStride }
                arguments.biasStride = biasStride
                kernels.attendBlock(&arguments)
            }
        }
    }
}
