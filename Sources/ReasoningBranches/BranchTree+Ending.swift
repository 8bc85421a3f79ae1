public import SparseKernels

extension BranchTree {
    /// A child that has ended, as a join sees it.
    public struct Outcome: Hashable, Sendable {
        public let branch: Branch
        public let end: End
        /// The tokens behind those that it started with.
        public let newTokens: [Int]
    }

    /// Ends a branch that runs, and gives its pages back.
    ///
    /// - Parameters:
    ///   - branch: runs.
    ///   - remembers: whether the index keeps its tokens and pages, for later prompts that begin alike. Pending tokens are not kept.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that waits or has ended; with `remembers`, `.capacityExceeded`
    ///   when a page with metadata must be copied and none is free. On errors nothing changes.
    public func finish(_ branch: Branch, remembers: Bool = false) throws(SparseKernelsError) {
        let node = try running(branch)
        if remembers, let prefixes {
            try prefixes.insert(node.tokens.prefix(try cachedLength(node)), of: node.sequence!)
        }
        try end(branch, .finished)
    }

    /// Ends a branch that runs or waits, and all branches below it. Their pages are free at once.
    ///
    /// - Parameter branch: runs or waits.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that has ended.
    public func cancel(_ branch: Branch) throws(SparseKernelsError) {
        let node = try node(branch)
        if case .ended = node.state { _ = try running(branch) }
        try cancelAll([branch])
    }

    /// What became of the children of a branch, in the order in which they were spawned.
    ///
    /// - Parameter parent: waits.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that has not spawned, or whose children have not all ended.
    public func outcomes(of parent: Branch) throws(SparseKernelsError) -> [Outcome] {
        var outcomes: [Outcome] = []
        for child in try waiting(parent).children {
            let node = nodes[child]!
            guard case .ended(let end) = node.state else {
                throw SparseKernelsError(
                    .invalidArgument, "parent", expected: "a branch whose children have ended",
                    actual: "\(parent), whose \(child) is \(node.state)")
            }
            outcomes.append(Outcome(branch: child, end: end, newTokens: Array(node.tokens[node.start...])))
        }
        return outcomes
    }

    /// Cuts a waiting branch back, appends what its children found, and lets it run again.
    ///
    /// The children are forgotten. When nothing is appended, the last token is pending again, so that a step gives logits.
    ///
    /// - Parameters:
    ///   - parent: waits for children that have all ended.
    ///   - length: tokens that remain; APR cuts just before the section that called the children.
    ///   - tokens: tokens behind them.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that waits for nothing, children that have not ended, another
    ///   length, or if no token would be left; `.capacityExceeded` for tokens beyond the budget, and when a page with metadata
    ///   must be copied and none is free. On errors nothing changes.
    public func join(_ parent: Branch, at length: Int, appending tokens: [Int]) throws(SparseKernelsError) {
        _ = try outcomes(of: parent)
        let node = try node(parent)
        try requireLength(length, of: node)
        let all = Array(node.tokens.prefix(length)) + tokens
        try require(!all.isEmpty, .invalidArgument, "length", expected: "1 or more when nothing is appended", actual: "0")
        try requireWithin(node.limit, all.count)
        let cut = min(length, try cachedLength(node), all.count - 1)
        makeRoomForCopy()
        try cache.truncate(node.sequence!, to: cut)
        forgetChildren(of: parent)
        nodes[parent]!.tokens = all
        nodes[parent]!.start = min(node.start, length)
        nodes[parent]!.state = .running
    }

    /// Joins with the tokens that a closure makes of the children's outcomes, in the order in which they were spawned.
    ///
    /// - Parameters:
    ///   - parent: waits for children that have all ended.
    ///   - length: tokens that remain.
    ///   - summary: the tokens to append.
    /// - Throws: the errors of `join(_:at:appending:)`.
    public func join(
        _ parent: Branch, at length: Int, summary: ([Outcome]) -> [Int]
    ) throws(SparseKernelsError) {
        try join(parent, at: length, appending: summary(try outcomes(of: parent)))
    }

    /// Lets a waiting branch go on as one of its children, with that one's tokens and pages. The other children are cancelled.
    ///
    /// - Parameter child: runs; its parent waits.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a child that does not run or has no parent; `.capacityExceeded` for
    ///   more tokens than the parent's budget allows. On errors nothing changes.
    public func promote(_ child: Branch) throws(SparseKernelsError) {
        let node = try running(child, named: "child")
        guard let parent = node.parent else {
            throw SparseKernelsError(.invalidArgument, "child", expected: "a branch with a parent", actual: "\(child), a root")
        }
        try requireWithin(nodes[parent]!.limit, node.tokens.count)
        let old = nodes[parent]!
        nodes[child]!.sequence = nil
        nodes[child]!.state = .ended(.promoted)
        try cancelAll(old.children)
        try cache.free(old.sequence!)
        forgetChildren(of: parent)
        nodes[parent]!.sequence = node.sequence
        nodes[parent]!.tokens = node.tokens
        nodes[parent]!.start = min(old.start, node.tokens.count)
        nodes[parent]!.state = .running
    }

    /// Ends a root and all branches below it, and forgets them.
    ///
    /// - Parameter root: in any state.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that has a parent.
    public func remove(_ root: Branch) throws(SparseKernelsError) {
        try require(
            try node(root).parent == nil, .invalidArgument, "root", expected: "a branch without a parent", actual: "\(root)")
        try cancelAll([root])
        forgetChildren(of: root)
        nodes[root] = nil
    }

    // MARK: - Shared

    private func waiting(_ parent: Branch) throws(SparseKernelsError) -> BranchNode {
        let node = try node(parent)
        try require(
            node.state == .waiting, .invalidArgument, "parent", expected: "a branch that waits for children",
            actual: "\(parent), which is \(node.state)")
        return node
    }

    private func end(_ branch: Branch, _ end: End) throws(SparseKernelsError) {
        if let sequence = nodes[branch]!.sequence { try cache.free(sequence) }
        nodes[branch]!.sequence = nil
        nodes[branch]!.state = .ended(end)
    }

    /// Ends those of some branches, and of the branches below them, that have not ended.
    private func cancelAll(_ branches: [Branch]) throws(SparseKernelsError) {
        var rest = branches
        while let branch = rest.popLast() {
            rest += nodes[branch]!.children
            if case .ended = nodes[branch]!.state { continue }
            try end(branch, .cancelled)
        }
    }

    /// Forgets the branches below one. They have all ended.
    private func forgetChildren(of parent: Branch) {
        var rest = nodes[parent]!.children
        nodes[parent]!.children = []
        while let branch = rest.popLast() {
            rest += nodes[branch]?.children ?? []
            nodes[branch] = nil
        }
    }
}
