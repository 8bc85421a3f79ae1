/// How long messages of several sizes take when every rank sends to the next one and receives from the one before, as rings do.
///
/// ```swift
/// let times = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
///     try MessageTimes(on: ranks, sizes: [8, 1 << 16])
/// }
/// print(times[0].link(occupiesCore: true).latency)
/// ```
public struct MessageTimes: Hashable, Sendable {
    /// Bytes of a message, ascending.
    public let sizes: [Int]
    /// Seconds of a message of each size, the slowest rank's.
    public let seconds: [Double]

    /// Powers of two from 8 bytes to 16 MiB, three doublings apart.
    public static let usualSizes = stride(from: 3, through: 24, by: 3).map { 1 << $0 }

    /// Measures. Every rank calls it, and gets the same times.
    ///
    /// - Parameters:
    ///   - ranks: 2 or more.
    ///   - sizes: bytes of messages, ascending and above 0.
    ///   - budget: seconds for each size, if five messages take no longer.
    /// - Throws: `.invalidArgument` for less than two ranks, and for sizes that are not ascending; `.communication`.
    public init(
        on ranks: any Communicator, sizes: [Int] = MessageTimes.usualSizes, budget: Double = 0.05
    ) throws(SparseKernelsError) {
        guard ranks.count >= 2 else {
            throw SparseKernelsError(.invalidArgument, "ranks", expected: "at least 2", actual: "\(ranks.count)")
        }
        guard let largest = sizes.last, sizes[0] > 0, zip(sizes, sizes.dropFirst()).allSatisfy({ $0 < $1 }) else {
            throw SparseKernelsError(
                .invalidArgument, "sizes", expected: "ascending numbers of bytes above 0", actual: "\(sizes)")
        }
        let (sent, received) = (try MessageBuffer(byteCount: largest), try MessageBuffer(byteCount: largest))
        var nanoseconds: [Int] = []
        for size in sizes {
            try ranks.barrier()
            let first = try Self.shift(ranks, sent, received, size, times: 3) / 3
            // All ranks send as many messages as rank 0 has time for. An interruption spoils one of the batches.
            let batches = 5
            let batch = try ranks.broadcast([max(1, min(2000, Int(budget / 5 / max(first, 1e-9))))], from: 0)[0]
            var samples: [Double] = []
            try ranks.barrier()
            for _ in 0..<batches { samples.append(try Self.shift(ranks, sent, received, size, times: batch)) }
            nanoseconds.append(Int(samples.sorted()[batches / 2] * 1e9 / Double(batch)))
        }
        let gathered = try ranks.gather(nanoseconds)
        self.sizes = sizes
        seconds = sizes.indices.map { index in Double(gathered.reduce(0) { max($0, $1[index]) }) * 1e-9 }
    }

    /// Times that are known.
    init(sizes: [Int], seconds: [Double]) { (self.sizes, self.seconds) = (sizes, seconds) }

    /// Seconds of some messages around the ring.
    private static func shift(
        _ ranks: any Communicator, _ sent: MessageBuffer, _ received: MessageBuffer, _ size: Int, times: Int
    ) throws(SparseKernelsError) -> Double {
        let (next, previous) = ((ranks.rank + 1) % ranks.count, (ranks.rank + ranks.count - 1) % ranks.count)
        let clock = ContinuousClock()
        let start = clock.now
        for _ in 0..<times {
            let coming = try ranks.receive(into: received, 0..<size, from: previous, tag: 0)
            let going = try ranks.send(sent, 0..<size, to: next, tag: 0)
            try ranks.wait(for: coming)
            try ranks.wait(for: going)
        }
        return (clock.now - start) / .seconds(1)
    }

    /// Constants that meet the fastest message and the largest one.
    /// - Parameter occupiesCore: see ``RankMachine/Link/occupiesCore``.
    public func link(occupiesCore: Bool) -> RankMachine.Link {
        let latency = max(seconds.min()!, 1e-9)
        // On a busy machine small messages may take as long as large ones.
        let longest = max(seconds[sizes.count - 1], 1e-9)
        return .init(
            latency: latency, bytesPerSecond: Double(sizes[sizes.count - 1]) / max(longest - latency, longest / 2),
            occupiesCore: occupiesCore)
    }
}
