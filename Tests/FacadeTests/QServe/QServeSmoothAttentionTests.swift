import QServe
import SparseKernelsReference
import TestSupport
import Testing

@Suite("QServe: SmoothAttention")
struct QServeSmoothAttentionTests {
    @Test("factors are max |K|^α, shared by the two channels that rotary embedding mixes", arguments: [Float(0), 0.5, 1])
    func factors(_ alpha: Float) throws {
        let maxima: [Float] = [4, 0, 9, 1] + [0, 16, 0, 25]  // two heads
        let keys = try Tensor<Float>([3, 8]) { $0 / 8 == 1 ? -maxima[$0 % 8] : maxima[$0 % 8] / 2 }
        func expected(_ pairs: [Float]) -> [Float] {
            alpha == 0 ? pairs.map { _ in 1 } : pairs.map { $0 == 0 ? 1 : alpha == 1 ? $0 : $0.squareRoot() }
        }
        for (pairs, values) in [
            (SmoothAttention.RotaryPairs.none, maxima), (.halves, [9, 1, 9, 1, 0, 25, 0, 25]),
            (.adjacent, [4, 4, 9, 9, 16, 16, 25, 25]),
        ] as [(SmoothAttention.RotaryPairs, [Float])] {
            let smooth = try SmoothAttention(keys: keys, kvHeads: 2, rotaryPairs: pairs, alpha: alpha)
            #expect(smooth.headDim == 4)
            #expect(smooth.factors == expected(values))
        }
    }

    /// Rotates the pairs of a head by `angle`.
    private static func rotated(_ head: [Double], by angle: Double, _ pairs: SmoothAttention.RotaryPairs) -> [Double] {
        // Any angle works. A rational parametrisation of cos and sin needs no library.
        let (c, s) = ((1 - angle * angle) / (1 + angle * angle), 2 * angle / (1 + angle * angle))
        var result = head
        for i in 0..<head.count / 2 {
            let (a, b) = pairs == .halves ? (i, i + head.count / 2) : (2 * i, 2 * i + 1)
            if pairs == .none { continue }
            result[a] = c * head[a] - s * head[b]
            result[b] = s * head[a] + c * head[b]
        }
        return result
    }

    @Test("scores stay the same under rotary embedding and shared key heads", arguments: SmoothAttention.RotaryPairs.allCases)
    func scores(_ pairs: SmoothAttention.RotaryPairs) throws {
        let (tokens, inputs, queryHeads, kvHeads, headDim) = (5, 12, 6, 2, 8)
        let x = try Tensor<Float>.normal([tokens, inputs], seed: 1)
        let query = try Tensor<Float>.normal([queryHeads * headDim, inputs], seed: 2)
        let key = try Tensor<Float>.normal([kvHeads * headDim, inputs], seed: 3)
        let biases = (
            query: try Tensor<Float>.normal([queryHeads * headDim], seed: 4),
            key: try Tensor<Float>.normal([kvHeads * headDim], seed: 5)
        )
        func project(_ weight: Tensor<Float>, _ bias: Tensor<Float>, token: Int, head: Int) -> [Double] {
            (head * headDim..<(head + 1) * headDim).map { row in
                (0..<inputs).reduce(Double(bias[flat: row])) {
                    $0 + Double(weight[flat: row * inputs + $1]) * Double(x[flat: token * inputs + $1])
                }
            }
        }
        let keys = try Tensor<Float>([tokens, kvHeads * headDim]) { index in
            let (token, channel) = (index / (kvHeads * headDim), index % (kvHeads * headDim))
            return Float(project(key, biases.key, token: token, head: channel / headDim)[channel % headDim])
        }
        let smooth = try SmoothAttention(keys: keys, kvHeads: kvHeads, rotaryPairs: pairs)
        let scaled = (try smooth.scaledQuery(query), try smooth.scaledKey(key))
        let scaledBiases = (try smooth.scaledQuery(biases.query), try smooth.scaledKey(biases.key))
        #expect(scaled.0 != query && scaled.1 != key)
        for head in 0..<queryHeads {
            let kvHead = head / (queryHeads / kvHeads)
            for i in 0..<tokens {
                for j in 0..<tokens {
                    func score(
                        _ query: Tensor<Float>, _ key: Tensor<Float>, _ queryBias: Tensor<Float>, _ keyBias: Tensor<Float>
                    ) -> (sum: Double, magnitude: Double) {
                        let q = Self.rotated(project(query, queryBias, token: i, head: head), by: Double(i) / 3, pairs)
                        let k = Self.rotated(project(key, keyBias, token: j, head: kvHead), by: Double(j) / 3, pairs)
                        // The error of one rounded weight is proportional to all terms of a projection, also cancelled ones.
                        return (zip(q, k).reduce(0) { $0 + $1.0 * $1.1 }, Double(headDim * inputs * inputs) * 16)
                    }
                    let plain = score(query, key, biases.query, biases.key)
                    let smoothed = score(scaled.0, scaled.1, scaledBiases.0, scaledBiases.1)
                    // Each scaled weight is rounded once, by 2⁻²⁴ of itself.
                    #expect(abs(plain.sum - smoothed.sum) <= 2 * 0x1p-24 * plain.magnitude)
                }
            }
        }
    }

    @Test("bad input is an error that names it")
    func badInput() throws {
        let keys = try Tensor<Float>.normal([3, 12], seed: 1)
        expectError(.invalidArgument, "kvHeads") { _ = try SmoothAttention(keys: keys, kvHeads: 0) }
        for alpha in [Float.nan, -0.1, 1.1] {
            expectError(.invalidArgument, "alpha") { _ = try SmoothAttention(keys: keys, kvHeads: 2, alpha: alpha) }
        }
        expectError(.invalidShape, "keys") { _ = try SmoothAttention(keys: keys, kvHeads: 5) }
        expectError(.invalidShape, "keys") { _ = try SmoothAttention(keys: keys, kvHeads: 4) }
        expectError(.invalidShape, "keys") { _ = try SmoothAttention(keys: Tensor(zeros: [0, 12]), kvHeads: 2) }
        expectError(.invalidShape, "keys") { _ = try SmoothAttention(keys: Tensor(zeros: [12]), kvHeads: 2) }
        #expect(try SmoothAttention(keys: keys, kvHeads: 4, rotaryPairs: .none).headDim == 3)
        var bad = keys
        bad[flat: 7] = .nan
        expectError(.invalidArgument, "keys") { _ = try SmoothAttention(keys: bad, kvHeads: 2) }
        let smooth = try SmoothAttention(keys: keys, kvHeads: 2)
        for rows in [0, 13, 6] {
            expectError(.invalidShape, "projection") { _ = try smooth.scaledQuery(Tensor(zeros: [rows, 4])) }
        }
        expectError(.invalidShape, "projection") { _ = try smooth.scaledKey(Tensor(zeros: [24, 4])) }
    }
}
