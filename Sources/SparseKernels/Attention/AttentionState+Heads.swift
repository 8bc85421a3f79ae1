extension AttentionState {
    /// Joins states of some heads each, which were computed separately, into the state of all heads.
    ///
    /// - Parameters:
    ///   - heads: the number of heads of the result.
    ///   - parts: states, each with the heads of its rows in order. Every head is in exactly one part.
    /// - Throws: `.invalidShape` when the extents of the parts differ, or a state has another number of heads than its list.
    package init(
        heads: Int, joining parts: [(heads: [Int], state: AttentionState)]
    ) throws(SparseKernelsError) {
        let (tokens, channels) = parts.first.map { ($0.state.output.shape[1], $0.state.output.shape[2]) } ?? (0, 0)
        var output = try Tensor<Float>(zeros: [heads, tokens, channels])
        var logSumExp = try Tensor<Float>(zeros: [heads, tokens])
        for part in parts {
            try require(
                part.state.output.shape == [part.heads.count, tokens, channels], .invalidShape, "parts",
                expected: "\([part.heads.count, tokens, channels])", actual: "\(part.state.output.shape)")
            output.setHeads(part.heads, from: part.state.output)
            logSumExp.setHeads(part.heads, from: part.state.logSumExp)
        }
        try self.init(output: output, logSumExp: logSumExp)
    }
}

extension Tensor {
    /// Replaces entries of the first axis by those of a tensor whose other axes have the same extents.
    fileprivate mutating func setHeads(_ heads: [Int], from other: Tensor<Element>) {
        let stride = other.count / max(1, heads.count)
        let source = other.span
        var target = mutableSpan
        for (index, head) in heads.enumerated() {
            for offset in 0..<stride { target[head * stride + offset] = source[index * stride + offset] }
        }
    }
}
