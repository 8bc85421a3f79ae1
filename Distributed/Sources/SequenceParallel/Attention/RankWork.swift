/// What a rank of several needs for its calls.
struct RankWork {
    let schedule: RingSchedule
    let layout: ExchangeLayout
    /// A plan for each piece of each step.
    let plans: [[DenseAttention]]
    let buffers: ExchangeBuffers

    /// - Parameters:
    ///   - schedule: what the rank computes.
    ///   - layout: where rows are in its buffers.
    ///   - modifiers: those of all heads.
    ///   - place: the rank's place in its group.
    ///   - level: the instruction set.
    init(
        _ schedule: RingSchedule, _ layout: ExchangeLayout, _ modifiers: ScoreModifiers, place: Int, _ level: InstructionSet
    ) throws(SparseKernelsError) {
        var plans = PiecePlans(layout, modifiers, firstHead: layout.firstQueryHead(ofPlace: place), level)
        self.plans = try plans.plans(of: schedule)
        (self.schedule, self.layout) = (schedule, layout)
        buffers = ExchangeBuffers(layout, schedule, place: place)
    }
}

/// Makes plans for pieces; equal pieces share one.
private struct PiecePlans {
    private struct Key: Hashable {
        let queries: Int
        let keys: Int
        let isCausal: Bool
        let isFirst: Bool
    }

    private let layout: ExchangeLayout
    /// Those of a slice's first piece, and of the others.
    private let first: ScoreModifiers
    private let later: ScoreModifiers
    private let level: InstructionSet
    private var plans: [Key: DenseAttention] = [:]

    init(_ layout: ExchangeLayout, _ modifiers: ScoreModifiers, firstHead: Int, _ level: InstructionSet) {
        var (first, later) = (modifiers, modifiers)
        // The sinks take part once.
        first.sinkLogits = modifiers.sinkLogits.map { Array($0[firstHead..<firstHead + layout.queryHeads]) }
        later.sinkLogits = nil
        (self.layout, self.first, self.later, self.level) = (layout, first, later, level)
    }

    mutating func plans(of schedule: RingSchedule) throws(SparseKernelsError) -> [[DenseAttention]] {
        var all: [[DenseAttention]] = []
        for step in schedule.steps {
            var plans: [DenseAttention] = []
            for piece in step.pieces { plans.append(try plan(piece, queries: schedule.slices[piece.slice].rows.count)) }
            all.append(plans)
        }
        return all
    }

    private mutating func plan(_ piece: RingSchedule.Piece, queries: Int) throws(SparseKernelsError) -> DenseAttention {
        let shape = try AttentionShape(
            queryLength: queries, keyLength: piece.keys.count, queryHeads: layout.queryHeads, kvHeads: layout.kvHeads,
            headDim: layout.headDim, valueDim: layout.valueDim)
        let modifiers = piece.isFirst ? first : later
        var isCausal = false
        switch piece.form {
        case .limits(let ranges):
            return try DenseAttention(shape, limits: KeyLimits(ranges), modifiers: modifiers, instructionSet: level)
        case .causal: isCausal = true
        case .all: break
        }
        let key = Key(
            queries: queries, keys: piece.keys.count, isCausal: isCausal, isFirst: piece.isFirst && first.sinkLogits != nil)
        if let plan = plans[key] { return plan }
        let plan = try DenseAttention(
            shape, mask: isCausal ? .causal : .full, modifiers: modifiers, instructionSet: level)
        plans[key] = plan
        return plan
    }
}
