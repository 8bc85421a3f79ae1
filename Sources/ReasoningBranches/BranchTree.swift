public import SparseKernels

/// Branches of reasoning over one paged cache: their tokens, their sequences, and who continues whom.
///
/// A branch is a list of tokens and a sequence of the cache that holds keys and values for the first of them. The rest is *pending*:
/// `step()` names the pending tokens of all running branches as one ragged batch, and whoever owns the model appends their keys
/// and values to the named sequences in every layer. The tree owns no model.
///
/// ```swift
/// let tree = BranchTree(cache: cache, seed: 1)
/// let root = try tree.start(prompt)
/// _ = try run(tree.step()!)                                        // the prompt, once
/// let children = try tree.spawn(Array(repeating: .fork(), count: 16), from: root)   // root waits
/// while let step = try tree.step() {
///     for (branch, token) in zip(step.branches, try run(step)) { try tree.append([token], to: branch) }   // or finish it
/// }
/// try tree.join(root, at: length, appending: results)              // root runs again
/// ```
///
/// - **Running, waiting, ended.** A branch runs until it spawns children; then it waits for them. When all of them have ended, a
///   join cuts it back and it runs again. An ended branch gives its pages back at once; its tokens can be read until its parent
///   joins or is removed.
/// - **Errors.** A call that throws has changed nothing: no branch, no length and no page.
/// - **Random numbers.** Each branch has a stream of its own, which follows from the seed and from the branch's lineage: which
///   root, and which of its parent's children. So what a branch draws does not depend on the batch.
/// - **Threads.** The class is not `Sendable`. It has one user, who also is the only writer of the cache meanwhile.
/// - Source: Pan et al., "Learning Adaptive Parallel Reasoning with Language Models" (2025), arXiv 2504.15466, and its code; Li et
///   al., "S*: Test Time Scaling for Code Generation" (2025), arXiv 2502.14382, for forks of one prompt.
public final class BranchTree {
    public let cache: PagedKVCache
    public let seed: UInt64
    /// Prompts whose pages are reused; nil for none. When pages are short, its least recently used ones are given up.
    public let prefixes: PrefixIndex?

    var nodes: [Branch: BranchNode] = [:]
    var nextNumber = 0
    private var rootCount = 0

    /// - Parameters:
    ///   - cache: holds the sequences of the tree, and others if there are any.
    ///   - prefixes: an index over the same cache.
    ///   - seed: of the random numbers of all branches.
    public init(cache: PagedKVCache, prefixes: PrefixIndex? = nil, seed: UInt64 = 0) {
        precondition(prefixes.map { $0.cache === cache } ?? true, "the index must be over the cache of the tree")
        self.cache = cache
        self.prefixes = prefixes
        self.seed = seed
    }

    // MARK: - Names

    /// The name of a branch. Names are in the order in which branches were made, and none is used twice.
    public struct Branch: Hashable, Comparable, Sendable, CustomStringConvertible {
        public let number: Int

        public static func < (a: Branch, b: Branch) -> Bool { a.number < b.number }
        public var description: String { "branch \(number)" }
    }

    /// What a branch is doing.
    public enum State: Hashable, Sendable {
        case running
        /// For the children that it has spawned.
        case waiting
        case ended(End)
    }

    /// Why a branch ended.
    public enum End: String, Hashable, Sendable {
        case finished
        case cancelled
        /// Its parent goes on with its tokens.
        case promoted
    }

    /// What a branch may take. Nil is no limit.
    public struct Budget: Hashable, Sendable {
        /// Tokens behind those that it starts with.
        public var tokens: Int?
        /// Pages beside the whole ones that it shares with the sequence it starts from.
        public var pages: Int?

        public static let unlimited = Budget()

        public init(tokens: Int? = nil, pages: Int? = nil) {
            self.tokens = tokens
            self.pages = pages
        }
    }

    // MARK: - Looking at branches

    /// All branches of which something can be read, in the order in which they were made.
    public var branches: [Branch] { nodes.keys.sorted() }

    /// - Throws: `.unknownSequence` for a branch that the tree does not have, or no more.
    public func state(of branch: Branch) throws(SparseKernelsError) -> State { try node(branch).state }

    /// The tokens of a branch, those included that it started with.
    /// - Throws: `.unknownSequence`.
    public func tokens(of branch: Branch) throws(SparseKernelsError) -> [Int] { try node(branch).tokens }

    /// The tokens of a branch behind those that it started with. A fork starts with the tokens that it takes over.
    /// - Throws: `.unknownSequence`.
    public func newTokens(of branch: Branch) throws(SparseKernelsError) -> ArraySlice<Int> {
        let node = try node(branch)
        return node.tokens[node.start...]
    }

    /// The branch that this one was spawned from; nil for a root.
    /// - Throws: `.unknownSequence`.
    public func parent(of branch: Branch) throws(SparseKernelsError) -> Branch? { try node(branch).parent }

    /// The children that a branch waits for, in the order in which they were spawned.
    /// - Throws: `.unknownSequence`.
    public func children(of branch: Branch) throws(SparseKernelsError) -> [Branch] { try node(branch).children }

    /// The sequence of a branch in the cache; nil when it has ended.
    /// - Throws: `.unknownSequence`.
    public func sequence(of branch: Branch) throws(SparseKernelsError) -> PagedKVCache.SequenceID? { try node(branch).sequence }

    /// The tokens that the budget still allows; `Int.max` without one.
    /// - Throws: `.unknownSequence`.
    public func remainingTokens(of branch: Branch) throws(SparseKernelsError) -> Int {
        let node = try node(branch)
        return node.limit == .max ? .max : node.limit - node.tokens.count
    }

    /// The pages of a branch: those that others have as well, and those that only it has. None when it has ended.
    /// - Throws: `.unknownSequence`.
    public func pageUse(of branch: Branch) throws(SparseKernelsError) -> PagedKVCache.PageUse? {
        guard let sequence = try node(branch).sequence else { return nil }
        return try cache.pageUse(of: sequence)
    }

    // MARK: - Random numbers

    /// The seed of the branch's stream of random numbers, for a sampler of one's own.
    /// - Throws: `.unknownSequence`.
    public func randomSeed(of branch: Branch) throws(SparseKernelsError) -> UInt64 {
        BranchNode.seed(seed, try node(branch).lineage)
    }

    /// The next number of the branch's stream.
    /// - Throws: `.unknownSequence`.
    public func nextRandom(of branch: Branch) throws(SparseKernelsError) -> UInt64 {
        _ = try node(branch)
        return nodes[branch]!.random.next()
    }

    // MARK: - Shared

    func node(_ branch: Branch) throws(SparseKernelsError) -> BranchNode {
        guard let node = nodes[branch] else {
            throw SparseKernelsError(
                .unknownSequence, "branch", expected: "one that this tree has (\(nodes.count) in all)", actual: "\(branch)")
        }
        return node
    }

    /// Throws unless a branch runs.
    func running(_ branch: Branch, named name: String = "branch") throws(SparseKernelsError) -> BranchNode {
        let node = try node(branch)
        try require(
            node.state == .running, .invalidArgument, name, expected: "a branch that is running",
            actual: "\(branch), which is \(node.state)")
        return node
    }

    /// The tokens whose keys and values are in every layer of a branch's sequence.
    func cachedLength(_ node: BranchNode) throws(SparseKernelsError) -> Int {
        guard let sequence = node.sequence else { return 0 }
        var length = Int.max
        for layer in 0..<cache.configuration.layers { length = min(length, try cache.length(of: sequence, layer: layer)) }
        return length
    }

    func nextRootOrdinal() -> Int {
        defer { rootCount += 1 }
        return rootCount
    }

    /// Gives up a prefix when a page with metadata may have to be copied and none is free.
    func makeRoomForCopy() {
        if cache.configuration.metadata != nil, cache.freePageCount == 0 { prefixes?.evict(untilFree: 1) }
    }

    /// Gives up prefixes until so many pages are free, if there are some to give up.
    /// - Throws: `.capacityExceeded` when there are not.
    func requireFreePages(_ needed: Int, for purpose: String) throws(SparseKernelsError) {
        if needed > cache.freePageCount { prefixes?.evict(untilFree: needed) }
        try require(
            needed <= cache.freePageCount, .capacityExceeded, "pageCapacity",
            expected: "enough for the \(needed) pages of \(purpose)",
            actual: "\(cache.configuration.pageCapacity), of which \(cache.freePageCount) are free")
    }
}

/// What a tree knows of a branch.
struct BranchNode {
    /// Nil when the branch has ended.
    var sequence: PagedKVCache.SequenceID?
    var tokens: [Int]
    /// The number of tokens that it started with.
    var start: Int
    /// The most tokens that its budget allows.
    var limit: Int
    let parent: BranchTree.Branch?
    /// Those of the last spawn, in order.
    var children: [BranchTree.Branch] = []
    var state = BranchTree.State.running
    /// The number of the root, then of the child at each branching.
    let lineage: [Int]
    /// The number of branches that were ever made from this one.
    var descendants = 0
    var random: SplitMix64

    init(
        sequence: PagedKVCache.SequenceID, tokens: [Int], start: Int, limit: Int, parent: BranchTree.Branch?, lineage: [Int],
        seed: UInt64
    ) {
        self.sequence = sequence
        self.tokens = tokens
        self.start = start
        self.limit = limit
        self.parent = parent
        self.lineage = lineage
        random = SplitMix64(seed: Self.seed(seed, lineage))
    }

    /// The seed of a lineage. Each step takes one number of a generator that belongs to the branching and to the ordinal.
    static func seed(_ seed: UInt64, _ lineage: [Int]) -> UInt64 {
        lineage.reduce(seed) { parent, ordinal in
            // The complement keeps the seeds of children apart from the numbers that the parent draws.
            var generator = SplitMix64(seed: ~parent &+ UInt64(ordinal))
            return generator.next()
        }
    }
}
