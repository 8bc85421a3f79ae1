import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Attention of one new token of each of several branches that share a prefix: read once for each branch, once for all, or attended
/// as a product of matrices. 32 query heads, 128 channels, one layer, in half precision; caches are empty before every call.
///
/// Each branch has 40 tokens of its own behind the prefix, as after 40 steps. In the cases of two levels, four groups of branches
/// share 4096 tokens more. There are 8 key/value heads, and 32 in cases named MHA, as in models without groups of heads. Memory of a
/// branch is what only it has in the cache; it is checked against its tokens and one page.
struct BranchCases: CaseFamily {
    let run: RunContext

    private static let ownTokens = 40
    private static let levelTokens = 4096
    private static let baselineName = "one by one"

    func section() -> Section {
        var groups: [CaseGroup] = []
        for prefix in run.decodeContexts ?? (isQuick ? [8192] : [1024, 8192, 32768]) {
            for count in isQuick ? [16] : [1, 2, 4, 8, 16, 32] {
                groups += instructionSets.map { group(BranchShape(prefix: prefix), count: count, $0) }
            }
        }
        if !isQuick, run.decodeContexts == nil {
            let levels = BranchShape(prefix: 8192, level: Self.levelTokens)
            groups += instructionSets.map { group(levels, count: 16, $0) }
            for count in [1, 4, 16, 32] {
                groups += instructionSets.map { group(BranchShape(prefix: 8192, kvHeads: 32), count: count, $0) }
            }
        }
        return Section(kind: .branches, groups: groups, baselines: [Self.baselineName])
    }

    private func group(_ shape: BranchShape, count: Int, _ set: InstructionSet) -> CaseGroup {
        let labels = [Self.baselineName, "together", "cascade"]
        return CaseGroup(
            op: "decode.branches", name: shape.name(count), amounts: .uncounted, labels: labels
        ) { announce in
            let operands = try run.shared.value(for: shape) {
                announce("making keys and values")
                return try BranchOperands(shape, ownTokens: Self.ownTokens)
            }
            let query = try operands.queries(count)
            let cache = try DecodeCache(operands, branches: count, set, on: pool)
            let checker = try DecodeChecker(cache, query: query)
            let tables = try cache.sequences.map { try cache.cache.pageTable(of: $0) }
            let distinct = Double(Set(tables.joined()).count) / Double(tables.map(\.count).reduce(0, +))
            let rows = DecodeRows(set: set, pool: pool)
            var variants: [Variant] = []
            for (label, (sharesPrefixes, cascades)) in zip(labels, [(false, false), (true, false), (true, true)]) {
                let step = try DecodeStep(
                    .dense, cache, query: query, sharesPrefixes: sharesPrefixes, cascades: cascades, set, on: pool)
                rows.add(
                    step, checker, op: "decode.branches", label: label,
                    bytes: step.attentionBytes * (sharesPrefixes ? distinct : 1), body: step.run, to: &variants)
            }
            for index in variants.indices.dropFirst() {
                variants[index].baseline?.name = Self.baselineName
                try addMemory(of: cache, to: &variants[index])
            }
            return variants
        }
    }

    /// States the memory of a branch, and fails the row if it is more than its tokens and one page.
    private func addMemory(of cache: DecodeCache, to variant: inout Variant) throws {
        let configuration = cache.cache.configuration
        var own = 0
        for sequence in cache.sequences { own = max(own, try cache.cache.pageUse(of: sequence).own) }
        let most = (Self.ownTokens + configuration.pageSize - 1) / configuration.pageSize + 1
        variant.metrics[.branchBytes] = Double(own * configuration.bytesPerPage)
        let check = variant.verify
        variant.verify = { own <= most ? try check() : Verification(error: Double(own), bound: Double(most)) }
    }
}

/// What branches share.
private struct BranchShape: Hashable {
    /// Tokens of all branches.
    let prefix: Int
    /// Tokens behind them that four groups of branches share; 0 for one level.
    var level = 0
    var kvHeads = 8

    func name(_ count: Int) -> String {
        "\(prefix)\(level > 0 ? "+\(level)" : "") x\(count)\(kvHeads == 8 ? "" : " MHA")"
    }
}

/// Keys and values of a branch from its first token on, and queries.
private final class BranchOperands {
    static let (queryHeads, headDim) = (32, 128)

    let shape: BranchShape
    let ownTokens: Int
    /// `[kvHeads, tokens, headDim]`.
    let key: Tensor<Float>
    let value: Tensor<Float>

    init(_ shape: BranchShape, ownTokens: Int) throws {
        self.shape = shape
        self.ownTokens = ownTokens
        let extents = [shape.kvHeads, shape.prefix + shape.level + ownTokens, Self.headDim]
        key = try .normal(extents, seed: 1)
        value = try .normal(extents, seed: 2)
    }

    /// `[queryHeads, branches, headDim]`.
    func queries(_ count: Int) throws -> Tensor<Float> { try .normal([Self.queryHeads, count, Self.headDim], seed: 3) }
}

extension DecodeCache {
    /// Makes branches that share the first tokens of the operands, in groups the following ones, and have the last ones alone.
    fileprivate convenience init(
        _ operands: BranchOperands, branches count: Int, _ set: InstructionSet, on pool: WorkerPool
    ) throws {
        let (shape, layout) = (operands.shape, CacheLayout())
        let groups = shape.level > 0 ? 4 : 1
        let shared = shape.prefix + shape.level
        let tokens =
            shape.prefix + groups * (shape.level + layout.pageSize) + count * (operands.ownTokens + 2 * layout.pageSize)
        try self.init(
            layout,
            configuration: layout.configuration(
                kvHeads: shape.kvHeads, headDim: BranchOperands.headDim, tokens: tokens, sequences: 1), set)
        let root = cache.makeSequence()
        try append(tokens: 0..<shape.prefix, of: operands.key, operands.value, to: root, on: pool)
        var parents: [PagedKVCache.SequenceID] = []
        for _ in 0..<groups {
            let parent = try cache.fork(root)
            try append(tokens: shape.prefix..<shared, of: operands.key, operands.value, to: parent, on: pool)
            parents.append(parent)
        }
        for branch in 0..<count {
            // Branches of a group do not follow each other in the batch.
            let fork = try cache.fork(parents[branch % groups])
            try append(tokens: shared..<shared + operands.ownTokens, of: operands.key, operands.value, to: fork, on: pool)
            add(fork)
        }
    }
}
