public import SparseKernels
public import SparseKernelsModels

/// How linear layers are computed, as people write it: `w4a8`, or `w4a4:32` for a branch of rank 32 that is made when the model is
/// loaded.
public struct LinearSpec: Hashable, Sendable, CustomStringConvertible {
    public let format: LinearFormat
    /// nil means no branch, but that of the file.
    public let rank: Int?

    public init(_ format: LinearFormat, rank: Int? = nil) {
        self.format = format
        self.rank = rank
    }

    /// That of a model.
    public init(_ model: LanguageModel) { self.init(model.linear, rank: model.rank) }

    /// - Throws: `.invalidArgument` for a name that is not known, or a rank that is no number.
    public init(_ text: String) throws(SparseKernelsError) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        let rank = parts.count == 2 ? Int(parts[1]) : nil
        guard let format = LinearFormat(rawValue: String(parts.first ?? "")), parts.count < 3,
            parts.count < 2 || rank.map({ $0 >= 0 && format.isQuantized }) ?? false
        else {
            throw SparseKernelsError(
                .invalidArgument, "linear layers",
                expected:
                    "of \(LinearFormat.allCases.map(\.rawValue).joined(separator: ", ")); w4a16, w4a8 and w4a4 may have :RANK "
                    + "behind them, for a low-rank branch beside weights of 16 bits",
                actual: "\"\(text)\"")
        }
        self.init(format, rank: rank)
    }

    public var description: String { format.rawValue + (rank.map { ":\($0)" } ?? "") }
}
