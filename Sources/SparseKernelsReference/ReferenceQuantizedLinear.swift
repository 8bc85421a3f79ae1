public import SparseKernels

/// A quantised linear layer in `Double`, one output at a time.
///
/// Let a and s be the codes and scales of a token, and w, S and O the codes, scales and offsets of row n of the weight. Let g
/// be the segments of columns that share a scale on both sides, and t = down · x before shift, smoothing and rounding:
///
///     p_g = Σ_{k in g} a_k·w_k          q_g = Σ_{k in g} a_k                  exact integers
///     z = channelScale · Σ_g s_g·(S_g·p_g − O_g·q_g) + Σ_i t_i·up_ni + bias
///     y = epilogue(z)
///
/// With `.float` activations, v_k·(S_g·w_k − O_g) replaces the terms of a segment.
public struct ReferenceQuantizedLinear: Sendable {
    public let weight: QuantizedWeight
    public let quantization: ReferenceActivationQuantization
    public let epilogue: Epilogue
    private let smooth: [Float]?
    private let bias: [Float]?
    private let scales: [Float]
    private let offsets: [Float]?
    private let channelScales: [Float]?
    private let down: [Float]
    private let up: [Float]
    private let rank: Int

    public init(
        _ weight: QuantizedWeight, activation: ActivationFormat, smooth: Tensor<Float>? = nil, lowRank: LowRankBranch? = nil,
        bias: Tensor<Float>? = nil, epilogue: Epilogue = .none
    ) {
        self.weight = weight
        quantization = ReferenceActivationQuantization(activation, weight: weight.format)
        self.epilogue = epilogue
        self.smooth = smooth?.elements
        self.bias = bias?.elements
        scales = weight.scales.elements
        offsets = weight.offsets?.elements
        channelScales = weight.channelScales?.elements
        down = lowRank?.down.elements ?? []
        up = lowRank?.up.elements ?? []
        rank = lowRank?.rank ?? 0
    }

    /// A token's activations in the form that the two branches read.
    public struct Token: Sendable {
        /// Codes and scales. Replace them to check a product with the codes that it used.
        public var row: ReferenceActivationQuantization.Row
        /// Σ_k x_k·down_ik and Σ_k |x_k·down_ik| of every rank.
        public let projection: [(value: Double, magnitude: Double)]
    }

    /// Quantises and projects the activations of a token, `inFeatures` elements.
    public func token<X: AttentionElement>(_ x: [X]) -> Token {
        let projection = (0..<rank).map { i in
            var sum = (value: 0.0, magnitude: 0.0)
            for k in x.indices {
                let term = Double(x[k].floatValue) * Double(down[i * x.count + k])
                sum.value += term
                sum.magnitude += abs(term)
            }
            return sum
        }
        return Token(row: quantization(x, smooth: smooth), projection: projection)
    }

    /// One output, and the possible error of `Float` arithmetic on the same codes. Docs/Operators/QuantizedLinear.md derives the bound.
    public func output(of token: Token, column n: Int) -> (value: Double, errorBound: Double) {
        var z = bias.map { Double($0[n]) } ?? 0
        var bound = QuantizedLinearErrorBound(inFeatures: weight.inFeatures, rank: rank)
        bound.bias = abs(z)
        for i in 0..<rank {
            let factor = Double(up[n * rank + i])
            z += token.projection[i].value * factor
            bound.lowRank += token.projection[i].magnitude * abs(factor)
        }
        let channelScale = channelScales.map { Double($0[n]) } ?? 1
        let k = weight.inFeatures
        // Where a row has one scale, segments have 128 columns, because single-precision sums are rounded as often.
        let segment = weight.format.groupSize ?? 128
        bound.segments = quantization.format == .float ? k : (k + segment - 1) / segment
        for start in stride(from: 0, to: k, by: segment) {
            let group = n * weight.groups + (weight.format.groupSize.map { start / $0 } ?? 0)
            let scale = Double(scales[group]) * (weight.format.code == .fp4 ? 0.5 : 1)
            let offset = offsets.map { Double($0[group]) } ?? 0
            for term in terms(of: token.row, columns: start..<min(k, start + segment), row: n) {
                z += channelScale * (scale * term.product - offset * term.sum)
                bound.product += abs(channelScale) * (abs(scale * term.product) + abs(offset * term.sum))
            }
        }
        return (epilogue.reference(z), bound.afterEpilogue(epilogue, of: z))
    }

    /// The terms of a segment, before scale and offset of the weight: one exact integer times the token's scale, or each
    /// product.
    private func terms(
        of row: ReferenceActivationQuantization.Row, columns: Range<Int>, row n: Int
    ) -> [(product: Double, sum: Double)] {
        if quantization.format == .float {
            return columns.map { k in
                (Double(row.values[k]) * Double(weight.code(row: n, column: k)), Double(row.values[k]))
            }
        }
        var (product, sum) = (0, 0)
        for k in columns {
            product += row.codes[k] * weight.code(row: n, column: k)
            sum += row.codes[k]
        }
        let group = quantization.groupSize.map { columns.lowerBound / $0 } ?? 0
        let scale = Double(row.scales[group]) * (quantization.format == .fp4 ? 0.5 : 1)
        return [(scale * Double(product), scale * Double(sum))]
    }
}

extension Epilogue {
    package func reference(_ z: Double) -> Double {
        switch self {
        case .none: z
        case .gelu: 0.5 * z * (1 + hyperbolicTangent(0.7978845608028654 * (z + 0.044715 * z * z * z)))
        case .silu: z / (1 + exponential(-z))
        case .geluErf: 0.5 * z * complementaryError(-z / 2.0.squareRoot())
        }
    }
}

/// The possible error of single precision in an output of a quantised layer.
///
/// Integer sums are exact, so only the later operations round: the products with the scales and their sum over G segments, the
/// two products of the low-rank branch, and the bias. With λ and u of `AttentionErrorBound`:
///
///     |δz| ≤ λ·u·((√G + 5)·Σ_g |terms| + (√K + √rank + 3)·Σ_i Σ_k |x_k·down_ik·up_ni| + 2·|bias|)
///     |δy| ≤ 1.13·|δz| + 10⁻⁶·|z|        after GELU or SiLU: their slopes are below 1.13, tanh is within 4·10⁻⁷ and eˣ within
///                                        2·10⁻⁷·(1 + |x|/2)
///
/// A row of `.float` activations has K terms and no integer sums, so G = K.
struct QuantizedLinearErrorBound {
    var segments = 0
    var product = 0.0
    var lowRank = 0.0
    var bias = 0.0
    let inFeatures: Int
    let rank: Int

    init(inFeatures: Int, rank: Int) {
        self.inFeatures = inFeatures
        self.rank = rank
    }

    /// The bound of |δz|.
    var sum: Double {
        let chain = Double(segments).squareRoot() + 5
        let branch = Double(inFeatures).squareRoot() + Double(rank).squareRoot() + 3
        return AttentionErrorBound.confidence * AttentionErrorBound.unitRoundoff
            * (chain * product + branch * lowRank + 2 * bias)
    }

    func afterEpilogue(_ epilogue: Epilogue, of z: Double) -> Double {
        epilogue == .none ? sum : 1.13 * sum + 1e-6 * abs(z)
    }
}
