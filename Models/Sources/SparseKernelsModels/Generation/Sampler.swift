import Foundation
public import SparseKernels

/// Draws the tokens of one sequence.
///
/// Each sequence has a sampler, and each sampler a stream of random numbers, of which a token takes one. So the tokens of a
/// sequence depend on its logits, `Sampling` and `stream`, and not on other sequences of a batch. Sums are in double precision, in
/// one order.
public struct Sampler: Sendable {
    public let sampling: Sampling
    private var generator: SplitMix64
    /// The tokens that the penalty is for.
    private var seen = Set<Int>()
    /// Ranks logits where only the largest ones matter. It is made at the first call.
    private var ranking: (statistics: LogitStatistics, summary: LogitSummary)?

    /// - Parameters:
    ///   - sampling: what is drawn.
    ///   - stream: tells sequences of one seed apart.
    /// - Throws: `.invalidArgument` for a value of `sampling` outside of its range.
    public init(_ sampling: Sampling, stream: UInt64 = 0) throws(SparseKernelsError) {
        try sampling.check()
        self.sampling = sampling
        // A generator of generators: neighbouring numbers of streams give unrelated states.
        var streams = SplitMix64(seed: stream)
        generator = SplitMix64(seed: sampling.seed ^ (stream == 0 ? 0 : streams.next()))
    }

    /// Notes tokens of the sequence that were not drawn here, such as its prompt. Only the repetition penalty looks at them.
    public mutating func note(_ tokens: [Int]) {
        if sampling.repetitionPenalty != 1 { seen.formUnion(tokens) }
    }

    /// Draws a token, and takes it into what the repetition penalty knows.
    ///
    /// - Parameters:
    ///   - logits: one per token of the vocabulary. −∞ excludes a token.
    ///   - pool: the threads that look for the largest ones.
    /// - Throws: `.invalidArgument` for logits of which one is NaN or +∞ or all are −∞.
    /// - Complexity: O(vocabulary), and sorting of the tokens that filters may keep.
    public mutating func next(_ logits: Span<Float>, on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Int {
        let token: Int
        if let count = rankedCount, !logits.isEmpty {
            try rank(logits, count: count, on: pool)
            let summary = ranking!.summary
            try Self.requireFinite(summary.maximum(0), of: summary.argmax(0), count: logits.count)
            token = sampling.temperature == 0 ? summary.argmax(0) : drawRanked(summary)
        } else {
            var best = 0
            var largest = -Double.infinity
            for token in logits.indices {
                let value = penalized(logits[token], token)
                if !(value < .infinity) { try Self.requireFinite(logits[token], of: token, count: logits.count) }
                if value > largest { (best, largest) = (token, value) }
            }
            if largest == -.infinity { try Self.requireFinite(-.infinity, of: best, count: logits.count) }
            token = sampling.temperature == 0 ? best : draw(logits, largest: largest)
        }
        note([token])
        return token
    }

    /// How many of the largest logits decide: one, or those that top-k leaves. nil when more of them do, or the penalty changes
    /// some.
    private var rankedCount: Int? {
        guard sampling.repetitionPenalty == 1 else { return nil }
        if sampling.temperature == 0 { return 1 }
        guard let count = sampling.topK, count <= 1024 else { return nil }
        return count
    }

    private mutating func rank(_ logits: Span<Float>, count: Int, on pool: WorkerPool) throws(SparseKernelsError) {
        if ranking?.statistics.vocabulary != logits.count {
            let statistics = try LogitStatistics(vocabulary: logits.count, topK: count)
            ranking = (statistics, try statistics.makeSummary(rows: 1))
        }
        try ranking!.statistics.run(
            MatrixView(logits, rows: 1, columns: logits.count, named: "logits"), into: &ranking!.summary, on: pool)
    }

    /// Throws unless the largest of some logits is finite.
    private static func requireFinite(_ largest: Float, of token: Int, count: Int) throws(SparseKernelsError) {
        guard largest < .infinity else { throw failure("logits", "finite or −∞", "\(largest) of token \(token)") }
        guard largest > -.infinity else { throw failure("logits", "with one above −∞", "\(count) without") }
    }

    private static func failure(_ argument: String, _ expected: String, _ actual: String) -> SparseKernelsError {
        SparseKernelsError(.invalidArgument, argument, expected: expected, actual: actual)
    }

    private func penalized(_ logit: Float, _ token: Int) -> Double {
        let value = Double(logit)
        guard sampling.repetitionPenalty != 1, seen.contains(token) else { return value }
        return value > 0 ? value / sampling.repetitionPenalty : value * sampling.repetitionPenalty
    }

    private mutating func draw(_ logits: Span<Float>, largest: Double) -> Int {
        let temperature = sampling.temperature
        var weights: [(token: Int, weight: Double)] = []
        weights.reserveCapacity(logits.count)
        for token in logits.indices {
            let weight = exp((penalized(logits[token], token) - largest) / temperature)
            if weight > 0 { weights.append((token, weight)) }
        }
        let number = uniform()
        filter(&weights)
        return Self.pick(number, of: weights)
    }

    /// Draws from the largest logits.
    private mutating func drawRanked(_ summary: LogitSummary) -> Int {
        let largest = Double(summary.maximum(0))
        var weights: [(token: Int, weight: Double)] = []
        weights.reserveCapacity(summary.topK)
        for rank in 0..<summary.topK {
            let weight = exp((Double(summary.topValues[0, rank]) - largest) / sampling.temperature)
            if weight > 0 { weights.append((Int(summary.topIndices[0, rank]), weight)) }
        }
        let number = uniform()
        cut(&weights, total: weights.reduce(0) { $0 + $1.weight })
        return Self.pick(number, of: weights)
    }

    /// A random number from 0 to 1.
    private mutating func uniform() -> Double { Double(generator.next() >> 11) * 0x1p-53 }

    private static func pick(_ number: Double, of weights: [(token: Int, weight: Double)]) -> Int {
        let target = number * weights.reduce(0) { $0 + $1.weight }
        var sum = 0.0
        for (token, weight) in weights {
            sum += weight
            if sum > target { return token }
        }
        // Rounding may leave the target at the sum.
        return weights.last!.token
    }

    /// Leaves the tokens that may be drawn. Without a filter they keep the order of ids, otherwise the most probable is first.
    private func filter(_ weights: inout [(token: Int, weight: Double)]) {
        guard sampling.topK != nil || sampling.topP < 1 || sampling.minP > 0 else { return }
        var total = weights.reduce(0) { $0 + $1.weight }
        if let count = sampling.topK, count < weights.count {
            weights = Self.largest(count, of: weights)
            total = weights.reduce(0) { $0 + $1.weight }
        } else {
            // What is below (1 − p)/n of the total adds up to less than top-p drops; half of it leaves room for rounding. The
            // largest weight is 1. So the list that is sorted becomes short.
            let limit = max(sampling.minP, (1 - sampling.topP) * total / Double(weights.count) / 2)
            weights.removeAll { $0.weight < limit }
            weights.sort(by: Self.precedes)
        }
        cut(&weights, total: total)
    }

    /// Leaves the first weights of a descending list, by top-p and min-p.
    private func cut(_ weights: inout [(token: Int, weight: Double)], total: Double) {
        var (sum, count) = (0.0, 0)
        while count < weights.count, count == 0 || (sum < sampling.topP * total && weights[count].weight >= sampling.minP) {
            sum += weights[count].weight
            count += 1
        }
        // With p = 1 rounding must not drop the last ones.
        if sampling.topP == 1 { count = weights.firstIndex { $0.weight < sampling.minP } ?? weights.count }
        weights.removeLast(weights.count - count)
    }

    private static func precedes(_ a: (token: Int, weight: Double), _ b: (token: Int, weight: Double)) -> Bool {
        a.weight == b.weight ? a.token < b.token : a.weight > b.weight
    }

    /// The first `count` in order. A token is put into the list only if it belongs there so far, which few do.
    private static func largest(
        _ count: Int, of weights: [(token: Int, weight: Double)]
    ) -> [(token: Int, weight: Double)] {
        var list: [(token: Int, weight: Double)] = []
        for entry in weights where list.count < count || precedes(entry, list[list.count - 1]) {
            var (low, high) = (0, list.count)
            while low < high {
                let middle = (low + high) / 2
                if precedes(list[middle], entry) { low = middle + 1 } else { high = middle }
            }
            if list.count == count { list.removeLast() }
            list.insert(entry, at: low)
        }
        return list
    }
}
