internal import KernelInterface

extension FloatLinear {
    /// Makes a layer of one weight in 8-bit floats, which stays in them: y = epilogue((x · codesᵀ) / scale + bias).
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]` codes and their scale.
    ///   - bias: `[outFeatures]`.
    ///   - epilogue: the function that is applied last.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` for a weight that is no matrix with elements, or a bias of another size; `.invalidArgument` for codes
    ///   or a bias that are not finite, or a scale whose reciprocal is not a normal number; `.unsupportedInstructionSet`.
    public init<Code: Float8>(
        weight: Float8Tensor<Code>, bias: Tensor<Float>? = nil, epilogue: Epilogue = .none,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(weights: [weight], bias: bias, epilogue: epilogue, instructionSet: instructionSet, on: pool)
    }

    /// Makes one layer of several over the same input, each with its own scale. Their outputs lie side by side, in this order.
    ///
    /// - Parameters: those of `init(weight:…)`; `weights` are `[outFeatures of each, inFeatures]`, and `bias` is that of all.
    /// - Throws: the errors of `init(weight:…)`, and `.invalidShape` for no weights or weights of different widths.
    public init<Code: Float8>(
        weights parts: [Float8Tensor<Code>], bias: Tensor<Float>? = nil, epilogue: Epilogue = .none,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let name = parts.count == 1 ? "weight" : "weights"
        var factors: [Float] = []
        for part in parts {
            // Kernels read codes of E4M3 in units of 2⁻⁸.
            let factor = 1 / part.scale * Code.weightUnit
            try require(
                factor.isNormal, .invalidArgument, "\(name).scale", expected: "from 2⁻¹¹⁹ to 2¹²⁵",
                actual: "\(part.scale)")
            factors.append(factor)
            let bad = part.codes.span.withUnsafeBufferPointer { codes in codes.indices.first { !codes[$0].isFinite } }
            try require(
                bad == nil, .invalidArgument, name, expected: "finite",
                actual: "a code that is not, at element \(bad ?? 0)")
        }
        try self.init(
            parts.map(\.codes), type: WeightType(Code.kernelType), factors: factors, bias: bias, epilogue: epilogue,
            instructionSet: instructionSet, on: pool)
    }
}
