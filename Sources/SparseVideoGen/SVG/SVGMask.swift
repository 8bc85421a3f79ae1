public import SparseKernels

/// The pairs of tokens that heads of one kind attend, exact to the token.
///
/// Queries and keys are positions in the order of the head, ``order``: token-major for the video of temporal heads. In that
/// order both kinds keep a band around the diagonal and the rows and columns of text:
///
/// | Rules | Band | Also kept |
/// |---|---|---|
/// | clean | \|i − j\| ≤ W | prompt rows and columns; the first frame, in spatial heads that keep it; padding × padding |
/// | CogVideoX | \|i − j\| < W | text rows and columns |
/// | HunyuanVideo | \|i − j\| < W | prompt rows and columns; padding × padding |
/// | Wan, Cosmos | \|i − j\| ≤ W | the first P keys of the order, where a frame has P tokens |
///
/// Released widths come from the density s of N tokens of which C are text: s' = s − 2C/N; m = N·(1 − √(1 − s'))/P frames; and
/// W = 128·⌊m·P/128⌋, with ⌈⌉ for Wan. W may be 0, which with < leaves text alone.
///
/// - Source: `sparsity_to_width` and `generate_temporal_head_mask_mod` of svg-project/Sparse-VideoGen.
public struct SVGMask: Hashable, Sendable {
    public let geometry: VideoGeometry
    public let kind: SVGHeadKind
    /// W, in tokens.
    public let width: Int
    /// m, half the width of the band in frames, before released rules round it to tokens.
    public let multiplier: Double
    /// The largest |i − j| in the band; −1 when the band is empty.
    let reach: Int
    /// The positions that attend each other; those from its end on are padding, which attends itself.
    let attending: Range<Int>
    let globalKeys: [Range<Int>]
    let globalQueries: [Range<Int>]
    /// Whether padding between prompt and video goes to the end of the order.
    let movesPadding: Bool

    /// - Throws: `.invalidArgument` for settings outside their domain, rules that do not fit the geometry, and a density that
    ///   text and sink alone exceed, so that no band can give it.
    public init(
        _ geometry: VideoGeometry, kind: SVGHeadKind, _ configuration: SVGConfiguration
    ) throws(SparseKernelsError) {
        try configuration.validate(geometry)
        self.geometry = geometry
        self.kind = kind
        let isWhole = configuration.released.map { $0 != .hunyuanVideo } ?? false
        let padding = isWhole ? 0 : geometry.textTokens - geometry.promptTokens
        attending = 0..<geometry.tokens - padding
        guard let released = configuration.released else {
            movesPadding = padding > 0 && geometry.textPlacement == .before
            let first = geometry.textPlacement == .before ? geometry.promptTokens : 0
            let video = first..<first + geometry.videoTokens
            let prompt = geometry.textPlacement == .before ? 0..<first : video.upperBound..<attending.upperBound
            let sink = configuration.keepsFirstFrame && kind == .spatial ? geometry.tokensPerFrame : 0
            globalQueries = [prompt].filter { !$0.isEmpty }
            globalKeys = [prompt, video.lowerBound..<video.lowerBound + sink].filter { !$0.isEmpty }
            width = try Self.width(geometry, sinkTokens: sink, density: configuration.density)
            reach = width
            multiplier = Double(width) / Double(geometry.tokensPerFrame)
            return
        }
        movesPadding = false
        multiplier = try Self.multiplier(geometry, density: configuration.density)
        width = released.bandWidth(tokens: multiplier * Double(geometry.tokensPerFrame))
        switch released {
        case .cogVideoX, .hunyuanVideo:
            reach = width - 1
            let text = released == .cogVideoX ? geometry.text : geometry.prompt
            globalKeys = [text].filter { !$0.isEmpty }
            globalQueries = globalKeys
        case .wan:
            reach = width
            globalKeys = [0..<geometry.tokensPerFrame]
            globalQueries = []
        }
    }

    /// m of the released rules: half the width of a band, in frames, that keeps the density when text is kept too. The order of
    /// operations is theirs, because the next step rounds.
    private static func multiplier(_ geometry: VideoGeometry, density: Double) throws(SparseKernelsError) -> Double {
        let (tokens, text) = (Double(geometry.tokens), Double(geometry.textTokens))
        let pairs = tokens * tokens
        let rest = (density * pairs - 2 * tokens * text) / pairs
        try require(
            rest > 0 && rest <= 1, .invalidArgument, "density",
            expected: "above \(2 * text / tokens), the share of \(geometry.textTokens) text tokens, and at most 1",
            actual: "\(density)")
        return tokens * (1 - (1 - rest).squareRoot()) / Double(geometry.tokensPerFrame)
    }

    /// The widest band of the clean rules.
    private static func width(
        _ geometry: VideoGeometry, sinkTokens: Int, density: Double
    ) throws(SparseKernelsError) -> Int {
        let (video, all) = (geometry.videoTokens, geometry.videoTokens + geometry.promptTokens)
        // Fewer than 2³¹ tokens, so pairs fit.
        func pairs(_ width: Int) -> Int {
            let outside = video - 1 - width
            // Pairs of the sink that lie below the band, and above it.
            let below = min(sinkTokens, outside)
            let above = max(0, sinkTokens - 1 - width)
            let sink = below * outside - below * (below - 1) / 2 + above * (above + 1) / 2
            return all * all - outside * (outside + 1) + sink
        }
        let limit = density * Double(all) * Double(all)
        try require(
            Double(pairs(0)) <= limit, .invalidArgument, "density",
            expected: "at least \(Double(pairs(0)) / Double(all) / Double(all)), which the diagonal, text and sink keep",
            actual: "\(density)")
        var (kept, tooWide) = (0, video)
        while tooWide - kept > 1 {
            let middle = (kept + tooWide) / 2
            if Double(pairs(middle)) <= limit { kept = middle } else { tooWide = middle }
        }
        return kept
    }

    /// Whether a query attends a key, both as positions in ``order``.
    public func keeps(query: Int, key: Int) -> Bool {
        guard attending.contains(query), attending.contains(key) else {
            return !attending.contains(query) && !attending.contains(key)
        }
        return abs(query - key) <= reach || globalKeys.contains { $0.contains(key) }
            || globalQueries.contains { $0.contains(query) }
    }

    /// The token at every position; nil when tokens stay where they are.
    public var order: [Int32]? {
        if kind == .spatial && !movesPadding { return nil }
        var tokens: [Int32] = []
        tokens.reserveCapacity(geometry.tokens)
        let padding = geometry.padding
        func appendText(_ text: Range<Int>) { for token in text { tokens.append(Int32(token)) } }
        if geometry.textPlacement == .before { appendText(movesPadding ? geometry.prompt : geometry.text) }
        let (frames, places) = (geometry.frames, geometry.tokensPerFrame)
        for position in 0..<geometry.videoTokens {
            let video = kind == .spatial ? position : position % frames * places + position / frames
            tokens.append(Int32(geometry.video.lowerBound + video))
        }
        if geometry.textPlacement == .after { appendText(geometry.text) }
        if movesPadding { appendText(padding) }
        return tokens
    }

    // MARK: - Plan

    /// The positions that attend each other, and the padding behind them when there is some.
    var sequences: [Range<Int>] {
        attending.upperBound == geometry.tokens ? [attending] : [attending, attending.upperBound..<geometry.tokens]
    }

    /// What a head keeps of the first sequence. In the others it is dense.
    func pattern() throws(SparseKernelsError) -> HeadPattern {
        if reach >= attending.count - 1 { return .dense }
        if reach >= 0 {
            return .band(AttentionBand(left: reach, right: reach, globalKeys: globalKeys, globalQueries: globalQueries))
        }
        // Without a band, video tokens see text, and text all.
        let text = globalQueries.first ?? 0..<0
        let parts = [0..<text.lowerBound, text, text.upperBound..<attending.upperBound]
        var (runs, offsets): ([Range<Int>], [Int]) = ([], [0])
        for (index, part) in parts.enumerated() {
            let keys = index == 1 ? attending : text
            if !part.isEmpty && !keys.isEmpty { runs.append(keys) }
            offsets.append(runs.count)
        }
        return .runs(
            try KeyRuns(
                query: BlockPartition(sizes: parts.map(\.count)), keyLength: attending.count, runOffsets: offsets, runs: runs,
                keyOffsets: [Int](repeating: 0, count: parts.count + 1), keys: []))
    }
}
