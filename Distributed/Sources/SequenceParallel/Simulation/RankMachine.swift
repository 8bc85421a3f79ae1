/// What computing and sending take on a machine, or on several of the same kind: the constants of the simulations.
///
/// `sparse-ranks measure` measures them, and writes them as JSON that `sparse-ranks simulate` reads. All are those of one rank that
/// works while the other ranks of its host work, too, unless stated otherwise.
public struct RankMachine: Hashable, Sendable, Codable {
    /// A way for messages. A message of n bytes arrives `latency` + n / `bytesPerSecond` after both sides are ready.
    public struct Link: Hashable, Sendable, Codable {
        /// Seconds.
        public var latency: Double
        public var bytesPerSecond: Double
        /// Whether the rank that receives copies the bytes, and does not compute meanwhile, as in the memory of one host. Otherwise the
        /// bytes move beside the computation.
        public var occupiesCore: Bool

        public init(latency: Double, bytesPerSecond: Double, occupiesCore: Bool) {
            (self.latency, self.bytesPerSecond, self.occupiesCore) = (latency, bytesPerSecond, occupiesCore)
        }

        /// Seconds of a message whose bandwidth so many ranks share.
        public func seconds(bytes: Int, sharers: Int = 1) -> Double {
            latency + Double(bytes) * Double(sharers) / bytesPerSecond
        }
    }

    public var name: String
    /// Ranks 0..<`ranksPerHost` are on the first host, and so on.
    public var ranksPerHost: Int
    /// From one rank of a host to another.
    public var within: Link
    /// From one host to another. All ranks of a host share it.
    public var between: Link
    /// Multiply-adds per second of attention, counted over visible pairs.
    public var attentionRate: Double
    /// Seconds that a call of attention takes beside its multiply-adds.
    public var attentionCallSeconds: Double
    /// Multiply-adds per second of linear layers with many rows.
    public var linearRate: Double
    /// Bytes of a 16-bit cache that a rank attends per second, with four query heads for each key/value head, where memory is no limit.
    public var cacheRate: Double
    /// Bytes of memory that one rank reads per second if it is alone on its host.
    public var memoryRate: Double
    /// Bytes of memory that all ranks of a host read per second.
    public var hostMemoryRate: Double

    public init(
        name: String, ranksPerHost: Int, within: Link, between: Link, attentionRate: Double, attentionCallSeconds: Double,
        linearRate: Double, cacheRate: Double, memoryRate: Double, hostMemoryRate: Double
    ) {
        (self.name, self.ranksPerHost, self.within, self.between) = (name, ranksPerHost, within, between)
        (self.attentionRate, self.attentionCallSeconds, self.linearRate) = (attentionRate, attentionCallSeconds, linearRate)
        (self.cacheRate, self.memoryRate, self.hostMemoryRate) = (cacheRate, memoryRate, hostMemoryRate)
    }

    /// Bytes of memory that a rank reads per second when so many ranks of its host do.
    public func memoryRate(ranksOfHost: Int) -> Double { min(memoryRate, hostMemoryRate / Double(max(1, ranksOfHost))) }

    /// The same hosts with fewer ranks, each of several threads that share its work evenly.
    public func joining(threads: Int) -> Self {
        var machine = self
        let threads = max(1, min(threads, ranksPerHost))
        machine.name += threads == 1 ? "" : ", ranks of \(threads) threads"
        machine.ranksPerHost /= threads
        machine.attentionRate *= Double(threads)
        machine.linearRate *= Double(threads)
        machine.cacheRate *= Double(threads)
        machine.memoryRate = min(hostMemoryRate, memoryRate * Double(threads))
        return machine
    }

    /// - Throws: `.invalidArgument`, naming the constant, for one that is not above 0 and finite (latencies and the seconds of a call may
    ///   be 0).
    public func validate() throws(SparseKernelsError) {
        guard ranksPerHost >= 1 else {
            throw SparseKernelsError(.invalidArgument, "ranksPerHost", expected: "at least 1", actual: "\(ranksPerHost)")
        }
        for (name, value) in [
            ("within.bytesPerSecond", within.bytesPerSecond), ("between.bytesPerSecond", between.bytesPerSecond),
            ("attentionRate", attentionRate), ("linearRate", linearRate), ("cacheRate", cacheRate),
            ("memoryRate", memoryRate), ("hostMemoryRate", hostMemoryRate),
        ] {
            guard value > 0 && value.isFinite else {
                throw SparseKernelsError(.invalidArgument, name, expected: "above 0 and finite", actual: "\(value)")
            }
        }
        for (name, value) in [
            ("within.latency", within.latency), ("between.latency", between.latency),
            ("attentionCallSeconds", attentionCallSeconds),
        ] {
            guard value >= 0 && value.isFinite else {
                throw SparseKernelsError(.invalidArgument, name, expected: "0 or more, and finite", actual: "\(value)")
            }
        }
    }
}

extension RankMachine {
    /// Hosts of 16 cores with AVX-512, a rank on each, and an Ethernet of 25 Gbit/s between them.
    ///
    /// Measured by `sparse-ranks measure --local 16` on the machine of `Docs/Project/Performance/Xeon-16cores.md`, whose memory is read at
    /// `hostMemoryRate` by all cores. The network is an assumption: the ranks of a host share one port of it.
    public static let sixteenCoreHosts = RankMachine(
        name: "hosts of 16 cores, 25 Gbit/s", ranksPerHost: 16,
        within: Link(latency: 6.4e-6, bytesPerSecond: 3.9e9, occupiesCore: true),
        between: Link(latency: 30e-6, bytesPerSecond: 3.1e9, occupiesCore: false),
        attentionRate: 57e9, attentionCallSeconds: 140e-6, linearRate: 64e9, cacheRate: 16e9, memoryRate: 16e9,
        hostMemoryRate: 100e9)
}
