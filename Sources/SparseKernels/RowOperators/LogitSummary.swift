/// What `LogitStatistics` finds in rows of logits. It may be reused from call to call.
public struct LogitSummary: Sendable, Equatable {
    /// The largest entries of each row in descending order, `[rows, topK]`; equal ones by lower index first.
    public internal(set) var topValues: Tensor<Float>
    /// The indices of `topValues`, `[rows, topK]`.
    public internal(set) var topIndices: Tensor<Int32>
    /// ln Σ eˣ of each row, `[rows]`.
    public internal(set) var logSumExp: Tensor<Float>

    /// Memory for the statistics of some rows.
    init(rows: Int, topK: Int) throws(SparseKernelsError) {
        topValues = try Tensor(zeros: [rows, topK])
        topIndices = try Tensor(zeros: [rows, topK])
        logSumExp = try Tensor(zeros: [rows])
    }

    public var rows: Int { topValues.shape[0] }
    /// Entries that are kept of each row: no more than there are.
    public var topK: Int { topValues.shape[1] }

    /// The index of the largest entry of a row, the lowest of equal ones.
    public func argmax(_ row: Int) -> Int { Int(topIndices[row, 0]) }

    /// The largest entry of a row.
    public func maximum(_ row: Int) -> Float { topValues[row, 0] }

    /// The natural logarithm of the probability of an entry of a row, given its value: value − ln Σ eˣ.
    public func logProbability(ofValue value: Float, row: Int) -> Float { value - logSumExp[row] }
}
