/// Makes plans for pieces; equal pieces share one.
struct PiecePlans {
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
