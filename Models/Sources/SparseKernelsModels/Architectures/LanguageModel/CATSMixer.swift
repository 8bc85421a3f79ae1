import CATS
import SparseKernels

/// The weights of a gated MLP whose small activations are skipped.
struct CATSMixer: Sendable {
    /// The names of the linear layers in the file, for observers.
    let upNames: [String]
    let layer: CATSLayer

    /// - Parameters:
    ///   - prefix: of the projections' names.
    ///   - threshold: of this layer.
    /// - Throws: the errors of `check`, of the files and of `CATSLayer`.
    init(_ source: LayerSource, prefix: String, threshold: Float) throws(SparseKernelsError) {
        let c = source.configuration
        try Self.check(c, source.files, source.format)
        upNames = ["gate_proj", "up_proj"].map { prefix + $0 }
        func make<W: AttentionElement>(_ type: W.Type) throws(SparseKernelsError) -> CATSLayer {
            func weight(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<W> {
                try source.files.stacked([("\(prefix)\(name).weight", shape)], as: W.self)
            }
            let shape = [c.intermediateSize, c.hiddenSize]
            return try CATSLayer(
                gate: weight("gate_proj", shape), up: weight("up_proj", shape), down: weight("down_proj", shape.reversed()),
                threshold: threshold, function: c.activation, on: source.pool)
        }
        switch source.format {
        case .float32: layer = try make(Float.self)
        case .float16: layer = try make(Float16.self)
        default: layer = try make(BFloat16.self)
        }
    }

    /// Throws `.invalidArgument` for a model or a format that cannot skip activations.
    static func check(
        _ c: LanguageModelConfiguration, _ files: ModelFiles, _ format: LinearFormat
    ) throws(SparseKernelsError) {
        guard c.gatesMLP, !c.hasMLPBias, !files.isQuantized else {
            throw SparseKernelsError(
                .invalidArgument, "cats", expected: "a model whose MLPs have a gate, no biases, and weights of 16 or 32 bits",
                actual: files.isQuantized ? "weights of 4 bits" : c.gatesMLP ? "biases" : "no gate")
        }
        guard [.float32, .float16, .bfloat16].contains(format) else {
            throw SparseKernelsError(
                .invalidArgument, "cats", expected: "linear layers of float32, float16 or bfloat16", actual: format.rawValue)
        }
    }

    private init(_ mixer: CATSMixer, threshold: Float) throws(SparseKernelsError) {
        upNames = mixer.upNames
        layer = try mixer.layer.with(threshold: threshold)
    }

    func with(threshold: Float) throws(SparseKernelsError) -> CATSMixer { try CATSMixer(self, threshold: threshold) }
}

extension CATSLayer {
    /// Computes the first `rows` rows of `x`, `[capacity, width]`, into the first rows of `y`. Returns the computed channels.
    func run(
        _ x: Tensor<Float>, rows: Int, into y: inout Tensor<Float>, workspace: inout CATSWorkspace, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Int {
        try run(
            MatrixView(x.span, rows: rows, columns: width, named: "normalized"),
            into: MutableMatrixView(y.mutableSpan, rows: rows, columns: width, named: "update"), workspace: &workspace,
            on: pool)
    }
}

/// Channels of MLPs that were computed, of all that there are; of layers that skip some.
struct ChannelCounts {
    var computed = 0
    var all = 0
}
