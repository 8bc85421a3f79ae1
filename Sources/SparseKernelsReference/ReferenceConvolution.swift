import SparseKernels

/// The causal depthwise convolution and the gated norm in `Double`, one element at a time.
public enum ReferenceConvolution {
    /// The outputs, and for each the largest error that rounding the sums may make: width + 1 roundings, each at most 2⁻²⁴ of the
    /// sum of magnitudes.
    ///
    /// - Parameters:
    ///   - x: tokens of one sequence, each of as many channels.
    ///   - weight: a row of width elements per channel; the last meets the token itself.
    ///   - bias: one per channel.
    ///   - state: the width − 1 tokens before, oldest first.
    public static func sums(
        _ x: [[Double]], weight: [[Double]], bias: [Double], state: [[Double]]
    ) -> (values: [[Double]], errors: [[Double]]) {
        let inputs = state + x
        var (values, errors) = ([[Double]](), [[Double]]())
        for token in x.indices {
            var (row, bounds) = ([Double](), [Double]())
            for channel in bias.indices {
                var (sum, magnitudes) = (bias[channel], abs(bias[channel]))
                for (tap, w) in weight[channel].enumerated() {
                    sum += w * inputs[token + tap][channel]
                    magnitudes += abs(w * inputs[token + tap][channel])
                }
                row.append(sum)
                // Levels without fused multiply-adds round the product as well.
                bounds.append(magnitudes * Double(2 * weight[channel].count + 1) * 0x1p-24)
            }
            values.append(row)
            errors.append(bounds)
        }
        return (values, errors)
    }

    /// The last tokens of what came before and a sequence: what a state holds after it.
    public static func state(after x: [[Double]], before: [[Double]]) -> [[Double]] {
        Array((before + x).suffix(before.count))
    }

    /// One row of ``GatedRMSNorm``.
    public static func gatedNorm(
        _ x: [Double], gate z: [Double], weight: [Double], groups: Int, epsilon: Double, gatesBefore: Bool
    ) -> [Double] {
        let gates = z.map { ReferenceRows.activation(.silu, $0) }
        let u = gatesBefore ? x.indices.map { x[$0] * gates[$0] } : x
        let width = x.count / groups
        return (0..<groups).flatMap { group in
            let range = group * width..<(group + 1) * width
            let normal = ReferenceRows.rmsNorm(Array(u[range]), weight: Array(weight[range]), epsilon: epsilon)
            return range.map { gatesBefore ? normal[$0 - range.lowerBound] : normal[$0 - range.lowerBound] * gates[$0] }
        }
    }
}
