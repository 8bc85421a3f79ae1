public import SparseKernels

/// The tokens of a video prompt as FrameFusion sees them.
public struct FrameFusionTokens: Hashable, Sendable {
    /// The place of each token within its frame; negative for text.
    public private(set) var places: [Int32]
    /// The position of each token, which it keeps.
    public private(set) var positions: [Int]

    /// - Parameters:
    ///   - places: the place of each token within its frame; negative for text.
    ///   - positions: the position of each token; 0, 1, 2, … unless given.
    /// - Throws: `.invalidShape` for another number of positions.
    public init(places: [Int32], positions: [Int]? = nil) throws(SparseKernelsError) {
        let positions = positions ?? Array(places.indices)
        try require(
            positions.count == places.count, .invalidShape, "positions", expected: "\(places.count), one per token",
            actual: "\(positions.count)")
        self.places = places
        self.positions = positions
    }

    /// Text, frames of `placesPerFrame` tokens each, and text.
    /// - Throws: `.invalidArgument` for a negative number.
    public init(
        textBefore before: Int, frames: Int, placesPerFrame: Int, textAfter after: Int
    ) throws(SparseKernelsError) {
        for (name, value) in [("before", before), ("frames", frames), ("placesPerFrame", placesPerFrame), ("after", after)] {
            try require(
                value >= 0 && value < 1 << 24, .invalidArgument, name, expected: "0 or more, below 2²⁴", actual: "\(value)")
        }
        var places = [Int32](repeating: -1, count: before)
        for _ in 0..<frames { places += (0..<Int32(placesPerFrame)) }
        places += [Int32](repeating: -1, count: after)
        try self.init(places: places)
    }

    public var count: Int { places.count }
    /// Tokens of frames.
    public var visualCount: Int { places.reduce(0) { $0 + ($1 >= 0 ? 1 : 0) } }

    mutating func keep(_ compaction: TokenCompaction) throws(SparseKernelsError) {
        positions = try compaction.positions(.kept, from: positions)
        places = compaction.kept.map { places[Int($0)] }
    }
}

/// FrameFusion: in the first layers of a prefill, tokens that hardly change from frame to frame are merged; then the tokens that get
/// the least attention are pruned, once, until the layers together meet a budget.
///
/// Call ``reduce(_:tokens:columnMass:on:)`` before each layer while ``isFinished`` is false.
///
/// ```swift
/// var fusion = try FrameFusion(channels: 3584)
/// var tokens = try FrameFusionTokens(textBefore: 14, frames: 64, placesPerFrame: 196, textAfter: 40)
/// for layer in 0..<28 {
///     // When `needsColumnMass`: AttentionColumnMass(shape, reduction: .meanOfHeads) of the layer before.
///     let compaction = try fusion.reduce(&hidden, tokens: &tokens, columnMass: mass)
///     // rotations and whatever else has a row per token: compaction(rows)
/// }
/// ```
///
/// Before a layer, each phase does this:
///
/// - `.merging`: tokens whose cosine with the token before them at their place is at least `similarity` are merged into it, so that the
///   first token of a run becomes the mean of the run. When this would remove as much as the budget needs or more, only the most
///   similar ones are merged, as many as the budget needs, and nothing follows. When it removed less than `leastMerged`, merging ends.
/// - `.pruning`: visual tokens with the least attention of the layer before are removed until the budget is met.
/// - `.finished`: nothing.
///
/// Positions are kept, unlike in PyramidDrop. One value serves one prefill of one sequence.
///
/// - Complexity: a merge reads the visual tokens once or twice. Attention mass costs a second pass of scores at one layer.
/// - Source: Fu et al., "FrameFusion" (arXiv 2501.01986), section 3, and its released code.
public struct FrameFusion: Sendable {
    /// What comes next.
    public enum Phase: Hashable, Sendable {
        case merging
        case pruning
        case finished
    }

    public let configuration: FrameFusionConfiguration
    public private(set) var phase = Phase.merging
    /// The part of the visual tokens that was removed before each layer so far.
    public private(set) var removed: [Double] = []
    private let merge: FrameMerge

    /// - Parameters:
    ///   - configuration: thresholds and budget; nil means those of the released code.
    ///   - channels: channels of the hidden states.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: the errors of `FrameFusionConfiguration` and `FrameMerge`.
    public init(
        _ configuration: FrameFusionConfiguration? = nil, channels: Int, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        if let configuration {
            try configuration.check()
            self.configuration = configuration
        } else {
            self.configuration = try FrameFusionConfiguration()
        }
        merge = try FrameMerge(channels: channels, instructionSet: instructionSet)
    }

    /// Whether the next call needs the attention mass of the layer before.
    public var needsColumnMass: Bool { phase == .pruning }
    /// Whether no call will remove anything.
    public var isFinished: Bool { phase == .finished }

    /// Reduces the tokens before a layer.
    ///
    /// - Parameters:
    ///   - hidden: `[tokens, channels]`; replaced by the tokens that stay.
    ///   - tokens: their places and positions; replaced likewise.
    ///   - columnMass: the attention that each token gets in the layer before, summed over queries and averaged over heads,
    ///     `[1, tokens]` or `[tokens]`; needed when ``needsColumnMass``, and not read otherwise.
    ///   - pool: the threads to use.
    /// - Returns: which tokens stay.
    /// - Throws: `.invalidShape` for operands of other extents; `.invalidArgument` for a budget that the layers so far have used up, for
    ///   a missing mass or one with NaN, and for similarities that are NaN where they are ranked. Nothing changes then.
    public mutating func reduce(
        _ hidden: inout Tensor<Float>, tokens: inout FrameFusionTokens, columnMass: Tensor<Float>? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> TokenCompaction {
        try require(
            hidden.shape == [tokens.count, merge.channels], .invalidShape, "hidden",
            expected: "\([tokens.count, merge.channels])", actual: "\(hidden.shape)")
        let compaction: TokenCompaction
        switch phase {
        case .merging: compaction = try mergeFrames(&hidden, tokens, pool)
        case .pruning: compaction = try prune(tokens, columnMass)
        case .finished: return try TokenCompaction(length: tokens.count, keeping: Array(0..<tokens.count))
        }
        if compaction.kept.count < tokens.count {
            hidden = try compaction(hidden, on: pool)
            try tokens.keep(compaction)
        }
        return compaction
    }

    private mutating func mergeFrames(
        _ hidden: inout Tensor<Float>, _ tokens: FrameFusionTokens, _ pool: WorkerPool
    ) throws(SparseKernelsError) -> TokenCompaction {
        let needed = try configuration.requiredRemoval(after: removed)
        let chains = try FrameChains(places: tokens.places)
        let similarities = try merge.similarities(hidden, chains, on: pool)
        var merged = try chains.tokens(withSimilarity: configuration.similarity, of: similarities)
        let visual = chains.frameTokenCount
        let part = visual == 0 ? 0 : Double(merged.count) / Double(visual)
        if part < needed {
            let compaction = try merge(&hidden, chains, merging: merged, on: pool)
            removed.append(part)
            if part < configuration.leastMerged { phase = .pruning }
            return compaction
        }
        merged = try chains.mostSimilarTokens(Int(needed * Double(visual)), of: similarities)
        let compaction = try merge(&hidden, chains, merging: merged, on: pool)
        removed.append(visual == 0 ? 0 : Double(merged.count) / Double(visual))
        phase = .finished
        return compaction
    }

    private mutating func prune(
        _ tokens: FrameFusionTokens, _ columnMass: Tensor<Float>?
    ) throws(SparseKernelsError) -> TokenCompaction {
        guard let columnMass else {
            throw SparseKernelsError(
                .invalidArgument, "columnMass", expected: "the attention mass of the layer before", actual: "nil")
        }
        try require(
            columnMass.shape == [tokens.count] || columnMass.shape == [1, tokens.count], .invalidShape, "columnMass",
            expected: "\([1, tokens.count])", actual: "\(columnMass.shape)")
        let needed = try configuration.requiredRemoval(after: removed)
        let visual = (0..<tokens.count).filter { tokens.places[$0] >= 0 }
        for token in visual where columnMass[flat: token].isNaN {
            throw SparseKernelsError(.invalidArgument, "columnMass", expected: "numbers", actual: "NaN at token \(token)")
        }
        let count = Int((Double(visual.count) * (1 - needed)).rounded(.toNearestOrEven))
        let scores = visual.map { columnMass[flat: $0] }
        let best = try TopK.select(scores: scores.span, count: count)
        var stays = tokens.places.map { $0 < 0 }
        for index in best { stays[visual[index]] = true }
        let compaction = try TokenCompaction(length: tokens.count, keeping: stays.indices.filter { stays[$0] })
        removed.append(visual.isEmpty ? 0 : Double(visual.count - best.count) / Double(visual.count))
        phase = .finished
        return compaction
    }
}
