public import SparseKernels

/// A linear layer with QServe's weights and 8-bit activations (W4A8): y = x̂ · Wᵀ + bias.
///
/// Activations are quantised during the product, symmetrically, with one scale per token: scale = max |x| / 127, rounded to the
/// element type of x, and code = x / scale, rounded to nearest even. The released engine uses fp16: with x in `Float16` codes
/// and scales are equal to its own. With x in `Float` the scale is not rounded.
///
///     let layer = try QServeLinear(weight: weight, bias: bias)
///     let y = try layer(x)
public struct QServeLinear: Sendable {
    /// The weight, packed for the kernels, and the bias. The logical weight is not kept.
    public let linear: QuantizedLinear

    public var outFeatures: Int { linear.outFeatures }
    public var inFeatures: Int { linear.inFeatures }

    /// Quantises a weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - bias: `[outFeatures]`.
    ///   - quantizer: the settings; QServe's groups of 128 by default.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of the quantizer and of `init(quantized:bias:instructionSet:on:)`.
    public init(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, quantizer: ProgressiveQuantizer? = nil,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let quantizer = if let quantizer { quantizer } else { try ProgressiveQuantizer() }
        try self.init(quantized: quantizer(weight, on: pool), bias: bias, instructionSet: instructionSet, on: pool)
    }

    /// Reads a layer of a file.
    ///
    /// - Parameters:
    ///   - file: a QServe checkpoint. Its data are copied, so it need not stay open.
    ///   - prefix: the layer's name in the file, such as `model.layers.0.mlp.down_proj`; empty for none.
    ///   - order: the packer that made the file.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: as `QServeTensors.init(file:prefix:)`; `.malformedFile` for negative scales or bytes between the levels that
    ///   do not fit; `.unsupportedInstructionSet`.
    public init(
        file: SafetensorsFile, prefix: String = "", order: QServeTensors.Order, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let tensors = try QServeTensors(file: file, prefix: prefix)
        let weight = try QServeTensors.naming(file, prefix) { () throws(SparseKernelsError) in
            try tensors.weight(order: order, on: pool)
        }
        try self.init(checked: weight, bias: tensors.bias, instructionSet: instructionSet)
    }

    /// Makes a layer from packed tensors.
    ///
    /// - Parameters:
    ///   - tensors: the packed tensors.
    ///   - order: the packer that made the tensors.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: as `QServeTensors.weight(order:on:)`, and `.unsupportedInstructionSet`.
    public init(
        _ tensors: QServeTensors, order: QServeTensors.Order, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            checked: tensors.weight(order: order, on: pool), bias: tensors.bias, instructionSet: instructionSet)
    }

    /// Makes a layer from a quantised weight.
    ///
    /// - Parameters:
    ///   - weight: in the form of `ProgressiveQuantizer`: uint4 with offsets, in groups with channel scales or per channel.
    ///   - bias: `[outFeatures]`.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for a weight of another form, bytes between the levels that do not fit, or a bias that is
    ///   not finite; `.invalidShape` for another shape of the bias; `.unsupportedInstructionSet`.
    public init(
        quantized weight: QuantizedWeight, bias: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if weight.format.groupSize == nil {
            try require(
                weight.format.code == .uint4 && weight.offsets != nil && weight.channelScales == nil, .invalidArgument,
                "weight", expected: "uint4 per channel, with offsets and without channel scales", actual: "\(weight.format)")
        } else {
            try IntermediateRange(weight, on: pool).require("weight")
        }
        try self.init(checked: weight, bias: bias, instructionSet: instructionSet)
    }

    private init(
        checked weight: QuantizedWeight, bias: Tensor<Float>?, instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        if let bias {
            try require(
                bias.shape == [weight.outFeatures], .invalidShape, "bias", expected: "[\(weight.outFeatures)]",
                actual: "\(bias.shape)")
            let bad = bias.elements.first { !$0.isFinite }
            try require(bad == nil, .invalidArgument, "bias", expected: "finite", actual: "\(bad ?? 0)")
        }
        linear = try QuantizedLinear(
            PackedWeight(weight, instructionSet: instructionSet), activation: .int8PerToken, bias: bias)
    }

    /// Computes y for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - y: `[tokens, outFeatures]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    /// - Complexity: O(tokens · outFeatures · inFeatures). Scratch is that of `QuantizedLinear`.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try linear.run(x: x, y: y, on: pool)
    }

    /// Computes y for the rows of x in a new tensor `[tokens, outFeatures]`.
    /// - Throws: as `run`.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try linear(x, on: pool)
    }
}
