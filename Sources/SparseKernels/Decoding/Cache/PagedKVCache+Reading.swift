extension PagedKVCache {
    /// A copy of the keys as attention reads them: dequantised, in the order of the tokens.
    ///
    /// - Parameters:
    ///   - sequence: the sequence to read.
    ///   - layer: the layer to read.
    ///   - tokens: the tokens to read; nil means all of the layer.
    /// - Returns: `[kvHeads, tokens, headDim]`.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a layer that the cache does not have, and for missing or discarded
    ///   tokens.
    public func keys(
        of sequence: SequenceID, layer: Int = 0, tokens: Range<Int>? = nil
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try copy(of: sequence, layer: layer, tokens: tokens, channels: configuration.headDim) { head, slot, count, target in
            storage.read(layer: layer, head: head, slot: slot, count: count, keys: target, values: nil)
        }
    }

    /// A copy of the values as attention reads them: dequantised, in the order of the tokens.
    ///
    /// - Parameters:
    ///   - sequence: the sequence to read.
    ///   - layer: the layer to read.
    ///   - tokens: the tokens to read; nil means all of the layer.
    /// - Returns: `[kvHeads, tokens, valueDim]`.
    /// - Throws: the errors of ``keys(of:layer:tokens:)``.
    public func values(
        of sequence: SequenceID, layer: Int = 0, tokens: Range<Int>? = nil
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try copy(of: sequence, layer: layer, tokens: tokens, channels: configuration.valueDim) { head, slot, count, target in
            storage.read(layer: layer, head: head, slot: slot, count: count, keys: nil, values: target)
        }
    }

    private func copy(
        of sequence: SequenceID, layer: Int, tokens: Range<Int>?, channels: Int,
        _ read: (_ head: Int, _ slot: Int, _ count: Int, _ target: UnsafeMutablePointer<Float>) -> Void
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let length = try length(of: sequence, layer: layer)
        let tokens = tokens ?? 0..<length
        try require(
            tokens.lowerBound >= 0 && tokens.upperBound <= length, .invalidArgument, "tokens",
            expected: "within the \(length) tokens of the layer", actual: "\(tokens)")
        var result = try Tensor<Float>(zeros: [configuration.kvHeads, tokens.count, channels])
        if tokens.isEmpty { return result }
        let index = try table.index(of: sequence)
        try requireTokens(tokens, of: index, argument: "tokens")

        let (pageSize, pageTable) = (configuration.pageSize, table.entries[index].pages)
        var elements = result.mutableSpan
        elements.withUnsafeMutableBufferPointer { target in
            for head in 0..<configuration.kvHeads {
                var token = tokens.lowerBound
                while token < tokens.upperBound {
                    let offset = token % pageSize
                    let count = min(pageSize - offset, tokens.upperBound - token)
                    let row = head * tokens.count + token - tokens.lowerBound
                    read(
                        head, Int(pageTable[token / pageSize]) * pageSize + offset, count,
                        target.baseAddress! + row * channels)
                    token += count
                }
            }
        }
        return result
    }
}
