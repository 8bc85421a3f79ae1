/// The course of one call of attention over a grid of ranks, step by step, in the time of a ``RankMachine``.
///
/// All ranks begin at once. They exchange operands in their groups; then each ring group computes with the keys it has and receives
/// the next ones meanwhile; a step begins when the computation before it is done and its keys are there, and a transfer when both
/// sides have come to its step and the memory for it is free. In the end outputs go back. What follows from uneven work, from slow
/// links in a ring of fast ones, and from what transfers hide behind, is thus found and not assumed.
///
/// Keys that no later group of the ring sees are not passed on.
///
/// Transfers that occupy a core (``RankMachine/Link/occupiesCore``) are added to the computation of the rank that receives.
///
/// - Complexity: O(ring² · pieces²) for the pieces of the sequence that a group has: one or two.
public struct AttentionSimulation: Hashable, Sendable {
    /// From the common start to the end of the last rank.
    public private(set) var seconds = 0.0
    /// Parts of `seconds` of the rank that ends last: attention with merging; both exchanges, with packing; copies of ring transfers
    /// that its core makes; waits for keys.
    public private(set) var computing = 0.0
    public private(set) var exchanging = 0.0
    public private(set) var copying = 0.0
    public private(set) var waiting = 0.0
    /// Seconds that the ring transfers to this rank take by themselves.
    public private(set) var transferring = 0.0
    /// Visible pairs of the rank with the most, over the mean of all ranks; 1 is even.
    public private(set) var imbalance = 1.0
    /// The most bytes that a rank sends, and those of all.
    public private(set) var largestSentBytes = 0
    public private(set) var totalSentBytes = 0

    /// The part of the ring transfers that does not make the rank wait, from 0 to 1; 1 without a ring. Copies that its core makes are
    /// not hidden.
    public var hiddenShare: Double {
        transferring > 0 ? max(0, min(1, 1 - (waiting + copying) / transferring)) : 1
    }

    /// - Parameters:
    ///   - costs: heads and channels.
    ///   - shards: the tokens of every rank.
    ///   - ulysses: the ranks of a group.
    ///   - isCausal: whether queries see only keys up to their own position.
    ///   - machine: the constants.
    /// - Throws: `.invalidArgument` when `ulysses` does not divide the ranks, or the heads do not allow it; the errors of
    ///   ``RankMachine/validate()``.
    public init(
        _ costs: SequenceParallelCosts, shards: TokenShards, ulysses: Int, isCausal: Bool = true, on machine: RankMachine
    ) throws(SparseKernelsError) {
        try machine.validate()
        guard ulysses >= 1, shards.ranks % ulysses == 0, costs.allows(ulysses: ulysses) else {
            throw SparseKernelsError(
                .invalidArgument, "ulysses",
                expected:
                    "a divisor of \(shards.ranks) ranks and \(costs.queryHeads) query heads that divides, or is a multiple of, "
                    + "\(costs.kvHeads) key/value heads",
                actual: "\(ulysses)")
        }
        let ring = shards.ranks / ulysses
        let plan = RingPlan(costs, shards, ulysses: ulysses, machine)
        let hops = plan.hops(isCausal: isCausal)
        let tokens = (0..<shards.ranks).map { shards.count(of: $0) }
        for rank in tokens.indices {
            var sent = costs.sentBytes(by: rank, tokens: tokens, ulysses: ulysses).exchange
            for step in 0..<ring - 1 {
                let block = (rank / ulysses - step + ring) % ring
                if step < hops[block] { sent += plan.tokens[block] * costs.ringBytesPerToken(ulysses: ulysses) }
            }
            largestSentBytes = max(largestSentBytes, sent)
            totalSentBytes += sent
        }

        var state = (0..<ring).map { plan.start(of: $0) }
        // When the block that a group computes with came from another one.
        var arrivals = Array(repeating: 0.0, count: ring)
        var pairs = Array(repeating: 0, count: ring)
        for step in 0..<ring {
            var next = state
            var nextArrivals = arrivals
            for group in 0..<ring {
                let block = (group - step + ring) % ring
                let seen = visiblePairs(plan.ranges[group], plan.ranges[block], isCausal: isCausal)
                pairs[group] += seen
                let work = plan.seconds(of: seen, group: group, block: block, isFirst: step == 0)
                next[group].computing += work
                next[group].time += work
                let coming = (block - 1 + ring) % ring
                guard step < hops[coming] else { continue }
                // Meanwhile the group before sends what it computes with, into memory that is free when the block before is gone.
                let (from, to) = ((group - 1 + ring) % ring, (group + 1) % ring)
                let begin = max(state[from].time, state[group].time, arrivals[to])
                let transfer = plan.transfer(to: group, of: coming)
                let arrival = begin + transfer.seconds
                next[group].transferring += transfer.seconds
                next[group].copying += transfer.copying
                next[group].time += transfer.copying
                next[group].waiting += max(0, arrival - next[group].time)
                next[group].time = max(next[group].time, arrival)
                nextArrivals[group] = arrival
            }
            (state, arrivals) = (next, nextArrivals)
        }
        for group in 0..<ring {
            let back = plan.back(of: group)
            state[group].time += back
            state[group].exchanging += back
        }
        let last = state.max { $0.time < $1.time }!
        (seconds, computing, exchanging) = (last.time, last.computing, last.exchanging)
        (copying, waiting, transferring) = (last.copying, last.waiting, last.transferring)
        let mean = Double(pairs.reduce(0, +)) / Double(ring)
        imbalance = mean > 0 ? Double(pairs.max()!) / mean : 1
    }
}

/// How far a ring group is. All its ranks are.
private struct GroupState {
    var time = 0.0
    var (computing, exchanging, copying, waiting, transferring) = (0.0, 0.0, 0.0, 0.0, 0.0)
}

/// What the steps of a ring take.
private struct RingPlan {
    let costs: SequenceParallelCosts
    let shards: TokenShards
    let ulysses: Int
    let machine: RankMachine
    /// The tokens of each group, in order.
    let ranges: [[Range<Int>]]
    let tokens: [Int]
    private let ring: Int

    init(_ costs: SequenceParallelCosts, _ shards: TokenShards, ulysses: Int, _ machine: RankMachine) {
        (self.costs, self.shards, self.ulysses, self.machine) = (costs, shards, ulysses, machine)
        let ring = shards.ranks / ulysses
        self.ring = ring
        ranges = (0..<ring).map { group in
            Self.joined(shards.ranges[group * ulysses..<(group + 1) * ulysses].flatMap { $0 })
        }
        tokens = ranges.map { $0.reduce(0) { $0 + $1.count } }
    }

    /// Ranges in order, with those that touch as one.
    private static func joined(_ ranges: [Range<Int>]) -> [Range<Int>] {
        var result: [Range<Int>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = result.last, last.upperBound == range.lowerBound {
                result[result.count - 1] = last.lowerBound..<range.upperBound
            } else {
                result.append(range)
            }
        }
        return result
    }

    // MARK: - Computing

    /// Query rows of a slice, over all heads, as ``SequenceParallelAttention`` has them.
    private static let sliceRows = 64 * 96

    /// How far the keys of each group go round: to the last group that sees some.
    func hops(isCausal: Bool) -> [Int] {
        (0..<ring).map { block in
            var hops = ring - 1
            while hops > 0 && visiblePairs(ranges[(block + hops) % ring], ranges[block], isCausal: isCausal) == 0 { hops -= 1 }
            return hops
        }
    }

    /// Seconds of a step: the multiply-adds, and to merge its rows into those of the steps before.
    func seconds(of pairs: Int, group: Int, block: Int, isFirst: Bool) -> Double {
        if pairs == 0 { return 0 }
        let heads = costs.localQueryHeads(ulysses: ulysses)
        let work = Double(pairs) * Double(heads * (costs.headDim + costs.valueDim)) / machine.attentionRate
        // Rows in front of all keys are not part of the call.
        let first = ranges[block][0].lowerBound
        let rows = ranges[group].reduce(0) { $0 + max(0, $1.upperBound - max($1.lowerBound, first)) }
        // Two partial outputs are read and one is written.
        let merged = isFirst ? 0 : rows * heads * costs.valueDim * 3 * 4
        // Rows are computed in slices, between which messages are looked after.
        let calls = shards.ranks == 1 ? 1 : (rows * heads + Self.sliceRows - 1) / Self.sliceRows
        return Double(calls) * machine.attentionCallSeconds + work + Double(merged) / memoryRate
    }

    private var memoryRate: Double { machine.memoryRate(ranksOfHost: min(machine.ranksPerHost, shards.ranks)) }

    // MARK: - Messages

    /// The next keys and values on their way to a group.
    func transfer(to group: Int, of block: Int) -> (seconds: Double, copying: Double) {
        let bytes = tokens[block] * costs.ringBytesPerToken(ulysses: ulysses)
        let rank = group * ulysses
        let from = (group - 1 + ring) % ring * ulysses
        // All peers move on together, so the slowest link counts.
        let crosses = (0..<ulysses).contains { host(rank + $0) != host(from + $0) }
        let link = crosses ? machine.between : machine.within
        return (
            link.seconds(bytes: bytes, sharers: crosses ? min(machine.ranksPerHost, ulysses) : 1),
            link.occupiesCore ? Double(bytes) / link.bytesPerSecond : 0
        )
    }

    private func host(_ rank: Int) -> Int { rank / machine.ranksPerHost }

    /// A group after it has packed and exchanged its operands.
    func start(of group: Int) -> GroupState {
        var state = GroupState()
        // From each peer its rows of this rank's heads.
        state.time = exchange(group) { costs.operandBytesPerToken(ulysses: ulysses) * shards.count(of: $1) }
        if ulysses == 1 && ring > 1 {
            // Keys and values of strided rows are packed for the ring: read and written.
            state.time = Double(2 * tokens[group] * costs.ringBytesPerToken(ulysses: 1)) / memoryRate
        }
        state.exchanging = state.time
        return state
    }

    /// Seconds until the outputs of a group are where they belong.
    func back(of group: Int) -> Double {
        // From each peer this rank's rows of its heads.
        exchange(group) { rank, _ in costs.outputBytesPerToken(ulysses: ulysses) * shards.count(of: rank) }
    }

    /// The slowest rank's time of an all-to-all in which it receives some bytes from each of the others.
    /// - Parameter bytes: of the message that a rank gets from a peer.
    private func exchange(_ group: Int, bytes: (_ rank: Int, _ peer: Int) -> Int) -> Double {
        if ulysses == 1 { return 0 }
        let peers = group * ulysses..<(group + 1) * ulysses
        let sharers = min(machine.ranksPerHost, shards.ranks)
        var slowest = 0.0
        for rank in peers {
            var (inside, outside, packed) = (0.0, 0.0, 0)
            for peer in peers {
                let message = bytes(rank, peer)
                packed += message
                if peer == rank { continue }
                if host(peer) == host(rank) {
                    inside += machine.within.seconds(bytes: message)
                } else {
                    outside += machine.between.seconds(bytes: message, sharers: sharers)
                }
            }
            // Copies by the core and the network go on side by side.
            slowest = max(slowest, max(inside, outside) + Double(2 * packed) / memoryRate)
        }
        return slowest
    }
}
