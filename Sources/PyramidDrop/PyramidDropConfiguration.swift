internal import SparseKernels

/// Where PyramidDrop drops image tokens, and how many it keeps.
public struct PyramidDropConfiguration: Hashable, Sendable {
    /// A reduction between two layers.
    public struct Stage: Hashable, Sendable {
        /// The layers that run before it.
        public var layers: Int
        /// The part of the image tokens of the prompt that it leaves, from 0 to 1.
        public var kept: Double

        public init(afterLayers layers: Int, kept: Double) {
            self.layers = layers
            self.kept = kept
        }
    }

    /// The stages, from the first layers to the last.
    public var stages: [Stage]

    /// The stages of the paper for a model of 32 layers: a half, a quarter and an eighth after 8, 16 and 24 layers.
    public static let standard = PyramidDropConfiguration(uncheckedStages: [
        Stage(afterLayers: 8, kept: 0.5), Stage(afterLayers: 16, kept: 0.25), Stage(afterLayers: 24, kept: 0.125),
    ])

    private init(uncheckedStages stages: [Stage]) { self.stages = stages }

    /// - Throws: `.invalidArgument` for a stage before the first layer, one that is not after the stage before it, and for a part
    ///   outside of 0…1 or larger than that of the stage before.
    public init(stages: [Stage]) throws(SparseKernelsError) {
        self.stages = stages
        try check()
    }

    func check() throws(SparseKernelsError) {
        var (layers, kept) = (0, 1.0)
        for (index, stage) in stages.enumerated() {
            try require(
                stage.layers > layers, .invalidArgument, "stages[\(index)].layers", expected: "above \(layers)",
                actual: "\(stage.layers)")
            try require(
                stage.kept >= 0 && stage.kept <= kept, .invalidArgument, "stages[\(index)].kept", expected: "in 0...\(kept)",
                actual: "\(stage.kept)")
            (layers, kept) = (stage.layers, stage.kept)
        }
    }

    /// The stage that comes between layer `layers` − 1 and layer `layers`; nil when there is none.
    public func stage(afterLayers layers: Int) -> Int? { stages.firstIndex { $0.layers == layers } }

    /// The image tokens that a stage leaves of those of the prompt: the product is rounded down.
    public func keptTokens(stage: Int, of imageTokens: Int) -> Int {
        precondition(stages.indices.contains(stage), "stage \(stage) of \(stages.count)")
        return Int(Double(imageTokens) * stages[stage].kept)
    }

    /// The mean over the layers of the part of image tokens that they see.
    public func meanKept(layers: Int) -> Double {
        var (sum, seen, kept) = (0.0, 0, 1.0)
        for stage in stages where stage.layers < layers {
            sum += Double(stage.layers - seen) * kept
            (seen, kept) = (stage.layers, stage.kept)
        }
        return layers <= 0 ? 1 : (sum + Double(layers - seen) * kept) / Double(layers)
    }
}
