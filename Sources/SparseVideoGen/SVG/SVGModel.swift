/// The video models whose released rules differ: where text stands, how wide bands are, and which rows are sampled.
public enum SVGModel: String, Hashable, Sendable, CaseIterable, Codable {
    /// CogVideoX 1 and 1.5: text first, bands narrower than the width by the token at the end, text in the sample.
    case cogVideoX
    /// HunyuanVideo: text last, with padding that attends only itself.
    case hunyuanVideo
    /// Wan 2.1 and Cosmos: no text among the tokens, and keys that every query sees.
    case wan

    /// Half the width of the band in which heads are profiled, in frames.
    var profileFrames: Double { self == .wan ? 2 : 1.5 }

    /// The width of the attention band for so many tokens, a multiple of 128.
    ///
    /// Widths stay below 2⁶², because the multiplier is at most the number of frames.
    func bandWidth(tokens: Double) -> Int {
        let blocks = (tokens / 128).rounded(self == .wan ? .up : .down)
        return 128 * Int(blocks)
    }

    /// The number of tokens at the start of the sequence that rows are sampled from, before a limit by the caller.
    func sampledTokens(_ tokens: Int) -> Int { self == .cogVideoX ? tokens : min(tokens, 10_000) }
}

/// What a head attends to: the tokens near its own in space, or those at nearly the same place in all frames.
public enum SVGHeadKind: Int, Hashable, Sendable, CaseIterable, Codable {
    /// The tokens of the same frame and its neighbours: a band in frame-major order.
    case spatial = 0
    /// The same places in all frames: a band in token-major order.
    case temporal = 1
}
