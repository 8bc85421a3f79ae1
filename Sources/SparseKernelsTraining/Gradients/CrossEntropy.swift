internal import Foundation
internal import KernelInterface

/// The cross-entropy of next tokens, and its gradient: loss = Σ over rows of ln Σ eˣ − x[target].
///
/// ```swift
/// let entropy = try CrossEntropy(vocabulary: 32_000)
/// let loss = try entropy.run(logits, targets: targets, gradient: &dLogits)
/// print(loss.mean, "nats per token of", loss.tokens)
/// ```
///
/// Rows whose target is `ignoredTarget` do not count, and have a gradient of 0. Their logits are not read.
///
/// - Exactness: ln Σ eˣ is taken in `Double` from sums of ``LogitStatistics``, and the losses of rows are added in `Double`, in their order. The
///   gradient, (softmax − onehot) / divisor, is within 2·10⁻⁶ / divisor.
/// - Non-finite input: a row with NaN or ∞ has NaN as loss and gradient, as a row of −∞ does. Another entry of −∞ has a probability of 0.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: O(rows · vocabulary); a row is read from memory once.
/// - Scratch: `scratchByteCount` per thread, and a workspace of 8 bytes per row.
/// - Source: `torch.nn.functional.cross_entropy`, with its `ignore_index`.
public struct CrossEntropy: Sendable {
    /// What some rows cost.
    public struct Loss: Hashable, Sendable {
        /// The sum over the rows that count, in natural units.
        public var nats: Double
        /// The rows that count.
        public var tokens: Int
        /// Nats per token; 0 when no row counts.
        public var mean: Double { tokens == 0 ? 0 : nats / Double(tokens) }

        public init(nats: Double = 0, tokens: Int = 0) {
            self.nats = nats
            self.tokens = tokens
        }
    }

    /// Entries of a row.
    public let vocabulary: Int
    /// The target of rows that do not count.
    public let ignoredTarget: Int
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - vocabulary: entries of a row, at least 1 and below 2³¹.
    ///   - ignoredTarget: the target of rows that do not count.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for a vocabulary out of range, `.unsupportedInstructionSet`.
    public init(
        vocabulary: Int, ignoredTarget: Int = -100, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            vocabulary >= 1 && vocabulary < 1 << 31, .invalidShape, "vocabulary", expected: "at least 1 and below 2³¹",
            actual: "\(vocabulary)")
        self.vocabulary = vocabulary
        self.ignoredTarget = ignoredTarget
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { LogitScratch(kept: 1).byteCount }

    /// The loss of some rows.
    ///
    /// - Parameters:
    ///   - logits: rows × vocabulary.
    ///   - targets: the token that follows each row, or `ignoredTarget`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other extents or another number of targets, `.invalidArgument` naming the first target that is neither a
    ///   token nor ignored.
    public func loss(
        _ logits: MatrixView<Float>, targets: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Loss {
        try requireColumns("logits", logits.columns, expected: vocabulary)
        let tokens = try countedTokens(targets, rows: logits.rows)
        return run(RowOperand(logits), rows: logits.rows, targets, tokens, gradient: nil, divisor: 1, on: pool)
    }

    /// The loss of some rows and the gradient of the logits.
    ///
    /// - Parameters:
    ///   - logits: rows × vocabulary.
    ///   - targets: the token that follows each row, or `ignoredTarget`.
    ///   - divisor: what the gradient is divided by; nil means the number of tokens that count, so that it is the gradient of the mean.
    ///   - gradient: rows × vocabulary, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `loss`; `.invalidShape` for a gradient of other extents, and `.invalidArgument` for a divisor that is not positive
    ///   and finite. Nothing is written then.
    public func run(
        _ logits: MatrixView<Float>, targets: [Int], divisor: Double? = nil,
        gradient: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Loss {
        try requireColumns("logits", logits.columns, expected: vocabulary)
        try requireMatrix(
            "gradient", rows: gradient.rows, columns: gradient.columns, expected: (logits.rows, vocabulary))
        try check(divisor)
        let tokens = try countedTokens(targets, rows: logits.rows)
        let target = RowTarget(&gradient)
        return run(
            RowOperand(logits), rows: logits.rows, targets, tokens, gradient: target,
            divisor: divisor ?? Double(max(1, tokens)), on: pool)
    }

    /// The loss of some rows, whose logits are replaced by their gradient.
    ///
    /// - Parameters:
    ///   - logits: rows × vocabulary; the gradient afterwards.
    ///   - targets: the token that follows each row, or `ignoredTarget`.
    ///   - divisor: what the gradient is divided by; nil means the number of tokens that count.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `run` with a separate gradient; nothing is written then.
    public func run(
        replacing logits: consuming MutableMatrixView<Float>, targets: [Int], divisor: Double? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Loss {
        try requireColumns("logits", logits.columns, expected: vocabulary)
        try check(divisor)
        let rows = logits.rows
        let tokens = try countedTokens(targets, rows: rows)
        let target = RowTarget(&logits)
        let operand = RowOperand(base: UnsafeRawPointer(target.base), stride: target.stride, type: .float32)
        return run(
            operand, rows: rows, targets, tokens, gradient: target, divisor: divisor ?? Double(max(1, tokens)), on: pool)
    }

    private func check(_ divisor: Double?) throws(SparseKernelsError) {
        guard let divisor else { return }
        try require(
            divisor > 0 && divisor.isFinite, .invalidArgument, "divisor", expected: "positive and finite",
            actual: "\(divisor)")
    }

    /// Checks the targets and counts those that are not ignored.
    private func countedTokens(_ targets: [Int], rows: Int) throws(SparseKernelsError) -> Int {
        try require(targets.count == rows, .invalidShape, "targets", expected: "\(rows) targets", actual: "\(targets.count)")
        var tokens = 0
        // An iterator would allocate in debug builds.
        for row in 0..<targets.count where targets[row] != ignoredTarget {
            if targets[row] < 0 || targets[row] >= vocabulary {
                throw SparseKernelsError(
                    .invalidArgument, "targets[\(row)]", expected: "from 0 to \(vocabulary - 1), or \(ignoredTarget)",
                    actual: "\(targets[row])")
            }
            tokens += 1
        }
        return tokens
    }

    private func run(
        _ logits: RowOperand, rows: Int, _ targets: [Int], _ tokens: Int, gradient: RowTarget?, divisor: Double,
        on pool: WorkerPool
    ) -> Loss {
        var loss = Loss(tokens: tokens)
        if rows == 0 { return loss }
        // An exponential takes as long as moving about 8 bytes.
        let tasks = RowTasks(rows: rows, bytesPerRow: vocabulary * (gradient == nil ? 8 : 16))
        pool.withWorkspace(byteCount: rows * 8) { workspace in
            let losses = workspace.assumingMemoryBound(to: Double.self)
            targets.withUnsafeBufferPointer { targets in
                let call = CrossEntropyCall(
                    kernels: kernels, logits: logits, vocabulary: vocabulary, targets: targets.baseAddress!,
                    ignoredTarget: ignoredTarget, losses: losses, gradient: gradient, divisor: divisor, tasks: tasks)
                pool.run(call, tasks: tasks.count, work: tasks.work, scratchByteCount: scratchByteCount)
            }
            for row in 0..<rows { loss.nats += losses[row] }
        }
        return loss
    }
}

/// Losses of rows, and their gradients while the rows are in the cache.
private struct CrossEntropyCall: PoolCall {
    let kernels: any KernelTable.Type
    let logits: RowOperand
    let vocabulary: Int
    let targets: UnsafePointer<Int>
    let ignoredTarget: Int
    let losses: UnsafeMutablePointer<Double>
    let gradient: RowTarget?
    let divisor: Double
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        for row in first..<first + tasks.count(task) { compute(row, scratch) }
    }

    private func compute(_ row: Int, _ scratch: UnsafeMutableRawPointer) {
        let target = targets[row]
        let gradients = gradient.map { $0.from(row).base.assumingMemoryBound(to: Float.self) }
        if target == ignoredTarget {
            losses[row] = 0
            if let gradients { clear(gradients, vocabulary) }
            return
        }
        let operand = logits.from(row)
        let entries = operand.base.assumingMemoryBound(to: Float.self)
        let (maximum, sum) = summarize(operand, scratch)
        // Relative to the maximum. A row with ∞, and one of −∞, is NaN, as in torch.
        let logSum = maximum.isFinite ? log(sum) : .nan
        losses[row] = logSum - (Double(entries[target]) - Double(maximum))
        guard let gradients else { return }
        let factor = logSum.isFinite ? exp(-logSum) / divisor : .nan
        kernels.differentiateLogits(
            entries, count: vocabulary, maximum: maximum.isFinite ? maximum : 0, factor: Float(factor), into: gradients)
        gradients[target] -= Float(1 / divisor)
    }

    /// The largest entry m of a row, and Σ e^(x − m), which is NaN if an entry is.
    private func summarize(_ row: RowOperand, _ scratch: UnsafeMutableRawPointer) -> (maximum: Float, sum: Double) {
        var (maximum, sum) = (-Float.infinity, 0.0)
        var first = 0
        while first < vocabulary {
            let count = min(LogitScratch.pieceColumns, vocabulary - first)
            var piece = row
            piece.base += first * 4
            var (key, sums): (UInt64, (Float, Float)) = (0, (0, 0))
            withUnsafeMutablePointer(to: &key) { key in
                withUnsafeMutableBytes(of: &sums) { sums in
                    var arguments = SummarizeLogitsArguments(
                        logits: piece, count: count, first: first, kept: 1, keys: key,
                        sums: sums.baseAddress!.assumingMemoryBound(to: Float.self), scratch: scratch)
                    kernels.summarizeLogits(&arguments)
                }
            }
            // A piece without a number above −∞ has a sum of 0, or NaN.
            if sums.0 > maximum {
                sum = sum * exp(Double(maximum) - Double(sums.0)) + Double(sums.1)
                maximum = sums.0
            } else {
                sum += sums.0 > -.infinity ? Double(sums.1) * exp(Double(sums.0) - Double(maximum)) : Double(sums.1)
            }
            first += count
        }
        return (maximum, sum)
    }
}
