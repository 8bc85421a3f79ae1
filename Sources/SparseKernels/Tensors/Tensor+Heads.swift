extension Tensor {
    /// A copy of some heads and tokens of an operand, `[heads, tokens, channels]`, in the order of `heads`.
    ///
    /// Heads and tokens must be in the view.
    /// - Throws: `.invalidShape` for a size that overflows, `.invalidElementType` for cached rows.
    package init(_ view: TensorView<Element>, heads: [Int], tokens: Range<Int>) throws(SparseKernelsError) {
        precondition(tokens.lowerBound >= 0 && tokens.upperBound <= view.tokens, "tokens \(tokens) outside \(view.tokens)")
        try view.requireMemory(named: "view")
        let channels = view.channels
        if tokens.isEmpty || heads.isEmpty || channels == 0 {
            try self.init(zeros: [heads.count, tokens.count, channels])
            return
        }
        try self.init(zeros: [heads.count, tokens.count, channels])
        var target = mutableSpan
        target.withUnsafeMutableBufferPointer { target in
            view.span.withUnsafeBufferPointer { source in
                for (index, head) in heads.enumerated() {
                    precondition(head >= 0 && head < view.heads, "head \(head) outside \(view.heads)")
                    for token in tokens {
                        // The view's geometry was checked against its memory, and the tensor has room for every row.
                        (target.baseAddress! + (index * tokens.count + token - tokens.lowerBound) * channels).update(
                            from: source.baseAddress! + view.geometry.offset(head: head, token: token), count: channels)
                    }
                }
            }
        }
    }
}
