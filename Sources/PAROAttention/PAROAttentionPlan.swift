public import SparseKernels

/// What PAROAttention decides offline for a layer: an order of the video's axes per head, and a static block mask per head.
///
/// The pattern of a head depends on where the model looks and little on what it sees. In one of six orders of the axes (frame,
/// height, width) it becomes blocks near the diagonal or in columns, and those are kept for all inputs. Nothing is predicted
/// while the model runs. ``PAROAttentionCalibration`` makes plans.
///
/// ```swift
/// let plan = try PAROAttentionPlan(path: "layer07.safetensors")
/// let attention = try plan.attention(shape, step: 12, of: 50)
/// let state = try attention(query: query, key: key, value: value)
/// ```
///
/// A plan has one mask, or several that follow each other in the course of the denoising steps: *slots*. The released plans
/// have ten.
///
/// - Source: Zhao et al., "PAROAttention: Pattern-Aware ReOrdering for Efficient Sparse and Quantized Attention in Visual
///   Generation Models" (2025), arXiv 2506.16054; `paroattention/cogvideox.py` and `example/pipeline_cogvideox.py` of
///   jamescsq47/PAROAtten.
/// - Memory: that of the masks, 4 bytes per kept block.
public struct PAROAttentionPlan: Hashable, Sendable {
    public let geometry: VideoGeometry
    /// The order of every query head.
    public let orders: [PAROAxisOrder]
    /// The mask of every slot, over tokens in the order of each head, with one head per order. At least one.
    public let masks: [BlockMask]

    /// The number of slots of the released plans.
    public static let releasedSlots = 10

    /// - Parameters:
    ///   - geometry: the tokens of the layer. Padding of the text is attended like all text.
    ///   - orders: one per query head.
    ///   - masks: one per slot, over blocks of equal size.
    /// - Throws: `.invalidShape` for no heads, no masks, or a mask of other tokens or heads; `.invalidArgument` for a causal
    ///   mask, or one whose grid is not that of the first.
    public init(
        geometry: VideoGeometry, orders: [PAROAxisOrder], masks: [BlockMask]
    ) throws(SparseKernelsError) {
        try require(!orders.isEmpty, .invalidShape, "orders", expected: "one per head", actual: "none")
        try require(!masks.isEmpty, .invalidShape, "masks", expected: "one per slot, at least one", actual: "none")
        for (slot, mask) in masks.enumerated() {
            try require(
                mask.grid.query.length == geometry.tokens && mask.grid.key.length == geometry.tokens, .invalidShape,
                "masks[\(slot)]", expected: "over \(geometry.tokens) × \(geometry.tokens) tokens",
                actual: "\(mask.grid.query.length) × \(mask.grid.key.length)")
            try require(
                mask.heads == orders.count, .invalidShape, "masks[\(slot)].heads",
                expected: "\(orders.count), as many as orders", actual: "\(mask.heads)")
            try require(
                !mask.grid.isCausal, .invalidArgument, "masks[\(slot)]", expected: "not causal", actual: "causal")
            try require(
                mask.grid == masks[0].grid, .invalidArgument, "masks[\(slot)].grid", expected: "the grid of masks[0]",
                actual: "\(mask.grid.blockRows) × \(mask.grid.blockColumns) blocks")
        }
        self.geometry = geometry
        self.orders = orders
        self.masks = masks
    }

    public var heads: Int { orders.count }

    /// The kept fraction of all blocks, over all heads and slots.
    public var density: Double { masks.reduce(0) { $0 + $1.density } / Double(masks.count) }

    /// The order of the tokens of every head.
    public func permutation() throws(SparseKernelsError) -> Permutation {
        try PAROAxisOrder.permutation(orders, geometry)
    }

    /// The slot of a denoising step: ⌊step/steps · slots⌋ in double precision, so that all slots last equally long.
    ///
    /// The released pipeline computes ⌊(t + 1)/steps · slots⌋ after step t, for the step that follows.
    ///
    /// - Parameters:
    ///   - step: counted from 0, below `steps`.
    ///   - steps: the steps of the run.
    ///   - slots: the slots of the plan.
    /// - Throws: `.invalidArgument` naming the number that is out of range.
    public static func slot(
        step: Int, of steps: Int, slots: Int = releasedSlots
    ) throws(SparseKernelsError) -> Int {
        for (name, count) in [("steps", steps), ("slots", slots)] {
            try require(count >= 1, .invalidArgument, name, expected: "at least 1", actual: "\(count)")
        }
        try require(
            step >= 0 && step < steps, .invalidArgument, "step", expected: "from 0 to \(steps - 1)", actual: "\(step)")
        let slot = Double(step) / Double(steps) * Double(slots)
        // Below 2⁶³ for any slots, and below slots but for rounding.
        return slot >= Double(slots) ? slots - 1 : Int(slot)
    }

    /// The operator of a slot, on tokens in their own order. Make it once per slot and run it for every call of the layer.
    ///
    /// - Parameters:
    ///   - shape: queries and keys are the geometry's tokens, and query heads those of the plan. Query heads that share a KV
    ///     head must have the same order, because they share its keys.
    ///   - slot: the index of the mask.
    ///   - modifiers: how scores become probabilities. ALiBi would count positions of the new order.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` when shape and plan disagree, `.invalidArgument` for a slot that is not there or grouped heads
    ///   of different orders, and the errors of `BlockSparseAttention`.
    public func attention(
        _ shape: AttentionShape, slot: Int = 0, modifiers: ScoreModifiers = ScoreModifiers(),
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) -> PermutedAttention {
        let key = try keyOrders(shape)
        try require(
            masks.indices.contains(slot), .invalidArgument, "slot", expected: "from 0 to \(masks.count - 1)",
            actual: "\(slot)")
        return try PermutedAttention(
            BlockSparseAttention(shape, mask: masks[slot], modifiers: modifiers, instructionSet: instructionSet),
            query: permutation(), key: PAROAxisOrder.permutation(key, geometry))
    }

    /// The operator of a denoising step. See `slot(step:of:slots:)`.
    /// - Throws: the errors of both.
    public func attention(
        _ shape: AttentionShape, step: Int, of steps: Int, modifiers: ScoreModifiers = ScoreModifiers(),
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) -> PermutedAttention {
        try attention(
            shape, slot: Self.slot(step: step, of: steps, slots: masks.count), modifiers: modifiers,
            instructionSet: instructionSet)
    }

    /// The order of every KV head.
    func keyOrders(_ shape: AttentionShape) throws(SparseKernelsError) -> [PAROAxisOrder] {
        try geometry.check(shape)
        try require(
            shape.queryHeads == heads, .invalidShape, "queryHeads", expected: "\(heads), the heads of the plan",
            actual: "\(shape.queryHeads)")
        let group = shape.queryHeadsPerKVHead
        for head in 0..<heads {
            let first = orders[head / group * group]
            try require(
                orders[head] == first, .invalidArgument, "orders[\(head)]",
                expected: "\(first), as of the other query heads of KV head \(head / group)", actual: "\(orders[head])")
        }
        return (0..<shape.kvHeads).map { orders[$0 * group] }
    }
}
