/// How LongVILA spreads a video and its prompt over ranks, in two stages.
///
/// 1. **Encoding.** Each rank encodes some frames, by quotient and remainder, and embeds the text from its first frame to the first one of
///    the next rank. Ranks with frames of many tokens have more rows then.
/// 2. **The model.** The rows of all ranks are one sequence, which is spread evenly, in the order that its attention wants.
///
/// A ``TokenExchange`` moves the rows between them.
///
/// ```swift
/// // Three frames of 64 tokens in a prompt of 20, where each has a placeholder.
/// let stages = try TwoStageSharding(
///     promptLength: 20, placeholders: [4, 5, 6], frameTokens: [64, 64, 64], ulysses: 2, ring: 1)
/// stages.frames               // [0..<2, 2..<3]
/// stages.prompt               // [0..<6, 6..<20]
/// stages.encoded.ranges       // [[0..<132], [132..<209]]
/// stages.model.ranges         // [[0..<105], [105..<209]]
/// ```
///
/// The released code needs a length that the ranks divide, and loses the rest of a sequence that 2 · ranks do not divide. Here any length
/// goes, and no token is lost or padded.
///
/// - Source: LongVILA (arXiv 2408.10188), section 3.3.
public struct TwoStageSharding: Hashable, Sendable {
    /// The frames that each rank encodes. The last ranks have none when there are fewer frames than ranks.
    public let frames: [Range<Int>]
    /// The tokens of the prompt that each rank embeds; the placeholders of its frames are among them.
    public let prompt: [Range<Int>]
    /// Which rank has which tokens of the sequence after encoding. In the sequence, the tokens of a frame are in the place of its
    /// placeholder.
    public let encoded: TokenShards
    /// Which rank has which tokens in the model.
    public let model: TokenShards

    /// Makes both stages for a grid of `ulysses` · `ring` ranks.
    ///
    /// - Parameters:
    ///   - promptLength: the tokens of the prompt, placeholders included.
    ///   - placeholders: where frames stand in the prompt: ascending, one per frame.
    ///   - frameTokens: the tokens that each frame puts in the place of its placeholder, 0 or more.
    ///   - ulysses: the ranks that exchange heads for tokens.
    ///   - ring: the groups of them.
    ///   - isCausal: whether queries see no later keys. The model's shards are a zigzag then, and in order otherwise.
    ///   - alignment: the shards of the model begin at multiples of so many tokens.
    /// - Throws: `.invalidArgument` naming the argument that is out of range.
    public init(
        promptLength: Int, placeholders: [Int], frameTokens: [Int], ulysses: Int, ring: Int, isCausal: Bool = true,
        alignment: Int = 1
    ) throws(SparseKernelsError) {
        try TokenShards.require(promptLength >= 0, "promptLength", "0 or more", promptLength)
        try TokenShards.require(
            frameTokens.count == placeholders.count, "frameTokens", "one per placeholder (\(placeholders.count))",
            frameTokens.count)
        try TokenShards.require(ranks: ulysses, "ulysses")
        try TokenShards.require(ranks: ring, "ring")
        try TokenShards.require(ranks: ulysses * ring, "ulysses · ring")
        var next = 0
        for (frame, place) in placeholders.enumerated() {
            try TokenShards.require(
                place >= next && place < promptLength, "placeholders[\(frame)]", "within \(next)..<\(promptLength)", place)
            next = place + 1
        }
        // Where the tokens of the sequence before each frame end; the last one is the sequence after all frames.
        var starts: [Int] = []
        var added = 0
        for (frame, tokens) in frameTokens.enumerated() {
            try TokenShards.require(
                tokens >= 0 && tokens < 1 << 46 && added < 1 << 46, "frameTokens[\(frame)]",
                "0 or more, and below 2⁴⁶ together", tokens)
            starts.append(placeholders[frame] + added)
            added += tokens - 1
        }
        let length = promptLength + added

        let ranks = ulysses * ring
        let shares = UnitShares(units: placeholders.count, parts: ranks)
        var (frames, prompt, ranges): ([Range<Int>], [Range<Int>], [[Range<Int>]]) = ([], [], [])
        // The text before the first frame is that of rank 0, and that behind the last frame of the last rank with frames.
        var (text, token) = (0, 0)
        for rank in 0..<ranks {
            let following = shares[rank].upperBound
            let isLast = following == placeholders.count
            let (textEnd, end) = isLast ? (promptLength, length) : (placeholders[following], starts[following])
            frames.append(shares[rank])
            prompt.append(text..<textEnd)
            ranges.append(token == end ? [] : [token..<end])
            (text, token) = (textEnd, end)
        }
        (self.frames, self.prompt) = (frames, prompt)
        encoded = try TokenShards(length: length, ranges: ranges)
        model =
            isCausal
            ? try .zigzag(length: length, ulysses: ulysses, ring: ring, alignment: alignment)
            : try .contiguous(length: length, ranks: ranks, alignment: alignment)
    }

    /// Moves rows from the first stage to the second. Every rank calls it.
    ///
    /// - Parameters:
    ///   - rowByteCount: the bytes of a token: of its embedding, or of a label or position.
    ///   - communicator: the ranks.
    /// - Throws: the errors of ``TokenExchange``.
    public func exchange(rowByteCount: Int, on communicator: any Communicator) throws(SparseKernelsError) -> TokenExchange {
        try TokenExchange(from: encoded, to: model, rowByteCount: rowByteCount, on: communicator)
    }
}
