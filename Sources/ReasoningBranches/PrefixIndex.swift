public import SparseKernels

/// Lists of tokens whose keys and values are in a cache, so that what begins alike reuses their pages.
///
/// A radix tree over the tokens: each path from the root is the start of a list that was remembered. A list is held by a sequence of
/// the cache, a fork that takes no page of its own. When pages are short, the least recently used ends are given up first, page by
/// page, so that common beginnings stay longest.
///
/// ```swift
/// let index = PrefixIndex(cache: cache)
/// let (sequence, length) = try index.take(prompt.dropLast())   // run prompt[length...] after it
/// try index.insert(prompt, of: sequence)
/// ```
///
/// - Any length matches, not only whole pages: the first write to a shared page copies it.
/// - Pages of equal tokens that were computed twice are kept twice until one of them is given up.
/// - Keys and values are those of the run that computed them. Where a model's results depend on how tokens are batched, by
///   rounding, so do reused ones.
/// - **Threads.** Not `Sendable`: it writes to the cache.
/// - Source: the radix tree of SGLang (Zheng et al., 2024), arXiv 2312.07104, section 3, with sequences in place of locks.
public final class PrefixIndex {
    public let cache: PagedKVCache
    private let root = PrefixNode(tokens: [], parent: nil)
    private var clock = 0

    /// An index without lists.
    public init(cache: PagedKVCache) { self.cache = cache }

    // MARK: - Looking

    /// The number of first tokens of a list that the index knows. It does not count as a use.
    ///
    /// - Parameter tokens: any list.
    /// - Complexity: O(length of the match).
    public func matchLength(_ tokens: some Collection<Int>) -> Int { root.match(tokens).length }

    /// The tokens of all lists, common beginnings counted once.
    public var tokenCount: Int { root.all.reduce(0) { $0 + $1.tokens.count } }

    /// The lists that are no beginnings of others.
    public var listCount: Int { root.isLeaf ? 0 : root.leaves.count }

    /// The sequences that hold the lists. They belong to the index.
    public var sequences: [PagedKVCache.SequenceID] { root.leaves.compactMap(\.holder) }

    // MARK: - Using

    /// Makes a sequence that has the longest known beginning of a list, and shares its pages.
    ///
    /// - Parameter tokens: any list. Leave out the last token of a prompt, so that a token is left whose logits are computed.
    /// - Returns: the sequence, which is the caller's to free, and the tokens that it has, perhaps none.
    /// - Throws: the errors of `PagedKVCache.fork` other than a missing page: without a page for a copy of metadata, the match ends
    ///   with the page before.
    /// - Complexity: O(length of the match).
    public func take(
        _ tokens: some Collection<Int>
    ) throws(SparseKernelsError) -> (sequence: PagedKVCache.SequenceID, length: Int) {
        let (node, length) = root.match(tokens)
        guard length > 0, let holder = node.anyHolder else { return (cache.makeSequence(), 0) }
        touch(node)
        do throws(SparseKernelsError) {
            return (try cache.fork(holder, at: length), length)
        } catch  where error.code == .capacityExceeded {
            let whole = length / cache.configuration.pageSize * cache.configuration.pageSize
            return (try cache.fork(holder, at: whole), whole)
        }
    }

    /// Remembers the first tokens of a sequence, which goes on as it was.
    ///
    /// - Parameters:
    ///   - tokens: what the sequence holds from its start on.
    ///   - sequence: has keys and values of as many tokens in every layer, or more.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for more tokens than the shortest layer has; the errors of
    ///   `PagedKVCache.fork`. On errors nothing changes.
    /// - Complexity: O(tokens + pages).
    public func insert(
        _ tokens: some Collection<Int>, of sequence: PagedKVCache.SequenceID
    ) throws(SparseKernelsError) {
        for layer in 0..<cache.configuration.layers {
            let length = try cache.length(of: sequence, layer: layer)
            try require(
                tokens.count <= length, .invalidArgument, "tokens", expected: "at most the \(length) of the sequence",
                actual: "\(tokens.count)")
        }
        let (node, length) = root.match(tokens)
        if length == tokens.count { return touch(node) }
        let holder = try cache.fork(sequence, at: tokens.count)
        let rest = Array(tokens.dropFirst(length))
        if node.isLeaf, node !== root, length == node.length {
            // The list goes on where another one ended.
            if let old = node.holder { try cache.free(old) }
            node.holder = holder
            node.tokens += rest
            node.length += rest.count
            return touch(node)
        }
        let branching = length < node.length ? node.split(at: length) : node
        let leaf = PrefixNode(tokens: rest, parent: branching)
        leaf.holder = holder
        branching.children[rest[0]] = leaf
        touch(leaf)
    }

    /// Remembers the tokens of a sequence, and frees it.
    ///
    /// - Parameters:
    ///   - sequence: what `take` returned, or another one.
    ///   - tokens: what it holds from its start on.
    /// - Throws: the errors of `insert`. On errors nothing changes.
    public func release(
        _ sequence: PagedKVCache.SequenceID, remembering tokens: some Collection<Int>
    ) throws(SparseKernelsError) {
        try insert(tokens, of: sequence)
        try cache.free(sequence)
    }

    // MARK: - Giving up

    /// Gives up the ends of lists, least recently used first, until so many pages are free or none becomes free this way.
    ///
    /// Pages that other sequences share would not become free, so lists that have no others stay.
    ///
    /// - Parameter pages: pages that shall be free.
    /// - Returns: pages that became free.
    /// - Complexity: O(lists · pages) for each list that is shortened.
    @discardableResult
    public func evict(untilFree pages: Int) -> Int {
        let before = cache.freePageCount
        while cache.freePageCount < pages {
            let leaves = root.leaves.filter { $0 !== root }.sorted { ($0.lastUse, $0.length) < ($1.lastUse, $1.length) }
            guard leaves.contains(where: { shorten($0, for: pages - cache.freePageCount) }) else { break }
        }
        return cache.freePageCount - before
    }

    /// Forgets all lists.
    public func removeAll() {
        for sequence in sequences { try? cache.free(sequence) }
        root.children = [:]
    }

    /// Gives up the end of a list. Returns whether a page became free.
    private func shorten(_ leaf: PrefixNode, for needed: Int) -> Bool {
        guard let holder = leaf.holder, let owners = try? cache.pageOwners(of: holder), let parent = leaf.parent else {
            return false
        }
        let pageSize = cache.configuration.pageSize
        // The last pages that only this list has, as many as are needed.
        var (kept, freed) = (owners.count, 0)
        while kept > 0, freed < needed {
            if owners[kept - 1] == 1 { freed += 1 }
            kept -= 1
        }
        if freed == 0 { return false }
        if kept * pageSize > parent.length {
            guard (try? cache.truncate(holder, to: kept * pageSize)) != nil else { return false }
            leaf.tokens.removeLast(leaf.length - kept * pageSize)
            leaf.length = kept * pageSize
        } else {
            try? cache.free(holder)
            parent.children[leaf.tokens[0]] = nil
            parent.mergeOnlyChild()
        }
        return true
    }

    private func touch(_ node: PrefixNode) {
        clock += 1
        var place: PrefixNode? = node
        while let current = place {
            current.lastUse = clock
            place = current.parent
        }
    }
}

/// A node of the tree: the tokens between its parent and it.
final class PrefixNode {
    var tokens: [Int]
    /// The tokens from the root to the end of this node.
    var length: Int
    var children: [Int: PrefixNode] = [:]
    private(set) weak var parent: PrefixNode?
    /// The sequence that holds the tokens; only leaves have one, as theirs hold the tokens of the nodes above as well.
    var holder: PagedKVCache.SequenceID?
    var lastUse = 0

    init(tokens: [Int], parent: PrefixNode?) {
        self.tokens = tokens
        self.parent = parent
        length = (parent?.length ?? 0) + tokens.count
    }

    var isLeaf: Bool { children.isEmpty }

    /// The node and those below it, in the order of their tokens.
    var all: [PrefixNode] {
        var (all, rest): ([PrefixNode], [PrefixNode]) = ([], [self])
        while let node = rest.popLast() {
            all.append(node)
            rest += node.children.sorted { $0.key > $1.key }.map(\.value)
        }
        return all
    }

    var leaves: [PrefixNode] { all.filter(\.isLeaf) }

    /// A sequence that begins with the tokens up to here: that of the leaf that was used last.
    var anyHolder: PagedKVCache.SequenceID? {
        var node = self
        while let next = node.children.values.max(by: { ($0.lastUse, $0.tokens[0]) < ($1.lastUse, $1.tokens[0]) }) {
            node = next
        }
        return node.holder
    }

    /// The lowest node that a list reaches, perhaps in the middle of its tokens, and the number of tokens up to there.
    func match(_ list: some Collection<Int>) -> (node: PrefixNode, length: Int) {
        var (node, length) = (self, 0)
        var rest = list[...]
        while let first = rest.first, let child = node.children[first] {
            let common = zip(child.tokens, rest).prefix { $0 == $1 }.count
            (node, length) = (child, length + common)
            if common < child.tokens.count { break }
            rest = rest.dropFirst(common)
        }
        return (node, length)
    }

    /// Divides the node at a length inside its tokens. Returns the upper part.
    func split(at position: Int) -> PrefixNode {
        let above = parent!
        let upper = PrefixNode(tokens: Array(tokens.dropLast(length - position)), parent: above)
        upper.lastUse = lastUse
        above.children[tokens[0]] = upper
        tokens.removeFirst(upper.tokens.count)
        upper.children[tokens[0]] = self
        parent = upper
        return upper
    }

    /// Joins the node with its child when it has one only. A root stays.
    func mergeOnlyChild() {
        guard let above = parent, children.count == 1, let child = children.values.first else { return }
        child.tokens = tokens + child.tokens
        child.parent = above
        child.lastUse = max(child.lastUse, lastUse)
        above.children[tokens[0]] = child
    }
}
