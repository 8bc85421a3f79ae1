public import SparseKernels

/// The tensors of one linear layer as in QServe's files, which pack them for the registers of its CUDA kernels.
///
/// | Name | Element | Shape | |
/// |---|---|---|---|
/// | `qweight` | `I8` | `[outFeatures, inFeatures / 2]` | 4-bit codes, in blocks of 32 × 32 |
/// | `s1_scales` | `F16` | `[outFeatures]` | level 1, or the only one |
/// | `s2_scales`, `s2_zeros` | `I8` | `[inFeatures / 128, outFeatures]` | s2 and −zero, channels in an `Order`; with groups |
/// | `s1_szeros` | `F16` | `[outFeatures]` | zero; per channel |
/// | `bias` | `F16` | `[outFeatures]` | optional |
///
/// Docs/Layouts/QServe.md describes the bytes. Logical weights are `QuantizedWeight`s in the form of `ProgressiveQuantizer`.
public struct QServeTensors: Sendable {
    /// The order in `s2_scales` and `s2_zeros` of the 32 channels of a block. Files do not state it, and a wrong choice
    /// exchanges channels, mostly without an error.
    public enum Order: String, Hashable, Sendable, CaseIterable {
        /// 0, 8, 16, 24, 1, 9, …: the order of omniserve's own packer, its released checkpoints, and lmquant.
        case omniserve
        /// 0, 8, 1, 9, …, 7, 15, 16, 24, …: the order of deepcompressor's packer.
        case deepcompressor

        /// The channel at a position in a block.
        func channel(at place: Int) -> Int {
            switch self {
            case .omniserve: place % 4 * 8 + place / 4
            case .deepcompressor: place / 16 * 16 + place % 2 * 8 + place % 16 / 2
            }
        }
    }

    /// Input features per group, the only size in this format.
    public static let groupSize = 128
    /// Rows and columns of a block of `qweight`.
    static let block = 32

    public let qweight: Tensor<Int8>
    public let s1Scales: Tensor<Float>
    /// The zeros per channel; nil with groups.
    public let s1SZeros: Tensor<Float>?
    /// The scales of level 2; nil per channel.
    public let s2Scales: Tensor<Int8>?
    /// The negated zeros of level 2, as in the files; nil per channel.
    public let s2Zeros: Tensor<Int8>?
    public let bias: Tensor<Float>?

    public var outFeatures: Int { qweight.shape[0] }
    public var inFeatures: Int { qweight.shape[1] * 2 }

    /// Makes the tensors of a layer with groups.
    /// - Throws: `.invalidShape` naming the tensor that disagrees with the others or with the format's blocks;
    ///   `.invalidArgument` for a scale or bias that is not finite.
    public init(
        qweight: Tensor<Int8>, s1Scales: Tensor<Float>, s2Scales: Tensor<Int8>, s2Zeros: Tensor<Int8>,
        bias: Tensor<Float>? = nil
    ) throws(SparseKernelsError) {
        try self.init(qweight, s1Scales, s2: (s2Scales, s2Zeros), bias: bias)
    }

    /// Makes the tensors of a layer without groups, per channel.
    /// - Throws: as the initialiser with groups.
    public init(
        qweight: Tensor<Int8>, s1Scales: Tensor<Float>, s1SZeros: Tensor<Float>, bias: Tensor<Float>? = nil
    ) throws(SparseKernelsError) {
        try self.init(qweight, s1Scales, s1SZeros: s1SZeros, bias: bias)
    }

    init(
        _ qweight: Tensor<Int8>, _ s1Scales: Tensor<Float>, s1SZeros: Tensor<Float>? = nil,
        s2: (scales: Tensor<Int8>, zeros: Tensor<Int8>)? = nil, bias: Tensor<Float>?
    ) throws(SparseKernelsError) {
        let shape = qweight.shape
        let columns = s2 == nil ? Self.block : Self.groupSize
        try require(
            shape.count == 2 && shape.allSatisfy { $0 >= 1 && $0 < 1 << 30 } && shape[0] % Self.block == 0
                && shape[1] * 2 % columns == 0,
            .invalidShape, "qweight",
            expected: "[outFeatures, inFeatures / 2] with multiples of \(Self.block) and \(columns)", actual: "\(shape)")
        for (name, tensor) in [("s1_scales", s1Scales), ("s1_szeros", s1SZeros), ("bias", bias)] {
            guard let tensor else { continue }
            try require(
                tensor.shape == [shape[0]], .invalidShape, name, expected: "[\(shape[0])]", actual: "\(tensor.shape)")
            let values = tensor.span
            for index in 0..<values.count where !values[index].isFinite {
                throw SparseKernelsError(
                    .invalidArgument, name, expected: "finite", actual: "\(values[index]) at element \(index)")
            }
        }
        if let s2 {
            for (name, tensor) in [("s2_scales", s2.scales), ("s2_zeros", s2.zeros)] {
                let groups = [shape[1] * 2 / Self.groupSize, shape[0]]
                try require(tensor.shape == groups, .invalidShape, name, expected: "\(groups)", actual: "\(tensor.shape)")
            }
        }
        self.qweight = qweight
        self.s1Scales = s1Scales
        self.s1SZeros = s1SZeros
        s2Scales = s2?.scales
        s2Zeros = s2?.zeros
        self.bias = bias
    }
}
