import KernelInterface
import SparseKernels
import SparseKernelsReference
import Testing

/// A cache in which pages of sequences alternate, and exact attention over its stored values.
final class PagedAttentionFixture {
    let cache: PagedKVCache
    var sequences: [PagedKVCache.SequenceID] = []
    private var seed: UInt64
    private var stored: [Place: Stored] = [:]

    private struct Place: Hashable {
        var sequence: PagedKVCache.SequenceID
        var layer: Int
        var kvHead: Int
    }

    /// The tokens of one head of a sequence by position, without those of discarded pages.
    private struct Stored {
        var slots: [Int32]
        var keys: [[Double]]
        var values: [[Double]]
    }

    /// Numbers of query heads and of key/value heads.
    static let heads = [(1, 1), (4, 1), (8, 2), (6, 2), (3, 3)]

    init(_ configuration: KVCacheConfiguration, lengths: [Int] = [], seed: UInt64 = 1) throws {
        cache = try PagedKVCache(configuration)
        self.seed = seed
        for _ in lengths { sequences.append(cache.makeSequence()) }
        // Sequences grow in turns, so that neighbouring pages belong to different sequences.
        var first = 0
        while first < lengths.max() ?? 0 {
            for (sequence, length) in zip(sequences, lengths) where first < length {
                try append(min(211, length - first), to: sequence)
            }
            first += 211
        }
    }

    /// Creates small heads in pages of 16 tokens.
    convenience init(
        _ format: KVFormat, kvHeads: Int = 2, layers: Int = 1, pages: Int = 500, lengths: [Int], seed: UInt64 = 1
    ) throws {
        try self.init(
            KVCacheConfiguration(
                layers: layers, kvHeads: kvHeads, headDim: 8, valueDim: 5, pageSize: 16, pageCapacity: pages, format: format),
            lengths: lengths, seed: seed)
    }

    /// Appends new tokens in every layer, or in one.
    func append(_ tokens: Int, to sequence: PagedKVCache.SequenceID, layer: Int? = nil) throws {
        let sizes = cache.configuration
        for layer in layer.map({ $0...$0 }) ?? 0...sizes.layers - 1 {
            seed += 2
            let key = try Tensor<Float>.normal([sizes.kvHeads, tokens, sizes.headDim], seed: seed)
            let value = try Tensor<Float>.normal([sizes.kvHeads, tokens, sizes.valueDim], seed: seed + 1)
            try cache.append(key: key.view(), value: value.view(), to: sequence, layer: layer)
        }
    }

    func attention(
        queryHeads: Int, mask: KVMask = .causal, logitsSoftCap: Float? = nil, aliBiSlopes: [Float]? = nil,
        aliBiForm: AliBiForm = .signed, sharesPrefixes: Bool = true, _ set: InstructionSet = .portable
    ) throws -> PagedAttention {
        try PagedAttention(
            queryHeads: queryHeads, configuration: cache.configuration, mask: mask,
            modifiers: .init(logitsSoftCap: logitsSoftCap, aliBiSlopes: aliBiSlopes, aliBiForm: aliBiForm),
            sharesPrefixes: sharesPrefixes, instructionSet: set)
    }

    // MARK: - Exact results

    private func stored(_ place: Place) throws -> Stored {
        let length = try cache.length(of: place.sequence, layer: place.layer)
        if let known = stored[place], known.slots.count == length { return known }
        let table = try cache.pageTable(of: place.sequence)
        let pageSize = Int32(cache.configuration.pageSize)
        let slots = (0..<Int32(length)).map { table[Int($0 / pageSize)] * pageSize + $0 % pageSize }
        let (key, value) = operands(place.layer, place.kvHead)
        let rows = Stored(
            slots: slots, keys: slots.map { Self.row(key, $0, isValue: false) },
            values: slots.map { Self.row(value, $0, isValue: true) })
        stored[place] = rows
        return rows
    }

    private func operands(_ layer: Int, _ kvHead: Int) -> (key: TokenOperand, value: TokenOperand) {
        (cache.storage.keyOperand(layer: layer, head: kvHead), cache.storage.valueOperand(layer: layer, head: kvHead))
    }

    private static func row(_ tokens: TokenOperand, _ slot: Int32, isValue: Bool) -> [Double] {
        if slot < 0 { return [] }
        return (0..<tokens.channels).map { TokenPool.value(tokens, slot: Int(slot), channel: $0, isValue: isValue) }
    }

    /// The exact result of one row over some positions, with the bounds of `TokenErrorBound`.
    func expected(
        _ attention: PagedAttention, query: [Double], head: Int, token: Int, of sequence: PagedKVCache.SequenceID,
        positions: [Int], at position: Int = 0, layer: Int = 0
    ) throws -> TokenKernelTests.Expected {
        let kvHead = head / (attention.queryHeads / cache.configuration.kvHeads)
        let rows = try stored(Place(sequence: sequence, layer: layer, kvHead: kvHead))
        let (key, value) = operands(layer, kvHead)
        let slots = positions.map { rows.slots[$0] }
        let keys = positions.map { rows.keys[$0] }
        let values = positions.map { rows.values[$0] }
        let (scale, cap) = (Double(attention.softmaxScale), attention.modifiers.logitsSoftCap)
        let unit = TokenErrorBound.scoreUnit(headDim: query.count)
        var scores = ReferencePagedAttention.scores(
            query: query, keys: keys, softmaxScale: scale, logitsSoftCap: cap.map { Double($0) })
        var bounds = TokenErrorBound.scores(query: query, scale: scale, key: key, keys: keys, slots: slots)
        let plain = scores
        if let slope = attention.modifiers.aliBiSlopes?[head] {
            for (index, token) in positions.enumerated() {
                let distance = Double(token - position)
                let term = Double(slope) * (attention.modifiers.aliBiForm == .symmetric ? -abs(distance) : distance)
                scores[index] += term
                // The sum is rounded once.
                bounds[index] += AttentionErrorBound.unitRoundoff * (abs(term) + abs(scores[index]))
            }
        }
        let row = ReferenceAttention.Row(
            head: head, token: token, valueDim: value.channels, scores: scores, magnitudes: bounds.map { $0 / unit }
        ) { values[$0][$1] }
        let bound = AttentionErrorBound(row, headDim: query.count, logitsSoftCap: cap)
        let coding = TokenErrorBound.values(
            scores: scores, logSumExp: row.logSumExp, value: value, values: values, slots: slots)
        let codes = TokenErrorBound.queryCodes(
            query: query, scale: scale, logitsSoftCap: cap, scores: plain, biased: scores, row: row, key: key, keys: keys,
            values: values,
            slots: slots)
        return TokenKernelTests.Expected(
            row: row, output: bound.output + coding + codes.output, logSumExp: bound.logSumExp + codes.logSumExp)
    }

    /// The rows of a call, for all heads of a few queries of every sequence. A query head at a position sees `positions`.
    func expected<Q: AttentionElement>(
        _ attention: PagedAttention, query: Tensor<Q>, queryLengths: [Int], layer: Int = 0,
        positions: (_ sequence: Int, _ head: Int, _ position: Int) -> [Int] = { _, _, position in
            Array(0..<max(0, position + 1))
        }
    ) throws -> [TokenKernelTests.Expected] {
        var rows: [TokenKernelTests.Expected] = []
        var first = 0
        for (index, sequence) in sequences.enumerated() {
            let count = queryLengths[index]
            let length = try cache.length(of: sequence, layer: layer)
            for i in Set([0, count / 2, count - 1]).sorted() where count > 0 {
                // In debug builds, the oracle takes ten milliseconds for a long row.
                let heads = length > 500 ? [0, attention.queryHeads - 1] : Array(0..<attention.queryHeads)
                for head in Set(heads).sorted() {
                    let seen = positions(index, head, length - count + i)
                    rows.append(
                        try expected(
                            attention, query: Self.row(query, head: head, token: first + i), head: head, token: first + i,
                            of: sequence, positions: seen, at: length - count + i, layer: layer))
                }
            }
            first += count
        }
        return rows
    }

    static func row<Q: AttentionElement>(_ query: Tensor<Q>, head: Int, token: Int) -> [Double] {
        let channels = query.shape[2]
        let first = (head * query.shape[1] + token) * channels
        return (first..<first + channels).map { Double(query[flat: $0].floatValue) }
    }

    // MARK: - Comparing

    /// Storing as `O` rounds o + δ once more, as in `expectMatches`.
    static func compare<O: AttentionElement>(
        _ output: Tensor<O>, _ logSumExp: Tensor<Float>, _ expected: [TokenKernelTests.Expected], _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        var worst = (excess: 0.0, text: "")
        for exact in expected {
            let row = exact.row
            let index = row.head * output.shape[1] + row.token
            let lse = Double(logSumExp[flat: index])
            if row.logSumExp == -.infinity ? lse != -.infinity : !(abs(lse - row.logSumExp) <= exact.logSumExp) {
                worst = (.infinity, "LSE (\(row.head), \(row.token)): \(lse), expected \(row.logSumExp) ± \(exact.logSumExp)")
            }
            for (channel, value) in row.output.enumerated() {
                let actual = Double(output[flat: index * output.shape[2] + channel].floatValue)
                let rounding =
                    O.self == Float.self || row.logSumExp == -.infinity
                    ? 0 : max(O.unitRoundoff * (abs(value) + exact.output), O.subnormalRoundoff)
                let excess = abs(actual - value) - exact.output - rounding
                if !(excess <= worst.excess) {
                    worst = (
                        excess, "output (\(row.head), \(row.token), \(channel)): \(actual), expected \(value) ± \(exact.output)"
                    )
                }
            }
        }
        #expect(worst.text.isEmpty, "\(label): \(worst.text)", sourceLocation: sourceLocation)
    }

    static func compare(
        _ state: AttentionState, _ expected: [TokenKernelTests.Expected], _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        compare(state.output, state.logSumExp, expected, label, sourceLocation: sourceLocation)
    }
}

/// The bits of outputs and LSE, row by row, of some tokens.
func bits(_ state: AttentionState, tokens: Range<Int>) -> [[UInt32]] {
    let (count, channels) = (state.output.shape[1], state.output.shape[2])
    let (output, logSumExp) = (state.output.elements, state.logSumExp.elements)
    return (0..<state.output.shape[0]).flatMap { head in
        tokens.map { token in
            let row = head * count + token
            return output[row * channels..<(row + 1) * channels].map(\.bitPattern) + [logSumExp[row].bitPattern]
        }
    }
}

func bits(_ state: AttentionState) -> [[UInt32]] { bits(state, tokens: 0..<state.output.shape[1]) }
