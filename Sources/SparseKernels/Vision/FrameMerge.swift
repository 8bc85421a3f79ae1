internal import KernelInterface

/// Compares the tokens of one place in consecutive frames, and merges those that hardly change.
///
/// ```swift
/// let chains = try FrameChains(frames: 64, places: 196)
/// let merge = try FrameMerge(channels: 3584)
/// let similarities = try merge.similarities(hidden, chains)
/// let still = try chains.tokens(withSimilarity: 0.6, of: similarities)
/// let compaction = try merge(&hidden, chains, merging: still)     // means in place
/// hidden = try compaction(hidden)                                 // merged rows removed
/// ```
///
/// - Exactness: single precision. A run of tokens is summed in the order of time and divided by its number.
/// - Non-finite input makes the similarities of its own token and of the next one NaN, which are never merged, and affects no other.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: one pass over the tokens of chains, each row read once, and one over the runs that are merged.
/// - Scratch: none.
/// - Source: FrameFusion (arXiv 2501.01986) section 3.2.
public struct FrameMerge: Sendable {
    /// Elements of a row.
    public let channels: Int
    /// The instruction set that runs.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - channels: elements of a row, at least 1.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for no channels, `.unsupportedInstructionSet`.
    public init(channels: Int, instructionSet: InstructionSet? = nil) throws(SparseKernelsError) {
        try require(channels >= 1, .invalidShape, "channels", expected: "at least 1", actual: "\(channels)")
        self.channels = channels
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    // MARK: - Similarities

    /// Writes the cosine of every token with the one before it in its chain.
    ///
    /// - Parameters:
    ///   - x: tokens × channels.
    ///   - chains: the chains of these tokens.
    ///   - similarities: one per token, overwritten: −2 where a token has no predecessor, and 0 where a row has only zeros.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<Element: AttentionElement>(
        _ x: MatrixView<Element>, _ chains: FrameChains, into similarities: consuming MutableSpan<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireMatrix("x", rows: x.rows, columns: x.columns, expected: (chains.tokenCount, channels))
        try require(
            similarities.count == chains.tokenCount, .invalidShape, "similarities",
            expected: "\(chains.tokenCount), one per token", actual: "\(similarities.count)")
        let operand = RowOperand(x)
        similarities.withUnsafeMutableBufferPointer { values in
            guard let values = values.baseAddress else { return }
            values.update(repeating: FrameChains.noSimilarity, count: chains.tokenCount)
            chains.rows.withUnsafeBufferPointer { rows in
                chains.starts.withUnsafeBufferPointer { starts in
                    guard let first = rows.baseAddress else { return }
                    let call = CompareChains(
                        kernels: kernels, x: operand, channels: channels, rows: first, starts: starts.baseAddress!,
                        chains: chains.count, rowCount: rows.count, similarities: values)
                    pool.run(call, tasks: call.tasks, work: rows.count * channels * operand.type.byteCount)
                }
            }
        }
    }

    /// The cosine of every token with the one before it in its chain.
    /// - Parameters: those of `run`; x is `[tokens, channels]`.
    /// - Returns: `[tokens]`.
    /// - Throws: the errors of `run`, and `.invalidShape` for another rank.
    public func similarities<Element: AttentionElement>(
        _ x: Tensor<Element>, _ chains: FrameChains, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var result = try Tensor<Float>(zeros: [chains.tokenCount])
        try run(x.matrixView(named: "x"), chains, into: result.mutableSpan, on: pool)
        return result
    }

    // MARK: - Merging

    /// Replaces the first token of every run by the mean of the run: a token and the merged ones that follow it in its chain.
    ///
    /// - Parameters:
    ///   - x: tokens × channels. Rows of merged tokens stay as they are.
    ///   - chains: the chains of these tokens.
    ///   - merged: the tokens that are merged into what is before them, ascending.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the compaction that removes the merged tokens.
    /// - Throws: `.invalidShape` for other extents; `.invalidArgument` for a token that is out of range, not above the one before it, or
    ///   without a predecessor in its chain. Nothing is written then.
    public func run(
        _ x: consuming MutableMatrixView<Float>, _ chains: FrameChains, merging merged: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> TokenCompaction {
        try requireMatrix("x", rows: x.rows, columns: x.columns, expected: (chains.tokenCount, channels))
        var isMerged = [Bool](repeating: false, count: chains.tokenCount)
        var last = -1
        for (index, token) in merged.enumerated() {
            try require(
                token > last && token < chains.tokenCount, .invalidArgument, "merged[\(index)]",
                expected: "above \(last) and below \(chains.tokenCount)", actual: "\(token)")
            isMerged[token] = true
            last = token
        }
        // Runs, as places of `rows` and lengths.
        var (runs, inChains) = ([MergedRun](), 0)
        for chain in 0..<chains.count {
            let range = chains.starts[chain]..<chains.starts[chain + 1]
            let first = Int(chains.rows[range.lowerBound])
            try require(
                !isMerged[first], .invalidArgument, "merged", expected: "tokens with one before them in their chain",
                actual: "\(first), the first of its chain")
            var place = range.lowerBound
            while place < range.upperBound {
                var end = place + 1
                while end < range.upperBound && isMerged[Int(chains.rows[end])] { end += 1 }
                if end > place + 1 { runs.append(MergedRun(first: place, count: end - place)) }
                inChains += end - place - 1
                place = end
            }
        }
        try require(
            inChains == merged.count, .invalidArgument, "merged", expected: "tokens of chains only",
            actual: "\(merged.count - inChains) others")
        let compaction = try TokenCompaction(
            length: chains.tokenCount, keeping: (0..<chains.tokenCount).filter { !isMerged[$0] })
        let target = RowTarget(&x)
        runs.withUnsafeBufferPointer { runs in
            chains.rows.withUnsafeBufferPointer { rows in
                guard let first = runs.baseAddress, let list = rows.baseAddress else { return }
                let call = MergeRuns(
                    kernels: kernels, x: target.base.assumingMemoryBound(to: Float.self), stride: target.stride,
                    channels: channels, rows: list, runs: first)
                pool.run(call, tasks: runs.count, work: (inChains + runs.count) * channels * 4)
            }
        }
        return compaction
    }

    /// The same for a tensor `[tokens, channels]`.
    /// - Throws: the errors of `run` with a view, and `.invalidShape` for another rank.
    public func callAsFunction(
        _ x: inout Tensor<Float>, _ chains: FrameChains, merging merged: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> TokenCompaction {
        try run(x.mutableMatrixView(named: "x"), chains, merging: merged, on: pool)
    }
}

/// A run of merged tokens: places in the rows of the chains.
private struct MergedRun {
    let first: Int
    let count: Int
}

/// Compares the tokens of some chains.
private struct CompareChains: PoolCall {
    let kernels: any KernelTable.Type
    let x: RowOperand
    let channels: Int
    let rows: UnsafePointer<Int32>
    let starts: UnsafePointer<Int>
    let chains: Int
    let rowCount: Int
    let similarities: UnsafeMutablePointer<Float>

    /// About 256 KiB of rows, so that short chains do not cost a task each.
    private var chainsPerTask: Int {
        max(1, (1 << 18) * chains / max(1, rowCount * channels * x.type.byteCount))
    }

    var tasks: Int { (chains + chainsPerTask - 1) / chainsPerTask }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * chainsPerTask
        for chain in first..<min(chains, first + chainsPerTask) {
            var arguments = RowChainArguments(
                x: x, channels: channels, rows: rows + starts[chain], count: starts[chain + 1] - starts[chain],
                similarities: similarities)
            kernels.compareRowChain(&arguments)
        }
    }
}

/// Averages one run.
private struct MergeRuns: PoolCall {
    let kernels: any KernelTable.Type
    let x: UnsafeMutablePointer<Float>
    let stride: Int
    let channels: Int
    let rows: UnsafePointer<Int32>
    let runs: UnsafePointer<MergedRun>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        kernels.averageListedRows(
            x, stride: stride, rows: rows + runs[task].first, count: runs[task].count, channels: channels)
    }
}
