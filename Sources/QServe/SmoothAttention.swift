internal import Foundation
public import SparseKernels

/// Moves outliers from keys to queries, so that a 4-bit key cache can quantise keys without them: Q·Kᵀ = (Q·Λ)·(K·Λ⁻¹)ᵀ.
///
/// λ of a key channel is max |K|^α over all tokens, and 1 where the channel is 0. It is folded into the projections: rows of
/// W_q are multiplied by λ, and rows of W_k are divided by it. Rotary embedding comes between projection and product and mixes
/// two channels of a head, so both channels get the larger λ of the two, which makes Λ commute with it. Query heads use the λ
/// of their key head.
///
/// Source: QServe (arXiv 2405.04532), section 4.2; lmquant, `SmoothAttentionCalibrator` and `smooth_attention`.
public struct SmoothAttention: Hashable, Sendable {
    /// The channels of a head that rotary embedding mixes.
    public enum RotaryPairs: Hashable, Sendable, CaseIterable {
        /// None: the model has no rotary embedding, or applies it before the projection.
        case none
        /// i and i + headDim/2: Llama and most others.
        case halves
        /// 2i and 2i + 1: GPT-J.
        case adjacent
    }

    public let kvHeads: Int
    public let headDim: Int
    /// λ, row-major `[kvHeads, headDim]`.
    public let factors: [Float]

    /// The exponent of the paper and of the released configurations.
    public static let defaultAlpha: Float = 0.5

    /// - Parameters:
    ///   - keys: calibration tokens `[tokens, kvHeads · headDim]`, before or after rotary embedding.
    ///   - kvHeads: number of key heads.
    ///   - rotaryPairs: the pairs of the model's rotary embedding.
    ///   - alpha: 0 to 1; 0 changes nothing.
    /// - Throws: `.invalidShape` for keys without `kvHeads` heads, or heads of odd width with pairs; `.invalidArgument` for an
    ///   exponent outside 0…1 or keys that are not finite.
    public init(
        keys: Tensor<Float>, kvHeads: Int, rotaryPairs: RotaryPairs = .halves, alpha: Float = SmoothAttention.defaultAlpha
    ) throws(SparseKernelsError) {
        try require(kvHeads >= 1, .invalidArgument, "kvHeads", expected: "at least 1", actual: "\(kvHeads)")
        try require((0...1).contains(alpha), .invalidArgument, "alpha", expected: "0 to 1", actual: "\(alpha)")
        let unit = rotaryPairs == .none ? 1 : 2
        try require(
            keys.shape.count == 2 && keys.shape.allSatisfy { $0 >= 1 } && keys.shape[1] % kvHeads == 0
                && keys.shape[1] / kvHeads % unit == 0,
            .invalidShape, "keys",
            expected: "[tokens, \(kvHeads) · headDim]\(unit == 2 ? " with an even headDim" : "")", actual: "\(keys.shape)")
        let channels = keys.shape[1]
        var maxima = [Float](repeating: 0, count: channels)
        let values = keys.span
        for token in 0..<keys.shape[0] {
            for channel in 0..<channels {
                let value = values[token * channels + channel]
                try require(
                    value.isFinite, .invalidArgument, "keys", expected: "finite",
                    actual: "\(value) in channel \(channel) of token \(token)")
                maxima[channel] = max(maxima[channel], abs(value))
            }
        }
        let headDim = channels / kvHeads
        self.kvHeads = kvHeads
        self.headDim = headDim
        factors = (0..<channels).map { channel in
            let (head, i) = (channel / headDim * headDim, channel % headDim)
            let partner =
                switch rotaryPairs {
                case .none: i
                case .halves: (i + headDim / 2) % headDim
                case .adjacent: i ^ 1
                }
            let factor = pow(max(maxima[channel], maxima[head + partner]), alpha)
            return factor == 0 ? 1 : factor
        }
    }

    /// The query projection or its bias with rows multiplied by λ.
    ///
    /// - Parameter projection: `[queryHeads · headDim, …]`; a multiple of `kvHeads` heads, where neighbours share one.
    /// - Throws: `.invalidShape` for another number of rows.
    public func scaledQuery(_ projection: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let rows = projection.shape.first ?? 0
        try require(
            rows >= 1 && rows % (kvHeads * headDim) == 0, .invalidShape, "projection",
            expected: "a multiple of kvHeads · headDim = \(kvHeads * headDim) rows", actual: "\(projection.shape)")
        let headsPerKVHead = rows / (kvHeads * headDim)
        return scaled(projection) { row, value in
            value * factors[row / headDim / headsPerKVHead * headDim + row % headDim]
        }
    }

    /// The key projection or its bias with rows divided by λ.
    ///
    /// - Parameter projection: `[kvHeads · headDim, …]`.
    /// - Throws: `.invalidShape` for another number of rows.
    public func scaledKey(_ projection: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            projection.shape.first == kvHeads * headDim, .invalidShape, "projection",
            expected: "kvHeads · headDim = \(kvHeads * headDim) rows", actual: "\(projection.shape)")
        return scaled(projection) { row, value in value / factors[row] }
    }

    private func scaled(_ projection: Tensor<Float>, _ scale: (_ row: Int, _ value: Float) -> Float) -> Tensor<Float> {
        var result = projection
        var values = result.mutableSpan
        let columns = projection.shape.dropFirst().reduce(1, *)
        for row in 0..<projection.shape[0] {
            for index in row * columns..<(row + 1) * columns { values[index] = scale(row, values[index]) }
        }
        return result
    }
}
