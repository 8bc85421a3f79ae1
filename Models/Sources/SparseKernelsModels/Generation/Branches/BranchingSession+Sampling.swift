public import ReasoningBranches
public import SparseKernels

extension BranchingSession {
    /// What happens while branches are decoded.
    public enum Event: Hashable, Sendable {
        /// A token was drawn. `bytes` are whole characters, and none that a stop string might take back.
        case token(Branch, token: Int, bytes: [UInt8])
        /// A branch has ended, and its pages are free.
        case finished(Branch, GenerationResult.End)
    }

    private struct Drawing {
        var sampler: Sampler
        var text: StreamedText
        /// Tokens that may be drawn.
        let limit: Int
        var tokens: [Int] = []
        var logProbability = 0.0
        var end: GenerationResult.End?
    }

    /// Decodes running branches together until each has ended. Each gives its pages back when it ends.
    ///
    /// - Parameters:
    ///   - branches: running branches, each with pending tokens: children of a spawn, or a parent after a join.
    ///   - request: what is drawn, and what ends a branch. A branch whose budget is used up ends like one of full length.
    ///   - tokenizer: makes text; nil for tokens alone.
    ///   - remembers: whether the index keeps what the branches computed.
    ///   - onEvent: called with what happens, in the order of the branches within a step. When it returns false, all branches that
    ///     still run are cancelled; one that it cancels itself through `tree` ends as `.cancelled`, too.
    /// - Returns: a sample per branch, in the order of `branches`.
    /// - Throws: `.invalidArgument` for a request out of range or a branch that does not run or has nothing pending;
    ///   `.capacityExceeded` when the pages of a step are missing, after which the branches run as they were.
    public func decode(
        _ branches: [Branch], _ request: BranchRequest, tokenizer: (any Tokenizing)? = nil, remembers: Bool = false,
        onEvent: (Event) throws(SparseKernelsError) -> Bool = { _ in true }
    ) throws(SparseKernelsError) -> [BranchSample] {
        try request.check()
        var drawings: [Branch: Drawing] = [:]
        for branch in branches {
            var sampling = request.sampling
            sampling.seed = try tree.randomSeed(of: branch)
            var drawing = Drawing(
                sampler: try Sampler(sampling), text: StreamedText(stops: request.stopStrings),
                limit: min(request.maximumTokens, try tree.remainingTokens(of: branch)))
            drawing.sampler.note(try tree.tokens(of: branch))
            drawings[branch] = drawing
        }
        for branch in branches where drawings[branch]!.limit == 0 {
            try tree.finish(branch, remembers: remembers)
            drawings[branch]!.end = .length
        }
        var rest = branches.filter { drawings[$0]!.end == nil }
        while !rest.isEmpty {
            guard let rows = try step(rest), rows.branches.count == Set(rest).count else {
                throw SparseKernelsError(
                    .invalidArgument, "branches", expected: "branches with pending tokens", actual: "one without")
            }
            for (row, branch) in rows.branches.enumerated() where drawings[branch]!.end == nil {
                var wantsMore = true
                try take(
                    rows.logits.span.extracting(rows.elements(row)), for: branch, &drawings[branch]!, request, tokenizer,
                    remembers: remembers, &wantsMore,
                    onEvent)
                if wantsMore { continue }
                for branch in rest where drawings[branch]!.end == nil {
                    try? tree.cancel(branch)
                    drawings[branch]!.end = .cancelled
                }
            }
            for branch in rest where drawings[branch]!.end == nil {
                if case .ended? = try? tree.state(of: branch) { drawings[branch]!.end = .cancelled }
            }
            rest = rest.filter { drawings[$0]!.end == nil }
        }
        return branches.map { branch in
            let drawing = drawings[branch]!
            return BranchSample(
                branch: branch, tokens: drawing.tokens, bytes: drawing.text.bytes, logProbability: drawing.logProbability,
                end: drawing.end ?? .cancelled)
        }
    }

    private func take(
        _ row: Span<Float>, for branch: Branch, _ drawing: inout Drawing, _ request: BranchRequest,
        _ tokenizer: (any Tokenizing)?, remembers: Bool, _ wantsMore: inout Bool,
        _ onEvent: (Event) throws(SparseKernelsError) -> Bool
    ) throws(SparseKernelsError) {
        // An event of another branch may have cancelled this one.
        guard try tree.state(of: branch) == .running else {
            drawing.end = .cancelled
            return
        }
        let token = try drawing.sampler.next(row)
        drawing.logProbability += try LogProbabilities(row).values[token]
        if request.endTokens.contains(token) {
            drawing.end = .endToken(token)
        } else {
            try tree.append([token], to: branch)
            drawing.tokens.append(token)
            let bytes = drawing.text.append(tokenizer?.bytes(of: token) ?? [])
            wantsMore = try onEvent(.token(branch, token: token, bytes: bytes))
            if let stop = drawing.text.stop {
                drawing.end = .stopString(request.stopStrings[stop])
            } else if drawing.tokens.count == drawing.limit {
                drawing.end = .length
            }
        }
        guard let end = drawing.end else { return }
        _ = drawing.text.finish()
        guard try tree.state(of: branch) == .running else {
            drawing.end = .cancelled
            return
        }
        try tree.finish(branch, remembers: remembers)
        let goesOn = try onEvent(.finished(branch, end))
        wantsMore = wantsMore && goesOn
    }

    /// Draws several continuations of a prompt, which is run once, and ranks them.
    ///
    /// - Parameters:
    ///   - count: continuations, 1 or more.
    ///   - prompt: one or more tokens.
    ///   - request: what is drawn.
    ///   - score: the best is first; of equal ones the one that was spawned first.
    ///   - tokenizer: makes text; nil for tokens alone.
    ///   - onEvent: as for `decode`.
    /// - Returns: the samples, best first. Their branches are gone, and no page is in use for them; the prompt is remembered if the
    ///   session reuses prefixes.
    /// - Throws: `.invalidArgument` for a count below 1, no prompt or a request out of range; `.capacityExceeded`. Nothing is left
    ///   in the cache then.
    public func bestOf(
        _ count: Int, after prompt: [Int], _ request: BranchRequest, by score: BranchScore = .logProbability,
        tokenizer: (any Tokenizing)? = nil, onEvent: (Event) throws(SparseKernelsError) -> Bool = { _ in true }
    ) throws(SparseKernelsError) -> [BranchSample] {
        guard count >= 1 else {
            throw SparseKernelsError(.invalidArgument, "count", expected: "1 or more", actual: "\(count)")
        }
        try request.check()
        let root = try tree.start(prompt)
        defer { try? tree.remove(root) }
        _ = try step([root])
        let sequence = try tree.sequence(of: root)!
        try tree.prefixes?.insert(prompt, of: sequence)
        let children = try tree.spawn(
            Array(repeating: .fork(), count: count), from: root, budget: .init(tokens: request.maximumTokens))
        let samples = try decode(children, request, tokenizer: tokenizer, onEvent: onEvent)
        return samples.enumerated().sorted { (-score($0.element), $0.offset) < (-score($1.element), $1.offset) }.map(\.element)
    }
}
