internal import KernelInterface

/// One `run` of a dense plan: cuts the queries into blocks and makes the kernel's arguments for each.
///
/// Tasks go head by head, so that the heads of a group find their keys and values in the cache. They go backwards through the
/// queries of a head: under a causal mask later blocks see more keys, and the light blocks even out the end.
struct DenseAttentionCall: PoolCall {
    let plan: DenseAttention
    let buffers: AttentionBuffers
    var bias: AttentionOperand?

    /// Query blocks of one head.
    private var blocks: Int { (plan.shape.queryLength + plan.queryBlock - 1) / plan.queryBlock }

    func run(on pool: WorkerPool) {
        let shape = plan.shape
        if blocks == 0 { return }
        let work = shape.queryHeads * shape.queryLength * shape.keyLength * (shape.headDim + shape.valueDim)
        pool.run(self, tasks: shape.queryHeads * blocks, work: work, scratchByteCount: plan.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let shape = plan.shape
        let head = task / blocks
        let first = (blocks - 1 - task % blocks) * plan.queryBlock
        var range = KeyRange(begin: 0, end: shape.keyLength)
        let biasHead = bias.map { $0.geometry.heads == 1 ? 0 : head } ?? 0
        let biasRow = bias?.rows(head: biasHead, from: first)
        withUnsafePointer(to: &range) { ranges in
            var arguments = buffers.arguments(
                shape, head: head, firstQuery: first, rows: min(plan.queryBlock, shape.queryLength - first), scratch: scratch)
            arguments.keyRanges = ranges
            arguments.keyRangeCount = 1
            arguments.visibleFrom = first + plan.limits.from
            arguments.visibleTo = first + plan.limits.to
            arguments.softmaxScale = plan.softmaxScale
            arguments.logitsSoftCap = plan.modifiers.logitsSoftCap ?? 0
            arguments.aliBiSlope = plan.modifiers.aliBiSlopes?[head] ?? 0
            arguments.sinkLogit = plan.modifiers.sinkLogits?[head] ?? -.infinity
            arguments.aliBiIsSymmetric = plan.modifiers.aliBiForm == .symmetric
            arguments.aliBiOffset = first + shape.keyLength - shape.queryLength
            arguments.bias = biasRow?.base.assumingMemoryBound(to: Float.self)
            arguments.biasStride = biasRow?.stride ?? 0
            plan.kernels.attendBlock(&arguments)
        }
    }
}
