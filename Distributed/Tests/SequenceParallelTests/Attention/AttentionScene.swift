import Foundation
import SequenceParallel
import SparseKernelsReference
import Testing

/// Operands of a sequence, attention over them on ranks that are threads, and the oracle's rows.
struct AttentionScene<Element: AttentionElement>: Sendable {
    let length: Int
    let query: Tensor<Element>
    let key: Tensor<Element>
    let value: Tensor<Element>

    var queryHeads: Int { query.shape[0] }
    var kvHeads: Int { key.shape[0] }
    var headDim: Int { key.shape[2] }
    var valueDim: Int { value.shape[2] }

    init(
        length: Int, queryHeads: Int, kvHeads: Int, headDim: Int = 8, valueDim: Int? = nil, seed: UInt64 = 1, scale: Float = 1
    ) throws {
        self.length = length
        query = try .normal([queryHeads, length, headDim], seed: seed, scale: scale)
        key = try .normal([kvHeads, length, headDim], seed: seed + 1)
        value = try .normal([kvHeads, length, valueDim ?? headDim], seed: seed + 2)
    }

    init(query: Tensor<Element>, key: Tensor<Element>, value: Tensor<Element>) {
        (length, self.query, self.key, self.value) = (query.shape[1], query, key, value)
    }

    var shape: AttentionShape {
        get throws {
            try AttentionShape(
                queryLength: length, keyLength: length, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
                valueDim: valueDim)
        }
    }

    /// What a test varies, besides shards.
    struct Options: Sendable {
        var mask = AttentionMask.causal
        var modifiers = ScoreModifiers()
        var ulysses = 1
        var overlaps = true
        var sliceRows: Int?
        var level: InstructionSet?
        var threads = 1
        /// Sleeps at random moments with this seed.
        var delays: UInt64?
    }

    /// The result of all ranks, in the order of the sequence, and what each rank did.
    struct Result: Sendable {
        let state: AttentionState
        let statistics: [SequenceParallelStatistics]
        let visiblePairs: [Int]
    }

    /// Attention on one rank per shard.
    func attend(_ shards: TokenShards, _ options: Options) throws -> Result {
        let ranks = try LocalCommunicator.run(ranks: shards.ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            let communicator: any Communicator = options.delays.map { DelayedCommunicator(ranks, seed: $0) } ?? ranks
            let attention = try SequenceParallelAttention(
                shards, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim, mask: options.mask,
                modifiers: options.modifiers, ulysses: options.ulysses, overlaps: options.overlaps,
                sliceRows: options.sliceRows,
                instructionSet: options.level, on: communicator)
            let tokens = shards.positions(of: ranks.rank)
            let state = try attention(
                query: query.tokens(tokens), key: key.tokens(tokens), value: value.tokens(tokens),
                on: options.threads == 1 ? .serial : WorkerPool(threads: options.threads))
            return (state, attention.statistics, attention.visiblePairs)
        }
        return Result(
            state: try shards.gather(ranks.map(\.0)), statistics: ranks.map(\.1), visiblePairs: ranks.map(\.2))
    }

    func oracle(_ options: Options) throws -> [ReferenceAttention.Row] {
        let reference = try ReferenceAttention(shape, mask: options.mask, modifiers: options.modifiers)
        return try (0..<queryHeads).flatMap { head in
            try (0..<length).map { token in
                let (q, k, v) = try (query.view(), key.view(), value.view())
                return reference.row(head: head, token: token, query: q, key: k, value: v)
            }
        }
    }

    /// Compares a result of some merges with the oracle.
    ///
    /// A merge adds (δLSE + 4u)·max|v| to the error of the output and u·|LSE| to that of the LSE; the bounds over all keys are
    /// doubled, because a part's deviations are measured from its own output. See Docs/Project/Testing.md, "merged output".
    func expectMatch(
        _ state: AttentionState, _ options: Options, merges: Int, _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let u = AttentionErrorBound.unitRoundoff
        let largest = value.elements.reduce(0) { max($0, abs(Double($1.floatValue))) }
        let (outputs, logs) = (state.output.elements, state.logSumExp.elements)
        var worst = (excess: 0.0, text: "")
        for (index, row) in try oracle(options).enumerated() {
            let bound = AttentionErrorBound(row, headDim: headDim, logitsSoftCap: options.modifiers.logitsSoftCap)
            var (output, lse) = (2 * bound.output, 2 * bound.logSumExp)
            for _ in 0..<merges {
                output += (lse + 4 * u) * largest
                lse += u * abs(row.logSumExp)
            }
            var excess = abs(Double(logs[index]) - row.logSumExp) - lse
            for channel in 0..<valueDim {
                excess = max(excess, abs(Double(outputs[index * valueDim + channel]) - row.output[channel]) - output)
            }
            if !(excess <= worst.excess) { worst = (excess, "head \(row.head), token \(row.token)") }
        }
        #expect(worst.text.isEmpty, "\(label): \(worst.text) is \(worst.excess) off its bound", sourceLocation: sourceLocation)
    }
}

extension Tensor {
    /// The rows of some tokens of `[heads, tokens, channels]`.
    func tokens(_ tokens: [Int]) throws(SparseKernelsError) -> Tensor {
        let (heads, length, channels) = (shape[0], shape[1], shape[2])
        let all = elements
        var rows: [Element] = []
        for head in 0..<heads {
            for token in tokens {
                let first = (head * length + token) * channels
                rows += all[first..<first + channels]
            }
        }
        return try Tensor([heads, tokens.count, channels], rows)
    }
}

extension TokenShards {
    /// The rows of all ranks in the order of the sequence.
    func gather(_ states: [AttentionState]) throws -> AttentionState {
        let (heads, channels) = (states[0].output.shape[0], states[0].output.shape[2])
        var output = [Float](repeating: .nan, count: heads * length * channels)
        var logs = [Float](repeating: .nan, count: heads * length)
        for (rank, state) in states.enumerated() {
            let (rows, values) = (state.output.elements, state.logSumExp.elements)
            let tokens = positions(of: rank)
            for head in 0..<heads {
                for (row, token) in tokens.enumerated() {
                    let (from, to) = (head * tokens.count + row, head * length + token)
                    logs[to] = values[from]
                    for channel in 0..<channels { output[to * channels + channel] = rows[from * channels + channel] }
                }
            }
        }
        return try AttentionState(output: Tensor([heads, length, channels], output), logSumExp: Tensor([heads, length], logs))
    }

    /// Pieces of random lengths for random ranks, some of which may have none.
    static func random(length: Int, ranks: Int, pieces: Int, seed: UInt64) throws -> TokenShards {
        var generator = SplitMix64(seed: seed)
        var cuts = (0..<pieces - 1).map { _ in Int.random(in: 0...length, using: &generator) }.sorted()
        cuts = [0] + cuts + [length]
        var ranges = [[Range<Int>]](repeating: [], count: ranks)
        for (from, to) in zip(cuts, cuts.dropFirst()) where from < to {
            ranges[Int.random(in: 0..<ranks, using: &generator)].append(from..<to)
        }
        return try TokenShards(length: length, ranges: ranges)
    }
}

extension AttentionState {
    var bits: [UInt32] { output.elements.map(\.bitPattern) + logSumExp.elements.map(\.bitPattern) }
}

/// A communicator that sleeps before some of its calls.
final class DelayedCommunicator: Communicator {
    private let base: any Communicator
    private var generator: SplitMix64

    init(_ base: any Communicator, seed: UInt64) {
        self.base = base
        generator = SplitMix64(seed: seed &+ UInt64(base.rank))
    }

    private func delay() {
        if generator.next() % 3 == 0 { usleep(UInt32(generator.next() % 1500)) }
    }

    var rank: Int { base.rank }
    var count: Int { base.count }
    var name: String { base.name }
    var timeLimit: Double { base.timeLimit }
    var traffic: MessageTraffic { base.traffic }

    func barrier() throws(SparseKernelsError) { try base.barrier() }
    func broadcast(_ message: MessageBuffer, _ bytes: Range<Int>, from root: Int) throws(SparseKernelsError) {
        try base.broadcast(message, bytes, from: root)
    }
    func allGather(_ message: MessageBuffer, counts: [Int]) throws(SparseKernelsError) {
        try base.allGather(message, counts: counts)
    }
    func allToAll(
        from sent: MessageBuffer, counts sentCounts: [Int], into received: MessageBuffer, counts receivedCounts: [Int]
    ) throws(SparseKernelsError) {
        try base.allToAll(from: sent, counts: sentCounts, into: received, counts: receivedCounts)
    }
    func send(
        _ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer {
        delay()
        return try base.send(message, bytes, to: peer, tag: tag)
    }
    func receive(
        into message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer {
        delay()
        return try base.receive(into: message, bytes, from: peer, tag: tag)
    }
    func progress() throws(SparseKernelsError) {
        delay()
        try base.progress()
    }
    func wait(for transfer: Transfer) throws(SparseKernelsError) {
        delay()
        try base.wait(for: transfer)
    }
    func split(color: Int?, key: Int, name: String) throws(SparseKernelsError) -> (any Communicator)? {
        try base.split(color: color, key: key, name: name)
    }
    func fail(_ error: SparseKernelsError) { base.fail(error) }
    func free() { base.free() }
}
