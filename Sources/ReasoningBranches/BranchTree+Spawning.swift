public import SparseKernels

extension BranchTree {
    /// Where a child begins.
    public enum Origin: Hashable, Sendable {
        /// With tokens of its own, as in APR. Pages of the longest known prefix are reused.
        case prompt([Int])
        /// With the first `at` tokens of its parent, all of them when nil, and more tokens behind them. Pages are shared. When
        /// nothing follows, the last token is pending again, so that a step gives the child logits. Tokens that are pending in
        /// the parent are pending in each fork as well, so run the parent first.
        case fork(at: Int? = nil, appending: [Int] = [])
    }

    /// Makes a branch that has no parent.
    ///
    /// - Parameters:
    ///   - prompt: its tokens, one or more. All are pending, but for a prefix that the index knows.
    ///   - budget: what it may take.
    /// - Throws: `.invalidArgument` for no tokens, and for a budget below 0 or too small for the prompt; `.capacityExceeded` when
    ///   the pages that the prompt takes are not free. On errors nothing changes.
    @discardableResult
    public func start(_ prompt: [Int], budget: Budget = .unlimited) throws(SparseKernelsError) -> Branch {
        try make([.prompt(prompt)], parent: nil, budget)[0]
    }

    /// Makes children of a branch, which waits for them until `join` or `promote`. A branch that waits may spawn more.
    ///
    /// - Parameters:
    ///   - origins: one per child.
    ///   - parent: runs, or waits.
    ///   - budget: what each child may take.
    /// - Returns: the children in the order of the call, which is the order in which they are joined.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for an ended parent, a child without tokens, a length beyond the parent's,
    ///   and a budget below 0 or too small for what a child starts with; `.capacityExceeded` when the pages that the children's
    ///   pending tokens take are not free. On errors nothing changes.
    /// - Complexity: O(children · pages). No token is copied, but for pages with metadata that a fork cuts.
    @discardableResult
    public func spawn(
        _ origins: [Origin], from parent: Branch, budget: Budget = .unlimited
    ) throws(SparseKernelsError) -> [Branch] {
        if case .ended = try node(parent).state { _ = try running(parent, named: "parent") }
        let children = try make(origins, parent: parent, budget)
        if origins.isEmpty { return [] }
        nodes[parent]!.children += children
        nodes[parent]!.state = .waiting
        return children
    }

    /// Makes a second branch of what a running one has, with the same parent and the same limit; both run. Beams divide so.
    ///
    /// - Parameters:
    ///   - branch: runs.
    ///   - length: tokens that the copy takes over, all unless given.
    ///   - tokens: tokens behind them. Nothing is pending again when there are none.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that does not run or another length; `.capacityExceeded` for
    ///   tokens beyond the budget, and when a page is missing. On errors nothing changes.
    public func fork(
        _ branch: Branch, at length: Int? = nil, appending tokens: [Int] = []
    ) throws(SparseKernelsError) -> Branch {
        let node = try running(branch)
        let length = length ?? node.tokens.count
        try requireLength(length, of: node)
        let all = Array(node.tokens.prefix(length)) + tokens
        try requireWithin(node.limit, all.count)
        makeRoomForCopy()
        let sequence = try cache.fork(node.sequence!, at: min(length, try cachedLength(node)))
        do throws(SparseKernelsError) {
            let needed = try cache.pagesNeeded(toAppend: [all.count - (try cache.length(of: sequence))], to: [sequence])
            try requireFreePages(needed, for: "a fork")
        } catch {
            try cache.free(sequence)
            throw error
        }
        let copy = insert(
            BranchNode(
                sequence: sequence, tokens: all, start: min(node.start, length), limit: node.limit, parent: node.parent,
                lineage: node.lineage + [node.descendants], seed: seed))
        nodes[branch]!.descendants += 1
        if let parent = node.parent { nodes[parent]!.children.append(copy) }
        return copy
    }

    // MARK: - All or nothing

    private struct Start {
        let sequence: PagedKVCache.SequenceID
        let tokens: [Int]
        let cached: Int
        let limit: Int
    }

    private func make(
        _ origins: [Origin], parent: Branch?, _ budget: Budget
    ) throws(SparseKernelsError) -> [Branch] {
        try require(
            budget.tokens ?? 0 >= 0 && budget.pages ?? 0 >= 0, .invalidArgument, "budget",
            expected: "0 or more tokens and pages",
            actual: "\(budget.tokens.map(String.init) ?? "any") and \(budget.pages.map(String.init) ?? "any")")
        let parentNode = try parent.map { branch throws(SparseKernelsError) in try node(branch) }
        var starts: [Start] = []
        do throws(SparseKernelsError) {
            for origin in origins { starts.append(try begin(origin, from: parentNode, budget)) }
            let needed = try cache.pagesNeeded(
                toAppend: starts.map { $0.tokens.count - $0.cached }, to: starts.map(\.sequence))
            try requireFreePages(needed, for: origins.count == 1 ? "a branch" : "\(origins.count) branches")
        } catch {
            for start in starts { try cache.free(start.sequence) }
            throw error
        }
        return starts.enumerated().map { index, start in
            let ordinal = parentNode.map { $0.descendants + index } ?? nextRootOrdinal()
            if let parent { nodes[parent]!.descendants += 1 }
            return insert(
                BranchNode(
                    sequence: start.sequence, tokens: start.tokens, start: start.tokens.count, limit: start.limit,
                    parent: parent, lineage: (parentNode?.lineage ?? []) + [ordinal], seed: seed))
        }
    }

    /// Makes the sequence of a branch. It is the caller's when this returns, and there is none when it throws.
    private func begin(
        _ origin: Origin, from parent: BranchNode?, _ budget: Budget
    ) throws(SparseKernelsError) -> Start {
        let (tokens, sequence): ([Int], PagedKVCache.SequenceID)
        let cached: Int
        switch origin {
        case .prompt(let prompt):
            try require(!prompt.isEmpty, .invalidArgument, "prompt", expected: "one or more tokens", actual: "none")
            tokens = prompt
            // The last token runs in any case, for its logits.
            if let prefixes {
                (sequence, cached) = try prefixes.take(prompt.dropLast())
            } else {
                (sequence, cached) = (cache.makeSequence(), 0)
            }
        case .fork(let length, let more):
            // A root has no parent, and is made of a prompt only.
            let parent = parent!
            let length = length ?? parent.tokens.count
            try requireLength(length, of: parent)
            tokens = Array(parent.tokens.prefix(length)) + more
            try require(!tokens.isEmpty, .invalidArgument, "origin", expected: "one or more tokens", actual: "none")
            cached = min(length, try cachedLength(parent), tokens.count - 1)
            makeRoomForCopy()
            sequence = try cache.fork(parent.sequence!, at: cached)
        }
        do throws(SparseKernelsError) {
            return Start(
                sequence: sequence, tokens: tokens, cached: cached,
                limit: try limit(budget, start: tokens.count, shared: cached))
        } catch {
            try cache.free(sequence)
            throw error
        }
    }

    /// The most tokens of a branch that starts with some tokens, of which the first are in the cache.
    private func limit(_ budget: Budget, start: Int, shared: Int) throws(SparseKernelsError) -> Int {
        let pageSize = cache.configuration.pageSize
        // No cache holds 2³¹ tokens, so larger budgets are no limits; sums of smaller ones do not overflow.
        let limits = [
            budget.tokens.flatMap { $0 < 1 << 31 ? start + $0 : nil },
            budget.pages.flatMap { $0 < 1 << 31 ? (shared / pageSize + $0) * pageSize : nil },
        ]
        let limit = limits.reduce(.max) { min($0, $1 ?? .max) }
        try require(
            limit >= start, .invalidArgument, "budget.pages", expected: "enough for the \(start) tokens of a branch",
            actual: "\(budget.pages ?? 0) beside \(shared / pageSize) shared ones")
        return limit
    }

    func insert(_ node: BranchNode) -> Branch {
        let branch = Branch(number: nextNumber)
        nextNumber += 1
        nodes[branch] = node
        return branch
    }

    func requireLength(_ length: Int, of node: BranchNode) throws(SparseKernelsError) {
        try require(
            length >= 0 && length <= node.tokens.count, .invalidArgument, "length",
            expected: "from 0 to the \(node.tokens.count) tokens of the branch", actual: "\(length)")
    }

    func requireWithin(_ limit: Int, _ count: Int) throws(SparseKernelsError) {
        try require(
            count <= limit, .capacityExceeded, "budget", expected: "enough for \(count) tokens",
            actual: "\(limit) tokens in all")
    }
}
