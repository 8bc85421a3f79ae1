internal import KernelInterface

/// Attention of tokens in another order, for patterns whose tokens are not adjacent as they come.
///
/// A run gathers queries, keys and values in the order of each head, attends by a plan over the new order, and writes each
/// output row where its token was. Keys in another order give the same attention; queries in another order give the same rows.
///
/// ```swift
/// let order = try geometry.axisOrder([.height, .width, .frame])
/// let plan = try BlockSparseAttention(shape, heads: [.band(band)], isCausal: false)
/// let state = try PermutedAttention(plan, query: order, key: order)(query: q, key: k, value: v)
/// ```
///
/// - The plan's causal limit, window, bands and ALiBi slopes count positions of the new order.
/// - Copies are in single precision and adjacent, so that 16-bit or strided operands are converted once per run and not once
///   per block of queries. This costs O(heads · tokens · (headDim + valueDim)), below 1% of attention from 4,000 tokens on.
/// - Results are bitwise equal for every number of threads.
/// - Scratch: copies of as many heads as fit ``copiedByteLimit``, at least those of one KV head, kept by the pool; and the
///   scratch of the plan.
public struct PermutedAttention: AttentionOperator {
    /// The plan, over tokens in the new order.
    public let attention: BlockSparseAttention
    /// The order of the queries, one for all query heads or one per head; nil as they come.
    public let query: Permutation?
    /// The order of keys and values, one for all KV heads or one per head; nil as they come.
    public let key: Permutation?

    public var shape: AttentionShape { attention.shape }
    /// Score entries that the plan leaves, as a fraction of those of dense attention.
    public var density: Double { attention.density }

    /// Bytes of copies per pass. 256 MiB are two heads of 51,480 tokens × 128 channels, enough tasks for many threads.
    public static let copiedByteLimit = 256 << 20

    /// Heads whose copies share memory, one pass after the other.
    private struct Pass {
        var kvHeads: Range<Int>
        /// The tasks of the pass in `tasks`, or in the schedule when there is only one pass.
        var tasks: Range<Int>
    }
    private let passes: [Pass]
    /// The tasks of the schedule by pass, with heads counted from the first of the pass; empty when there is one pass.
    private let tasks: [AttentionSchedule.Task]
    private let layout: Layout

    /// - Parameters:
    ///   - attention: a plan over positions of the new order.
    ///   - query: 1 or `queryHeads` orders of `queryLength` tokens; nil leaves queries as they come.
    ///   - key: 1 or `kvHeads` orders of `keyLength` tokens; nil leaves keys and values as they come.
    /// - Throws: `.invalidShape` for orders that do not fit the plan.
    public init(
        _ attention: BlockSparseAttention, query: Permutation?, key: Permutation?
    ) throws(SparseKernelsError) {
        try self.init(attention, query: query, key: key, copiedByteLimit: Self.copiedByteLimit)
    }

    /// The initialiser for tests, with a limit that makes several passes of small operands.
    package init(
        _ attention: BlockSparseAttention, query: Permutation?, key: Permutation?, copiedByteLimit: Int
    ) throws(SparseKernelsError) {
        let shape = attention.shape
        try query?.check(named: "query", heads: shape.queryHeads, length: shape.queryLength, tokens: "queryLength")
        try key?.check(named: "key", heads: shape.kvHeads, length: shape.keyLength, tokens: "keyLength")
        self.attention = attention
        self.query = query
        self.key = key
        let perHead = Layout(shape, kvHeads: 1, copiesQueries: query != nil, copiesKeys: key != nil)
        let headsPerPass = max(1, min(shape.kvHeads, copiedByteLimit / max(1, perHead.byteCount)))
        layout = Layout(shape, kvHeads: headsPerPass, copiesQueries: query != nil, copiesKeys: key != nil)
        let ranges = stride(from: 0, to: shape.kvHeads, by: headsPerPass)
            .map { $0..<min(shape.kvHeads, $0 + headsPerPass) }
        var (passes, tasks): ([Pass], [AttentionSchedule.Task]) = ([], [])
        for kvHeads in ranges where ranges.count > 1 {
            let group = shape.queryHeadsPerKVHead
            let heads = kvHeads.lowerBound * group..<kvHeads.upperBound * group
            let first = tasks.count
            for task in attention.schedule.tasks where heads.contains(task.head) {
                var local = task
                local.head -= heads.lowerBound
                tasks.append(local)
            }
            passes.append(Pass(kvHeads: kvHeads, tasks: first..<tasks.count))
        }
        if ranges.count == 1 {
            passes = [Pass(kvHeads: 0..<shape.kvHeads, tasks: 0..<attention.schedule.tasks.count)]
        }
        self.passes = passes
        self.tasks = tasks
    }

    /// Computes attention into the caller's memory. See ``AttentionOperator/run(query:key:value:output:logSumExp:on:)``.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let buffers = try AttentionBuffers(shape, query: query, key: key, value: value, output: output, logSumExp: logSumExp)
        pool.withWorkspace(byteCount: layout.byteCount) { workspace in
            let copies = workspace.assumingMemoryBound(to: Float.self)
            for pass in passes {
                let local = gather(buffers, pass.kvHeads, into: copies, on: pool)
                let listed = passes.count == 1 ? attention.schedule.tasks[...] : tasks[pass.tasks]
                let firstHead = pass.kvHeads.lowerBound * shape.queryHeadsPerKVHead
                attention.schedule.run(listed, of: attention, local, firstHead: firstHead, on: pool)
                scatter(copies, pass.kvHeads, to: buffers, on: pool)
            }
        }
    }

    /// Copies what has another order, and returns the operands of a pass.
    private func gather(
        _ buffers: AttentionBuffers, _ kvHeads: Range<Int>, into copies: UnsafeMutablePointer<Float>, on pool: WorkerPool
    ) -> AttentionBuffers {
        let group = shape.queryHeadsPerKVHead
        let firstHead = kvHeads.lowerBound * group
        func copied(
            _ operand: AttentionOperand, _ order: Permutation?, first: Int, heads: Int, at offset: Int
        ) -> AttentionOperand {
            guard let order else { return operand.from(head: first) }
            order.elements.withUnsafeBufferPointer { elements in
                guard let base = elements.baseAddress else { return }
                GatherCall(
                    source: operand, firstHead: first, heads: heads,
                    orders: HeadOrders(first: base, heads: order.heads, length: order.length),
                    destination: copies + offset, kernels: attention.kernels
                ).run(on: pool)
            }
            return AttentionOperand(floats: copies + offset, geometry: operand.geometry.withAdjacentRows)
        }
        let query = copied(buffers.query, self.query, first: firstHead, heads: kvHeads.count * group, at: layout.query)
        let key = copied(buffers.key, self.key, first: kvHeads.lowerBound, heads: kvHeads.count, at: layout.key)
        let value = copied(buffers.value, self.key, first: kvHeads.lowerBound, heads: kvHeads.count, at: layout.value)
        if self.query == nil {
            return AttentionBuffers(
                query: query, key: key, value: value, output: buffers.output.from(head: firstHead),
                logSumExp: buffers.logSumExp.map { $0 + firstHead * shape.queryLength })
        }
        return AttentionBuffers(
            query: query, key: key, value: value,
            output: MutableAttentionOperand(
                floats: copies + layout.output, geometry: buffers.output.geometry.withAdjacentRows),
            logSumExp: buffers.logSumExp == nil ? nil : copies + layout.logSumExp)
    }

    /// Writes the outputs of a pass where their tokens are.
    private func scatter(
        _ copies: UnsafeMutablePointer<Float>, _ kvHeads: Range<Int>, to buffers: AttentionBuffers, on pool: WorkerPool
    ) {
        guard let query else { return }
        let group = shape.queryHeadsPerKVHead
        query.elements.withUnsafeBufferPointer { elements in
            guard let base = elements.baseAddress else { return }
            ScatterCall(
                source: UnsafePointer(copies + layout.output),
                sourceLSE: buffers.logSumExp == nil ? nil : UnsafePointer(copies + layout.logSumExp),
                destination: buffers.output, destinationLSE: buffers.logSumExp, firstHead: kvHeads.lowerBound * group,
                heads: kvHeads.count * group,
                orders: HeadOrders(first: base, heads: query.heads, length: query.length), kernels: attention.kernels
            ).run(on: pool)
        }
    }

    /// The places of the copies of a pass, in floats.
    private struct Layout {
        private(set) var query = 0
        private(set) var key = 0
        private(set) var value = 0
        private(set) var output = 0
        private(set) var logSumExp = 0
        private(set) var byteCount = 0

        init(_ shape: AttentionShape, kvHeads: Int, copiesQueries: Bool, copiesKeys: Bool) {
            let queries = copiesQueries ? kvHeads * shape.queryHeadsPerKVHead * shape.queryLength : 0
            let keys = copiesKeys ? kvHeads * shape.keyLength : 0
            // Shapes bound these products far below overflow.
            key = query + queries * shape.headDim
            value = key + keys * shape.headDim
            output = value + keys * shape.valueDim
            logSumExp = output + queries * shape.valueDim
            byteCount = (logSumExp + queries) * 4
        }
    }
}
