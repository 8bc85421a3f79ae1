/// The tables of a report, with the operations in each. Metrics state the tables in which they have a column.
///
/// Dense attention that is timed beside sparse rows has a name like theirs (`prefill.dense`), so that it is in their table.
public enum ReportSection: String, CaseIterable, Sendable {
    case matrixProduct, denseAttention, blockSparse, scoring, prefill, quantizedProduct, quantizationError, rowOperators
    case decode, branches, decodeUpkeep, decodeQuality, blocks, video, recurrence, contextual, vision, ranks

    public init(op: String) {
        let owner = Self.allCases.first { section in section.prefixes.contains { op.hasPrefix($0) } }
        self = owner ?? .denseAttention
    }

    private var prefixes: [String] {
        switch self {
        case .matrixProduct: ["gemm"]
        case .denseAttention: ["attention.dense"]
        case .blockSparse: ["attention.blocksparse", "attention.plan"]
        case .scoring: ["scoring"]
        case .prefill: ["prefill"]
        case .quantizedProduct: ["quant.product"]
        case .quantizationError: ["quant.error"]
        case .rowOperators: ["rows"]
        case .decode: ["decode.step"]
        case .branches: ["decode.branches"]
        case .decodeUpkeep: ["decode.upkeep"]
        case .decodeQuality: ["decode.quality"]
        case .blocks: ["blocks"]
        case .video: ["video"]
        case .recurrence: ["recurrence"]
        case .contextual: ["contextual"]
        case .vision: ["vision"]
        case .ranks: ["ranks"]
        }
    }

    public var title: String {
        switch self {
        case .matrixProduct: "Single-precision matrix product"
        case .denseAttention: "Dense attention"
        case .blockSparse: "Block-sparse attention"
        case .scoring: "Block scoring"
        case .prefill: "Prefill, end to end"
        case .quantizedProduct: "Linear layers with quantised weights"
        case .quantizationError: "What quantising a layer costs in accuracy, and in time"
        case .rowOperators: "Norms, rotations, activations, embeddings and statistics of logits"
        case .decode: "Decoding from a paged cache, time of a token in a layer"
        case .branches: "Decoding branches that share a prefix, time of a token in a layer"
        case .decodeUpkeep: "Keeping a paged cache"
        case .decodeQuality: "What page and token selection keep of dense attention"
        case .blocks: "Blocks of rows over a long context"
        case .video: "Attention of video tokens"
        case .recurrence: "Recurrences, time of a layer"
        case .contextual: "Contextual sparsity: picked channels, experts, gradients"
        case .vision: "Visual tokens: towers, projectors, selected patches"
        case .ranks: "Ranks on one machine: prefill, decoding, messages"
        }
    }

    /// The metrics with a column in this table, in the order of the columns.
    public var metrics: [Metric] { Metric.all.filter { $0.sections.contains(self) } }
}
