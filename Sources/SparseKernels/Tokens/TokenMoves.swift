internal import KernelInterface

// Moving rows between the caller's order and another one. Tasks move `rowsPerTask` rows of a head.

/// Rows per task: 256 rows of 128 floats are 128 KiB, read once and written once in about 20 µs.
private let rowsPerTask = 256

/// Copies rows in the order of their head, as adjacent floats `[heads, length, channels]`.
struct GatherCall: PoolCall {
    let source: AttentionOperand
    /// The head of `source` and of `orders` that is head 0 of the destination.
    let firstHead: Int
    let heads: Int
    let orders: HeadOrders
    let destination: UnsafeMutablePointer<Float>
    let kernels: any KernelTable.Type

    private var groups: Int { (orders.length + rowsPerTask - 1) / rowsPerTask }

    func run(on pool: WorkerPool) {
        pool.run(self, tasks: heads * groups, work: heads * orders.length * source.geometry.channels * 4)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (head, first) = (task / groups, task % groups * rowsPerTask)
        let channels = source.geometry.channels
        kernels.gatherRows(
            source.rows(head: firstHead + head), order: orders.order(head: firstHead + head) + first,
            count: min(rowsPerTask, orders.length - first), channels: channels,
            into: destination + (head * orders.length + first) * channels)
    }
}

extension Tensor where Element == Float {
    /// The listed rows of every head of an operand, `[heads, rows of a list, channels]`.
    ///
    /// - Parameters:
    ///   - rows: the lists one after the other, of equal lengths. A row may be listed more than once.
    ///   - lists: 1 for all heads, or as many as the operand has heads.
    ///   - source: an operand that outlives the call.
    init(
        gathering rows: [Int32], lists: Int, from source: AttentionOperand, _ kernels: any KernelTable.Type,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (heads, length) = (source.geometry.heads, rows.count / lists)
        try self.init(zeros: [heads, length, source.geometry.channels])
        if count == 0 { return }
        var span = mutableSpan
        span.withUnsafeMutableBufferPointer { target in
            rows.withUnsafeBufferPointer { rows in
                GatherCall(
                    source: source, firstHead: 0, heads: heads,
                    orders: HeadOrders(first: rows.baseAddress!, heads: lists, length: length),
                    destination: target.baseAddress!, kernels: kernels
                ).run(on: pool)
            }
        }
    }
}

/// Writes adjacent rows `[heads, length, channels]` where their tokens are in the caller's memory, and their LSE likewise.
struct ScatterCall: PoolCall {
    let source: UnsafePointer<Float>
    /// `[heads, length]`, as `source`; nil when the caller wants no LSE.
    let sourceLSE: UnsafePointer<Float>?
    let destination: MutableAttentionOperand
    /// `[all heads, length]`.
    let destinationLSE: UnsafeMutablePointer<Float>?
    /// The head of the destination and of `orders` that is head 0 of the source.
    let firstHead: Int
    let heads: Int
    let orders: HeadOrders
    let kernels: any KernelTable.Type

    private var groups: Int { (orders.length + rowsPerTask - 1) / rowsPerTask }

    func run(on pool: WorkerPool) {
        pool.run(self, tasks: heads * groups, work: heads * orders.length * destination.geometry.channels * 4)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (head, first) = (task / groups, task % groups * rowsPerTask)
        let (channels, count) = (destination.geometry.channels, min(rowsPerTask, orders.length - first))
        let order = orders.order(head: firstHead + head) + first
        kernels.scatterRows(
            source + (head * orders.length + first) * channels, order: order, count: count, channels: channels,
            into: destination.row(head: firstHead + head, token: 0), stride: destination.geometry.tokenStride,
            type: destination.type)
        guard let sourceLSE, let destinationLSE else { return }
        let (from, to) = (sourceLSE + head * orders.length + first, destinationLSE + (firstHead + head) * orders.length)
        for row in 0..<count { to[Int(order[row])] = from[row] }
    }
}
