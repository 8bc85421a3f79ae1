public import SparseKernels
internal import Synchronization

/// Sparse VideoGen (Xi et al., 2025, arXiv 2502.01776): attention of video diffusion transformers whose heads look either at
/// neighbouring frames or at one place in all frames, found out online for every call.
///
/// ```swift
/// let geometry = try VideoGeometry(frames: 21, height: 45, width: 80)
/// let svg = try SVGAttention(shape, geometry: geometry, SVGConfiguration(density: 0.3))
/// let result = try svg(query: q, key: k, value: v)
/// print(result.patterns)   // spatial or temporal, by head
/// ```
///
/// A call attends a few query rows densely and under the masks of both kinds, and gives each head the kind of the smaller error.
/// It then attends all rows with a band of keys: in frame-major order for spatial heads, and in token-major order, where the
/// tokens of one place are neighbours, for temporal ones. Text sees and is seen by all.
///
/// - Heads are independent: batch entries and guidance passes are more heads. With fewer KV heads than query heads, those that
///   share a KV head are of one kind.
/// - Plans depend on geometry and kinds only. The plan of the bands is made once, and orders of tokens are kept for the last few
///   combinations of kinds. Use one value for all layers and steps; it may be used from several threads.
/// - Attention is exact over the kept pairs, token by token. A query without a key, which released rules can make, has output 0.
/// - Source: the paper; svg-project/Sparse-VideoGen, whose rules `SVGConfiguration.released` selects.
/// - Complexity: profiling attends 3 · `sampledRows` queries with all keys; attention about `density` of the pairs.
/// - Scratch: that of `PatternProfile` and `PermutedAttention`.
public struct SVGAttention: SelectiveAttention {
    public let shape: AttentionShape
    public let geometry: VideoGeometry
    public let configuration: SVGConfiguration
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    /// The pairs that heads of each kind attend, spatial first.
    public let masks: [SVGMask]
    /// The keys with which heads of each kind are profiled, spatial first.
    public let profileMasks: [SVGProfileMask]
    private let plans: SVGPlans

    /// - Parameters:
    ///   - shape: the sizes of the operands; as many queries and keys as the geometry has tokens.
    ///   - geometry: what the tokens are.
    ///   - configuration: density, sample, and the rules of a released model.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` when shape and geometry disagree; `.invalidArgument` for settings outside their domain, rules
    ///   that do not fit the geometry, and a density that no band can give; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, geometry: VideoGeometry, _ configuration: SVGConfiguration = SVGConfiguration(),
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try geometry.check(shape)
        try configuration.modifiers.validate(queryHeads: shape.queryHeads)
        var masks: [SVGMask] = []
        for kind in SVGHeadKind.allCases { masks.append(try SVGMask(geometry, kind: kind, configuration)) }
        self.shape = shape
        self.geometry = geometry
        self.configuration = configuration
        self.masks = masks
        profileMasks = masks.map { SVGProfileMask($0, configuration) }
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        plans = try SVGPlans(shape, masks: masks, modifiers: configuration.modifiers, instructionSet: self.instructionSet)
    }

    // MARK: - Choosing

    /// The query rows that a call profiles: uniform with replacement, the same for all heads.
    ///
    /// - Parameter call: the number of the call, such as layers · step + layer, so that calls have samples of their own. Equal
    ///   seeds and numbers give equal rows.
    public func sampledRows(call: Int = 0) -> [Int] {
        let limit = configuration.sampleLimit
        let range: Range<Int>
        if let released = configuration.released {
            range = 0..<min(geometry.tokens, limit ?? released.sampledTokens(geometry.tokens))
        } else {
            let first = geometry.video.lowerBound
            range = first..<first + min(geometry.videoTokens, limit ?? geometry.videoTokens)
        }
        var seeds = SplitMix64(seed: UInt64(bitPattern: Int64(call)))
        var generator = SplitMix64(seed: configuration.seed ^ seeds.next())
        return (0..<min(configuration.sampledRows, geometry.tokens)).map { _ in
            range.lowerBound + Int(generator.next() % UInt64(range.count))
        }
    }

    /// Profiles the heads on the rows of call 0. See ``select(query:key:value:sampledRows:on:)``.
    public func select<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVGSelection {
        try select(query: query, key: key, value: value, sampledRows: sampledRows(), on: pool)
    }

    /// Profiles the heads on some rows and chooses their kinds.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × tokens × `headDim`. Any strides that keep channels adjacent, here and below.
    ///   - key: `kvHeads` × tokens × `headDim`.
    ///   - value: `kvHeads` × tokens × `valueDim`.
    ///   - sampledRows: query tokens; any may repeat.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape, `.invalidArgument` for a row that is no token.
    public func select<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, sampledRows: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVGSelection {
        let profile = try profile(sampledRows: sampledRows)
        var errors = try profile(query: query, key: key, value: value, on: pool)
        if configuration.released != nil {
            // Softmax over no key is NaN there, and so is the mean of an error with such a row in it.
            var values = errors.errors
            for (kind, count) in profile.rowsWithoutKeys.enumerated() where count > 0 {
                for head in 0..<shape.queryHeads { values[kind, head] = .nan }
            }
            errors = try PatternErrors(values)
        }
        return SVGSelection(errors: errors, rows: sampledRows, shape: shape, nanWins: configuration.released != nil)
    }

    /// Profiles the heads on some rows of tensors `[heads, tokens, channels]` and chooses their kinds.
    /// - Throws: as with views, and `.invalidShape` for another rank.
    public func select<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, sampledRows: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVGSelection {
        try select(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            sampledRows: sampledRows, on: pool)
    }

    /// The operator that measures the errors of both kinds on some rows, spatial first.
    ///
    /// Errors are measured against all keys; under the clean rules against those that are not padding, as attention will see
    /// them.
    /// - Throws: `.invalidArgument` for a row that is no token.
    public func profile(sampledRows: [Int]) throws(SparseKernelsError) -> PatternProfile {
        for (index, row) in sampledRows.enumerated() {
            try require(
                row >= 0 && row < geometry.tokens, .invalidArgument, "sampledRows[\(index)]",
                expected: "a token, 0..<\(geometry.tokens)", actual: "\(row)")
        }
        var patterns: [KeyRuns] = []
        for mask in profileMasks { patterns.append(try mask.keyRuns(rows: sampledRows)) }
        var reference: KeyRuns?
        let padding = geometry.padding
        if configuration.released == nil && !padding.isEmpty {
            let runs = sampledRows.map { row in
                padding.contains(row)
                    ? [padding] : [0..<padding.lowerBound, padding.upperBound..<geometry.tokens].filter { !$0.isEmpty }
            }
            reference = try SVGProfileMask.keyRuns(runs, keyLength: geometry.tokens)
        }
        return try PatternProfile(
            shape, rows: sampledRows, patterns: patterns, reference: reference, modifiers: configuration.modifiers,
            instructionSet: instructionSet)
    }

    // MARK: - Attending

    /// The plan of attention with the chosen kinds.
    /// - Throws: the errors of ``attention(patterns:)``.
    public func attention(over selected: SVGSelection) throws(SparseKernelsError) -> PermutedAttention {
        try attention(patterns: selected.patterns)
    }

    /// The plan of attention with given kinds.
    /// - Parameter patterns: one per query head.
    /// - Throws: `.invalidShape` for another number of kinds; `.invalidArgument` for heads of different kinds that share a KV
    ///   head.
    public func attention(patterns: [SVGHeadKind]) throws(SparseKernelsError) -> PermutedAttention {
        try require(
            patterns.count == shape.queryHeads, .invalidShape, "patterns", expected: "one per query head (\(shape.queryHeads))",
            actual: "\(patterns.count)")
        let group = shape.queryHeadsPerKVHead
        for (head, kind) in patterns.enumerated() {
            let expected = patterns[head / group * group]
            try require(
                kind == expected, .invalidArgument, "patterns[\(head)]",
                expected: "\(expected), as of the other heads of its KV head", actual: "\(kind)")
        }
        return try plans.plan(patterns)
    }
}

/// The plans of one façade, shared by its copies.
private final class SVGPlans: Sendable {
    /// Permutations of many heads take megabytes, so only a few are kept. Making one costs a copy of its orders.
    private static let keptPlans = 4

    private let shape: AttentionShape
    private let modifiers: ScoreModifiers
    private let instructionSet: InstructionSet
    private let sequences: [Range<Int>]
    private let patterns: [HeadPattern]
    /// By kind; nil when tokens of that kind stay where they are.
    private let orders: [Permutation?]
    /// The plan of any kinds, where both keep the same pairs of positions.
    private let common: BlockSparseAttention?
    /// The most recent last.
    private let kept = Mutex<[(patterns: [SVGHeadKind], plan: PermutedAttention)]>([])

    init(
        _ shape: AttentionShape, masks: [SVGMask], modifiers: ScoreModifiers, instructionSet: InstructionSet
    ) throws(SparseKernelsError) {
        self.shape = shape
        self.modifiers = modifiers
        self.instructionSet = instructionSet
        sequences = masks[0].sequences
        var (patterns, orders): ([HeadPattern], [Permutation?]) = ([], [])
        for mask in masks {
            patterns.append(try mask.pattern())
            if let order = mask.order { orders.append(try Permutation([order])) } else { orders.append(nil) }
        }
        self.patterns = patterns
        self.orders = orders
        common =
            patterns[0] == patterns[1]
            ? try Self.bands(shape, sequences, [patterns[0]], modifiers, instructionSet) : nil
    }

    private static func bands(
        _ shape: AttentionShape, _ sequences: [Range<Int>], _ heads: [HeadPattern], _ modifiers: ScoreModifiers,
        _ instructionSet: InstructionSet
    ) throws(SparseKernelsError) -> BlockSparseAttention {
        try BlockSparseAttention(
            shape,
            sequences: sequences.enumerated().map { index, tokens in
                BlockSparseAttention.PackedSequence(queries: tokens, keys: tokens, heads: index == 0 ? heads : [.dense])
            }, isCausal: false, modifiers: modifiers, instructionSet: instructionSet)
    }

    func plan(_ kinds: [SVGHeadKind]) throws(SparseKernelsError) -> PermutedAttention {
        if let known = kept.withLock({ kept in kept.first { $0.patterns == kinds }?.plan }) { return known }
        let bands =
            if let common { common } else {
                try Self.bands(shape, sequences, kinds.map { patterns[$0.rawValue] }, modifiers, instructionSet)
            }
        let group = shape.queryHeadsPerKVHead
        let keyKinds = stride(from: 0, to: kinds.count, by: group).map { kinds[$0] }
        let query = try order(kinds)
        let plan = try PermutedAttention(bands, query: query, key: group == 1 ? query : try order(keyKinds))
        kept.withLock { kept in
            if kept.contains(where: { $0.patterns == kinds }) { return }
            if kept.count == Self.keptPlans { kept.removeFirst() }
            kept.append((kinds, plan))
        }
        return plan
    }

    /// The order of heads of some kinds, one for all where they agree.
    private func order(_ kinds: [SVGHeadKind]) throws(SparseKernelsError) -> Permutation? {
        if Set(kinds).count == 1 { return orders[kinds[0].rawValue] }
        if orders.allSatisfy({ $0 == nil }) { return nil }
        let identity = try Permutation.identity(length: shape.queryLength)
        return try Permutation(choosing: kinds.map(\.rawValue), from: orders.map { $0 ?? identity })
    }
}
