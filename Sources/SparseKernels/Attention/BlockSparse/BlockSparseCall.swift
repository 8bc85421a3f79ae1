internal import KernelInterface

extension AttentionSchedule {
    /// Runs some of the tasks of a plan's schedule.
    ///
    /// - Parameters:
    ///   - tasks: tasks of this schedule, whose heads count from `firstHead`.
    ///   - plan: the plan of the schedule, which has the settings of all heads.
    ///   - buffers: operands, whose head 0 is `firstHead` of the plan.
    ///   - firstHead: a multiple of the query heads per KV head.
    ///   - pool: the threads to use.
    func run(
        _ tasks: ArraySlice<Task>, of plan: BlockSparseAttention, _ buffers: AttentionBuffers, firstHead: Int = 0,
        on pool: WorkerPool
    ) {
        tasks.withUnsafeBufferPointer { listed in
            // A batch without queries has no tasks.
            guard let first = listed.baseAddress, !tasks.isEmpty else { return }
            ranges.withUnsafeBufferPointer { ranges in
                gatheredKeys.withUnsafeBufferPointer { gathered in
                    let call = BlockSparseCall(
                        plan: plan, buffers: buffers, firstHead: firstHead, tasks: first, ranges: ranges.baseAddress,
                        gathered: gathered.baseAddress)
                    pool.run(
                        call, tasks: tasks.count, work: plan.visiblePairs * (plan.shape.headDim + plan.shape.valueDim),
                        scratchByteCount: plan.scratchByteCount)
                }
            }
        }
    }
}

/// The data that the tasks of one `run` share.
private struct BlockSparseCall: PoolCall {
    let plan: BlockSparseAttention
    let buffers: AttentionBuffers
    let firstHead: Int
    let tasks: UnsafePointer<AttentionSchedule.Task>
    let ranges: UnsafePointer<KeyRange>?
    let gathered: UnsafePointer<Int32>?

    func perform(task index: Int, scratch: UnsafeMutableRawPointer) {
        let task = tasks[index]
        let head = firstHead + task.head
        var arguments = buffers.arguments(
            plan.shape, head: task.head, firstQuery: task.firstQuery, rows: task.rows, firstKey: task.firstKey,
            scratch: scratch)
        arguments.keyRanges = ranges.map { $0 + task.ranges.lowerBound }
        arguments.keyRangeCount = task.ranges.count
        arguments.gatheredKeys = gathered.map { $0 + task.gathered.lowerBound }
        arguments.gatheredKeyCount = task.gathered.count
        arguments.visibleFrom = task.visibleFrom
        arguments.visibleTo = task.visibleTo
        arguments.globalFrom = task.globalFrom
        arguments.globalTo = task.globalTo
        arguments.softmaxScale = plan.softmaxScale
        arguments.logitsSoftCap = plan.modifiers.logitsSoftCap ?? 0
        arguments.aliBiSlope = plan.modifiers.aliBiSlopes?[head] ?? 0
        arguments.sinkLogit = plan.modifiers.sinkLogits?[head] ?? -.infinity
        arguments.aliBiIsSymmetric = plan.modifiers.aliBiForm == .symmetric
        arguments.aliBiOffset = task.position
        arguments.pvSkipThreshold = plan.pvSkipThresholds?[head] ?? plan.pvSkipThreshold ?? .infinity
        plan.kernels.attendBlock(&arguments)
    }
}
