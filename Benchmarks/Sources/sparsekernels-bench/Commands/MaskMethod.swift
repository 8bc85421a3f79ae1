import ArgumentParser
import DuoAttention
import MInference
import SpargeAttention
import SparseKernels
import XAttention

/// The estimators of `attend --mask`.
enum MaskMethod: String, ExpressibleByArgument, CaseIterable {
    case dense, xattention, minference, sparge, streaming, duo
}

struct MaskOptions: ParsableArguments {
    @Option(help: "xattention: fraction of the mass to keep in every block row.")
    var threshold = 0.9

    @Option(help: "xattention: tokens of an antidiagonal.")
    var stride = 16

    @Option(help: "xattention: arithmetic of the scores, \(precisionNames).", transform: Self.precision)
    var precision = ScoringPrecision.int6

    @Flag(help: "xattention: select as the released code does, in its chunks.")
    var released = false

    @Option(help: "minference: vertical lines of a head.")
    var vertical = 1000

    @Option(help: "minference: slashes of a head.")
    var slash = 6096

    @Option(help: "sparge: fraction of the blocks to keep.")
    var ratio = 0.5

    @Option(help: "streaming, duo: tokens at the start that every query sees.")
    var sink = 64

    @Option(help: "streaming, duo: tokens up to its own that every query sees.")
    var local = 256

    @Option(help: "duo: KV heads that see everything, comma-separated. The others stream.")
    var fullHeads: String?

    private static let precisionNames = ScoringPrecision.allCases.map(\.rawValue).joined(separator: " or ")

    private static func precision(_ text: String) throws -> ScoringPrecision {
        guard let precision = ScoringPrecision(rawValue: text) else {
            throw ValidationError("--precision takes \(precisionNames), got \"\(text)\"")
        }
        return precision
    }

    /// For each KV head whether it is listed.
    func isFull(kvHeads: Int) throws -> [Bool] {
        var isFull = [Bool](repeating: false, count: kvHeads)
        for text in fullHeads?.split(separator: ",") ?? [] {
            guard let head = Int(text), isFull.indices.contains(head) else {
                throw ValidationError("--full-heads takes KV heads of 0...\(kvHeads - 1), got \"\(text)\"")
            }
            isFull[head] = true
        }
        return isFull
    }
}

/// The result of an estimator.
struct Estimate {
    /// One pattern for all heads, per KV head or per query head.
    var patterns: [HeadPattern]
    var plan: BlockSparseAttention

    func pattern(ofHead head: Int) -> HeadPattern { patterns[head * patterns.count / plan.shape.queryHeads] }

    /// The kept fraction of a head: of the reachable blocks if the pattern is a mask, of the visible pairs otherwise.
    func density(ofHead head: Int, _ problem: PrefillProblem) throws -> Double {
        let pattern = pattern(ofHead: head)
        if case .blockSparse(let mask, let maskHead) = pattern { return mask.density(head: maskHead) }
        let one = try AttentionShape(
            queryLength: problem.shape.queryLength, keyLength: problem.shape.keyLength, queryHeads: 1, kvHeads: 1,
            headDim: problem.shape.headDim)
        let isCausal = problem.grid.isCausal
        func pairs(_ pattern: HeadPattern) throws -> Int {
            try BlockSparseAttention(one, heads: [pattern], isCausal: isCausal).visiblePairs
        }
        return try Double(pairs(pattern)) / Double(pairs(.dense))
    }
}

extension MaskMethod {
    /// Estimates and plans, and times the stages.
    func estimate(
        _ problem: PrefillProblem, _ options: MaskOptions, _ set: InstructionSet, _ pool: WorkerPool, _ clock: StageClock
    ) throws -> Estimate {
        let (shape, modifiers) = (problem.shape, problem.modifiers)
        let (query, key) = (problem.query, problem.key)
        let isCausal = problem.grid.isCausal
        func planned(_ patterns: [HeadPattern]) throws -> Estimate {
            let plan = try clock.time("plan") {
                try BlockSparseAttention(shape, heads: patterns, isCausal: isCausal, modifiers: modifiers, instructionSet: set)
            }
            return Estimate(patterns: patterns, plan: plan)
        }
        func heads(of mask: BlockMask) -> [HeadPattern] { (0..<mask.heads).map { .blockSparse(mask, head: $0) } }

        switch self {
        case .dense:
            return try planned([.dense])
        case .xattention:
            let prefill = try XAttentionPrefill(
                shape,
                .init(
                    stride: options.stride, isCausal: isCausal, mode: options.released ? .released() : .clean,
                    precision: options.precision, softmaxScale: modifiers.softmaxScale),
                threshold: options.threshold, instructionSet: set)
            let scores = try clock.time("score") { try prefill.scores(query: query, key: key, on: pool) }
            return try planned(heads(of: clock.time("select") { try prefill.mask(from: scores, on: pool) }))
        case .minference:
            try requireCausal(problem)
            let prefill = try MInferencePrefill(
                shape, heads: [.verticalSlash(vertical: options.vertical, slash: options.slash)],
                softmaxScale: modifiers.softmaxScale, instructionSet: set)
            return try planned(clock.time("estimate") { try prefill.patterns(query: query.view(), key: key.view(), on: pool) })
        case .sparge:
            let prefill = try SpargeAttentionPrefill(
                shape, .init(isCausal: isCausal, modifiers: modifiers), heads: [.keepRatio(options.ratio)], instructionSet: set)
            let mask = try clock.time("estimate") { try prefill.select(query: query, key: key, on: pool) }
            let plan = try clock.time("plan") { try prefill.attention(over: mask) }
            return Estimate(patterns: heads(of: mask), plan: plan)
        case .streaming, .duo:
            try requireCausal(problem)
            let isFull =
                try self == .duo ? options.isFull(kvHeads: shape.kvHeads) : Array(repeating: false, count: shape.kvHeads)
            let plan = try clock.time("plan") {
                try DuoAttentionPrefill(
                    shape, heads: isFull, sinkTokens: options.sink, localTokens: options.local, modifiers: modifiers,
                    instructionSet: set
                ).attention
            }
            let streaming = HeadPattern.streaming(sink: options.sink, local: options.local)
            return Estimate(patterns: isFull.map { $0 ? .dense : streaming }, plan: plan)
        }
    }

    private func requireCausal(_ problem: PrefillProblem) throws {
        if !problem.grid.isCausal { throw ValidationError("--mask \(rawValue) is for causal attention") }
    }
}

extension HeadPattern {
    /// Whether the pattern lets a query see a key, apart from the causal limit.
    func keeps(query: Int, position: Int, key: Int) -> Bool {
        switch self {
        case .dense:
            return true
        case .streaming(let sink, let local):
            return key < sink || key > position - local
        case .blockSparse(let mask, let head):
            return mask[head, mask.grid.query.block(of: query), mask.grid.key.block(of: key)]
        case .band(let band):
            return band.isVisible(query: query, key: key, position: position - query)
        case .runs(let runs):
            let block = runs.query.block(of: query)
            return runs.runs(block: block).contains { $0.contains(key) } || runs.keys(block: block).contains(Int32(key))
        }
    }

    /// The pattern as a head of a mask, for pictures: its own mask, or the blocks of `grid` with a pair that it keeps.
    func mask(over grid: BlockGrid) throws -> (mask: BlockMask, head: Int) {
        switch self {
        case .blockSparse(let mask, let head):
            return (mask, head)
        case .dense:
            return (try BlockMask(grid: grid) { _, _, _ in true }, 0)
        case .streaming(let sink, let local):
            let mask = try BlockMask(grid: grid) { _, row, column in
                let keys = grid.key[column]
                return keys.lowerBound < sink
                    || keys.upperBound + local > grid.query[row].lowerBound + grid.queryOffset + 1
            }
            return (mask, 0)
        case .band(let band):
            let mask = try BlockMask(grid: grid) { _, row, column in
                let (queries, keys) = (grid.query[row], grid.key[column])
                let offset = grid.queryOffset
                return keys.upperBound > queries.lowerBound + offset - band.left
                    && keys.lowerBound < queries.upperBound + offset + band.right
                    || band.globalKeys.contains { $0.overlaps(keys) } || band.globalQueries.contains { $0.overlaps(queries) }
            }
            return (mask, 0)
        case .runs(let runs):
            var touched = Set<[Int]>()
            for block in 0..<runs.query.count {
                let queries = runs.query[block]
                let rows = grid.query.block(of: queries.lowerBound)...grid.query.block(of: queries.upperBound - 1)
                let single = runs.keys(block: block).map { Int($0)..<Int($0) + 1 }
                for run in runs.runs(block: block) + single {
                    for column in grid.key.block(of: run.lowerBound)...grid.key.block(of: run.upperBound - 1) {
                        for row in rows { touched.insert([row, column]) }
                    }
                }
            }
            return (try BlockMask(grid: grid) { touched.contains([$1, $2]) }, 0)
        }
    }
}
