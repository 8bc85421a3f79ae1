/// The names of the projections of an expert in checkpoints of Hugging Face.
public enum ExpertNames: String, Hashable, Sendable, CaseIterable {
    /// `w1`, `w3`, `w2` of `block_sparse_moe.experts.N`: Mixtral.
    case mixtral
    /// `gate_proj`, `up_proj`, `down_proj` of `mlp.experts.N`: Qwen, OLMoE, DeepSeek.
    case projections

    var gate: String { self == .mixtral ? "w1" : "gate_proj" }
    var up: String { self == .mixtral ? "w3" : "up_proj" }
    var down: String { self == .mixtral ? "w2" : "down_proj" }
}

extension GatedExpert {
    /// Reads an expert of a checkpoint, in the types that the file has.
    ///
    /// ```swift
    /// let expert = try GatedExpert(file: file, prefix: "model.layers.0.mlp.experts.3", names: .projections)
    /// ```
    ///
    /// - Parameters:
    ///   - file: a file with the tensors `<prefix>.gate_proj.weight` and so on, of `F32`, `F16` or `BF16`.
    ///   - prefix: the name of the expert.
    ///   - names: those of its projections.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.notFound` and `.invalidElementType` naming file and tensor, and the errors of `init(gate:up:down:)`.
    public init(
        file: SafetensorsFile, prefix: String, names: ExpertNames, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        func linear(_ name: String) throws(SparseKernelsError) -> FloatLinear {
            let tensor = "\(prefix).\(name).weight"
            let entry = try file.entry(named: tensor)
            switch entry.elementType {
            case .float32:
                return try FloatLinear(
                    weight: file.tensor(tensor, as: Float.self), instructionSet: instructionSet, on: pool)
            case .bfloat16:
                return try FloatLinear(
                    weight: file.tensor(tensor, as: BFloat16.self), instructionSet: instructionSet, on: pool)
            #if !(os(macOS) && arch(x86_64))
                case .float16:
                    return try FloatLinear(
                        weight: file.tensor(tensor, as: Float16.self), instructionSet: instructionSet, on: pool)
            #endif
            default:
                throw SparseKernelsError(
                    .invalidElementType, "\(file.name), tensor \(quoted(tensor))", expected: "F32, F16 or BF16",
                    actual: entry.elementType.rawValue)
            }
        }
        try self.init(gate: linear(names.gate), up: linear(names.up), down: linear(names.down))
    }
}

extension ExpertLayer {
    /// Reads all experts of a layer from one file: `<prefix>.experts.N`, and `<prefix>.shared_experts` if it is there.
    ///
    /// For checkpoints in parts make a `GatedExpert` of each from the file that has it. The router's weight is
    /// `<prefix>.gate.weight`, and its correction bias `<prefix>.gate.e_score_correction_bias`.
    ///
    /// - Parameters:
    ///   - file: a file with the tensors, of `F32`, `F16` or `BF16`.
    ///   - prefix: the name of the layer, such as `model.layers.0.block_sparse_moe` or `model.layers.0.mlp`.
    ///   - experts: the number of experts.
    ///   - names: those of the projections.
    ///   - activation: f.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: the errors of ``GatedExpert`` and of `init(_:shared:activation:)`.
    public init(
        file: SafetensorsFile, prefix: String, experts: Int, names: ExpertNames,
        activation: GatedActivation.Function = .silu, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try ExpertRouting.requireCounts(experts: experts, expertsPerToken: 1)
        var all: [GatedExpert] = []
        for expert in 0..<experts {
            all.append(
                try GatedExpert(
                    file: file, prefix: "\(prefix).experts.\(expert)", names: names, instructionSet: instructionSet, on: pool))
        }
        var shared: [GatedExpert] = []
        let name = "\(prefix).shared_experts"
        if file["\(name).\(names.gate).weight"] != nil {
            shared = [try GatedExpert(file: file, prefix: name, names: names, instructionSet: instructionSet, on: pool)]
        }
        try self.init(all, shared: shared, activation: activation)
    }
}
