/// Seconds of the parts of a run.
public struct StageSeconds: Hashable, Sendable {
    /// Attention, with everything that a method does to choose its keys, and storing keys and values where a cache has them.
    public var attention = 0.0
    /// What recurrent layers do between their linear layers.
    public var recurrence = 0.0
    /// The linear layers of the blocks, and a language model's output projection.
    public var linear = 0.0
    /// Norms, rotations, activations, embeddings and the observers.
    public var other = 0.0

    public var total: Double { attention + recurrence + linear + other }

    public init() {}

    public static func += (a: inout Self, b: Self) {
        a.attention += b.attention
        a.recurrence += b.recurrence
        a.linear += b.linear
        a.other += b.other
    }
}
