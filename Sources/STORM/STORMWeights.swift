public import SparseKernels

/// The parameters of one direction of a layer.
public struct STORMDirectionWeights: Sendable {
    /// `[innerWidth, convolutionWidth]`; the last column meets the token itself. Mamba's `[innerWidth, 1, convolutionWidth]` is taken, too.
    public var convolution: Tensor<Float>
    /// `[innerWidth]`.
    public var convolutionBias: Tensor<Float>
    /// `[dtRank + 2 · stateSize, innerWidth]`: step sizes, then B, then C.
    public var projection: Tensor<Float>
    /// `[innerWidth, dtRank]`.
    public var stepProjection: Tensor<Float>
    /// `[innerWidth]`, which the scan adds, and no product.
    public var stepBias: Tensor<Float>
    /// `[innerWidth, stateSize]`: A = −exp(aLog).
    public var aLog: Tensor<Float>
    /// D, `[innerWidth]`.
    public var skip: Tensor<Float>

    public init(
        convolution: Tensor<Float>, convolutionBias: Tensor<Float>, projection: Tensor<Float>, stepProjection: Tensor<Float>,
        stepBias: Tensor<Float>, aLog: Tensor<Float>, skip: Tensor<Float>
    ) {
        self.convolution = convolution
        self.convolutionBias = convolutionBias
        self.projection = projection
        self.stepProjection = stepProjection
        self.stepBias = stepBias
        self.aLog = aLog
        self.skip = skip
    }
}

/// The parameters of a layer.
public struct STORMLayerWeights: Sendable {
    /// `[width]` each, of the layer norm.
    public var normWeight: Tensor<Float>
    public var normBias: Tensor<Float>
    /// `[2 · innerWidth, width]`: x, then the gate z.
    public var inputProjection: Tensor<Float>
    public var forward: STORMDirectionWeights
    /// Read if the combination has parameters for it.
    public var backward: STORMDirectionWeights?
    /// `[width, innerWidth]`, or `[width, 2 · innerWidth]` for the concatenation.
    public var outputProjection: Tensor<Float>

    public init(
        normWeight: Tensor<Float>, normBias: Tensor<Float>, inputProjection: Tensor<Float>, forward: STORMDirectionWeights,
        backward: STORMDirectionWeights? = nil, outputProjection: Tensor<Float>
    ) {
        self.normWeight = normWeight
        self.normBias = normBias
        self.inputProjection = inputProjection
        self.forward = forward
        self.backward = backward
        self.outputProjection = outputProjection
    }
}

extension STORMLayerWeights {
    /// The parameters of a layer in a file, as `F32`, `F16` or `BF16`.
    ///
    /// Names follow `<prefix>.`, with those of Mamba in a direction (`forward`, `backward`):
    ///
    ///     norm.weight  norm.bias  in_proj.weight  out_proj.weight
    ///     <direction>.conv1d.weight  <direction>.conv1d.bias  <direction>.x_proj.weight
    ///     <direction>.dt_proj.weight  <direction>.dt_proj.bias  <direction>.A_log  <direction>.D
    ///
    /// - Parameters:
    ///   - file: the file.
    ///   - prefix: such as `layers.0`.
    ///   - combination: says whether there is a backward direction.
    /// - Throws: `.notFound` and `.invalidElementType`, which name the tensor.
    public init(
        _ file: SafetensorsFile, prefix: String, combination: STORMCombination
    ) throws(SparseKernelsError) {
        func direction(_ name: String) throws(SparseKernelsError) -> STORMDirectionWeights {
            let path = "\(prefix).\(name)"
            return STORMDirectionWeights(
                convolution: try file.floatTensor("\(path).conv1d.weight"),
                convolutionBias: try file.floatTensor("\(path).conv1d.bias"),
                projection: try file.floatTensor("\(path).x_proj.weight"),
                stepProjection: try file.floatTensor("\(path).dt_proj.weight"),
                stepBias: try file.floatTensor("\(path).dt_proj.bias"), aLog: try file.floatTensor("\(path).A_log"),
                skip: try file.floatTensor("\(path).D"))
        }
        self.init(
            normWeight: try file.floatTensor("\(prefix).norm.weight"), normBias: try file.floatTensor("\(prefix).norm.bias"),
            inputProjection: try file.floatTensor("\(prefix).in_proj.weight"), forward: try direction("forward"),
            backward: combination.hasBackwardWeights ? try direction("backward") : nil,
            outputProjection: try file.floatTensor("\(prefix).out_proj.weight"))
    }
}
