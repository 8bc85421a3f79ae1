internal import KernelInterface

/// One `run` of a dense plan: cuts queries, heads and keys into tasks and makes the kernel's arguments for each.
///
/// Tasks go head by head, so that the heads of a group find their keys and values in the cache. They go backwards through the
/// queries of a head: under a causal mask later blocks see more keys, and the light blocks even out the end.
struct DenseAttentionCall: PoolCall {
    let plan: DenseAttention
    let buffers: AttentionBuffers
    var bias: AttentionOperand?
    let tiling: DenseTiling
    /// The partial results of pieces of the keys: `[pieces, queryHeads, queryLength]` records.
    private var records: UnsafeMutablePointer<Float>?

    init(plan: DenseAttention, buffers: AttentionBuffers, bias: AttentionOperand? = nil) {
        self.plan = plan
        self.buffers = buffers
        self.bias = bias
        // A bias is that of one head, and rows of a cache have no stride from head to head.
        tiling = bias == nil && !buffers.query.isCached ? plan.tiling : plan.plainTiling
    }

    /// Floats of a record.
    private var recordStride: Int { TokenLayout.padded(plan.shape.valueDim) + TokenLayout.channelUnit }
    /// Rows of the output.
    private var rowCount: Int { plan.shape.queryHeads * plan.shape.queryLength }

    func run(on pool: WorkerPool) {
        if tiling.blocks == 0 { return }
        if tiling.pieces == 1 {
            attend(on: pool)
            return
        }
        pool.withWorkspace(byteCount: tiling.pieces * rowCount * recordStride * 4) { memory in
            var call = self
            call.records = memory.assumingMemoryBound(to: Float.self)
            call.attend(on: pool)
            call.merge(on: pool)
        }
    }

    private func attend(on pool: WorkerPool) {
        let shape = plan.shape
        let work = shape.queryHeads * shape.queryLength * shape.keyLength * (shape.headDim + shape.valueDim)
        let tasks = shape.queryHeads / tiling.heads * tiling.blocks * tiling.pieces
        pool.run(self, tasks: tasks, work: work, scratchByteCount: plan.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let shape = plan.shape
        let (unit, piece) = (task / tiling.pieces, task % tiling.pieces)
        let head = unit / tiling.blocks * tiling.heads
        let first = (tiling.blocks - 1 - unit % tiling.blocks) * tiling.queries
        let queries = min(tiling.queries, shape.queryLength - first)
        var arguments = buffers.arguments(
            shape, head: head, firstQuery: first, rows: queries * tiling.heads, scratch: scratch)
        if tiling.heads > 1 {
            arguments.rowsPerHead = queries
            arguments.queryHeadStride = buffers.query.geometry.headStride
            arguments.outputHeadStride = buffers.output.geometry.headStride
            arguments.logSumExpHeadStride = shape.queryLength
        }
        var keys = tiling.keys(ofPiece: piece)
        if plan.limits != nil || tiling.heads > 1 && !plan.showsEverything {
            let limits = (scratch + plan.limitOffset).assumingMemoryBound(to: Int32.self)
            keys = keys.clamped(to: writeLimits(of: first..<first + queries, to: limits))
            arguments.limits = UnsafePointer(limits)
            arguments.limitStride = AttentionScratch.limitStride
        } else {
            arguments.visibleFrom = first + plan.diagonals.from
            arguments.visibleTo = first + plan.diagonals.to
        }
        arguments.softmaxScale = plan.softmaxScale
        arguments.logitsSoftCap = plan.modifiers.logitsSoftCap ?? 0
        arguments.aliBiSlope = plan.modifiers.aliBiSlopes?[head] ?? 0
        arguments.sinkLogit = plan.modifiers.sinkLogits?[head] ?? -.infinity
        arguments.aliBiIsSymmetric = plan.modifiers.aliBiForm == .symmetric
        arguments.aliBiOffset = first + shape.keyLength - shape.queryLength
        if let bias {
            let rows = bias.rows(head: bias.geometry.heads == 1 ? 0 : head, from: first)
            arguments.bias = rows.base.assumingMemoryBound(to: Float.self)
            arguments.biasStride = rows.stride
        }
        if let records {
            let record = (piece * shape.queryHeads + head) * shape.queryLength + first
            arguments.output = UnsafeMutableRawPointer(records + record * recordStride)
            arguments.outputType = .float32
            arguments.outputStride = recordStride
            arguments.outputHeadStride = shape.queryLength * recordStride
            arguments.logSumExp = nil
            arguments.writesRecords = true
            // It is added when the pieces are merged.
            arguments.sinkLogit = -.infinity
        }
        var range = KeyRange(begin: keys.lowerBound, end: keys.upperBound)
        withUnsafePointer(to: &range) { ranges in
            arguments.keyRanges = ranges
            arguments.keyRangeCount = 1
            plan.kernels.attendBlock(&arguments)
        }
    }

    /// Writes the limits of the rows of a task, and returns the keys that some row sees.
    private func writeLimits(of queries: Range<Int>, to limits: UnsafeMutablePointer<Int32>) -> Range<Int> {
        let stride = AttentionScratch.limitStride
        var (low, high) = (plan.shape.keyLength, 0)
        var row = 0
        for query in queries {
            let keys = plan.keys(ofQuery: query)
            limits[row] = Int32(truncatingIfNeeded: keys.lowerBound)
            limits[stride + row] = Int32(truncatingIfNeeded: keys.upperBound)
            if !keys.isEmpty { (low, high) = (min(low, keys.lowerBound), max(high, keys.upperBound)) }
            row += 1
        }
        for head in 1..<max(2, tiling.heads) where head < tiling.heads {
            for query in 0..<queries.count {
                limits[head * queries.count + query] = limits[query]
                limits[stride + head * queries.count + query] = limits[stride + query]
            }
        }
        for row in queries.count * tiling.heads..<stride { (limits[row], limits[stride + row]) = (0, 0) }
        return low < high ? low..<high : 0..<0
    }

    // MARK: - Pieces

    /// Rows per merging task.
    private static let mergedRows = 16

    private func merge(on pool: WorkerPool) {
        pool.run(
            DenseMerge(call: self), tasks: (rowCount + Self.mergedRows - 1) / Self.mergedRows,
            work: tiling.pieces * rowCount * recordStride,
            scratchByteCount: 4 * (TokenLayout.padded(plan.shape.valueDim) + tiling.pieces))
    }

    /// Merges the partial results of some rows.
    private struct DenseMerge: PoolCall {
        let call: DenseAttentionCall

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let (shape, output) = (call.plan.shape, call.buffers.output)
            let sums = scratch.assumingMemoryBound(to: Float.self)
            let indices = (scratch + 4 * TokenLayout.padded(shape.valueDim)).assumingMemoryBound(to: Int32.self)
            for row in task * mergedRows..<min((task + 1) * mergedRows, call.rowCount) {
                for piece in 0..<call.tiling.pieces {
                    indices[piece] = Int32(truncatingIfNeeded: piece * call.rowCount + row)
                }
                let (head, token) = (row / shape.queryLength, row % shape.queryLength)
                var arguments = MergeTokensArguments(
                    records: call.records!, recordStride: call.recordStride, indices: indices, count: call.tiling.pieces,
                    valueDim: shape.valueDim, output: output.row(head: head, token: token), outputType: output.type,
                    logSumExp: call.buffers.logSumExp.map { $0 + row }, scratch: sums)
                arguments.sinkLogit = call.plan.modifiers.sinkLogits?[head] ?? -.infinity
                call.plan.kernels.mergeTokens(&arguments)
            }
        }
    }
}
