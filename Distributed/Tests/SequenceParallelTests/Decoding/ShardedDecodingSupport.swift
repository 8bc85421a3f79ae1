import Foundation
import SequenceParallel
import SparseKernelsReference
import Testing

/// Keys, values and queries of some sequences, for one machine and for ranks.
struct ShardedProblem: Sendable {
    var format = KVFormat.float32
    var queryHeads = 4
    var kvHeads = 2
    var headDim = 8
    var valueDim = 6
    var pageSize = 16
    var layers = 1
    var metadata: PageMetadata?
    /// Tokens of each sequence.
    var lengths: [Int]
    /// Who owns a prompt.
    var layout = Layout.placement

    enum Layout: Sendable, CaseIterable {
        /// Where the cache puts it.
        case placement
        case zigzagPages
        case contiguous
        /// In pieces that are no pages, and rank 0 has nothing.
        case ragged
    }

    func configuration(pages: Int = 200) throws(SparseKernelsError) -> KVCacheConfiguration {
        try KVCacheConfiguration(
            layers: layers, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim, pageSize: pageSize, pageCapacity: pages,
            format: format, metadata: metadata)
    }

    func keys(_ sequence: Int) throws(SparseKernelsError) -> Tensor<Float> {
        try .normal([kvHeads, lengths[sequence], headDim], seed: UInt64(10 + sequence), scale: 1.5)
    }

    func values(_ sequence: Int) throws(SparseKernelsError) -> Tensor<Float> {
        try .normal([kvHeads, lengths[sequence], valueDim], seed: UInt64(20 + sequence))
    }

    func query(_ tokens: Int) throws(SparseKernelsError) -> Tensor<Float> {
        try .normal([queryHeads, tokens, headDim], seed: 5, scale: 1.5)
    }

    func shards(_ length: Int, ranks: Int) throws(SparseKernelsError) -> TokenShards? {
        switch layout {
        case .placement: return nil
        case .zigzagPages: return try .zigzag(length: length, ulysses: 1, ring: ranks, alignment: pageSize)
        case .contiguous: return try .contiguous(length: length, ranks: ranks)
        case .ragged:
            var ranges: [[Range<Int>]] = Array(repeating: [], count: ranks)
            var (start, turn) = (0, 1)
            while start < length {
                let end = min(length, start + 1 + turn * 7 % 23)
                ranges[ranks == 1 ? 0 : 1 + turn % (ranks - 1)].append(start..<end)
                (start, turn) = (end, turn + 1)
            }
            return try TokenShards(length: length, ranges: ranges)
        }
    }

    /// A cache of one machine with all sequences.
    func whole() throws(SparseKernelsError) -> (cache: PagedKVCache, sequences: [PagedKVCache.SequenceID]) {
        let cache = try PagedKVCache(configuration())
        var sequences: [PagedKVCache.SequenceID] = []
        for index in lengths.indices {
            let sequence = cache.makeSequence()
            try cache.append(key: keys(index), value: values(index), to: sequence, on: .serial)
            sequences.append(sequence)
        }
        return (cache, sequences)
    }

    /// The same on ranks.
    func sharded(
        on ranks: any Communicator
    ) throws(SparseKernelsError) -> (cache: ShardedKVCache, sequences: [ShardedKVCache.SequenceID]) {
        let cache = try ShardedKVCache(configuration(), on: ranks)
        var sequences: [ShardedKVCache.SequenceID] = []
        for index in lengths.indices {
            let sequence = cache.makeSequence()
            let (keys, values) = (try keys(index), try values(index))
            if let shards = try shards(lengths[index], ranks: ranks.count) {
                let own = shards.positions(of: ranks.rank)
                try cache.append(
                    key: keys.picking(own), value: values.picking(own), to: sequence, shards: shards, on: .serial)
            } else {
                try cache.append(key: keys, value: values, to: sequence, on: .serial)
            }
            sequences.append(sequence)
        }
        return (cache, sequences)
    }
}

extension Tensor<Float> {
    /// Some tokens of a tensor `[heads, tokens, channels]`.
    func picking(_ tokens: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        let (all, channels, elements) = (shape[1], shape[2], elements)
        var result: [Float] = []
        for head in 0..<shape[0] {
            for token in tokens {
                let first = (head * all + token) * channels
                result += elements[first..<first + channels]
            }
        }
        return try Tensor([shape[0], tokens.count, channels], result)
    }

    func row(_ head: Int, _ token: Int) -> [Double] {
        let first = (head * shape[1] + token) * shape[2]
        return (first..<first + shape[2]).map { Double(self[flat: $0]) }
    }
}

/// What attention of one row over some keys on each of several ranks may differ from exact attention over all of them.
///
/// The states of the ranks are within the bounds of attention of the exact ones. Merging weighs them with w_r = e^(LSE_r −
/// LSE), which errors of the LSE move, and rounds a sum of `ranks` terms; with u = 2⁻²⁴:
///
///     |δo|   ≤ Σ w_r·δo_r + Σ w_r·(δLSE_r + 2u)·max|o_r − o| + (ranks + 2)·u·Σ w_r·max|o_r|
///     |δLSE| ≤ Σ w_r·δLSE_r + 2u·(1 + |LSE|)
///
/// Quantised caches multiply codes of 16 bits: the largest element of a query is 2¹⁵ steps, and the largest weight of a step
/// 2¹⁴. Each code is off by half a step, of which a row's offset takes part in one and its codes in the other.
struct MergedRow {
    let exact: ReferenceAttention.Row
    let output: Double
    let logSumExp: Double

    init(
        query: [Double], keys: [[Double]], values: [[Double]], parts: [[Int]], isQuantized: Bool, cap: Float?, sink: Float?
    ) {
        let reference = ReferencePagedAttention(logitsSoftCap: cap)
        let (u, scale) = (AttentionErrorBound.unitRoundoff, 1 / Double(query.count).squareRoot())
        let exact = reference.row(
            query: query, keys: keys, values: values, positions: parts.flatMap { $0 }.sorted(), sinkLogit: sink)
        var (output, logSumExp, magnitude) = (0.0, 0.0, 0.0)
        for (rank, positions) in parts.enumerated() {
            let own = rank == 0 ? sink : nil
            if positions.isEmpty && own == nil { continue }
            let row = reference.row(query: query, keys: keys, values: values, positions: positions, sinkLogit: own)
            var bound = AttentionErrorBound(row, headDim: query.count, logitsSoftCap: cap)
            if isQuantized, !positions.isEmpty {
                let most = query.map(abs).max() ?? 0
                let step = positions.map { keys[$0].reduce(0) { $0 + abs($1) } }.max() ?? 0
                let reach = positions.flatMap { values[$0] }.map(abs).max() ?? 0
                let score = 2 * scale * step * most * 0x1p-16
                // All weights of a step may have the largest one's error.
                let weights = Double(positions.count) * 0x1p-14
                bound.output += (2 * score + weights) * reach
                bound.logSumExp += score
            }
            let weight = exp(row.logSumExp - exact.logSumExp)
            let far = zip(row.output, exact.output).map { abs($0 - $1) }.max() ?? 0
            output += weight * (bound.output + (bound.logSumExp + 2 * u) * far)
            logSumExp += weight * bound.logSumExp
            magnitude += weight * (row.output.map(abs).max() ?? 0)
        }
        self.exact = exact
        self.output = output + Double(parts.count + 2) * u * magnitude
        self.logSumExp = exact.logSumExp.isFinite ? logSumExp + 2 * u * (1 + abs(exact.logSumExp)) : 0
    }

    /// What is wrong with a result; nil if nothing.
    func difference(_ state: AttentionState, head: Int, token: Int) -> String? {
        let place = head * state.output.shape[1] + token
        let lse = Double(state.logSumExp[flat: place])
        if exact.logSumExp == -.infinity ? lse != -.infinity : !(abs(lse - exact.logSumExp) <= logSumExp) {
            return "LSE (\(head), \(token)): \(lse), expected \(exact.logSumExp) ± \(logSumExp)"
        }
        for (channel, value) in exact.output.enumerated() {
            let actual = Double(state.output[flat: place * exact.output.count + channel])
            if !(abs(actual - value) <= output) {
                return "output (\(head), \(token), \(channel)): \(actual), expected \(value) ± \(output)"
            }
        }
        return nil
    }
}

/// Compares results of sharded attention with exact attention over what a cache of one machine holds.
struct ShardedOracle {
    let problem: ShardedProblem
    /// By sequence and head.
    private var keys: [[[[Double]]]] = []
    private var values: [[[[Double]]]] = []

    init(_ problem: ShardedProblem) throws {
        self.problem = problem
        let (cache, sequences) = try problem.whole()
        for sequence in sequences {
            let (k, v) = (try cache.keys(of: sequence), try cache.values(of: sequence))
            keys.append((0..<problem.kvHeads).map { k.rows(ofHead: $0) })
            values.append((0..<problem.kvHeads).map { v.rows(ofHead: $0) })
        }
    }

    /// Compares the rows of queries.
    ///
    /// - Parameters:
    ///   - queryLengths: queries of each sequence.
    ///   - owners: for each sequence, the tokens of each rank.
    ///   - sees: whether a query at a position sees a token.
    func compare(
        _ state: AttentionState, query: Tensor<Float>, queryLengths: [Int], owners: [[[Int]]],
        modifiers: ScoreModifiers = ScoreModifiers(), _ label: String, sourceLocation: SourceLocation = #_sourceLocation,
        sees: (_ sequence: Int, _ head: Int, _ position: Int, _ token: Int) -> Bool = { $3 <= $2 }
    ) {
        var first = 0
        for (sequence, count) in queryLengths.enumerated() {
            for i in Set([0, count / 2, count - 1]).sorted() where count > 0 {
                let position = problem.lengths[sequence] - count + i
                for head in Set([0, problem.queryHeads / 2, problem.queryHeads - 1]).sorted() {
                    let kvHead = head / (problem.queryHeads / problem.kvHeads)
                    let row = MergedRow(
                        query: query.row(head, first + i), keys: keys[sequence][kvHead], values: values[sequence][kvHead],
                        parts: owners[sequence].map { $0.filter { sees(sequence, head, position, $0) } },
                        isQuantized: problem.format.isQuantized, cap: modifiers.logitsSoftCap,
                        sink: modifiers.sinkLogits?[head])
                    if let difference = row.difference(state, head: head, token: first + i) {
                        Issue.record("\(label), sequence \(sequence): \(difference)", sourceLocation: sourceLocation)
                        return
                    }
                }
            }
            first += count
        }
    }
}

/// What a rank gives back of a call.
struct RankResult: Sendable {
    var states: [AttentionState] = []
    /// For each sequence, the tokens of each rank.
    var owners: [[[Int]]] = []
    var texts: [String] = []

    init() {}

    init(_ cache: ShardedKVCache, _ sequences: [ShardedKVCache.SequenceID]) throws(SparseKernelsError) {
        for sequence in sequences {
            var lists: [[Int]] = []
            for rank in 0..<cache.communicator.count {
                lists.append(try cache.tokens(of: sequence, ownedBy: rank).flatMap { $0 })
            }
            owners.append(lists)
        }
    }
}

/// The bits of a state.
func bits(_ state: AttentionState) -> [UInt32] {
    (state.output.elements + state.logSumExp.elements).map(\.bitPattern)
}

/// The error that a call throws; nil when it throws none.
func errorText(_ body: () throws(SparseKernelsError) -> Void) -> String? {
    do throws(SparseKernelsError) {
        try body()
        return nil
    } catch {
        return "\(error)"
    }
}

/// Ranks that come late.
enum Delay {
    static func wait(milliseconds: Int) { Thread.sleep(forTimeInterval: Double(milliseconds) * 1e-3) }
}
