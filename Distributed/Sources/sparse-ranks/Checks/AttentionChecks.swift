import SequenceParallel
import SparseKernels

extension RankChecks {
    /// Attention over the ranks, against attention of the same tokens on each of them.
    static let attention = [
        RankCheck("attention over every grid of the ranks, causal, of a ragged length") { (ranks) throws(SparseKernelsError) in
            let (heads, kvHeads, headDim, length) = (24, 12, 16, 97)
            let whole = try Operands(heads: heads, kvHeads: kvHeads, headDim: headDim, queries: length, keys: length)
            let shape = try AttentionShape(
                queryLength: length, keyLength: length, queryHeads: heads, kvHeads: kvHeads, headDim: headDim)
            let expected = try DenseAttention(shape, mask: .causal)(
                query: whole.query, key: whole.key, value: whole.value, on: .serial)
            for ulysses in 1...ranks.count where ranks.count % ulysses == 0 && heads % ulysses == 0 && kvHeads % ulysses == 0 {
                let shards = try TokenShards.zigzag(length: length, ulysses: ulysses, ring: ranks.count / ulysses)
                let positions = shards.positions(of: ranks.rank)
                let attention = try SequenceParallelAttention(
                    shards, queryHeads: heads, kvHeads: kvHeads, headDim: headDim, mask: .causal, ulysses: ulysses, on: ranks)
                let state = try attention(
                    query: whole.query.tokens(positions), key: whole.key.tokens(positions),
                    value: whole.value.tokens(positions), on: .serial)
                let difference = state.output.largestDifference(try expected.output.tokens(positions))
                guard difference <= largestError else { return "groups of \(ulysses): differs by \(difference)" }
            }
            return nil
        },
        RankCheck("decoding from a cache whose pages live on all ranks") { (ranks) throws(SparseKernelsError) in
            let length = 333
            let configuration = try KVCacheConfiguration(
                kvHeads: 2, headDim: 16, pageSize: 16, pageCapacity: 64, format: .float32)
            let whole = try Operands(heads: 4, kvHeads: 2, headDim: 16, queries: 1, keys: length)
            let local = try PagedKVCache(configuration)
            let sequence = local.makeSequence()
            try local.append(key: whole.key, value: whole.value, to: sequence, on: .serial)
            let expected = try PagedAttention(queryHeads: 4, configuration: configuration)(
                query: whole.query, cache: local, sequences: [sequence], on: .serial)

            let cache = try ShardedKVCache(configuration, on: ranks)
            let name = cache.makeSequence()
            try cache.append(key: whole.key, value: whole.value, to: name, on: .serial)
            let attention = try ShardedPagedAttention(queryHeads: 4, configuration: configuration, on: ranks)
            let state = try attention(query: whole.query, cache: cache, sequences: [name], on: .serial)
            let difference = state.output.largestDifference(expected.output)
            return difference <= largestError ? nil : "differs by \(difference)"
        },
    ]

    /// Rounding of at most 400 terms of at most 1 in single precision: 400 · 2⁻²⁴, with scores below 2 that are exact to as much.
    private static let largestError: Float = 1e-4
}

/// Operands of attention that are the same on all ranks.
private struct Operands {
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>

    init(heads: Int, kvHeads: Int, headDim: Int, queries: Int, keys: Int) throws(SparseKernelsError) {
        query = try Tensor([heads, queries, headDim]) { Self.number($0, 1) }
        key = try Tensor([kvHeads, keys, headDim]) { Self.number($0, 2) }
        value = try Tensor([kvHeads, keys, headDim]) { Self.number($0, 3) }
    }

    /// Within ±1, without a pattern.
    private static func number(_ index: Int, _ seed: Int) -> Float {
        var bits = UInt64(truncatingIfNeeded: index &* 4 &+ seed) &* 0x9e37_79b9_7f4a_7c15
        bits = (bits ^ bits >> 31) &* 0xbf58_476d_1ce4_e5b9
        return Float(Int32(truncatingIfNeeded: bits >> 32)) * 0x1p-31
    }
}

extension Tensor where Element == Float {
    /// The rows of some tokens of `[heads, tokens, channels]`.
    fileprivate func tokens(_ positions: [Int]) throws(SparseKernelsError) -> Tensor {
        let (length, channels) = (shape[1], shape[2])
        return try Tensor([shape[0], positions.count, channels]) { index in
            let (row, channel) = index.quotientAndRemainder(dividingBy: channels)
            let (head, token) = row.quotientAndRemainder(dividingBy: max(1, positions.count))
            return self[flat: (head * length + positions[token]) * channels + channel]
        }
    }

    fileprivate func largestDifference(_ other: Tensor) -> Float {
        guard shape == other.shape else { return .infinity }
        return (0..<shape.reduce(1, *)).reduce(0) { max($0, abs(self[flat: $1] - other[flat: $1])) }
    }
}
