public import SparseKernels

/// What heads did for tokens: the norms of their outputs, from which routers are fitted and calibrated.
public enum HeadActivity {
    /// The norm of the output of every head, or of every group of query heads together.
    ///
    /// - Parameters:
    ///   - output: query heads × tokens × channels, of attention in all heads.
    ///   - heads: query heads, or key/value heads, which divide them; nil means query heads.
    /// - Returns: `[tokens, heads]`.
    /// - Throws: `.invalidShape` for heads that do not divide the query heads.
    /// - Complexity: one pass over the output, summed in `Double`.
    public static func norms(of output: TensorView<Float>, heads: Int? = nil) throws(SparseKernelsError) -> Tensor<Float> {
        let count = heads ?? output.heads
        try require(
            count >= 1 && output.heads % count == 0, .invalidShape, "heads",
            expected: "a divisor of \(output.heads) query heads", actual: "\(count)")
        let (group, tokens) = (output.heads / count, output.tokens)
        var norms = try Tensor<Float>(zeros: [tokens, count])
        var elements = norms.mutableSpan
        for token in 0..<tokens {
            for head in 0..<count {
                var sum = 0.0
                for member in head * group..<(head + 1) * group {
                    for channel in 0..<output.channels {
                        let value = Double(output[member, token, channel])
                        sum += value * value
                    }
                }
                elements[token * count + head] = Float(sum.squareRoot())
            }
        }
        return norms
    }
}
