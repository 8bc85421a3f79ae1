public import SparseKernels

/// How a projector compresses tokens.
public enum NVILADownsampling: String, Hashable, Sendable, CaseIterable {
    /// Cells of 2 × 2 tokens: LayerNorm, Linear, GELU, Linear.
    case twoByTwo = "mlp_downsample_2x2_fix"
    /// Cells of 3 × 3 tokens: LayerNorm, Linear, GELU, LayerNorm, Linear, GELU, Linear.
    case threeByThree = "mlp_downsample_3x3_fix"

    /// Rows and columns of a cell.
    public var factor: Int { self == .twoByTwo ? 2 : 3 }

    /// The downsampling of a checkpoint's `mm_projector_type`: the raw values, or `mlp_downsample`, which is 2 × 2.
    /// - Throws: `.invalidArgument` for another name.
    public init(projectorType name: String) throws(SparseKernelsError) {
        guard let kind = name == "mlp_downsample" ? .twoByTwo : NVILADownsampling(rawValue: name) else {
            throw SparseKernelsError(
                .invalidArgument, "projectorType",
                expected: "mlp_downsample, mlp_downsample_2x2_fix or mlp_downsample_3x3_fix", actual: name)
        }
        self = kind
    }
}

/// The parameters of a projector.
public struct NVILAProjectorWeights: Sendable {
    /// Weight and bias, `[channels]` each.
    public struct Norm: Sendable {
        public var weight: Tensor<Float>
        public var bias: Tensor<Float>

        public init(weight: Tensor<Float>, bias: Tensor<Float>) {
            self.weight = weight
            self.bias = bias
        }
    }

    /// Weight, `[outFeatures, inFeatures]`, and bias, `[outFeatures]`.
    public struct Linear: Sendable {
        public var weight: Tensor<Float>
        public var bias: Tensor<Float>

        public init(weight: Tensor<Float>, bias: Tensor<Float>) {
            self.weight = weight
            self.bias = bias
        }
    }

    /// One for 2 × 2, two for 3 × 3.
    public var norms: [Norm]
    /// Two for 2 × 2, three for 3 × 3.
    public var linears: [Linear]

    public init(norms: [Norm], linears: [Linear]) {
        self.norms = norms
        self.linears = linears
    }

    /// The parameters of a checkpoint, as `F32`, `F16` or `BF16`:
    ///
    ///     2 × 2    layers.1 (norm)  layers.2  layers.4
    ///     3 × 3    layers.1 (norm)  layers.2  layers.4 (norm)  layers.5  layers.7
    ///
    /// - Parameters:
    ///   - file: the file.
    ///   - prefix: what stands before `layers`, such as "mm_projector.".
    ///   - downsampling: which of the two.
    /// - Throws: `.notFound` and `.invalidElementType`, which name the tensor.
    public init(
        _ file: SafetensorsFile, prefix: String = "", downsampling: NVILADownsampling
    ) throws(SparseKernelsError) {
        let (norms, linears) = downsampling == .twoByTwo ? ([1], [2, 4]) : ([1, 4], [2, 5, 7])
        self.init(norms: [], linears: [])
        for layer in norms {
            let name = "\(prefix)layers.\(layer)"
            self.norms.append(
                Norm(weight: try file.floatTensor(name + ".weight"), bias: try file.floatTensor(name + ".bias")))
        }
        for layer in linears {
            let name = "\(prefix)layers.\(layer)"
            self.linears.append(
                Linear(weight: try file.floatTensor(name + ".weight"), bias: try file.floatTensor(name + ".bias")))
        }
    }
}
