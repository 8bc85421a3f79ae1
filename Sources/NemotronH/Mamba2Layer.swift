public import SparseKernels

/// A Mamba-2 layer with its two projections: x to z, x, B, C and the time steps; the mixer; and back.
///
/// ```swift
/// let layer = try Mamba2Layer(file: file, prefix: "backbone.layers.0.mixer", configuration)
/// let states = try Mamba2States(slots: 2, configuration)
/// let prompt = try layer(x, batch: PackedSequences(lengths: [300, 200]), states: states)
/// let step = try layer(next, batch: PackedSequences(stepOf: [0, 1]), states: states)
/// ```
///
/// The norm before the layer and the residual stream around it are the caller's.
///
/// - Exactness: that of `FloatLinear` and `Mamba2Mixer`.
/// - Complexity: hiddenSize · (projectedWidth + innerWidth) multiply-adds per token beside the mixer's.
/// - Scratch: that of its parts; calls allocate their result and the rows between, which `Mamba2Mixer.run` does not.
public struct Mamba2Layer: Sendable {
    public let mixer: Mamba2Mixer
    /// `[projectedWidth, hiddenSize]`.
    public let input: FloatLinear
    /// `[hiddenSize, innerWidth]`.
    public let output: FloatLinear
    public var configuration: Mamba2Configuration { mixer.configuration }
    public var hiddenSize: Int { input.inFeatures }

    /// - Throws: `.invalidShape` for projections of other widths than the mixer's.
    public init(mixer: Mamba2Mixer, input: FloatLinear, output: FloatLinear) throws(SparseKernelsError) {
        let c = mixer.configuration
        try require(
            input.outFeatures == c.projectedWidth, .invalidShape, "input.outFeatures", expected: "\(c.projectedWidth)",
            actual: "\(input.outFeatures)")
        try require(
            output.inFeatures == c.innerWidth && output.outFeatures == input.inFeatures, .invalidShape, "output",
            expected: "[\(input.inFeatures), \(c.innerWidth)]", actual: "[\(output.outFeatures), \(output.inFeatures)]")
        self.mixer = mixer
        self.input = input
        self.output = output
    }

    /// How the weights of the projections are kept.
    public enum WeightStorage: String, Hashable, Sendable, CaseIterable {
        /// In the type that the file has.
        case asStored
        /// In E4M3 with a scale per projection.
        case float8
    }

    /// Reads a layer of a checkpoint with the names of Hugging Face: `in_proj` and `out_proj`, with biases where the file has them, and
    /// the tensors of `Mamba2Tensors`.
    ///
    /// - Parameters:
    ///   - file: a file with the tensors, in 16 or 32 bits.
    ///   - prefix: the name of the mixer, such as `backbone.layers.0.mixer`; empty for none.
    ///   - configuration: the sizes that the tensors must have.
    ///   - weights: how those of the projections are kept.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.notFound`, `.invalidElementType` and `.invalidShape` naming file and tensor; the errors of `Mamba2Mixer`.
    public init(
        file: SafetensorsFile, prefix: String, _ configuration: Mamba2Configuration, weights: WeightStorage = .asStored,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let c = configuration
        let name = file.name("in_proj.weight", in: prefix)
        let shape = try file.entry(named: name).shape
        try require(
            shape.count == 2 && shape[0] == c.projectedWidth && shape[1] >= 1, .invalidShape,
            "\(file.name), tensor \(quoted(name))", expected: "[\(c.projectedWidth), hiddenSize]", actual: "\(shape)")
        func linear(_ name: String, _ outFeatures: Int, _ inFeatures: Int) throws(SparseKernelsError) -> FloatLinear {
            let (weight, biasName) = (file.name(name + ".weight", in: prefix), name + ".bias")
            let shape = try file.entry(named: weight).shape
            try require(
                shape == [outFeatures, inFeatures], .invalidShape, "\(file.name), tensor \(quoted(weight))",
                expected: "[\(outFeatures), \(inFeatures)]", actual: "\(shape)")
            let hasBias = file[file.name(biasName, in: prefix)] != nil
            let bias = hasBias ? try file.floats(biasName, in: prefix, [outFeatures]) : nil
            if weights == .float8 {
                return try FloatLinear(
                    weight: Float8Tensor<E4M3>(file.floatTensor(weight), instructionSet: instructionSet, on: pool), bias: bias,
                    instructionSet: instructionSet, on: pool)
            }
            switch file[weight]?.elementType {
            case .float16:
                return try FloatLinear(
                    weight: file.tensor(weight, as: Float16.self), bias: bias, instructionSet: instructionSet, on: pool)
            case .bfloat16:
                return try FloatLinear(
                    weight: file.tensor(weight, as: BFloat16.self), bias: bias, instructionSet: instructionSet, on: pool)
            default:
                return try FloatLinear(weight: file.floatTensor(weight), bias: bias, instructionSet: instructionSet, on: pool)
            }
        }
        try self.init(
            mixer: Mamba2Mixer(file: file, prefix: prefix, c, instructionSet: instructionSet),
            input: linear("in_proj", c.projectedWidth, shape[1]), output: linear("out_proj", shape[1], c.innerWidth))
    }

    /// Runs the tokens of a packed batch.
    ///
    /// - Parameters:
    ///   - x: `[tokens, hiddenSize]`, normalised.
    ///   - batch: the tokens of each sequence, and its slot.
    ///   - states: of the layer; those of the batch's slots go on.
    ///   - pool: the threads to use.
    /// - Returns: `[tokens, hiddenSize]`, which is added to the residual stream.
    /// - Throws: the errors of `Mamba2Mixer.run`, and `.invalidShape` for another x. The states are unchanged then.
    public func callAsFunction(
        _ x: Tensor<Float>, batch: PackedSequences, states: Mamba2States, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let projected = try input(x, on: pool)
        var mixed = try Tensor<Float>(zeros: [x.shape[0], configuration.innerWidth])
        var workspace = Mamba2Workspace()
        try mixer.run(
            projected: projected.matrixView(named: "projected"), into: mixed.mutableMatrixView(named: "mixed"), batch: batch,
            states: states, workspace: &workspace, on: pool)
        return try output(mixed, on: pool)
    }
}
