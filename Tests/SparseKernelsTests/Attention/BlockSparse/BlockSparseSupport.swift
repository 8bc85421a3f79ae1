import SparseKernels
import SparseKernelsReference
import Testing

// Shared by the block-sparse suites: the definitions of patterns, rows of the oracle under them, and random masks.

/// Whether query `query` of head `head` sees key `key`, with all indices within one sequence.
typealias Visibility = (_ head: Int, _ query: Int, _ key: Int) -> Bool

extension BlockPartition {
    /// The block of every token, computed from the sizes alone.
    var blockOfToken: [Int] { sizes.enumerated().flatMap { Array(repeating: $0.offset, count: $0.element) } }
}

extension HeadPattern {
    /// The pair-wise definition of the pattern, for queries aligned at the end of the keys.
    func visibility(queryLength: Int, keyLength: Int, isCausal: Bool) -> (_ query: Int, _ key: Int) -> Bool {
        let offset = keyLength - queryLength
        func limited(_ sees: @escaping (Int, Int) -> Bool) -> (Int, Int) -> Bool {
            { i, j in (!isCausal || j <= i + offset) && sees(i, j) }
        }
        switch self {
        case .dense:
            return limited { _, _ in true }
        case .streaming(let sink, let local):
            return limited { i, j in j < sink || i + offset - j < local }
        case .blockSparse(let mask, let head):
            let (rows, columns) = (mask.grid.query.blockOfToken, mask.grid.key.blockOfToken)
            let kept = (0..<mask.grid.blockRows).map { Set(mask.columns(head: head, row: $0)) }
            return limited { i, j in kept[rows[i]].contains(Int32(columns[j])) }
        case .band(let band):
            return limited { band.isVisible(query: $0, key: $1, position: offset) }
        case .runs(let runs):
            let blocks = runs.query.blockOfToken
            let kept = (0..<runs.query.count).map { block in
                Set(runs.runs(block: block).flatMap { Array($0) } + runs.keys(block: block).map { Int($0) })
            }
            return limited { i, j in kept[blocks[i]].contains(j) }
        }
    }
}

/// The definition of several patterns: one for all heads, per KV head or per query head, within a window around the position.
func visibility(
    _ patterns: [HeadPattern], _ shape: AttentionShape, isCausal: Bool, window: AttentionWindow = .unlimited
) -> Visibility {
    let sees = patterns.map {
        $0.visibility(queryLength: shape.queryLength, keyLength: shape.keyLength, isCausal: isCausal)
    }
    return { head, query, key in
        let distance = key - (query + shape.keyLength - shape.queryLength)
        if let left = window.left, -distance > left { return false }
        if let right = window.right, distance > right { return false }
        return sees[head * sees.count / shape.queryHeads](query, key)
    }
}

/// The oracle's rows under a visibility.
func referenceRows<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
    _ shape: AttentionShape, modifiers: ScoreModifiers = ScoreModifiers(), query: Tensor<Q>, key: Tensor<K>,
    value: Tensor<V>, sees: Visibility
) throws -> [ReferenceAttention.Row] {
    let reference = ReferenceAttention(shape, modifiers: modifiers)
    var rows: [ReferenceAttention.Row] = []
    for head in 0..<shape.queryHeads {
        let kvHead = head / shape.queryHeadsPerKVHead
        let (queries, keys, values) = try (
            query.view().rows(head: head), key.view().rows(head: kvHead), value.view().rows(head: kvHead)
        )
        for token in 0..<shape.queryLength {
            rows.append(
                reference.row(
                    head: head, token: token, query: queries[token], keys: keys, values: values,
                    hides: { !sees(head, token, $0) }))
        }
    }
    return rows
}

/// The number of visible pairs, counted one by one.
func countPairs(_ shape: AttentionShape, _ sees: Visibility) -> Int {
    var pairs = 0
    for head in 0..<shape.queryHeads {
        for query in 0..<shape.queryLength {
            for key in 0..<shape.keyLength where sees(head, query, key) { pairs += 1 }
        }
    }
    return pairs
}

extension BlockMask {
    /// Keeps each block with probability `density`, whether reachable or not.
    static func random(_ grid: BlockGrid, heads: Int = 1, density: Float, seed: UInt64) throws -> BlockMask {
        var generator = SplitMix64(seed: seed)
        var offsets = [0]
        var columns: [Int32] = []
        for _ in 0..<heads * grid.blockRows {
            for column in 0..<grid.blockColumns where generator.uniform() < density { columns.append(Int32(column)) }
            offsets.append(columns.count)
        }
        return try BlockMask(grid: grid, heads: heads, rowOffsets: offsets, columnIndices: columns)
    }
}

extension KeyRuns {
    /// Runs of 1…`longest` keys at random starts, single keys between them, and some blocks with neither.
    static func random(query: BlockPartition, keyLength: Int, longest: Int, seed: UInt64) throws -> KeyRuns {
        var generator = SplitMix64(seed: seed)
        var (runOffsets, keyOffsets) = ([0], [0])
        var runs: [Range<Int>] = []
        var keys: [Int32] = []
        for _ in 0..<query.count {
            var key = 0
            let (hasRuns, hasKeys) = (generator.next() % 8 > 0, generator.next() % 8 > 0)
            while key < keyLength {
                let length = 1 + Int(generator.next() % UInt64(longest))
                switch generator.next() % 4 {
                case 0 where hasRuns:
                    runs.append(key..<min(keyLength, key + length))
                    key += length
                case 1 where hasKeys:
                    keys.append(Int32(key))
                    key += 1
                default:
                    key += length / 2 + 1
                }
            }
            runOffsets.append(runs.count)
            keyOffsets.append(keys.count)
        }
        return try KeyRuns(
            query: query, keyLength: keyLength, runOffsets: runOffsets, runs: runs, keyOffsets: keyOffsets, keys: keys)
    }
}

/// Random operands of a shape.
struct BlockSparseOperands {
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>

    init(query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>) {
        self.query = query
        self.key = key
        self.value = value
    }

    init(_ shape: AttentionShape, seed: UInt64 = 101) throws {
        query = try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: seed)
        key = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: seed + 1)
        value = try .normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: seed + 2)
    }
}

/// Compares a plan of every instruction set with the oracle, and its `visiblePairs` with a count.
func expectMatches(
    _ shape: AttentionShape, _ patterns: [HeadPattern], isCausal: Bool, window: AttentionWindow = .unlimited,
    modifiers: ScoreModifiers = ScoreModifiers(), seed: UInt64 = 101, _ label: String = "",
    sourceLocation: SourceLocation = #_sourceLocation
) throws {
    let operands = try BlockSparseOperands(shape, seed: seed)
    let sees = visibility(patterns, shape, isCausal: isCausal, window: window)
    let rows = try referenceRows(
        shape, modifiers: modifiers, query: operands.query, key: operands.key, value: operands.value, sees: sees)
    let pairs = countPairs(shape, sees)
    for set in InstructionSet.available {
        let attention = try BlockSparseAttention(
            shape, heads: patterns, isCausal: isCausal, window: window, modifiers: modifiers, instructionSet: set)
        #expect(attention.instructionSet == set, sourceLocation: sourceLocation)
        #expect(attention.visiblePairs == pairs, "\(set) \(label)", sourceLocation: sourceLocation)
        let result = try attend(attention, query: operands.query, key: operands.key, value: operands.value)
        expectMatches(
            result.output, result.logSumExp, rows, headDim: shape.headDim, logitsSoftCap: modifiers.logitsSoftCap,
            "\(set) \(label)", sourceLocation: sourceLocation)
        for (index, row) in rows.enumerated() where row.visibleKeys == 0 {
            let channels = result.output.elements[index * shape.valueDim..<(index + 1) * shape.valueDim]
            #expect(channels.allSatisfy { $0.bitPattern == 0 }, "\(set) \(label)", sourceLocation: sourceLocation)
        }
    }
}
