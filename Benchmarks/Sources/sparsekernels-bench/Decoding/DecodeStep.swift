import BenchmarkReport
import SparseKernels

/// The tokens that are attended to.
enum DecodeMethod: Hashable {
    case dense
    /// The pages with the highest scores, by the rule of a paper.
    case pages(PageRule, budget: Int)
    /// The tokens with the highest estimated weights whose sum reaches `topP`, among those of the best pages.
    case twilight(topP: Double, candidates: Int)

    /// "LServe 4096".
    var label: String {
        switch self {
        case .dense: "dense"
        case .pages(let rule, let budget): "\(rule.rawValue) \(budget)"
        case .twilight(let topP, _): "Twilight \(topP)"
        }
    }
}

/// The paper whose rule selects pages.
enum PageRule: String {
    /// Pages of 16 tokens, each with its own bounds.
    case quest = "Quest"
    /// Pages of 64 tokens, scored by the best of their logical pages.
    case lServe = "LServe"
}

/// One way to compute the attention of a new token in each sequence: select, then attend.
final class DecodeStep {
    let cache: DecodeCache
    let method: DecodeMethod
    let query: Tensor<Float>
    private(set) var output: Tensor<Float>
    /// The result of `choose`.
    private(set) var selection: KVSelection?
    /// The tokens among which a pruner selects.
    private var candidates: KVSelection?
    private let attention: PagedAttention
    /// Attends in place of `attention`, with every shared prefix as a product of matrices.
    private let cascade: CascadeAttention?
    private let selector: PageSelector?
    private let pruner: TokenPruner?
    private let pool: WorkerPool
    /// The lengths of the sequences.
    private let lengths: [Int]

    init(
        _ method: DecodeMethod, _ cache: DecodeCache, query: Tensor<Float>, softmaxScale: Float? = nil,
        sharing: SelectionSharing = .kvHead, sharesPrefixes: Bool = true, cascades: Bool = false, _ set: InstructionSet,
        on pool: WorkerPool
    ) throws {
        (self.cache, self.method, self.query, self.pool) = (cache, method, query, pool)
        let configuration = cache.cache.configuration
        lengths = try cache.sequences.map { try cache.cache.length(of: $0) }
        output = try Tensor(zeros: [query.shape[0], query.shape[1], configuration.valueDim])
        attention = try PagedAttention(
            queryHeads: query.shape[0], configuration: configuration, modifiers: .init(softmaxScale: softmaxScale),
            sharesPrefixes: sharesPrefixes, instructionSet: set)
        cascade =
            cascades
            ? try CascadeAttention(
                queryHeads: query.shape[0], configuration: configuration, modifiers: .init(softmaxScale: softmaxScale),
                minimumRows: 1, instructionSet: set) : nil
        func pages(_ budget: Int) throws -> PageSelector {
            try PageSelector(
                queryHeads: query.shape[0], configuration: configuration, tokenBudget: budget, sharing: sharing)
        }
        switch method {
        case .dense: (selector, pruner) = (nil, nil)
        case .pages(_, let budget): (selector, pruner) = (try pages(budget), nil)
        case .twilight(let topP, let candidates):
            selector = try pages(candidates)
            pruner = try TokenPruner(
                queryHeads: query.shape[0], configuration: configuration, topP: topP, sharing: sharing,
                softmaxScale: softmaxScale)
        }
    }

    /// The length of the longest sequence.
    var context: Int { lengths.max()! }

    // Shapes agree by construction, so neither method can throw.

    func choose() {
        guard let selector else { return }
        // A view of the property would outlive the access to it.
        let query = query
        selection = try! selector.select(
            query: query.view(named: "query"), cache: cache.cache, sequences: cache.sequences, on: pool)
        guard let pruner else { return }
        candidates = selection
        selection = try! pruner.prune(
            query: query.view(named: "query"), cache: cache.cache, sequences: cache.sequences, within: candidates, on: pool
        ).selection
    }

    func attend() {
        if let cascade { return Self.attend(cascade, query, cache, &output, pool) }
        Self.attend(attention, query, cache, selection, &output, pool)
    }

    func run() {
        choose()
        attend()
    }

    private static func attend(
        _ attention: PagedAttention, _ query: Tensor<Float>, _ cache: DecodeCache, _ selection: KVSelection?,
        _ output: inout Tensor<Float>, _ pool: WorkerPool
    ) {
        try! attention.run(
            query: query.view(named: "query"), cache: cache.cache, sequences: cache.sequences, selection: selection,
            output: output.mutableView(named: "output"), on: pool)
    }

    private static func attend(
        _ cascade: CascadeAttention, _ query: Tensor<Float>, _ cache: DecodeCache, _ output: inout Tensor<Float>,
        _ pool: WorkerPool
    ) {
        try! cascade.run(
            query: query.view(named: "query"), cache: cache.cache, sequences: cache.sequences,
            output: output.mutableView(named: "output"), on: pool)
    }

    // MARK: Bytes and operations, valid after it has run

    /// The bytes that selecting must read.
    var choiceBytes: Double {
        guard selector != nil else { return 0 }
        let summaries = lengths.reduce(0) { $0 + cache.traffic.summaries(tokens: $1) }
        let estimates = candidates.map { cache.traffic.estimates(rows: rows(of: $0)) } ?? 0
        return Double(kvHeads * summaries + estimates)
    }

    /// The bytes of keys and values that attending must read.
    var attentionBytes: Double { Double(cache.traffic.attention(rows: rows(of: selection))) }

    /// The number of tokens that a head attends to, on average.
    var keptTokens: Double {
        Double(rows(of: selection)) / Double((selection?.heads ?? kvHeads) * lengths.count)
    }

    /// The operations of attention, two per multiply-add.
    var attentionOperations: Double {
        let configuration = cache.cache.configuration
        let perToken = Double(2 * (configuration.headDim + configuration.valueDim))
        return perToken * keptTokens * Double(query.shape[0] * lengths.count)
    }

    private var kvHeads: Int { cache.cache.configuration.kvHeads }

    /// The number of tokens read, over heads and sequences; all of them without a selection.
    private func rows(of selection: KVSelection?) -> Int {
        guard let selection else { return kvHeads * lengths.reduce(0, +) }
        var rows = 0
        for (sequence, length) in lengths.enumerated() {
            for head in 0..<selection.heads {
                rows += selection.tokens(sequence: sequence, head: head, length: length).reduce(0) { $0 + $1.count }
            }
        }
        return rows
    }
}

extension KVSelection {
    /// The tokens of a list, as runs in ascending order.
    func tokens(sequence: Int, head: Int, length: Int) -> [Range<Int>] {
        let list = sequence * heads + head
        return indices[offsets[list]..<offsets[list + 1]].map { index in
            Int(index) * unit..<min(length, (Int(index) + 1) * unit)
        }
    }
}
