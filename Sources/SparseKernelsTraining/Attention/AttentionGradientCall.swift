internal import KernelInterface
internal import SparseKernels

/// One `run` of the backward pass of attention.
struct AttentionGradientCall {
    let plan: AttentionGradient
    let query: OperandRows
    let key: OperandRows
    let value: OperandRows
    let output: OperandRows
    let outputGradient: OperandRows
    let logSumExp: UnsafePointer<Float>
    let queryGradient: OutputRows
    let keyGradient: OutputRows
    let valueGradient: OutputRows

    private var shape: AttentionShape { plan.shape }

    func run(on pool: WorkerPool) {
        let floats = plan.tiling.workspaceFloats(shape)
        if floats == 0 {
            run(partials: UnsafeMutablePointer(bitPattern: 64)!, on: pool)
        } else {
            pool.withWorkspace(byteCount: floats * 4) { run(partials: $0.assumingMemoryBound(to: Float.self), on: pool) }
        }
    }

    private func run(partials: UnsafeMutablePointer<Float>, on pool: WorkerPool) {
        let work = plan.visiblePairs * (3 * shape.headDim + 2 * shape.valueDim)
        pool.run(
            AttentionGradientPass(operands: self, partials: partials), tasks: plan.tiling.taskCount(shape), work: work,
            scratchByteCount: plan.scratchByteCount)
        let sums = AttentionGradientSums(operands: self, partials: partials)
        pool.run(sums, tasks: sums.taskCount, work: sums.work)
    }

}

/// The first phase: a strip of keys and some query heads of a group per task.
///
/// Strips of a head are neighbours, so that they find its queries in the cache.
private struct AttentionGradientPass: PoolCall {
    let operands: AttentionGradientCall
    let partials: UnsafeMutablePointer<Float>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let plan = operands.plan
        let (shape, tiling) = (plan.shape, plan.tiling)
        let (unit, index) = (task / tiling.strips.count, task % tiling.strips.count)
        let (kvHead, part) = (unit / tiling.parts, unit % tiling.parts)
        let strip = tiling.strips[index]
        let heads = shape.queryHeadsPerKVHead / tiling.parts
        for position in 0..<heads {
            let head = kvHead * shape.queryHeadsPerKVHead + part * heads + position
            var arguments = AttentionGradientArguments(
                query: operands.query.floats(head: head, token: 0), key: operands.key.floats(head: kvHead, token: 0),
                value: operands.value.floats(head: kvHead, token: 0), output: operands.output.floats(head: head, token: 0),
                outputGradient: operands.outputGradient.floats(head: head, token: 0),
                logSumExp: operands.logSumExp + head * shape.queryLength,
                queryGradient: operands.queryGradient.floats(head: head, token: 0),
                keyGradient: operands.keyGradient.floats(head: kvHead, token: 0),
                valueGradient: operands.valueGradient.floats(head: kvHead, token: 0), scratch: scratch)
            arguments.queryStride = operands.query.geometry.tokenStride
            arguments.keyStride = operands.key.geometry.tokenStride
            arguments.valueStride = operands.value.geometry.tokenStride
            arguments.outputStride = operands.output.geometry.tokenStride
            arguments.outputGradientStride = operands.outputGradient.geometry.tokenStride
            arguments.queryGradientStride = operands.queryGradient.geometry.tokenStride
            arguments.keyGradientStride = operands.keyGradient.geometry.tokenStride
            arguments.valueGradientStride = operands.valueGradient.geometry.tokenStride
            if index > 0 {
                // Row 0 of the partial gradients is the first query that sees the strip.
                let row = head * tiling.partialRowCount + tiling.partialRows[index] - strip.queries.lowerBound
                arguments.queryGradient = partials + row * shape.headDim
                arguments.queryGradientStride = shape.headDim
            }
            if part > 0 {
                let row = (kvHead * (tiling.parts - 1) + part - 1) * shape.keyLength
                arguments.keyGradient = partials + tiling.keyPartials(shape) + row * shape.headDim
                arguments.keyGradientStride = shape.headDim
                arguments.valueGradient = partials + tiling.valuePartials(shape) + row * shape.valueDim
                arguments.valueGradientStride = shape.valueDim
            }
            arguments.accumulates = position > 0
            arguments.headDim = shape.headDim
            arguments.valueDim = shape.valueDim
            (arguments.firstQuery, arguments.endQuery) = (strip.queries.lowerBound, strip.queries.upperBound)
            (arguments.firstKey, arguments.endKey) = (strip.keys.lowerBound, strip.keys.upperBound)
            (arguments.visibleFrom, arguments.visibleTo) = tiling.limits
            arguments.softmaxScale = plan.softmaxScale
            plan.kernels.differentiateAttention(&arguments)
        }
    }
}

/// The second phase: adds partial gradients in the order of strips and heads, and clears the gradients of queries that the first strip
/// does not have. A task has some rows of one head.
private struct AttentionGradientSums: PoolCall {
    let operands: AttentionGradientCall
    let partials: UnsafeMutablePointer<Float>

    /// Rows of a task.
    private static let rows = 256

    private var queryBlocks: Int {
        let shape = operands.plan.shape
        return operands.plan.tiling.completesQueries(shape) ? (shape.queryLength + Self.rows - 1) / Self.rows : 0
    }

    private var keyBlocks: Int {
        operands.plan.tiling.parts > 1 ? (operands.plan.shape.keyLength + Self.rows - 1) / Self.rows : 0
    }

    var taskCount: Int {
        let shape = operands.plan.shape
        return shape.queryHeads * queryBlocks + shape.kvHeads * keyBlocks
    }

    /// Floats that are read.
    var work: Int { operands.plan.tiling.workspaceFloats(operands.plan.shape) }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let shape = operands.plan.shape
        let queryTasks = shape.queryHeads * queryBlocks
        if task < queryTasks {
            let first = task % queryBlocks * Self.rows
            addQueries(head: task / queryBlocks, rows: first..<min(first + Self.rows, shape.queryLength))
        } else {
            let (kvHead, block) = ((task - queryTasks) / keyBlocks, (task - queryTasks) % keyBlocks)
            addKeys(kvHead: kvHead, rows: block * Self.rows..<min((block + 1) * Self.rows, shape.keyLength))
        }
    }

    private func addQueries(head: Int, rows: Range<Int>) {
        let (shape, tiling) = (operands.plan.shape, operands.plan.tiling)
        let target = operands.queryGradient
        let written = tiling.strips[0].queries
        if rows.lowerBound < written.lowerBound || rows.upperBound > written.upperBound {
            for row in rows where row < written.lowerBound || row >= written.upperBound {
                target.floats(head: head, token: row).update(repeating: 0, count: shape.headDim)
            }
        }
        for index in 1..<max(1, tiling.strips.count) {
            let shared = tiling.strips[index].queries.clamped(to: rows)
            if shared.isEmpty { continue }
            let row =
                head * tiling.partialRowCount + tiling.partialRows[index] + shared.lowerBound
                - tiling.strips[index].queries.lowerBound
            add(
                partials + row * shape.headDim, count: shared.count, channels: shape.headDim, to: target, head,
                shared.lowerBound)
        }
    }

    private func addKeys(kvHead: Int, rows: Range<Int>) {
        let (shape, tiling) = (operands.plan.shape, operands.plan.tiling)
        let (keys, values) = (partials + tiling.keyPartials(shape), partials + tiling.valuePartials(shape))
        for part in 1..<max(1, tiling.parts) {
            let row = (kvHead * (tiling.parts - 1) + part - 1) * shape.keyLength + rows.lowerBound
            add(
                keys + row * shape.headDim, count: rows.count, channels: shape.headDim, to: operands.keyGradient, kvHead,
                rows.lowerBound)
            add(
                values + row * shape.valueDim, count: rows.count, channels: shape.valueDim, to: operands.valueGradient, kvHead,
                rows.lowerBound)
        }
    }

    private func add(
        _ source: UnsafePointer<Float>, count: Int, channels: Int, to target: OutputRows, _ head: Int, _ token: Int
    ) {
        operands.plan.kernels.addPartialRows(
            RowOperand(base: source, stride: channels, type: .float32), count: count, channels: channels,
            to: target.floats(head: head, token: token), stride: target.geometry.tokenStride)
    }
}
