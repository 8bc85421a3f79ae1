/// The constants of the machine that some ranks run on, measured by themselves.
///
/// Rates are the means of all ranks, which compute at the same time. Links are measured among the ranks of a host and among one rank
/// of each host.
public struct RankMeasurement: Hashable, Sendable {
    public let machine: RankMachine
    /// Messages among the ranks of the first host with several; nil if there is none.
    public let within: MessageTimes?
    /// Messages between hosts; nil if there is one only.
    public let between: MessageTimes?

    /// How much is measured.
    public struct Effort: Hashable, Sendable {
        /// Tokens of the longer call of attention. The shorter one has 128.
        public var tokens: Int
        /// Rows, depth and columns of the product.
        public var product: (rows: Int, columns: Int) { (min(512, tokens), min(2048, tokens)) }
        /// Bytes that a rank reads to measure its memory. They should be more than the caches hold.
        public var readBytes: Int
        public var largestMessage: Int

        public init(tokens: Int, readBytes: Int, largestMessage: Int) {
            (self.tokens, self.readBytes, self.largestMessage) = (tokens, readBytes, largestMessage)
        }

        /// Some seconds.
        public static let usual = Effort(tokens: 2048, readBytes: 256 << 20, largestMessage: 16 << 20)
        /// A fraction of a second, for tests.
        public static let least = Effort(tokens: 256, readBytes: 1 << 20, largestMessage: 1 << 12)
    }

    /// Measures. Every rank calls it, and gets the same constants.
    ///
    /// - Parameters:
    ///   - ranks: all of them.
    ///   - host: the name of this rank's host.
    ///   - name: what the constants are of.
    ///   - assumed: the link between hosts if there is one host, and within a host if there is one rank on each.
    ///   - copies: whether messages within a host occupy the core that receives, as those of threads and of shared memory do.
    ///   - effort: how much is measured.
    ///   - pool: the threads of this rank.
    /// - Throws: `.communication`, and `.invalidArgument` for less than 256 tokens.
    public init(
        on ranks: any Communicator, host: String, named name: String, assuming assumed: RankMachine.Link, copies: Bool = true,
        effort: Effort = .usual, pool: WorkerPool
    ) throws(SparseKernelsError) {
        guard effort.tokens >= 256 && effort.readBytes > 0 && effort.largestMessage >= 8 else {
            throw SparseKernelsError(
                .invalidArgument, "effort", expected: "at least 256 tokens, and bytes to read and to send",
                actual: "\(effort)")
        }
        let hosts = try ranks.gather(host)
        let first = hosts.firstIndex(of: host)!
        let group = try ranks.split(color: first, key: ranks.rank, name: "host")!
        let leaders = try ranks.split(color: group.rank == 0 ? 0 : nil, key: ranks.rank, name: "hosts")
        let sizes = MessageTimes.usualSizes.filter { $0 <= effort.largestMessage }

        // Only a rank that is in a group knows its times: the others get them.
        var own: (within: MessageTimes?, between: MessageTimes?) = (nil, nil)
        if group.count > 1 { own.within = try MessageTimes(on: group, sizes: sizes) }
        if let leaders, leaders.count > 1 { own.between = try MessageTimes(on: leaders, sizes: sizes) }
        within = try Self.firstTimes(own.within, ranks)
        between = try Self.firstTimes(own.between, ranks)

        try ranks.barrier()
        let attention = try Self.attention(effort, pool)
        let linear = try Self.product(effort, pool)
        let cache = try Self.cache(pool)
        // One rank of each host reads while the others wait, and then all do.
        let set = try InstructionSet.selected()
        var alone = 0.0
        try ranks.barrier()
        if leaders != nil { alone = MachineRoofs.read(instructionSet: set, on: pool, bytesPerThread: effort.readBytes) }
        try ranks.barrier()
        let together = MachineRoofs.read(instructionSet: set, on: pool, bytesPerThread: effort.readBytes)

        let values = [attention.rate, attention.callSeconds * 1e9, linear, cache, alone * 1e6, together * 1e6]
        let all = try ranks.gather(values.map { Int($0) })
        func mean(_ index: Int, _ count: Int) -> Double { Double(all.reduce(0) { $0 + $1[index] }) / Double(count) }
        let hostCount = Set(hosts).count
        let perHost = hosts.count { $0 == hosts[0] }
        let withinLink = within?.link(occupiesCore: copies)
        let betweenLink = between?.link(occupiesCore: false)
        machine = RankMachine(
            name: name, ranksPerHost: perHost, within: withinLink ?? betweenLink ?? assumed, between: betweenLink ?? assumed,
            attentionRate: mean(0, ranks.count), attentionCallSeconds: mean(1, ranks.count) * 1e-9,
            linearRate: mean(2, ranks.count), cacheRate: mean(3, ranks.count), memoryRate: mean(4, hostCount) * 1e3,
            // One rank may not be faster than all.
            hostMemoryRate: max(mean(5, hostCount), mean(4, hostCount)) * 1e3)
        try machine.validate()
        group.free()
        leaders?.free()
    }

    /// The times of the first rank that has some.
    private static func firstTimes(
        _ times: MessageTimes?, _ ranks: any Communicator
    ) throws(SparseKernelsError) -> MessageTimes? {
        let owns = try ranks.gather([times == nil ? 0 : times!.sizes.count])
        guard let root = owns.firstIndex(where: { $0[0] > 0 }) else { return nil }
        let blank = Array(repeating: 0, count: owns[root][0])
        let sizes = try ranks.broadcast(ranks.rank == root ? times!.sizes : blank, from: root)
        let nanoseconds = try ranks.broadcast(ranks.rank == root ? times!.seconds.map { Int($0 * 1e9) } : blank, from: root)
        return MessageTimes(sizes: sizes, seconds: nanoseconds.map { Double($0) * 1e-9 })
    }

    // MARK: - Computing

    /// The multiply-adds per second of attention, and what a call takes beside: those of a line through a short and a long call.
    private static func attention(
        _ effort: Effort, _ pool: WorkerPool
    ) throws(SparseKernelsError) -> (rate: Double, callSeconds: Double) {
        func measure(_ tokens: Int) throws(SparseKernelsError) -> (work: Double, seconds: Double) {
            let (heads, kvHeads, headDim) = (8, 2, 128)
            let shape = try AttentionShape(
                queryLength: tokens, keyLength: tokens, queryHeads: heads, kvHeads: kvHeads, headDim: headDim)
            let attention = try DenseAttention(shape)
            let query = try values([heads, tokens, headDim]), key = try values([kvHeads, tokens, headDim])
            var output = try Tensor<Float>(zeros: [heads, tokens, headDim])
            let seconds = try median { () throws(SparseKernelsError) in
                try attention.run(query: query, key: key, value: key, into: &output, on: pool)
            }
            return (Double(tokens * tokens * heads * 2 * headDim), seconds)
        }
        let (short, long) = (try measure(128), try measure(effort.tokens))
        let rate = (long.work - short.work) / max(1e-9, long.seconds - short.seconds)
        return (rate, max(0, short.seconds - short.work / rate))
    }

    /// The multiply-adds per second of a product with many rows.
    private static func product(_ effort: Effort, _ pool: WorkerPool) throws(SparseKernelsError) -> Double {
        let (rows, columns) = effort.product
        let gemm = try GEMM(m: rows, n: columns, k: columns, transposesB: true)
        let a = try values([rows, columns]), b = try values([columns, columns])
        var c = try Tensor<Float>(zeros: [rows, columns])
        let seconds = try median { () throws(SparseKernelsError) in try gemm.run(a: a, b: b, into: &c, on: pool) }
        return Double(rows * columns * columns) / max(1e-9, seconds)
    }

    /// The bytes of a 16-bit cache that are attended per second: of one that stays near the core.
    private static func cache(_ pool: WorkerPool) throws(SparseKernelsError) -> Double {
        let (tokens, heads, kvHeads, headDim) = (1024, 8, 2, 128)
        let configuration = try KVCacheConfiguration(
            kvHeads: kvHeads, headDim: headDim, pageSize: 64, pageCapacity: tokens / 64, format: .float16)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        let rows = try values([kvHeads, tokens, headDim])
        try cache.append(key: rows, value: rows, to: sequence, on: pool)
        let attention = try PagedAttention(queryHeads: heads, configuration: configuration)
        let query = try values([heads, 1, headDim])
        var output = try Tensor<Float>(zeros: [heads, 1, headDim])
        let seconds = try median { () throws(SparseKernelsError) in
            try attention.run(query: query, cache: cache, sequences: [sequence], into: &output, on: pool)
        }
        return Double(tokens * kvHeads * 2 * headDim * 2) / max(1e-9, seconds)
    }

    /// Numbers around 0.
    private static func values(_ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        try Tensor(shape) { Float(($0 &* 2_654_435_761) >> 7 & 1023) / 512 - 1 }
    }

    /// The median of some calls after a first one, for a tenth of a second and at least three.
    private static func median(_ body: () throws(SparseKernelsError) -> Void) throws(SparseKernelsError) -> Double {
        let clock = ContinuousClock()
        try body()
        let start = clock.now
        var samples: [Double] = []
        while samples.count < 3 || clock.now - start < .milliseconds(100) {
            let before = clock.now
            try body()
            samples.append((clock.now - before) / .seconds(1))
        }
        return samples.sorted()[samples.count / 2]
    }
}
