/// The offline pattern search, which finds a pattern for each head by measurements on one prompt.
///
/// There are two rules:
///
/// * `.paper`, the rule of the paper (algorithm 1, kernel-aware sparse pattern search): among candidates of equal work the
///   smallest output error wins. The work is that of an A-shape. Vertical-slash candidates have fixed numbers of verticals and
///   as many slashes as the work allows, block-sparse heads as many blocks.
/// * `.released`, the rule of the released code (`search_pattern`): among six candidates of unequal work the largest recall of
///   attention mass wins, averaged over the queries from 2500 on. The winner is then relabelled, because released kernels run
///   vertical-slash heads only: an A-shape becomes vertical-slash with its numbers, block-sparse becomes (1000, 6096).
///
/// Candidates are measured as they run, with index blocks of 64. The released search measures single lines instead, which
/// `.released` does not imitate. `.released` forces 30 distances, as released; `.paper` forces 100, as prefill does.
///
/// - Complexity: one attention per candidate and a dense one; fitting slashes takes about 15 indices per head and candidate.
public struct MInferenceSearch: Sendable {
    public enum Mode: Hashable, Sendable {
        /// Smallest error at equal work. `initial` and `local` are the A-shape that defines the work, `verticals` the numbers
        /// of verticals that are tried.
        case paper(initial: Int = 1024, local: Int = 4096, verticals: [Int] = [30, 100, 500, 3500])
        /// Largest recall of the released candidates over queries from `firstQuery` on, then relabelled.
        case released(firstQuery: Int = 2500)
    }

    public let shape: AttentionShape
    public let mode: Mode
    public let softmaxScale: Float?
    /// The instruction set that runs.
    public let instructionSet: InstructionSet

    /// A candidate of one head and its relative output error (`.paper`) or recall (`.released`).
    public struct Measurement: Hashable, Sendable {
        public let head: MInferenceHead
        public let measure: Double
    }

    /// The result for one head.
    public struct Choice: Hashable, Sendable {
        /// The pattern to use: the winner, or the pattern to which the released code relabels it.
        public let head: MInferenceHead
        /// The winner as measured.
        public let winner: Measurement
        /// All candidates, in the order in which they were tried. Among equal ones the first wins.
        public let measurements: [Measurement]

        /// The entry for a configuration.
        public var entry: MInferenceConfiguration.Entry { .init(head, score: winner.measure) }
    }

    /// - Throws: `.invalidShape` for more queries than keys, or no query from `firstQuery` on; `.invalidArgument` for numbers
    ///   out of their domains; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, mode: Mode = .paper(), softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        switch mode {
        case .paper(let initial, let local, let verticals):
            try MInferenceHead.aShape(initial: initial, local: local).validate(named: "mode")
            for (index, vertical) in verticals.enumerated() {
                try require(
                    vertical >= 0, .invalidArgument, "mode.verticals[\(index)]", expected: "at least 0", actual: "\(vertical)")
            }
        case .released(let firstQuery):
            try require(
                firstQuery >= 0, .invalidArgument, "mode.firstQuery", expected: "at least 0", actual: "\(firstQuery)")
            try require(
                shape.queryLength > firstQuery, .invalidShape, "queryLength", expected: "above firstQuery (\(firstQuery))",
                actual: "\(shape.queryLength)")
        }
        self.shape = shape
        self.mode = mode
        self.softmaxScale = softmaxScale
        self.instructionSet = try MInferencePrefill(shape, softmaxScale: softmaxScale, instructionSet: instructionSet)
            .instructionSet
    }

    /// Chooses the pattern of every query head from one layer's operands `[heads, tokens, channels]`.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> [Choice] {
        let dense = try DenseAttention(
            shape, mask: .causal, modifiers: ScoreModifiers(softmaxScale: softmaxScale), instructionSet: instructionSet)(
                query: query, key: key, value: value, on: pool)
        var measurements = [[Measurement]](repeating: [], count: shape.queryHeads)
        for candidate in try candidates(query: query, key: key, on: pool) {
            let state = try prefill(candidate)(query: query, key: key, value: value, on: pool).state
            let measures = pool.map(shape.queryHeads, work: dense.output.count) { head in
                isRecall ? recall(state, dense, head: head) : error(state, dense, head: head)
            }
            for head in 0..<shape.queryHeads {
                measurements[head].append(Measurement(head: candidate[head], measure: measures[head]))
            }
        }
        return measurements.map { choice(among: $0) }
    }

    private var isRecall: Bool { if case .released = mode { true } else { false } }

    private func prefill(_ heads: [MInferenceHead]) throws(SparseKernelsError) -> MInferencePrefill {
        try MInferencePrefill(
            shape, heads: heads, softmaxScale: softmaxScale, forcedDistances: isRecall ? 30 : 100,
            instructionSet: instructionSet)
    }

    private func choice(among measurements: [Measurement]) -> Choice {
        var winner = measurements[0]
        for other in measurements.dropFirst() {
            if isRecall ? other.measure > winner.measure : other.measure < winner.measure { winner = other }
        }
        var head = winner.head
        if isRecall {
            switch head {
            case .aShape(let initial, let local): head = .verticalSlash(vertical: initial, slash: local)
            case .blockSparse: head = .standard
            case .verticalSlash, .dense: break
            }
        }
        return Choice(head: head, winner: winner, measurements: measurements)
    }

    // MARK: - Measures

    /// ‖o − o_dense‖ / ‖o_dense‖ over all queries of a head.
    private func error(_ state: AttentionState, _ dense: AttentionState, head: Int) -> Double {
        let count = shape.queryLength * shape.valueDim
        let (outputs, expected) = (state.output.span, dense.output.span)
        var (difference, norm) = (0.0, 0.0)
        for index in head * count..<(head + 1) * count {
            let (o, e) = (Double(outputs[index]), Double(expected[index]))
            difference += (o - e) * (o - e)
            norm += e * e
        }
        return difference == 0 ? 0 : (difference / norm).squareRoot()
    }

    /// The kept attention mass e^(LSE − LSE_dense), averaged over the measured queries of a head.
    private func recall(_ state: AttentionState, _ dense: AttentionState, head: Int) -> Double {
        guard case .released(let first) = mode else { preconditionFailure("recall is the released measure") }
        var sum = 0.0
        for query in first..<shape.queryLength {
            let index = head * shape.queryLength + query
            sum += state.keptMass(of: dense, row: index)
        }
        return sum / Double(shape.queryLength - first)
    }
}
