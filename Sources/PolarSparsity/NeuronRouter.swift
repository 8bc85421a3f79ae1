public import SparseKernels

/// Predicts from the input of an MLP which of its channels matter: two linear layers without bias and without an activation between.
///
/// ```swift
/// let router = try NeuronRouter(down: a, up: b)                       // [rank, hiddenSize], [innerWidth, rank]
/// let neurons = try router.select(hidden, .strongest(1024))
/// try mlp.run(hidden, neurons: neurons, into: &y, workspace: &workspace)
/// ```
///
/// - Complexity: rank · (hiddenSize + innerWidth) multiply-adds per token.
/// - Source: Polar Sparsity (arXiv 2505.14884), section 4.1, after Deja Vu (Liu et al., 2023).
public struct NeuronRouter: Sendable {
    /// Which channels of a token are selected. Those of a batch are the union of its tokens'.
    public enum Rule: Hashable, Sendable {
        /// Those with a score above a number, which is not NaN.
        case above(Float)
        /// So many with the largest scores, 0 to all. Of equal scores the lower channel is taken.
        case strongest(Int)
    }

    /// `[rank, inFeatures]`.
    public let down: Tensor<Float>
    /// `[channels, rank]`.
    public let up: Tensor<Float>
    private let first: FloatLinear
    private let second: FloatLinear

    /// - Parameters:
    ///   - down: `[rank, inFeatures]`.
    ///   - up: `[channels, rank]`.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for factors that are no matrices with elements, or of different ranks; `.invalidArgument` for a
    ///   number that is not finite; `.unsupportedInstructionSet`.
    public init(
        down: Tensor<Float>, up: Tensor<Float>, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try requireFinite(down, named: "down")
        try requireFinite(up, named: "up")
        first = try FloatLinear(weight: down, instructionSet: instructionSet)
        second = try FloatLinear(weight: up, instructionSet: instructionSet)
        try require(
            first.outFeatures == second.inFeatures, .invalidShape, "up",
            expected: "[channels, \(first.outFeatures)], the rank of down", actual: "\(up.shape)")
        self.down = down
        self.up = up
    }

    public var rank: Int { first.outFeatures }
    public var inFeatures: Int { first.inFeatures }
    public var channels: Int { second.outFeatures }

    /// The score of every channel for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - scores: `[tokens, channels]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the router; nothing is written then.
    public func run(
        _ x: MatrixView<Float>, into scores: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            scores.rows == x.rows && scores.columns == channels, .invalidShape, "scores", expected: "\(x.rows) × \(channels)",
            actual: "\(scores.rows) × \(scores.columns)")
        var projected = try Tensor<Float>(zeros: [x.rows, rank])
        try first.run(x: x, y: projected.mutableMatrixView(named: "projected"), on: pool)
        try second.run(x: projected.matrixView(named: "projected"), y: scores, on: pool)
    }

    /// The channels that the tokens of a batch select together.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`; no tokens select nothing.
    ///   - rule: what a token selects.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for x of another width; `.invalidArgument` for a number out of range, or scores that are NaN.
    public func select(
        _ x: MatrixView<Float>, _ rule: Rule, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> ChannelSubset {
        switch rule {
        case .above(let limit):
            try require(!limit.isNaN, .invalidArgument, "rule", expected: "above a number", actual: "nan")
        case .strongest(let count):
            try require(
                count >= 0 && count <= channels, .invalidArgument, "rule", expected: "the strongest 0 to \(channels)",
                actual: "\(count)")
        }
        var scores = try Tensor<Float>(zeros: [x.rows, channels])
        try run(x, into: scores.mutableMatrixView(named: "scores"), on: pool)
        var isSelected = [Bool](repeating: false, count: channels)
        for token in 0..<x.rows {
            let row = scores.span.extracting(token * channels..<(token + 1) * channels)
            switch rule {
            case .above(let limit):
                for channel in 0..<channels {
                    try require(
                        !row[channel].isNaN, .invalidArgument, "scores[\(token), \(channel)]", expected: "not NaN",
                        actual: "nan")
                    if row[channel] > limit { isSelected[channel] = true }
                }
            case .strongest(let count):
                let strongest = try ChannelSubset.strongest((0..<channels).map { row[$0] }, count: count)
                for channel in strongest.indices { isSelected[Int(channel)] = true }
            }
        }
        return try ChannelSubset(
            isSelected.indices.filter { isSelected[$0] }.map { Int32(truncatingIfNeeded: $0) }, of: channels)
    }

    // MARK: - Files

    /// Adds the router to a file, as `<prefix>.down.weight` and `<prefix>.up.weight`.
    /// - Throws: `.invalidArgument` for a name that is used already.
    public func add(to writer: inout SafetensorsWriter, prefix: String) throws(SparseKernelsError) {
        try writer.add("\(prefix).down.weight", down)
        try writer.add("\(prefix).up.weight", up)
    }

    /// Reads a router, of `F32`, `F16` or `BF16`.
    /// - Throws: `.notFound`, `.invalidElementType`, and `.malformedFile` for shapes and numbers that no router has.
    public init(
        file: SafetensorsFile, prefix: String, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let down = try file.floatTensor("\(prefix).down.weight")
        let up = try file.floatTensor("\(prefix).up.weight")
        self = try file.validated { () throws(SparseKernelsError) in
            try NeuronRouter(down: down, up: up, instructionSet: instructionSet)
        }
    }
}
