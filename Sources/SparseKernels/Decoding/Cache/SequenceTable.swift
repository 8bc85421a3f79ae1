extension PagedKVCache {
    /// The name of a sequence in one cache.
    ///
    /// A name is never used twice: after `free` the cache does not know it, even when a new sequence uses the same index. Names
    /// survive saving, so a program may store them beside the file. A cache cannot tell a name of another cache from its own.
    public struct SequenceID: Hashable, Sendable, Codable {
        let index: Int32
        /// An odd number that differs from those of all earlier sequences at this index.
        let generation: UInt32
    }
}

/// The pages and lengths of one sequence.
struct CachedSequence {
    /// The entry of a page table whose page was discarded.
    static let hole: Int32 = -1

    /// The page of token i is `pages[i / pageSize]`, in every layer. There are as many as the longest layer needs.
    var pages: [Int32]
    /// Tokens in each layer.
    var lengths: [Int]

    var longest: Int { lengths.max() ?? 0 }
    var shortest: Int { lengths.min() ?? 0 }
}

/// The sequences of a cache by their names.
struct SequenceTable {
    /// One entry per index that was ever used; those without a sequence are empty.
    var entries: [CachedSequence] = []
    /// One number per entry: odd with a sequence, even without. It grows by one when a sequence comes or goes.
    private(set) var generations: [UInt32] = []
    private var freeIndices: [Int] = []

    init() {}

    /// - Parameter entries: one per generation, empty where the generation is even.
    init(entries: [CachedSequence], generations: [UInt32]) {
        self.entries = entries
        self.generations = generations
        freeIndices = generations.indices.reversed().filter { generations[$0] % 2 == 0 }
    }

    /// The names of all sequences, by index.
    var names: [PagedKVCache.SequenceID] {
        generations.indices.filter { generations[$0] % 2 == 1 }.map { name(at: $0) }
    }

    func name(at index: Int) -> PagedKVCache.SequenceID {
        PagedKVCache.SequenceID(index: Int32(index), generation: generations[index])
    }

    /// - Throws: `.unknownSequence`.
    func index(of name: PagedKVCache.SequenceID) throws(SparseKernelsError) -> Int {
        let index = Int(name.index)
        if generations.indices.contains(index) && generations[index] == name.generation && name.generation % 2 == 1 {
            return index
        }
        throw SparseKernelsError(
            .unknownSequence, "sequence", expected: "one that this cache has (\(generations.count - freeIndices.count) in all)",
            actual: "sequence \(name.index) of generation \(name.generation)")
    }

    mutating func insert(_ sequence: CachedSequence) -> Int {
        if let index = freeIndices.popLast() {
            entries[index] = sequence
            generations[index] &+= 1
            return index
        }
        entries.append(sequence)
        generations.append(1)
        return entries.count - 1
    }

    mutating func remove(at index: Int) {
        entries[index] = CachedSequence(pages: [], lengths: [])
        generations[index] &+= 1
        freeIndices.append(index)
    }
}
