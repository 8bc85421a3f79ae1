public import SparseKernels

/// The weights of a Mamba-2 layer between its projections, as a checkpoint has them.
public struct Mamba2Tensors: Sendable {
    /// `[convolvedWidth, convolutionWidth]`, the oldest token first.
    public var convolutionWeight: Tensor<Float>
    /// `[convolvedWidth]`, or nil.
    public var convolutionBias: Tensor<Float>?
    /// `[heads]`: added to the time steps before softplus.
    public var timeStepBias: Tensor<Float>
    /// `[heads]`: ln(−A).
    public var aLog: Tensor<Float>
    /// `[heads]`: D, the factor of x in the output.
    public var skip: Tensor<Float>
    /// `[innerWidth]`: of the gated norm.
    public var normWeight: Tensor<Float>

    public init(
        convolutionWeight: Tensor<Float>, convolutionBias: Tensor<Float>?, timeStepBias: Tensor<Float>, aLog: Tensor<Float>,
        skip: Tensor<Float>, normWeight: Tensor<Float>
    ) {
        self.convolutionWeight = convolutionWeight
        self.convolutionBias = convolutionBias
        self.timeStepBias = timeStepBias
        self.aLog = aLog
        self.skip = skip
        self.normWeight = normWeight
    }

    /// Reads a layer of a checkpoint with the names of Hugging Face: `conv1d.weight` (`[convolvedWidth, 1, convolutionWidth]`),
    /// `conv1d.bias` if there is one, `dt_bias`, `A_log`, `D` and `norm.weight`.
    ///
    /// - Parameters:
    ///   - file: a file with the tensors, in 16 or 32 bits.
    ///   - prefix: the name of the mixer, such as `backbone.layers.0.mixer`; empty for none.
    ///   - configuration: the sizes that the tensors must have.
    /// - Throws: `.notFound`, `.invalidElementType` and `.invalidShape` naming file and tensor.
    public init(
        file: SafetensorsFile, prefix: String, configuration c: Mamba2Configuration
    ) throws(SparseKernelsError) {
        func tensor(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
            try file.floats(name, in: prefix, shape)
        }
        let weight = try tensor("conv1d.weight", [c.convolvedWidth, 1, c.convolutionWidth])
        convolutionWeight = try Tensor([c.convolvedWidth, c.convolutionWidth], weight.elements)
        let hasBias = file[file.name("conv1d.bias", in: prefix)] != nil
        convolutionBias = hasBias ? try tensor("conv1d.bias", [c.convolvedWidth]) : nil
        timeStepBias = try tensor("dt_bias", [c.heads])
        aLog = try tensor("A_log", [c.heads])
        skip = try tensor("D", [c.heads])
        normWeight = try tensor("norm.weight", [c.innerWidth])
    }
}

extension SafetensorsFile {
    func name(_ tensor: String, in layer: String) -> String { layer.isEmpty ? tensor : "\(layer).\(tensor)" }

    /// A tensor of 16 or 32 bits in single precision, of the shape that it must have.
    func floats(_ tensor: String, in layer: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        let name = name(tensor, in: layer)
        let entry = try entry(named: name)
        try require(
            entry.shape == shape, .invalidShape, "\(self.name), tensor \(quoted(name))", expected: "\(shape)",
            actual: "\(entry.shape)")
        return try floatTensor(name)
    }
}
