/// The tables of a report: the operations and the columns of each table.
///
/// Dense attention that is timed beside sparse rows is named like them (`prefill.dense`), so that it is in their table.
public enum ReportSection: CaseIterable, Sendable {
    case matrixProduct, denseAttention, blockSparse, scoring, prefill, quantizedProduct, quantizationError
    case decode, decodeUpkeep, decodeQuality

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
        case .decode: ["decode.step"]
        case .decodeUpkeep: ["decode.upkeep"]
        case .decodeQuality: ["decode.quality"]
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
        case .decode: "Decoding from a paged cache, time of a token in a layer"
        case .decodeUpkeep: "Keeping a paged cache"
        case .decodeQuality: "What page and token selection keep of dense attention"
        }
    }

    public var columns: Set<TextTable.Column> {
        switch self {
        case .matrixProduct: [.median, .spread, .actual, .roof, .speedup, .error, .bound]
        case .denseAttention: [.median, .spread, .actual, .effective, .roof, .speedup, .error, .bound]
        // The bound is only in the JSON, here and below, because the lines would be too long for a terminal.
        case .blockSparse: [.density, .median, .spread, .actual, .roof, .speedup, .efficiency, .share, .error]
        case .scoring: [.density, .median, .spread, .actual, .speedup, .share, .recall, .error, .bound]
        case .prefill: [.density, .oracleDensity, .median, .spread, .speedup, .share, .recall, .outputError, .error]
        case .quantizedProduct:
            [.median, .spread, .effective, .weightRate, .roof, .speedup, .outputError, .error, .bound]
        case .quantizationError: [.outputError, .quantization, .speedup, .error, .bound]
        case .decode: [.median, .spread, .bytesRead, .readRate, .roof, .speedup, .sameFormat, .scoring, .error]
        case .decodeUpkeep: [.median, .spread, .share, .memory]
        case .decodeQuality: [.density, .oracleDensity, .keptTokens, .budgetTokens, .recall, .outputError, .error]
        }
    }
}
