import SparseKernelsModels

/// Seconds of the parts of a step, forward and backward together.
public struct TrainingSeconds: Hashable, Sendable, Codable {
    /// Choosing the channels of the context.
    public var selection = 0.0
    /// The projections of queries, keys, values and the output, with their adapters.
    public var projections = 0.0
    public var attention = 0.0
    public var mlp = 0.0
    /// The output projection and the loss.
    public var head = 0.0
    /// Clipping and the optimiser.
    public var optimizer = 0.0
    /// Norms, rotations and the embedding.
    public var other = 0.0

    public var total: Double { selection + projections + attention + mlp + head + optimizer + other }

    /// The parts by name, in the order of a step.
    public var parts: [(name: String, seconds: Double)] {
        [
            ("selection", selection), ("projections", projections), ("attention", attention), ("MLP", mlp), ("head", head),
            ("optimiser", optimizer), ("other", other),
        ]
    }

    public init() {}

    public static func += (a: inout Self, b: Self) {
        a.selection += b.selection
        a.projections += b.projections
        a.attention += b.attention
        a.mlp += b.mlp
        a.head += b.head
        a.optimizer += b.optimizer
        a.other += b.other
    }
}

typealias TrainingClock = LapClock<TrainingSeconds>

extension LapClock<TrainingSeconds> {
    init() { self.init(TrainingSeconds()) }
}
