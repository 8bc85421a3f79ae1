import ReasoningBranches
import SparseKernels
import Testing

/// A cache, a tree over it, and "a model" whose keys say which tokens are before them.
final class BranchFixture {
    let cache: PagedKVCache
    let tree: BranchTree
    let index: PrefixIndex?

    init(
        pages: Int = 40, layers: Int = 2, metadata: PageMetadata? = nil, indexed: Bool = false, seed: UInt64 = 1
    ) throws {
        cache = try PagedKVCache(
            KVCacheConfiguration(
                layers: layers, kvHeads: 2, headDim: 3, pageSize: 16, pageCapacity: pages, format: .float32, metadata: metadata)
        )
        index = indexed ? PrefixIndex(cache: cache) : nil
        tree = BranchTree(cache: cache, prefixes: index, seed: seed)
    }

    /// A number for a token that depends on all tokens before it, within the range of half precision.
    static func marks(_ tokens: [Int], layer: Int) -> [Float] {
        var hash = UInt64(layer)
        return tokens.map {
            var generator = SplitMix64(seed: hash ^ UInt64($0))
            hash = generator.next()
            return Float(hash >> 49)
        }
    }

    /// Appends keys and values of a step, as a model would.
    func run(_ step: BranchTree.Step, layers: Range<Int>? = nil) throws {
        for layer in layers ?? 0..<cache.configuration.layers {
            for (place, branch) in step.branches.enumerated() {
                let count = step.tokens[place].count
                let tokens = try tree.tokens(of: branch)
                #expect(Array(tokens.suffix(count)) == step.tokens[place])
                let marks = Self.marks(tokens, layer: layer).suffix(count)
                let rows = try Tensor<Float>([2, count, 3]) { marks[marks.startIndex + $0 / 3 % count] }
                try cache.append(key: rows.view(), value: rows.view(), to: step.sequences[place], layer: layer, on: .serial)
            }
        }
    }

    /// Runs all that is pending.
    func runAll() throws {
        while let step = try tree.step() { try run(step) }
    }

    /// Checks that the cache has what the tokens of a branch say.
    func checkContents(of branch: BranchTree.Branch, _ label: String) throws {
        guard let sequence = try tree.sequence(of: branch) else { return }
        let tokens = try tree.tokens(of: branch)
        for layer in 0..<cache.configuration.layers {
            let length = try cache.length(of: sequence, layer: layer)
            let keys = try cache.keys(of: sequence, layer: layer).elements
            let read = (0..<length).map { keys[$0 * 3] }
            #expect(read == Array(Self.marks(tokens, layer: layer).prefix(length)), "\(label), \(branch)")
        }
    }

    /// All that a call which throws must leave as it was.
    struct Snapshot: Equatable {
        let states: [BranchTree.State]
        let tokens: [[Int]]
        let tables: [[Int32]]
        let free: Int
        let sequences: Set<PagedKVCache.SequenceID>
        let remaining: [Int]
        let children: [[BranchTree.Branch]]
    }

    func snapshot() throws -> Snapshot {
        let branches = tree.branches
        return Snapshot(
            states: try branches.map { try tree.state(of: $0) }, tokens: try branches.map { try tree.tokens(of: $0) },
            tables: try branches.map { branch in try tree.sequence(of: branch).map { try cache.pageTable(of: $0) } ?? [] },
            free: cache.freePageCount, sequences: Set(cache.sequences),
            remaining: try branches.map { try tree.remainingTokens(of: $0) },
            children: try branches.map { try tree.children(of: $0) })
    }
}

/// Page tables by hand: lists of numbers, and who has each of them.
struct PlainPages {
    private(set) var tables: [BranchTree.Branch: [Int]] = [:]
    private(set) var lengths: [BranchTree.Branch: Int] = [:]
    private var nextPage = 0
    let pageSize = 16

    private func owners(_ page: Int) -> Int { tables.values.count { $0.contains(page) } }

    var used: Int { Set(tables.values.joined()).count }

    func use(_ branch: BranchTree.Branch) -> (total: Int, shared: Int) {
        let table = tables[branch] ?? []
        return (table.count, table.count { owners($0) > 1 })
    }

    mutating func make(_ branch: BranchTree.Branch, from parent: BranchTree.Branch? = nil, at length: Int = 0) {
        tables[branch] = Array((parent.flatMap { tables[$0] } ?? []).prefix((length + pageSize - 1) / pageSize))
        lengths[branch] = length
    }

    mutating func append(_ count: Int, to branch: BranchTree.Branch) {
        guard count > 0 else { return }
        let (first, end) = (lengths[branch]! / pageSize, (lengths[branch]! + count + pageSize - 1) / pageSize)
        for position in first..<end {
            if position == tables[branch]!.count {
                tables[branch]!.append(nextPage)
                nextPage += 1
            } else if owners(tables[branch]![position]) > 1 {
                tables[branch]![position] = nextPage
                nextPage += 1
            }
        }
        lengths[branch]! += count
    }

    mutating func truncate(_ branch: BranchTree.Branch, to length: Int) {
        tables[branch]!.removeSubrange(((length + pageSize - 1) / pageSize)...)
        lengths[branch] = length
    }

    mutating func free(_ branch: BranchTree.Branch) { (tables[branch], lengths[branch]) = (nil, nil) }

    mutating func rename(_ child: BranchTree.Branch, to parent: BranchTree.Branch) {
        (tables[parent], lengths[parent]) = (tables[child], lengths[child])
        free(child)
    }
}
