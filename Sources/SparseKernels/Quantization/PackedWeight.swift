internal import KernelInterface

/// The quantised weight of a linear layer in the order in which the kernels of one instruction set read it.
///
/// Made from a `QuantizedWeight` when a layer is loaded, shared by the layers that run it, never written to disk. It holds no copy of
/// the weight in floating point.
public struct PackedWeight: Sendable {
    public let format: WeightFormat
    public let outFeatures: Int
    public let inFeatures: Int
    /// The instruction set whose kernels read it.
    public let instructionSet: InstructionSet
    let weight: QuantizedWeight

    /// - Throws: `.unsupportedInstructionSet`.
    public init(_ weight: QuantizedWeight, instructionSet: InstructionSet? = nil) throws(SparseKernelsError) {
        format = weight.format
        outFeatures = weight.outFeatures
        inFeatures = weight.inFeatures
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        self.weight = weight
    }

    /// Bytes held: codes, scales and offsets with the padding of rows and columns to whole registers.
    public var byteCount: Int { weight.codes.count + weight.scales.count * 2 }
}
