public import SparseKernels

extension BranchTree {
    /// The pending tokens of some branches, as one ragged batch.
    public struct Step: Hashable, Sendable {
        /// The branches, in the order in which they were made.
        public let branches: [Branch]
        /// Their sequences.
        public let sequences: [PagedKVCache.SequenceID]
        /// The tokens of each whose keys and values are to be appended to its sequence in every layer, one or more.
        public let tokens: [[Int]]
    }

    /// Adds tokens to a branch that runs: what was sampled for it, or what was said to it. They are pending.
    ///
    /// - Parameters:
    ///   - tokens: any number of tokens.
    ///   - branch: runs.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that waits or has ended; `.capacityExceeded` for more tokens
    ///   than its budget allows. On errors nothing changes.
    public func append(_ tokens: [Int], to branch: Branch) throws(SparseKernelsError) {
        let node = try running(branch)
        try requireWithin(node.limit, node.tokens.count + tokens.count)
        nodes[branch]!.tokens += tokens
    }

    /// The next step: the pending tokens of all running branches, or of some of them.
    ///
    /// Pages for the whole step are free when it is returned; prefixes that were not used for long are given up for them. The
    /// caller appends keys and values of all tokens to all layers. What a failed step has appended to some layers only is taken
    /// back by the next call. Branches without pending tokens are not in the step.
    ///
    /// - Parameter branches: running branches; nil means all that run.
    /// - Returns: nil when nothing is pending.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a branch that does not run; `.capacityExceeded` when the pages of the
    ///   step are not free. Cancel a branch then, or ask for a step of fewer.
    /// - Complexity: O(branches · layers).
    public func step(_ branches: [Branch]? = nil) throws(SparseKernelsError) -> Step? {
        let chosen: [Branch]
        if let branches {
            for branch in branches { _ = try running(branch) }
            chosen = Set(branches).sorted()
        } else {
            chosen = nodes.filter { $0.value.state == .running }.keys.sorted()
        }
        var (active, sequences, tokens): ([Branch], [PagedKVCache.SequenceID], [[Int]]) = ([], [], [])
        for branch in chosen {
            let node = nodes[branch]!
            let cached = try cachedLength(node)
            try repair(node, to: cached)
            if cached == node.tokens.count { continue }
            active.append(branch)
            sequences.append(node.sequence!)
            tokens.append(Array(node.tokens[cached...]))
        }
        if active.isEmpty { return nil }
        try requireFreePages(
            try cache.pagesNeeded(toAppend: tokens.map(\.count), to: sequences), for: "a step of \(active.count) branches")
        return Step(branches: active, sequences: sequences, tokens: tokens)
    }

    /// Removes tokens that are in some layers only.
    private func repair(_ node: BranchNode, to length: Int) throws(SparseKernelsError) {
        for layer in 0..<cache.configuration.layers where try cache.length(of: node.sequence!, layer: layer) > length {
            try cache.truncate(node.sequence!, to: length)
            return
        }
    }
}
