/// What a session has done since it was made, or since `resetStatistics`.
public struct SessionStatistics: Hashable, Sendable {
    /// Seconds of passes over prompts, and of those with one token per sequence.
    public internal(set) var prefill = StageSeconds()
    public internal(set) var decoding = StageSeconds()
    /// Tokens of prompts, and of steps.
    public internal(set) var prefillTokens = 0
    public internal(set) var decodedTokens = 0
    /// Steps: passes with one token per sequence.
    public internal(set) var steps = 0
    /// Pairs of query and key that prefill computed, and those that a causal mask leaves, over all heads and layers.
    public internal(set) var attendedPairs = 0.0
    public internal(set) var reachablePairs = 0.0
    /// Bytes of the cache that decoding read, and that dense decoding would have read.
    public internal(set) var readBytes = 0.0
    public internal(set) var denseBytes = 0.0
    /// Channels of MLPs that steps computed, and all of them, in models that skip some; of a batch those that some token needs.
    public internal(set) var computedChannels = 0
    public internal(set) var possibleChannels = 0
    /// Bytes of weights, cache and work at their highest.
    public internal(set) var peakByteCount = 0

    /// The part of the pairs that prefill computed; 1 before any prompt.
    public var prefillDensity: Double { reachablePairs > 0 ? attendedPairs / reachablePairs : 1 }
    /// The part of the bytes of the cache that decoding read, metadata and estimates included; 1 before any step.
    public var decodingReadFraction: Double { denseBytes > 0 ? readBytes / denseBytes : 1 }
    /// The part of the channels of MLPs that steps computed; 1 before any step, and in dense MLPs.
    public var channelDensity: Double {
        possibleChannels > 0 ? Double(computedChannels) / Double(possibleChannels) : 1
    }

    public init() {}
}
