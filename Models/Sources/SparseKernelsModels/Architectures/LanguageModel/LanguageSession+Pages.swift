public import SparseKernels

// Sequences that someone else manages: a session runs tokens after sequences of its paged cache, whoever made them.

extension LanguageSession {
    /// The cache that holds keys and values of all layers, for those who make, fork and free its sequences themselves. Nil with
    /// LServe's methods of decoding and for models with recurrent layers, which keep more than pages.
    public var pages: PagedKVCache? {
        if case .lServe = options.decoding { return nil }
        return model.configuration.recurrentLayers > 0 ? nil : (cache as? PagedSessionCache)?.cache
    }

    /// Runs tokens after those that sequences of `pages` hold.
    ///
    /// - Parameters:
    ///   - tokens: those of each sequence, any number of them.
    ///   - sequences: different sequences of `pages`.
    ///   - logits: the positions whose logits are computed.
    /// - Returns: as `append(_:to:logits:)`.
    /// - Throws: the errors of `append(_:to:logits:)`; `.invalidArgument` for a session without `pages`.
    public func append(
        _ tokens: [[Int]], toPaged sequences: [PagedKVCache.SequenceID], logits: LogitRows = .last
    ) throws(SparseKernelsError) -> Tensor<Float> {
        guard pages != nil, let cache = cache as? PagedSessionCache else {
            throw SparseKernelsError(
                .invalidArgument, "options.decoding", expected: "a method over pages alone",
                actual: model.configuration.recurrentLayers > 0 ? "recurrent states beside them" : "\(options.decoding)")
        }
        let numbers = sequences.map { cache.add($0) }
        defer { for number in numbers { cache.forget(number) } }
        for name in sequences { _ = try cache.cache.length(of: name) }
        guard Set(sequences).count == sequences.count else {
            throw SparseKernelsError(
                .invalidArgument, "sequences", expected: "different sequences", actual: "one of them twice")
        }
        return try append(tokens, to: numbers.map(SequenceID.init), logits: logits)
    }
}
