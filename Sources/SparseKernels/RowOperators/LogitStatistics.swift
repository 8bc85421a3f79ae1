internal import Foundation
internal import KernelInterface

/// Statistics of rows of logits in one pass over memory: the largest entries with their indices, and ln Σ eˣ.
///
/// ```swift
/// let statistics = try LogitStatistics(vocabulary: 128_256, topK: 40)
/// let summary = try statistics(logits)
/// print(summary.argmax(0), summary.maximum(0), summary.logSumExp[0])
/// ```
///
/// Rows are cut into pieces of 16384 entries, so that several threads share the one row of a decoding step.
///
/// - Order: larger entries first, of equal ones the lower index. The two zeros are equal. NaN ranks above ∞, as in ``TopK`` and torch, so
///   that it is seen: a row with NaN has NaN as maximum, the index of its first NaN as argmax, and NaN as ln Σ eˣ. Without NaN, a row
///   with ∞ has ln Σ eˣ = ∞, and a row of −∞ has −∞ and argmax 0.
/// - Exactness: the order is exact. ln Σ eˣ is within 4·10⁻⁷ + 2·10⁻⁸·(m − x) (10⁻⁷·(m − x) on the portable level) of the mean over the
///   distribution, plus 90 · 2⁻²⁴ for the sums, plus the rounding of the result. A soft cap adds the 4·10⁻⁷ of tanh, relative to each entry.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: O(rows · vocabulary), and O(topK · log topK) per row.
/// - Scratch: `scratchByteCount` per thread, and a workspace of 8 bytes per piece and kept entry for up to 64 rows.
public struct LogitStatistics: Sendable {
    /// Entries of a row.
    public let vocabulary: Int
    /// Entries to keep of each row: what was asked for, or `vocabulary` if that is less.
    public let topK: Int
    /// Entries are replaced by cap·tanh(entry/cap) first; nil means that they are not.
    public let softCap: Float?
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// The most entries to keep: a piece has no more.
    public static let maximumTopK = LogitScratch.pieceColumns

    /// - Parameters:
    ///   - vocabulary: entries of a row, at least 1 and below 2³¹.
    ///   - topK: entries to keep, 1…16384. It is made for some hundreds.
    ///   - softCap: positive and finite; nil means none.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for a vocabulary, `.invalidArgument` for a number of entries or a cap out of range,
    ///   `.unsupportedInstructionSet`.
    public init(
        vocabulary: Int, topK: Int = 1, softCap: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            vocabulary >= 1 && vocabulary < 1 << 31, .invalidShape, "vocabulary", expected: "at least 1 and below 2³¹",
            actual: "\(vocabulary)")
        try require(
            topK >= 1 && topK <= Self.maximumTopK, .invalidArgument, "topK", expected: "from 1 to \(Self.maximumTopK)",
            actual: "\(topK)")
        if let softCap {
            try require(
                softCap >= .leastNormalMagnitude && softCap.isFinite, .invalidArgument, "softCap",
                expected: "positive and finite", actual: "\(softCap)")
        }
        self.vocabulary = vocabulary
        self.topK = min(topK, vocabulary)
        self.softCap = softCap
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { LogitScratch(kept: topK).byteCount }

    /// Memory for the statistics of some rows, for calls that reuse it.
    /// - Throws: `.invalidShape` for a negative number of rows or a size that overflows.
    public func makeSummary(rows: Int) throws(SparseKernelsError) -> LogitSummary { try LogitSummary(rows: rows, topK: topK) }

    /// Finds the statistics of rows of logits.
    ///
    /// - Parameters:
    ///   - logits: rows × vocabulary.
    ///   - summary: of as many rows, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement>(
        _ logits: MatrixView<X>, into summary: inout LogitSummary, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("logits", logits.columns, expected: vocabulary)
        try requireMatrix("summary", rows: summary.rows, columns: summary.topK, expected: (logits.rows, topK))
        if logits.rows == 0 { return }
        let values = summary.topValues.uniqueAddress()
        let indices = summary.topIndices.uniqueAddress()
        let logSumExp = summary.logSumExp.uniqueAddress()
        let operand = RowOperand(logits)
        let rows = logits.rows
        // Enough rows that all threads have work, and few enough that the workspace is small.
        let blockRows = min(rows, 64)
        let layout = LogitBlock(rows: blockRows, pieces: pieces, kept: topK)
        pool.withWorkspace(byteCount: layout.byteCount) { workspace in
            var first = 0
            while first < rows {
                let count = min(blockRows, rows - first)
                let call = LogitCall(
                    plan: self, logits: operand.from(first), rows: count, layout: layout, workspace: workspace,
                    values: values + first * topK, indices: indices + first * topK, logSumExp: logSumExp + first)
                // An exponential takes as long as moving about 8 bytes.
                pool.run(
                    call, tasks: (count * pieces + call.run - 1) / call.run, work: count * vocabulary * 8,
                    scratchByteCount: scratchByteCount)
                let ranking = LogitRankCall(call: call)
                pool.run(ranking, tasks: count, work: count * pieces * topK * 64)
                first += count
            }
        }
    }

    /// Finds the statistics of the rows of a tensor, `[rows, vocabulary]`.
    /// - Throws: the errors of `run` with a view, and `.invalidShape` for another rank.
    public func run<X: AttentionElement>(
        _ logits: Tensor<X>, into summary: inout LogitSummary, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(logits.matrixView(named: "logits"), into: &summary, on: pool)
    }

    /// The statistics of the rows of a tensor, `[rows, vocabulary]`.
    /// - Throws: the errors of `run`.
    public func callAsFunction<X: AttentionElement>(
        _ logits: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> LogitSummary {
        var summary = try makeSummary(rows: logits.matrixView(named: "logits").rows)
        try run(logits, into: &summary, on: pool)
        return summary
    }

    /// Pieces of a row.
    private var pieces: Int { (vocabulary + LogitScratch.pieceColumns - 1) / LogitScratch.pieceColumns }

    /// Summarises the pieces of some rows.
    private struct LogitCall: PoolCall {
        let plan: LogitStatistics
        let logits: RowOperand
        let rows: Int
        let layout: LogitBlock
        let workspace: UnsafeMutableRawPointer
        let values: UnsafeMutablePointer<Float>
        let indices: UnsafeMutablePointer<Int32>
        let logSumExp: UnsafeMutablePointer<Float>

        /// Pieces of a task. While it sums one, a task fetches the next, so a task has several when there are enough of them.
        var run: Int { rows * layout.pieces >= 64 ? 4 : 1 }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let all = rows * layout.pieces
            let end = min((task + 1) * run, all)
            for number in task * run..<end { summarize(number, hasNext: number + 1 < end, scratch: scratch) }
        }

        private func summarize(_ number: Int, hasNext: Bool, scratch: UnsafeMutableRawPointer) {
            let (row, piece) = number.quotientAndRemainder(dividingBy: layout.pieces)
            let first = piece * LogitScratch.pieceColumns
            let count = min(LogitScratch.pieceColumns, plan.vocabulary - first)
            var operand = logits.from(row)
            operand.base += first * operand.type.byteCount
            var arguments = SummarizeLogitsArguments(
                logits: operand, count: count, first: first, kept: min(count, plan.topK),
                keys: layout.keys(workspace, row: row) + piece * plan.topK, sums: layout.sums(workspace, row: row) + 2 * piece,
                scratch: scratch)
            arguments.softCap = plan.softCap ?? 0
            // Behind the last piece of a row is the next row, unless rows have gaps; fetching what is there does no harm.
            arguments.hasNext = hasNext
            plan.kernels.summarizeLogits(&arguments)
        }
    }

    /// Joins the pieces of each row.
    private struct LogitRankCall: PoolCall {
        let call: LogitCall

        func perform(task row: Int, scratch: UnsafeMutableRawPointer) {
            let (plan, layout) = (call.plan, call.layout)
            // All pieces but the last one kept `topK` entries. The last one follows them without a gap.
            let last = plan.vocabulary - (layout.pieces - 1) * LogitScratch.pieceColumns
            var arguments = RankLogitsArguments(
                keys: layout.keys(call.workspace, row: row), count: (layout.pieces - 1) * plan.topK + min(last, plan.topK),
                kept: plan.topK, values: call.values + row * plan.topK, indices: call.indices + row * plan.topK)
            plan.kernels.rankLogits(&arguments)
            call.logSumExp[row] = logSumExp(layout.sums(call.workspace, row: row), pieces: layout.pieces)
        }

        /// ln Σ over the pieces of e^m · sum, in `Double` and in their order.
        private func logSumExp(_ sums: UnsafePointer<Float>, pieces: Int) -> Float {
            var maximum = -Float.infinity
            for piece in 0..<pieces {
                if sums[2 * piece + 1].isNaN { return .nan }
                if sums[2 * piece] > maximum { maximum = sums[2 * piece] }
            }
            if maximum.isInfinite { return maximum }
            var total = 0.0
            for piece in 0..<pieces where sums[2 * piece] > -.infinity {
                total += Double(sums[2 * piece + 1]) * exp(Double(sums[2 * piece]) - Double(maximum))
            }
            return Float(Double(maximum) + log(total))
        }
    }
}

/// Where the pieces of a block of rows put their statistics.
private struct LogitBlock {
    let pieces: Int
    let kept: Int
    let byteCount: Int
    private let keyByteCount: Int

    init(rows: Int, pieces: Int, kept: Int) {
        self.pieces = pieces
        self.kept = kept
        keyByteCount = rows * pieces * kept * 8
        byteCount = keyByteCount + rows * pieces * 8
    }

    func keys(_ workspace: UnsafeMutableRawPointer, row: Int) -> UnsafeMutablePointer<UInt64> {
        workspace.assumingMemoryBound(to: UInt64.self) + row * pieces * kept
    }

    func sums(_ workspace: UnsafeMutableRawPointer, row: Int) -> UnsafeMutablePointer<Float> {
        (workspace + keyByteCount).assumingMemoryBound(to: Float.self) + row * pieces * 2
    }
}
