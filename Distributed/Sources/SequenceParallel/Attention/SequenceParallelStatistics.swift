/// What a rank did in one call of ``SequenceParallelAttention``.
public struct SequenceParallelStatistics: Hashable, Sendable {
    /// Seconds in which scores, outputs and their merges were computed.
    public var attentionSeconds = 0.0
    /// Seconds in which rows were packed, unpacked and rounded, transfers started and driven.
    public var exchangeSeconds = 0.0
    /// Seconds of waiting for other ranks, in which nothing was computed.
    public var waitingSeconds = 0.0
    /// Bytes that this rank sent to others, as the communicator counted them.
    public var sentBytes = 0
    /// The bytes of the formula, ``SequenceParallelCosts``, for the groups whose keys some later group of the ring sees.
    public var expectedSentBytes = 0

    public init() {}

    /// Seconds of the call.
    public var seconds: Double { attentionSeconds + exchangeSeconds + waitingSeconds }
}
