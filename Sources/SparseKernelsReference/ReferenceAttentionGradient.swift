public import SparseKernels

/// The backward pass of attention in `Double`, pair by pair, with the forward pass that it needs.
///
/// For every query i of head h, over the keys j that it sees, with s_j, o_i and LSE_i as in ``ReferenceAttention``:
///
///     p_j  = e^(s_j − LSE_i)                D  = do_i · o_i
///     ds_j = scale · p_j · (do_i·v_j − D)
///     dq_i += ds_j · k_j        dk_j += ds_j · q_i        dv_j += p_j · do_i
///
/// Keys and values of a KV head get the sum over the query heads that read them.
///
/// Every gradient has a bound: the possible distance of a backward pass in `Float` from the same operands, where output and LSE are off
/// by δo and δLSE at most and then rounded. As in ``AttentionErrorBound``, a sum of n terms is off by λ·√n·u·Σ|terms|, with λ = 6 and
/// u = 2⁻²⁴. With A = Σ|scale·q·k| + |LSE|, B = Σ|do·v| and E = Σ|do·o|,
///
///     δp/p ≤ λ(√d + 3)u·A + 2e-7·(1 + |s − LSE|/2) + δLSE + u|LSE|             =: r
///     δds  ≤ |ds|·(r + 4u) + |scale|·p·(λ(√dv + 3)u·(B + E) + Σ|do|·(δo + u|o|))
///     δdv  ≤ Σ p|do|·(r + λ(√n + 2)u)
///     δdk  ≤ Σ |q|·(δds + λ(√n + 2)u·|ds|)          and so for dq
public struct ReferenceAttentionGradient: Sendable {
    public let shape: AttentionShape
    public let mask: AttentionMask
    /// Factor on q·k; nil means 1/√headDim.
    public let softmaxScale: Float?

    public init(_ shape: AttentionShape, mask: AttentionMask = .full, softmaxScale: Float? = nil) {
        self.shape = shape
        self.mask = mask
        self.softmaxScale = softmaxScale
    }

    /// A gradient, and how far from it single precision may be.
    public struct Gradient: Sendable {
        public var values: [Double]
        public var bounds: [Double]

        init(count: Int) {
            values = Array(repeating: 0, count: count)
            bounds = values
        }

        /// Adds weight · row from `start` on. `error` is that of the weight, and `sum` the relative error of the sum.
        mutating func add(_ row: [Double], times weight: Double, error: Double, sum: Double, at start: Int) {
            for c in row.indices {
                values[start + c] += weight * row[c]
                bounds[start + c] += abs(row[c]) * (error + sum * abs(weight))
            }
        }
    }

    /// All gradients, `[heads, tokens, channels]`, and the results of the forward pass.
    public struct Result: Sendable {
        /// `[queryHeads, queryLength, valueDim]`.
        public var output: [Double]
        /// `[queryHeads, queryLength]`; −∞ for a query that sees no key.
        public var logSumExp: [Double]
        public var query: Gradient
        public var key: Gradient
        public var value: Gradient
    }

    /// Computes both passes.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - outputGradient: `queryHeads` × `queryLength` × `valueDim`.
    ///   - outputError: δo, the error of the output that the backward pass in `Float` is given.
    ///   - logSumExpError: δLSE.
    public func callAsFunction(
        query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>, outputGradient: TensorView<Float>,
        outputError: Double = 0, logSumExpError: Double = 0
    ) -> Result {
        let (queries, keys) = (shape.queryLength, shape.keyLength)
        let (d, dv) = (shape.headDim, shape.valueDim)
        var result = Result(
            output: Array(repeating: 0, count: shape.queryHeads * queries * dv),
            logSumExp: Array(repeating: 0, count: shape.queryHeads * queries),
            query: Gradient(count: shape.queryHeads * queries * d), key: Gradient(count: shape.kvHeads * keys * d),
            value: Gradient(count: shape.kvHeads * keys * dv))
        let forward = forward
        for head in 0..<shape.queryHeads {
            let kvHead = head / shape.queryHeadsPerKVHead
            let (k, v) = (key.rows(head: kvHead), value.rows(head: kvHead))
            for token in 0..<queries {
                let q = query.row(head: head, token: token)
                let row = forward.row(head: head, token: token, query: q, keys: k, values: v)
                let place = head * queries + token
                result.logSumExp[place] = row.logSumExp
                for c in 0..<dv { result.output[place * dv + c] = row.output[c] }
                let line = Line(
                    q, outputGradient.row(head: head, token: token), output: row.output, logSumExp: row.logSumExp,
                    outputError: outputError, logSumExpError: logSumExpError)
                for j in 0..<keys where forward.isVisible(query: token, key: j) {
                    let (pair, keyPlace) = (pair(line, key: k[j], value: v[j]), kvHead * keys + j)
                    result.query.add(k[j], times: pair.ds, error: pair.dsError, sum: keySums, at: place * d)
                    result.key.add(q, times: pair.ds, error: pair.dsError, sum: querySums, at: keyPlace * d)
                    result.value.add(
                        line.outputGradient, times: pair.p, error: pair.pError, sum: querySums, at: keyPlace * dv)
                }
            }
        }
        return result
    }

    /// The gradient of one query, for given results of the forward pass.
    /// - Throws: `.invalidShape` for tensors of another rank.
    public func gradient(
        ofQuery token: Int, head: Int, query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>, state: AttentionState,
        outputGradient: Tensor<Float>
    ) throws(SparseKernelsError) -> Gradient {
        let (query, key, value) = (try query.view(), try key.view(), try value.view())
        let (output, outputGradient) = (try state.output.view(), try outputGradient.view())
        let (forward, kvHead) = (forward, head / shape.queryHeadsPerKVHead)
        var result = Gradient(count: shape.headDim)
        let line = Line(
            query.row(head: head, token: token), outputGradient.row(head: head, token: token),
            output: output.row(head: head, token: token),
            logSumExp: Double(state.logSumExp[flat: head * shape.queryLength + token]))
        for j in 0..<shape.keyLength where forward.isVisible(query: token, key: j) {
            let k = key.row(head: kvHead, token: j)
            let pair = pair(line, key: k, value: value.row(head: kvHead, token: j))
            result.add(k, times: pair.ds, error: pair.dsError, sum: keySums, at: 0)
        }
        return result
    }

    /// The gradients of one key and its value, for given results of the forward pass.
    /// - Throws: `.invalidShape` for tensors of another rank.
    public func gradients(
        ofKey token: Int, kvHead: Int, query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>, state: AttentionState,
        outputGradient: Tensor<Float>
    ) throws(SparseKernelsError) -> (key: Gradient, value: Gradient) {
        let (query, key, value) = (try query.view(), try key.view(), try value.view())
        let (output, outputGradient) = (try state.output.view(), try outputGradient.view())
        var result = (key: Gradient(count: shape.headDim), value: Gradient(count: shape.valueDim))
        let forward = forward
        let (k, v) = (key.row(head: kvHead, token: token), value.row(head: kvHead, token: token))
        for head in kvHead * shape.queryHeadsPerKVHead..<(kvHead + 1) * shape.queryHeadsPerKVHead {
            for i in 0..<shape.queryLength where forward.isVisible(query: i, key: token) {
                let line = Line(
                    query.row(head: head, token: i), outputGradient.row(head: head, token: i),
                    output: output.row(head: head, token: i),
                    logSumExp: Double(state.logSumExp[flat: head * shape.queryLength + i]))
                let pair = pair(line, key: k, value: v)
                result.key.add(line.query, times: pair.ds, error: pair.dsError, sum: querySums, at: 0)
                result.value.add(line.outputGradient, times: pair.p, error: pair.pError, sum: querySums, at: 0)
            }
        }
        return result
    }

    // MARK: - Pairs

    /// What all pairs of a query share.
    private struct Line {
        let query: [Double]
        let outputGradient: [Double]
        let logSumExp: Double
        /// D, E, and the effect of the output's error on D.
        var (delta, deltaTerms, deltaError) = (0.0, 0.0, 0.0)
        let logSumExpError: Double

        init(
            _ query: [Double], _ outputGradient: [Double], output: [Double], logSumExp: Double, outputError: Double = 0,
            logSumExpError: Double = 0
        ) {
            self.query = query
            self.outputGradient = outputGradient
            self.logSumExp = logSumExp
            self.logSumExpError = logSumExpError
            for (g, o) in zip(outputGradient, output) {
                delta += g * o
                deltaTerms += abs(g * o)
                deltaError += abs(g) * (outputError + AttentionErrorBound.unitRoundoff * abs(o))
            }
        }
    }

    private func pair(
        _ line: Line, key: [Double], value: [Double]
    ) -> (p: Double, pError: Double, ds: Double, dsError: Double) {
        let u = AttentionErrorBound.unitRoundoff
        var (score, scoreTerms) = (0.0, abs(line.logSumExp))
        for (q, k) in zip(line.query, key) {
            score += scale * q * k
            scoreTerms += abs(scale * q * k)
        }
        var (product, productTerms) = (0.0, line.deltaTerms)
        for (g, v) in zip(line.outputGradient, value) {
            product += g * v
            productTerms += abs(g * v)
        }
        let p = exponential(score - line.logSumExp)
        let relative =
            sumError(shape.headDim, 3) * scoreTerms + 2e-7 * (1 + abs(score - line.logSumExp) / 2) + line.logSumExpError
            + u * abs(line.logSumExp)
        let ds = scale * p * (product - line.delta)
        let productError = sumError(shape.valueDim, 3) * productTerms + line.deltaError
        return (p, p * relative, ds, abs(ds) * (relative + 4 * u) + abs(scale) * p * productError)
    }

    private var forward: ReferenceAttention {
        ReferenceAttention(shape, mask: mask, modifiers: ScoreModifiers(softmaxScale: softmaxScale))
    }

    private var scale: Double { softmaxScale.map(Double.init) ?? 1 / Double(shape.headDim).squareRoot() }

    /// λ(√count + further)u.
    private func sumError(_ count: Int, _ further: Double) -> Double {
        AttentionErrorBound.confidence * (Double(count).squareRoot() + further) * AttentionErrorBound.unitRoundoff
    }

    /// Relative errors of sums over the keys of a query, and over the queries of a group.
    private var keySums: Double { sumError(shape.keyLength, 2) }
    private var querySums: Double { sumError(shape.queryLength * shape.queryHeadsPerKVHead, 2) }
}
