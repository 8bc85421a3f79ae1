internal import KernelInterface

/// One `run` of antidiagonal scoring. A task is some query blocks of a head; the last, which see most, go first.
struct AntidiagonalScoringCall: PoolCall {
    let plan: AntidiagonalScoring
    let query: AttentionOperand
    let key: AttentionOperand
    let codes: UnsafePointer<UInt8>?
    let scales: UnsafePointer<Float>?
    let sums: UnsafeMutablePointer<Float>

    /// Tasks per head.
    private var tasksPerHead: Int { (plan.grid.blockRows - 1) / plan.taskBlocks + 1 }

    func run(on pool: WorkerPool) {
        let shape = plan.shape
        let work = shape.queryHeads * plan.queryGroups * plan.keyGroups * plan.stride * shape.headDim
        pool.run(self, tasks: shape.queryHeads * tasksPerHead, work: work, scratchByteCount: plan.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (shape, grid, stride) = (plan.shape, plan.grid, plan.stride)
        let head = task / tasksPerHead
        let kvHead = head / shape.queryHeadsPerKVHead
        let block = (tasksPerHead - 1 - task % tasksPerHead) * plan.taskBlocks
        let firstGroup = block * plan.groupsPerQueryBlock
        let scoredGroups = (plan.scoredQueryTokens + stride - 1) / stride
        let groups = min(plan.taskBlocks * plan.groupsPerQueryBlock, scoredGroups - firstGroup)
        // Blocks that are only padding keep their zeros.
        if groups <= 0 { return }
        let first = firstGroup * stride
        var arguments = AntidiagonalArguments(
            query: query.rows(head: head, from: first), queryTokens: shape.queryLength - first,
            key: key.rows(head: kvHead), keyTokens: shape.keyLength, headDim: shape.headDim, stride: stride,
            groups: groups, groupsPerQueryBlock: plan.groupsPerQueryBlock, groupsPerKeyBlock: plan.groupsPerKeyBlock,
            visibleTo: firstGroup + plan.visibleTo, scale: plan.scale, keyCodes: nil, keyScales: nil,
            sums: sums + (head * grid.blockRows + block) * grid.blockColumns, keyBlocks: grid.blockColumns,
            scratch: scratch)
        if let codes, let scales {
            let depth = AntidiagonalScratch.codeDepth(headDim: shape.headDim, stride: stride)
            arguments.keyCodes = codes + kvHead * plan.keyGroups * depth
            arguments.keyScales = scales + kvHead * plan.keyGroups
        }
        plan.kernels.scoreAntidiagonals(&arguments)
    }
}

/// Keys of all KV heads as 6-bit codes, one scale per group.
///
/// The mean key of the head is subtracted first. That adds the same number to all scores of a query, which changes no
/// probability, and removes large constant parts of channels, which trained keys have, from the codes.
final class KeyCodes {
    private let storage: TensorStorage
    private let scales: TensorStorage
    var codePointer: UnsafePointer<UInt8> { UnsafePointer(storage.pointer.assumingMemoryBound(to: UInt8.self)) }
    var scalePointer: UnsafePointer<Float> { UnsafePointer(scales.pointer.assumingMemoryBound(to: Float.self)) }

    /// Tokens per task. 512 rows of 64 channels are 128 KiB, about 10 µs of work, and give 16 tasks at 8192 tokens.
    private static let sliceTokens = 512

    /// - Throws: `.invalidShape` when the codes would not fit memory addresses.
    init(_ plan: AntidiagonalScoring, _ key: AttentionOperand, on pool: WorkerPool) throws(SparseKernelsError) {
        let shape = plan.shape
        let depth = AntidiagonalScratch.codeDepth(headDim: shape.headDim, stride: plan.stride)
        let count = try checkedElementCount([shape.kvHeads, plan.keyGroups, depth], elementBytes: 1)
        storage = TensorStorage(byteCount: count)
        scales = TensorStorage(byteCount: shape.kvHeads * plan.keyGroups * 4)
        let slices = (shape.keyLength - 1) / Self.sliceTokens + 1
        let sums = TensorStorage(byteCount: shape.kvHeads * (slices + 1) * shape.headDim * 4)
        var call = Call(
            plan: plan, key: key, slices: slices, sums: sums.pointer.assumingMemoryBound(to: Float.self),
            codes: storage.pointer.assumingMemoryBound(to: UInt8.self),
            scales: scales.pointer.assumingMemoryBound(to: Float.self), depth: depth)
        let bytes = shape.kvHeads * shape.keyLength * shape.headDim
        pool.run(call, tasks: shape.kvHeads * slices, work: bytes, scratchByteCount: shape.headDim * 4)
        call.takeMeans()
        pool.run(call, tasks: shape.kvHeads * slices, work: bytes, scratchByteCount: shape.headDim * plan.stride * 4)
        withExtendedLifetime(sums) {}
    }

    private struct Call: PoolCall {
        let plan: AntidiagonalScoring
        let key: AttentionOperand
        let slices: Int
        /// `[kvHeads, slices + 1, headDim]`. The last row of a head becomes its mean.
        let sums: UnsafeMutablePointer<Float>
        let codes: UnsafeMutablePointer<UInt8>
        let scales: UnsafeMutablePointer<Float>
        let depth: Int
        /// Keys are summed first, and encoded once there are means.
        private(set) var hasMeans = false

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            if hasMeans { encode(task: task, scratch: scratch) } else { sum(task: task, scratch: scratch) }
        }

        func row(_ head: Int, _ slice: Int) -> UnsafeMutablePointer<Float> {
            sums + (head * (slices + 1) + slice) * plan.shape.headDim
        }

        func sum(task: Int, scratch: UnsafeMutableRawPointer) {
            let (head, slice) = task.quotientAndRemainder(dividingBy: slices)
            let first = slice * KeyCodes.sliceTokens
            var rows = key.rows(head: head)
            plan.kernels.sumRows(
                &rows, from: first, to: min(plan.shape.keyLength, first + KeyCodes.sliceTokens), channels: plan.shape.headDim,
                staging: scratch.assumingMemoryBound(to: Float.self), into: row(head, slice))
        }

        /// A mean that is not finite becomes 0, so that one bad key does not spoil the codes of all keys.
        mutating func takeMeans() {
            hasMeans = true
            for head in 0..<plan.shape.kvHeads {
                for channel in 0..<plan.shape.headDim {
                    var sum: Float = 0
                    for slice in 0..<slices { sum += row(head, slice)[channel] }
                    let mean = sum / Float(plan.shape.keyLength)
                    row(head, slices)[channel] = mean.isFinite ? mean : 0
                }
            }
        }

        func encode(task: Int, scratch: UnsafeMutableRawPointer) {
            let (head, slice) = task.quotientAndRemainder(dividingBy: slices)
            let groups = plan.keyGroups
            var arguments = KeyCodeArguments(
                key: key.rows(head: head), keyTokens: plan.shape.keyLength, headDim: plan.shape.headDim,
                stride: plan.stride, firstGroup: slice * groups / slices, endGroup: (slice + 1) * groups / slices,
                mean: row(head, slices), codes: codes + head * groups * depth, scales: scales + head * groups,
                scratch: scratch)
            plan.kernels.encodeKeyGroups(&arguments)
        }
    }
}
