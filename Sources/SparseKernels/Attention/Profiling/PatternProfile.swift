/// Measures, on a few query rows, how far attention over each of several patterns is from attention over all keys.
///
/// Online classification of heads needs it: attention of a sample of rows costs next to nothing, and tells which pattern of
/// keys a head can live with. With O* the output over the reference keys and O_m that over the keys of pattern m:
///
///     error[m, head] = mean over rows and channels of (O_m − O*)²
///
/// ```swift
/// let profile = try PatternProfile(shape, rows: rows, patterns: [spatial, temporal])
/// let errors = try profile(query: q.view(), key: k.view(), value: v.view())
/// print(errors.best)   // the pattern of the least error, by query head
/// ```
///
/// - A row that no key of a pattern serves has the output 0 there, as in all attention of this package, and the error of that.
///   ``rowsWithoutKeys`` counts such rows.
/// - Input that is not finite makes the errors NaN or infinite of the heads whose sampled rows see it, and of no other head.
/// - Results are bitwise equal for every number of threads.
/// - Source: `sample_mse` of Sparse VideoGen (Xi et al., 2025, arXiv 2502.01776), in single precision.
/// - Complexity: attention of (1 + patterns) · rows queries with all keys, whatever the patterns keep: rows are attended
///   together, under a bias, because that takes fewer instructions than attending each row with its own keys.
/// - Scratch: a call allocates rows · keyLength floats for the bias and 3 · queryHeads · rows · channels for operands.
public struct PatternProfile: Sendable {
    /// The sizes of the operands, of which only some query rows are read.
    public let shape: AttentionShape
    /// The sampled query tokens, in any order. A token may be there twice and then counts twice.
    public let rows: [Int]
    /// The candidates. Query i of the partition is the token `rows[i]`.
    public let patterns: [KeyRuns]
    /// The keys that errors are measured against; nil means all keys.
    public let reference: KeyRuns?
    /// By pattern, the number of sampled rows that it leaves without a key.
    public let rowsWithoutKeys: [Int]
    /// The instruction set that a call executes.
    public let instructionSet: InstructionSet
    private let attention: DenseAttention

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - rows: query tokens, of which any may repeat. Without rows every error is 0.
    ///   - patterns: what each candidate keeps for the rows: partitions of `rows.count` queries over `keyLength` keys.
    ///   - reference: the keys that errors are measured against, in the same form; nil means all keys.
    ///   - modifiers: how scores become probabilities. Slopes need the positions of rows, which a sample does not have.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a row outside the queries, no pattern, and ALiBi slopes; `.invalidShape` for a pattern
    ///   of other sizes; the errors of ``DenseAttention``.
    public init(
        _ shape: AttentionShape, rows: [Int], patterns: [KeyRuns], reference: KeyRuns? = nil,
        modifiers: ScoreModifiers = ScoreModifiers(), instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        // Lists of rows are 32-bit.
        let end = min(shape.queryLength, 1 << 31)
        for (index, row) in rows.enumerated() {
            try require(
                row >= 0 && row < end, .invalidArgument, "rows[\(index)]", expected: "a query, 0..<\(end)", actual: "\(row)")
        }
        try require(!patterns.isEmpty, .invalidArgument, "patterns", expected: "one or more", actual: "none")
        for (index, pattern) in patterns.enumerated() {
            try Self.check(pattern, rows: rows.count, keys: shape.keyLength, named: "patterns[\(index)]")
        }
        if let reference { try Self.check(reference, rows: rows.count, keys: shape.keyLength, named: "reference") }
        try require(
            modifiers.aliBiSlopes == nil, .invalidArgument, "modifiers.aliBiSlopes",
            expected: "nil, because sampled rows have no positions", actual: "slopes")
        self.shape = shape
        self.rows = rows
        self.patterns = patterns
        self.reference = reference
        rowsWithoutKeys = patterns.map { pattern in
            (0..<pattern.query.count).reduce(0) { sum, block in
                let isEmpty = pattern.runs(block: block).isEmpty && pattern.keys(block: block).isEmpty
                return sum + (isEmpty ? pattern.query[block].count : 0)
            }
        }
        let sample = try AttentionShape(
            queryLength: rows.count, keyLength: shape.keyLength, queryHeads: shape.queryHeads, kvHeads: shape.kvHeads,
            headDim: shape.headDim, valueDim: shape.valueDim)
        attention = try DenseAttention(sample, modifiers: modifiers, instructionSet: instructionSet)
        self.instructionSet = attention.instructionSet
    }

    private static func check(
        _ pattern: KeyRuns, rows: Int, keys: Int, named name: String
    ) throws(SparseKernelsError) {
        try require(
            pattern.query.length == rows && pattern.keyLength == keys, .invalidShape, name,
            expected: "over \(rows) rows × \(keys) keys", actual: "\(pattern.query.length) × \(pattern.keyLength)")
    }

    // MARK: - Measuring

    /// The errors of every pattern and query head.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`; only the sampled rows are read. Any strides that keep channels
    ///     adjacent, here and below.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PatternErrors {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        try shape.check("value", value.geometry, heads: shape.kvHeads, tokens: shape.keyLength, channels: shape.valueDim)
        if rows.isEmpty { return try PatternErrors(Tensor(zeros: [patterns.count, shape.queryHeads])) }
        let sample = try Tensor<Float>(
            gathering: rows.map { Int32($0) }, lists: 1, from: AttentionOperand(query), attention.kernels, on: pool)
        var bias = try Tensor<Float>(zeros: [rows.count, shape.keyLength])
        var expected = try Tensor<Float>(zeros: [shape.queryHeads, rows.count, shape.valueDim])
        if let reference {
            write(reference, into: &bias, on: pool)
            try attention.run(
                query: sample.view(), key: key, value: value, bias: bias.view(named: "bias"), output: expected.mutableView(),
                on: pool)
        } else {
            try attention.run(query: sample.view(), key: key, value: value, output: expected.mutableView(), on: pool)
        }
        var output = expected
        var errors: [Float] = []
        for pattern in patterns {
            write(pattern, into: &bias, on: pool)
            try attention.run(
                query: sample.view(), key: key, value: value, bias: bias.view(named: "bias"), output: output.mutableView(),
                on: pool)
            errors += Self.meanSquares(output, expected, on: pool)
        }
        return try PatternErrors(Tensor([patterns.count, shape.queryHeads], errors))
    }

    /// The errors, from tensors `[heads, tokens, channels]`.
    /// - Throws: as with views, and `.invalidShape` for another rank.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PatternErrors {
        try self(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"), on: pool)
    }

    /// Writes 0 for the keys of each row, and −∞ for the others.
    private func write(_ pattern: KeyRuns, into bias: inout Tensor<Float>, on pool: WorkerPool) {
        let keyLength = shape.keyLength
        guard keyLength > 0 else { return }
        // Each task writes its own blocks of rows, and the storage outlives the call.
        nonisolated(unsafe) let base = bias.mutableAddress()
        pool.forEachRowRange(pattern.query.count, workPerRow: keyLength) { blocks, _ in
            for block in blocks {
                for row in pattern.query[block] {
                    let line = base + row * keyLength
                    line.update(repeating: -.infinity, count: keyLength)
                    for run in pattern.runs(block: block) {
                        (line + run.lowerBound).update(repeating: 0, count: run.count)
                    }
                    for key in pattern.keys(block: block) { line[Int(key)] = 0 }
                }
            }
        }
    }

    /// By head, the mean of the squared differences, summed in `Double` in the order of memory.
    private static func meanSquares(_ a: Tensor<Float>, _ b: Tensor<Float>, on pool: WorkerPool) -> [Float] {
        let count = a.shape[1] * a.shape[2]
        return pool.map(a.shape[0], work: 2 * a.count) { head in
            let (x, y) = (a.span, b.span)
            var sum = 0.0
            for index in head * count..<(head + 1) * count {
                let difference = Double(x[index]) - Double(y[index])
                sum += difference * difference
            }
            return Float(sum / Double(count))
        }
    }
}

/// The errors that a ``PatternProfile`` measured.
public struct PatternErrors: Sendable, Equatable {
    /// Mean squared errors, `[patterns, queryHeads]`. NaN or infinite where the input was not finite.
    public let errors: Tensor<Float>

    /// - Throws: `.invalidShape` unless the tensor is `[patterns, heads]` with a pattern or more.
    public init(_ errors: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            errors.shape.count == 2 && errors.shape[0] >= 1, .invalidShape, "errors", expected: "[patterns, heads]",
            actual: "\(errors.shape)")
        self.errors = errors
    }

    /// The pattern of the least error of each query head; see ``best(heads:)``.
    public var best: [Int] { (0..<errors.shape[1]).map { best(heads: $0..<$0 + 1) } }

    /// The pattern of the least sum of errors over some heads, such as those that share a KV head.
    ///
    /// The lower index wins a tie. A sum that is NaN loses to any other; if all are NaN, the result is 0.
    public func best(heads: Range<Int>) -> Int {
        let sums = (0..<errors.shape[0]).map { pattern in heads.reduce(0.0) { $0 + Double(errors[pattern, $1]) } }
        var best: Int?
        for (pattern, sum) in sums.enumerated() where !sum.isNaN && best.map({ sum < sums[$0] }) ?? true { best = pattern }
        return best ?? 0
    }
}
