import BenchmarkReport
import SparseKernels

/// Attention of one new token per sequence over a paged cache: dense in every format, over selected pages, and over selected
/// tokens. 32 query heads, 8 KV heads, 128 channels, one layer.
///
/// Every call starts with empty caches, like a layer of a model. The roof is the memory bandwidth, measured on the same threads
/// right before each call: bytes that must be read ÷ bandwidth.
///
/// The time of scoring depends on the metadata, and the time of attention on the budget, so other metadata than the default
/// have rows at one budget only. When a selection is used for n steps, a step takes the time of attending and 1/n of that of
/// selecting. Both are measured separately and added round by round. Memory bounds decoding: no rows have fewer threads.
struct DecodeCases: CaseFamily {
    let run: RunContext

    static let metadata = PageMetadata(.minMax, logicalPageSize: 16, format: .float16)
    /// The dense row with which all others are compared.
    static let baselineName = "f16"
    private static let forks = 8

    func section() -> Section {
        var groups: [CaseGroup] = []
        var skipped: [String] = []
        for context in run.decodeContexts ?? (isQuick ? [32768] : [8192, 32768, 131072]) {
            for batch in isQuick ? [1] : [1, 8] {
                for plans in isQuick ? [DecodePlan.quick] : DecodePlan.all(batch: batch) {
                    let fitting = DecodePlan.fitting(plans, context: context, sequences: batch)
                    skipped += plans.dropFirst(fitting.count).map { "\(context) b\(batch) \($0.layout.format.label)" }
                    if fitting.isEmpty { continue }
                    let asked = fitting.map { $0.below(context: context) }
                    groups += instructionSets.map { group(context, batch: batch, asked, $0) }
                }
            }
            if !isQuick { groups += instructionSets.map { forked(context, $0) } }
        }
        return Section(
            kind: .decode, groups: groups, baselines: [Self.baselineName],
            remark: skipped.isEmpty ? "" : " (too large for this memory: \(skipped.joined(separator: ", ")))")
    }

    private func group(_ context: Int, batch: Int, _ plans: [DecodePlan], _ set: InstructionSet) -> CaseGroup {
        CaseGroup(
            op: "decode.step", name: "\(context) b\(batch)", amounts: .uncounted, labels: plans.flatMap(\.labels),
            otherOps: ["decode.step.dense", "decode.step.pages", "decode.step.twilight"]
        ) { announce in
            let operands = try run.decodeOperands(context: context, announce)
            let query = try operands.queries(sequences: batch)
            let rows = DecodeRows(set: set, pool: pool)
            var variants: [Variant] = []
            for plan in plans {
                announce("filling a cache, \(plan.layout.format.label)\(plan.remark)")
                let cache = try DecodeCache(plan.layout, operands, sequences: batch, set, on: pool)
                try rows.add(plan, cache, DecodeChecker(cache, query: query), query, to: &variants)
            }
            return variants
        }
    }

    /// Sequences that share all pages except the last, attended to one by one and together.
    private func forked(_ context: Int, _ set: InstructionSet) -> CaseGroup {
        let labels = ["f16 forks one by one", "f16 forks together"]
        return CaseGroup(
            op: "decode.step.forks", name: "\(context) b\(Self.forks)", amounts: .uncounted, labels: labels
        ) { announce in
            let operands = try run.decodeOperands(context: context, announce)
            let query = try operands.queries(sequences: Self.forks)
            let cache = try DecodeCache(CacheLayout(), operands, forks: Self.forks, set, on: pool)
            let checker = try DecodeChecker(cache, query: query)
            let tables = try cache.sequences.map { try cache.cache.pageTable(of: $0) }
            let distinct = Double(Set(tables.joined()).count) / Double(tables.map(\.count).reduce(0, +))
            let rows = DecodeRows(set: set, pool: pool)
            var variants: [Variant] = []
            for (label, sharesPrefixes) in zip(labels, [false, true]) {
                let step = try DecodeStep(.dense, cache, query: query, sharesPrefixes: sharesPrefixes, set, on: pool)
                rows.add(
                    step, checker, op: "decode.step.forks", label: label,
                    bytes: step.attentionBytes * (sharesPrefixes ? distinct : 1), body: step.run, to: &variants)
            }
            return variants
        }
    }
}

/// A cache and the measurements on it.
struct DecodePlan {
    var layout: CacheLayout
    var methods: [DecodeMethod]
    /// Text after the label, for unusual metadata.
    var remark = ""
    /// The numbers of steps after which pages are selected again.
    static let intervals = [1, 4]

    private static let budgets = [1024, 2048, 4096, 8192]
    /// Tokens of the pages that Twilight prunes, as in the released configuration.
    private static let candidates = 8192

    private static func layout(_ format: KVFormat = .float16) -> CacheLayout {
        CacheLayout(format: format, metadata: DecodeCases.metadata)
    }

    /// The pages of Quest and Twilight.
    private static let quest = CacheLayout(pageSize: 16, metadata: DecodeCases.metadata, keepsEstimates: true)
    private static let baseline = DecodePlan(layout: CacheLayout(), methods: [.dense])

    static let quick = [
        DecodePlan(layout: layout(), methods: [.dense, .pages(.lServe, budget: 4096)]),
        DecodePlan(
            layout: quest, methods: [.pages(.quest, budget: 4096), .twilight(topP: 0.9, candidates: candidates)]),
        DecodePlan(layout: CacheLayout(format: .int8), methods: [.dense]),
        DecodePlan(layout: CacheLayout(format: .int4), methods: [.dense]),
    ]

    /// Groups of plans that are timed side by side. Each starts with the dense row with which all others are compared, and ends
    /// with the least important plans.
    static func all(batch: Int) -> [[DecodePlan]] {
        let lServe = budgets.map { DecodeMethod.pages(.lServe, budget: $0) }
        var groups = [
            [.float16, .int8, .int4, .float32].map { DecodePlan(layout: CacheLayout(format: $0), methods: [.dense]) },
            [
                DecodePlan(layout: layout(), methods: [.dense] + lServe),
                DecodePlan(
                    layout: quest,
                    methods: budgets.map { .pages(.quest, budget: $0) }
                        + [0.8, 0.9, 0.95].map { .twilight(topP: $0, candidates: candidates) }),
            ],
            [baseline, DecodePlan(layout: layout(.int8), methods: [.dense] + lServe)],
            [baseline, DecodePlan(layout: layout(.int4), methods: [.dense] + lServe)],
        ]
        if batch == 1 {
            var metadata = [baseline]
            for format in [KVFormat.float16, .int8] {
                for logicalPageSize in [16, 32, 64] {
                    let summary = PageMetadata(.minMax, logicalPageSize: logicalPageSize, format: format)
                    metadata.append(
                        DecodePlan(
                            layout: CacheLayout(metadata: summary), methods: [.pages(.lServe, budget: 4096)],
                            remark: " L\(logicalPageSize) \(format.label)"))
                }
            }
            groups.append(metadata)
        }
        return groups
    }

    /// The first plans that fit in the free memory, with a reserve.
    static func fitting(_ plans: [DecodePlan], context: Int, sequences: Int) -> [DecodePlan] {
        var left = FreeMemory.byteCount * 3 / 4
        return Array(
            plans.prefix { plan in
                left -= plan.layout.byteCount(context: context, sequences: sequences)
                return left >= 0
            })
    }

    /// The plan without budgets that cover every page.
    func below(context: Int) -> DecodePlan {
        var plan = self
        plan.methods.removeAll { method in
            if case .pages(_, let budget) = method { budget >= context } else { false }
        }
        return plan
    }

    /// The labels of the plan's rows.
    var labels: [String] {
        methods.flatMap { method in
            switch method {
            case .dense, .twilight: [label(method)]
            case .pages: Self.intervals.map { label(method, interval: $0) }
            }
        }
    }

    /// "f16 LServe 4096 L32 int8 /4".
    func label(_ method: DecodeMethod, interval: Int? = nil) -> String {
        "\(layout.format.label) \(method.label)\(remark)\(interval.map { " /\($0)" } ?? "")"
    }
}
