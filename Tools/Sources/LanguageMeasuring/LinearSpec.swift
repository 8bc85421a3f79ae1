import CATS
public import SparseKernels
public import SparseKernelsModels

/// How linear layers are computed, as people write it: `w4a8`, `w4a4:32` for a branch of rank 32 that is made when the model is loaded,
/// or `fp8:1` for one layer at each end in bfloat16.
public struct LinearSpec: Hashable, Sendable, CustomStringConvertible {
    public let format: LinearFormat
    /// nil means no branch, but that of the file.
    public let rank: Int?
    /// Layers at each end in bfloat16, with FP8.
    public let wideLayers: Int
    /// The sparsity of MLPs with CATS, of a model that has it.
    public private(set) var catsSparsity: Double?

    public init(_ format: LinearFormat, rank: Int? = nil, wideLayers: Int = 0) {
        self.format = format
        self.rank = rank
        self.wideLayers = wideLayers
    }

    /// That of a model.
    public init(_ model: LanguageModel) {
        self.init(model.linear, rank: model.rank, wideLayers: model.wideLayers)
        catsSparsity = model.cats?.sparsity
    }

    /// - Throws: `.invalidArgument` for a name that is not known, or a rank that is no number.
    public init(_ text: String) throws(SparseKernelsError) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        let number = parts.count == 2 ? Int(parts[1]) : nil
        guard let format = LinearFormat(rawValue: String(parts.first ?? "")), parts.count < 3,
            parts.count < 2 || number.map({ $0 >= 0 && (format.isQuantized || format == .fp8) }) ?? false
        else {
            throw SparseKernelsError(
                .invalidArgument, "linear layers",
                expected:
                    "of \(LinearFormat.allCases.map(\.rawValue).joined(separator: ", ")); w4a16, w4a8 and w4a4 may have :RANK "
                    + "behind them, for a low-rank branch beside weights of 16 bits, and fp8 :LAYERS that keep bfloat16 at each end",
                actual: "\"\(text)\"")
        }
        if format == .fp8 {
            self.init(format, wideLayers: number ?? 0)
        } else {
            self.init(format, rank: number)
        }
    }

    public var description: String {
        format.rawValue + (rank.map { ":\($0)" } ?? "") + (wideLayers > 0 ? ":\(wideLayers)" : "")
            + (catsSparsity.map { "+cats:\($0)" } ?? "")
    }
}
