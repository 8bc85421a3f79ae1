import SparseKernels

/// The sequences of a call of `Generator`, and how far they are.
struct GenerationBatch<Predictor: TokenPredicting> {
    private struct Entry {
        let request: GenerationRequest
        var sampler: Sampler
        var text: StreamedText
        var sequence: Predictor.Sequence?
        var tokens: [Int] = []
        var end: GenerationResult.End?
    }

    let tokenizer: any Tokenizing
    private var entries: [Entry] = []

    init(tokenizer: any Tokenizing) { self.tokenizer = tokenizer }

    mutating func add(_ request: GenerationRequest, index: Int) throws(SparseKernelsError) {
        guard !request.prompt.isEmpty, request.maximumTokens >= 0 else {
            throw SparseKernelsError(
                .invalidArgument, "request \(index)", expected: "a prompt of one or more tokens, and 0 or more to draw",
                actual: "\(request.prompt.count) tokens, \(request.maximumTokens) to draw")
        }
        var sampler = try Sampler(request.sampling, stream: request.stream)
        sampler.note(request.prompt)
        entries.append(Entry(request: request, sampler: sampler, text: StreamedText(stops: request.stopStrings)))
    }

    var results: [GenerationResult] {
        entries.map { GenerationResult(tokens: $0.tokens, bytes: $0.text.bytes, end: $0.end ?? .cancelled) }
    }

    mutating func freeAll(in predictor: Predictor) throws(SparseKernelsError) {
        for index in entries.indices { try free(index, in: predictor) }
    }

    private mutating func free(_ index: Int, in predictor: Predictor) throws(SparseKernelsError) {
        guard let sequence = entries[index].sequence else { return }
        entries[index].sequence = nil
        try predictor.free(sequence)
    }

    mutating func run(
        with predictor: Predictor, _ onEvent: (GenerationEvent) throws(SparseKernelsError) -> Bool
    ) throws(SparseKernelsError) {
        let finished = entries.indices.filter { entries[$0].request.maximumTokens == 0 }
        var wantsMore = true
        for index in finished where wantsMore { wantsMore = try finish(index, .length, predictor, onEvent) }
        if !finished.isEmpty { wantsMore = try predictor.goesOn(wantsMore) }
        if !wantsMore { return try cancel(predictor, onEvent) }
        var running = entries.indices.filter { entries[$0].end == nil }
        for index in running { entries[index].sequence = try predictor.makeSequence() }
        var next = running.map { entries[$0].request.prompt }
        var isFirst = true
        while !running.isEmpty {
            let logits = try predictor.predict(next, after: running.map { entries[$0].sequence! })
            if isFirst { wantsMore = try onEvent(.prompts) }
            isFirst = false
            var drawn = [wantsMore ? 1 : 0] + running.map { _ in 0 }
            let vocabulary = logits.shape[1]
            for (row, index) in running.enumerated() where wantsMore {
                drawn[1 + row] = try entries[index].sampler.next(
                    logits.span.extracting(row * vocabulary..<(row + 1) * vocabulary), on: predictor.pool)
            }
            drawn = try predictor.valuesOfFirstRank(drawn)
            wantsMore = drawn[0] != 0
            for (index, token) in zip(running, drawn.dropFirst()) where wantsMore {
                wantsMore = try take(token, for: index, predictor, onEvent)
            }
            guard try predictor.goesOn(wantsMore) else { return try cancel(predictor, onEvent) }
            running = running.filter { entries[$0].end == nil }
            next = running.map { [entries[$0].tokens.last!] }
        }
    }

    /// Takes a token that was drawn. Returns whether the caller wants more.
    private mutating func take(
        _ token: Int, for index: Int, _ predictor: Predictor,
        _ onEvent: (GenerationEvent) throws(SparseKernelsError) -> Bool
    ) throws(SparseKernelsError) -> Bool {
        let request = entries[index].request
        if request.stopsAtEndTokens, tokenizer.endTokens.contains(token) {
            return try finish(index, .endToken(token), predictor, onEvent)
        }
        entries[index].tokens.append(token)
        let bytes = entries[index].text.append(tokenizer.bytes(of: token))
        guard try onEvent(.token(sequence: index, token: token, bytes: bytes)) else { return false }
        if let stop = entries[index].text.stop {
            return try finish(index, .stopString(request.stopStrings[stop]), predictor, onEvent)
        }
        if entries[index].tokens.count == request.maximumTokens { return try finish(index, .length, predictor, onEvent) }
        return true
    }

    private mutating func finish(
        _ index: Int, _ end: GenerationResult.End, _ predictor: Predictor,
        _ onEvent: (GenerationEvent) throws(SparseKernelsError) -> Bool
    ) throws(SparseKernelsError) -> Bool {
        entries[index].end = end
        try free(index, in: predictor)
        return try onEvent(.finished(sequence: index, end: end, bytes: entries[index].text.finish()))
    }

    private mutating func cancel(
        _ predictor: Predictor, _ onEvent: (GenerationEvent) throws(SparseKernelsError) -> Bool
    ) throws(SparseKernelsError) {
        for index in entries.indices where entries[index].end == nil {
            _ = try finish(index, .cancelled, predictor, onEvent)
        }
    }
}
