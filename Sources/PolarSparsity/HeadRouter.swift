public import SparseKernels

/// Predicts from the input of an attention layer which heads matter for a token: one linear layer from the hidden state to heads.
///
/// ```swift
/// let router = try HeadRouter(weight: w)                              // [heads, hiddenSize]
/// let heads = try router.select(hidden, count: 4)        // a row per sequence
/// try attention.run(query: q, cache: cache, sequences: sequences, heads: heads, into: &output)
/// ```
///
/// Heads are query heads, or key/value heads, whose query heads are selected together.
///
/// - Complexity: heads · hiddenSize multiply-adds per token, about a thousandth of a layer's.
/// - Source: Polar Sparsity (arXiv 2505.14884), section 4.2.
public struct HeadRouter: Sendable {
    /// `[heads, inFeatures]`.
    public let weight: Tensor<Float>
    /// `[heads]`; nil means 0.
    public let bias: Tensor<Float>?
    private let layer: FloatLinear

    /// - Parameters:
    ///   - weight: `[heads, inFeatures]`.
    ///   - bias: `[heads]`.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for a weight that is no matrix with elements, or a bias of another size; `.invalidArgument` for a
    ///   number that is not finite; `.unsupportedInstructionSet`.
    public init(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try requireFinite(weight, named: "weight")
        layer = try FloatLinear(weight: weight, bias: bias, instructionSet: instructionSet)
        self.weight = weight
        self.bias = bias
    }

    public var heads: Int { layer.outFeatures }
    public var inFeatures: Int { layer.inFeatures }

    /// The score of every head for the rows of x. The larger, the more it matters.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`, the input of the layer's projections.
    ///   - scores: `[tokens, heads]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the router; nothing is written then.
    public func run(
        _ x: MatrixView<Float>, into scores: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) { try layer.run(x: x, y: scores, on: pool) }

    /// The heads with the largest scores for the last token of every sequence. Of equal scores the lower head is taken.
    ///
    /// - Parameters:
    ///   - x: `[sequences, inFeatures]`.
    ///   - count: heads of each sequence, 0 to all.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for x of another width; `.invalidArgument` for a count out of range, or scores that are NaN.
    public func select(
        _ x: MatrixView<Float>, count: Int, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> HeadSelection {
        var scores = try Tensor<Float>(zeros: [x.rows, heads])
        try run(x, into: scores.mutableMatrixView(named: "scores"), on: pool)
        return try .strongest(scores.matrixView(named: "scores"), count: count)
    }

    // MARK: - Files

    /// Adds the router to a file, as `<prefix>.weight` and `<prefix>.bias`.
    /// - Throws: `.invalidArgument` for a name that is used already.
    public func add(to writer: inout SafetensorsWriter, prefix: String) throws(SparseKernelsError) {
        try writer.add("\(prefix).weight", weight)
        if let bias { try writer.add("\(prefix).bias", bias) }
    }

    /// Reads a router, of `F32`, `F16` or `BF16`.
    /// - Throws: `.notFound`, `.invalidElementType`, and `.malformedFile` for shapes and numbers that no router has.
    public init(
        file: SafetensorsFile, prefix: String, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let weight = try file.floatTensor("\(prefix).weight")
        let bias = file["\(prefix).bias"] == nil ? nil : try file.floatTensor("\(prefix).bias")
        self = try file.validated { () throws(SparseKernelsError) in
            try HeadRouter(weight: weight, bias: bias, instructionSet: instructionSet)
        }
    }
}

/// Throws `.invalidArgument` naming the first element that is not finite.
func requireFinite(_ tensor: Tensor<Float>, named name: String) throws(SparseKernelsError) {
    let elements = tensor.span
    for index in 0..<elements.count where !elements[index].isFinite {
        throw SparseKernelsError(
            .invalidArgument, name, expected: "finite", actual: "\(elements[index]) at element \(index)")
    }
}
