import SparseKernels

extension SessionOptions {
    /// Throws `.invalidArgument` for options that no session, or none of this model, can have. Numbers of methods are checked by
    /// the plans that are made of them.
    func check(_ c: LanguageModelConfiguration) throws(SparseKernelsError) {
        for (name, value) in [
            ("tokenCapacity", tokenCapacity), ("sequenceCapacity", sequenceCapacity), ("chunk", chunk),
        ] where value < 1 || value > 1 << 30 {
            throw SparseKernelsError(.invalidArgument, name, expected: "1 to 2³⁰", actual: "\(value)")
        }
        for (name, value) in [
            ("denseLayers", denseLayers), ("denseTail", denseTail), ("checkpointCapacity", checkpointCapacity),
        ] where value < 0 {
            throw SparseKernelsError(.invalidArgument, name, expected: "0 or more", actual: "\(value)")
        }
        guard c.isCausal else {
            throw SparseKernelsError(
                .invalidArgument, "model", expected: "a causal model, as a session goes from left to right",
                actual: "a bidirectional one")
        }
        if let retrievalHeads {
            guard retrievalHeads.count == c.attentionLayers, retrievalHeads.allSatisfy({ $0.count == c.kvHeads }) else {
                throw SparseKernelsError(
                    .invalidShape, "retrievalHeads", expected: "\(c.attentionLayers) layers of \(c.kvHeads) KV heads",
                    actual: "\(retrievalHeads.count) layers of \(Set(retrievalHeads.map(\.count)).sorted()) heads")
            }
        }
        if case .streaming(_, let local) = decoding, local < 1 {
            throw SparseKernelsError(.invalidArgument, "decoding.local", expected: "at least 1", actual: "\(local)")
        }
    }
}
