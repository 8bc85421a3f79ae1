import NemotronH
import SparseKernels

/// The weights of a Mamba-2 layer.
struct RecurrentMixer: Sendable {
    /// Which of the recurrent layers it is: that of the states.
    let index: Int
    let inputName: String
    let outputName: String
    /// z, then x, B and C, then the time steps.
    let input: ModelLinear
    let mixer: Mamba2Mixer
    let output: ModelLinear

    init(_ source: LayerSource, name: String, index: Int) throws(SparseKernelsError) {
        let (configuration, files) = (source.configuration, source.files)
        // Models with such layers have their sizes.
        let c = configuration.mamba2!
        self.index = index
        (inputName, outputName) = (name + ".in_proj", name + ".out_proj")
        input = try source.linear(
            [ModelLinear.Layer(name: inputName, outFeatures: c.projectedWidth)], inFeatures: configuration.hiddenSize,
            hasBias: configuration.hasRecurrenceBias)
        func tensor(_ tensor: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
            try files.tensor("\(name).\(tensor)", shape)
        }
        let weight = try tensor("conv1d.weight", [c.convolvedWidth, 1, c.convolutionWidth])
        mixer = try Mamba2Mixer(
            Mamba2Tensors(
                convolutionWeight: Tensor([c.convolvedWidth, c.convolutionWidth], weight.elements),
                convolutionBias: configuration.hasConvolutionBias ? tensor("conv1d.bias", [c.convolvedWidth]) : nil,
                timeStepBias: tensor("dt_bias", [c.heads]), aLog: tensor("A_log", [c.heads]), skip: tensor("D", [c.heads]),
                normWeight: tensor("norm.weight", [c.innerWidth])), c)
        output = try source.linear(
            [ModelLinear.Layer(name: outputName, outFeatures: configuration.hiddenSize)], inFeatures: c.innerWidth,
            hasBias: configuration.hasRecurrenceBias)
    }

    /// Computes the first `rows` rows of what lies between the projections, `[capacity, projectedWidth]` to `[capacity, innerWidth]`.
    func run(
        _ projected: Tensor<Float>, rows: Int, into mixed: inout Tensor<Float>, batch: PackedSequences, states: Mamba2States,
        workspace: inout Mamba2Workspace, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let c = mixer.configuration
        try mixer.run(
            projected: MatrixView(projected.span, rows: rows, columns: c.projectedWidth, named: "projected"),
            into: MutableMatrixView(mixed.mutableSpan, rows: rows, columns: c.innerWidth, named: "mixed"), batch: batch,
            states: states, workspace: &workspace, on: pool)
    }
}
