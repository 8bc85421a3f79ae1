public import SparseKernels

/// A linear layer with QServe's weights and 8-bit activations (W4A8): y = x̂ · Wᵀ + bias.
///
/// Activations are quantised as the product runs, symmetrically, with one scale per token: scale = max |x| / 127, rounded to the element
/// type of x, and code = x / scale to nearest even. The released engine works in fp16; with x in `Float16` codes and scales are its own,
/// and with x in `Float` the scale is not rounded.
///
///     let layer = try QServeLinear(weight: weight, bias: bias)
///     let y = try layer(x)
public struct QServeLinear: Sendable {
    /// The weight as the kernels read it, and the bias. The logical weight is not kept.
    public let linear: QuantizedLinear

    public var outFeatures: Int { linear.outFeatures }
    public var inFeatures: Int { linear.inFeatures }

    /// Quantises a weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - bias: `[outFeatures]`.
    ///   - quantizer: how; QServe's groups of 128 by default.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: what the quantizer throws, and as `init(quantized:bias:instructionSet:on:)`.
    public init(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, quantizer: ProgressiveQuantizer? = nil,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let quantizer = if let quantizer { quantizer } else { try ProgressiveQuantizer() }
        try self.init(quantized: quantizer(weight, on: pool), bias: bias, instructionSet: instructionSet, on: pool)
    }

    /// A layer of a file.
    ///
    /// - Parameters:
    ///   - file: a QServe checkpoint; it is copied from, and need not stay open.
    ///   - prefix: the layer's name in it, such as `model.layers.0.mlp.down_proj`; empty: none.
    ///   - order: the packer that made the file.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: as `QServeTensors.init(file:prefix:)`; `.malformedFile` for negative scales and bytes between the levels that do not fit;
    ///   `.unsupportedInstructionSet`.
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

    /// A layer of packed tensors.
    ///
    /// - Parameters:
    ///   - tensors: the packed tensors.
    ///   - order: the packer that made them.
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

    /// A layer with a weight that was quantised before.
    ///
    /// - Parameters:
    ///   - weight: of the form that `ProgressiveQuantizer` makes: uint4 with offsets, in groups with channel scales or per channel.
    ///   - bias: `[outFeatures]`.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for a weight of another form for bytes between the levels that do not fit, and for a bias that is
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

    /// y for the rows of x, in a new tensor `[tokens, outFeatures]`.
    /// - Throws: as `run`.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try linear(x, on: pool)
    }
}
