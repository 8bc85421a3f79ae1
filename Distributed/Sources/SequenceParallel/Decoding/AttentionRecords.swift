internal import Foundation

/// How the states of some queries over the keys of one rank lie in memory: token by token, the outputs of all heads, then their
/// LSE.
///
/// Attention writes the outputs where they are sent from. The states of a token are adjacent, so that those of a range of
/// tokens are one part of a message.
struct AttentionRecords {
    let heads: Int
    /// Channels of an output.
    let channels: Int

    /// Floats of a token.
    var stride: Int { heads * (channels + 1) }
    var bytesPerToken: Int { stride * MemoryLayout<Float>.stride }

    /// The outputs of some tokens, as an operand of attention.
    func geometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: heads, tokens: tokens, channels: channels, headStride: channels, tokenStride: stride)
    }

    /// Puts LSE values, `[heads, tokens]`, behind the outputs.
    func write(logSumExp: MessageBuffer, tokens: Int, to message: MessageBuffer, atByte offset: Int) {
        let source = logSumExp.address.assumingMemoryBound(to: Float.self)
        let target = (message.address + offset).assumingMemoryBound(to: Float.self) + heads * channels
        for head in 0..<heads {
            for token in 0..<tokens { target[token * stride + head] = source[head * tokens + token] }
        }
    }

    /// The states of queries that see no key: output 0, and `logSumExp` by head or −∞.
    func writeEmpty(tokens: Int, logSumExp: [Float]?, to message: MessageBuffer, atByte offset: Int) {
        let target = (message.address + offset).assumingMemoryBound(to: Float.self)
        for token in 0..<tokens {
            let row = target + token * stride
            row.update(repeating: 0, count: heads * channels)
            for head in 0..<heads { row[heads * channels + head] = logSumExp?[head] ?? -.infinity }
        }
    }
}

/// The states of the same queries over the keys of every rank, which are merged in the order of the ranks.
///
/// With m the largest LSE and w_r = e^(LSE_r − m): output Σ (w_r / Σ w)·o_r, and LSE m + ln Σ w. Weights are computed in
/// `Double`. A rank without a key that is seen contributes nothing; when one rank alone contributes, its bits are the result.
///
/// The class of the buffers outlives the calls, so that the addresses are valid while one runs.
struct RecordMerge<Output: AttentionElement>: @unchecked Sendable {
    let records: AttentionRecords
    let tokens: Int
    let ranks: Int
    /// The record of the first token of rank 0, and the bytes to that of the next rank.
    let first: UnsafeRawPointer
    let rankStride: Int
    let output: UnsafeMutablePointer<Output>
    let geometry: TensorGeometry
    /// `[heads, tokens]`.
    let logSumExp: UnsafeMutablePointer<Float>?

    func run(on pool: WorkerPool) {
        // An exponential costs about as much as 32 multiply-adds.
        pool.forEachRange(of: tokens * records.heads, workPerItem: ranks * (records.channels + 32)) { rows in
            withUnsafeTemporaryAllocation(of: Float.self, capacity: ranks + records.channels) { scratch in
                let weights = scratch.baseAddress!
                for row in rows {
                    merge(token: row / records.heads, head: row % records.heads, weights, sums: weights + ranks)
                }
            }
        }
    }

    private func record(_ rank: Int, _ token: Int) -> UnsafePointer<Float> {
        (first + rank * rankStride).assumingMemoryBound(to: Float.self) + token * records.stride
    }

    private func merge(
        token: Int, head: Int, _ weights: UnsafeMutablePointer<Float>, sums: UnsafeMutablePointer<Float>
    ) {
        let (channels, place) = (records.channels, records.heads * records.channels + head)
        let target = output + geometry.offset(head: head, token: token)
        var (most, total) = (-Double.infinity, 0.0)
        for rank in 0..<ranks {
            let value = Double(record(rank, token)[place])
            // NaN is not less, and then nothing is.
            if !(value <= most) { most = most.isNaN ? most : value }
        }
        if most == -.infinity {
            for channel in 0..<channels { target[channel] = .zero }
            logSumExp?[head * tokens + token] = -.infinity
            return
        }
        for rank in 0..<ranks { total += weight(rank, token, place, most) }
        for rank in 0..<ranks { weights[rank] = Float(weight(rank, token, place, most) / total) }
        var isFirst = true
        for rank in 0..<ranks where record(rank, token)[place] != -.infinity {
            let source = record(rank, token) + head * channels
            let weight = weights[rank]
            if isFirst {
                for channel in 0..<channels { sums[channel] = weight * source[channel] }
            } else {
                for channel in 0..<channels { sums[channel] += weight * source[channel] }
            }
            isFirst = false
        }
        for channel in 0..<channels { target[channel] = Output(sums[channel]) }
        logSumExp?[head * tokens + token] = Float(most + log(total))
    }

    private func weight(_ rank: Int, _ token: Int, _ place: Int, _ most: Double) -> Double {
        let logSumExp = record(rank, token)[place]
        return logSumExp == -.infinity ? 0 : exp(Double(logSumExp) - most)
    }
}
