public import SparseKernels

/// Makes plans from queries and keys of sample calls of a layer.
///
/// For each head and order of the axes, the attention map of a sample is cut into blocks. The *mass* of a block is the part of
/// its row's attention that falls into it, averaged over samples. Two scores judge an order, over the blocks that a plan may
/// leave out:
///
/// - *sparsity*: the part of the blocks whose mass is below ε times that of a block of uniform attention;
/// - *incoherence*: the mean over blocks of max/mean of their entries, which is what makes entries hard to quantise in blocks.
///
/// Both are set in proportion to the best order of the head, and the order with the largest weighted sum wins:
///
///     score = w · sparsity/max sparsity + (1 − w) · min incoherence/incoherence
///
/// Then a budget chooses the blocks of each head from their masses in that order.
///
/// ```swift
/// var calibration = try PAROAttentionCalibration(shape, geometry: geometry)
/// for sample in samples { try calibration.add(query: sample.query, key: sample.key) }
/// try calibration.plan([.density(0.3)]).write(to: "layer07.safetensors")
/// ```
///
/// Query heads that share a KV head get one order, by the sum of their scores.
///
/// - Results are bitwise equal for every number of threads.
/// - Source: the idea is section 4 of arXiv 2506.16054; the code that makes plans was not released, so that ε, the weights and
///   the normalisation are choices of this package.
/// - Complexity: per sample tokens² · headDim multiply-adds for each head, once for all orders.
/// - Memory: 8 bytes per block, slot, head and order, and 256 rows of an attention map at a time. Where that is too much for six
///   orders, calibrate the orders with one slot first, then the masks with `orders`.
public struct PAROAttentionCalibration: Sendable {
    /// The settings of a calibration.
    public struct Configuration: Hashable, Sendable {
        /// Tokens per block.
        public var blockSize: Int
        /// ε, the mass below which a block counts as empty, as a fraction of its mass under uniform attention.
        public var emptyMass: Double
        /// w, the weight of sparsity, 0…1; the rest is that of coherence.
        public var sparsityWeight: Double
        /// The factor on scores; nil means 1/√headDim.
        public var softmaxScale: Float?

        public init(
            blockSize: Int = PAROBlocks.releasedBlockSize, emptyMass: Double = 0.1, sparsityWeight: Double = 0.5,
            softmaxScale: Float? = nil
        ) {
            self.blockSize = blockSize
            self.emptyMass = emptyMass
            self.sparsityWeight = sparsityWeight
            self.softmaxScale = softmaxScale
        }
    }

    /// The scores of an order for a head.
    public struct OrderScore: Hashable, Sendable {
        public let order: PAROAxisOrder
        /// The part of the free blocks that count as empty, 0…1.
        public let sparsity: Double
        /// The mean of max/mean over the free blocks, at least 1; 1 without free blocks.
        public let incoherence: Double
        /// The weighted sum of both, each in proportion to the best order of the head.
        public let total: Double
    }

    public let shape: AttentionShape
    public let blocks: PAROBlocks
    public let configuration: Configuration
    /// The slots of the plan; see ``PAROAttentionPlan``.
    public let slots: Int
    /// The instruction set that runs.
    public let instructionSet: InstructionSet
    /// The orders among which each query head chooses.
    let candidates: [[PAROAxisOrder]]
    /// Samples per slot.
    public private(set) var samples: [Int]
    /// Sums over samples, by slot, head and candidate.
    private var sums: [[[PAROBlockSums]]]

    /// - Parameters:
    ///   - shape: queries and keys are the geometry's tokens.
    ///   - geometry: the tokens of the layer.
    ///   - configuration: the settings.
    ///   - orders: one per query head where they are known, or nil to choose among all six.
    ///   - slots: the slots of the plan.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` when shape, geometry and orders disagree, or for a block size below 1; `.invalidArgument` for
    ///   numbers out of range and for different orders of query heads that share a KV head; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, geometry: VideoGeometry, _ configuration: Configuration = Configuration(),
        orders: [PAROAxisOrder]? = nil, slots: Int = 1, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try geometry.check(shape)
        blocks = try PAROBlocks(geometry, blockSize: configuration.blockSize)
        try require(slots >= 1, .invalidArgument, "slots", expected: "at least 1", actual: "\(slots)")
        try require(
            configuration.emptyMass >= 0 && configuration.emptyMass.isFinite, .invalidArgument, "emptyMass",
            expected: "finite and at least 0", actual: "\(configuration.emptyMass)")
        try require(
            configuration.sparsityWeight >= 0 && configuration.sparsityWeight <= 1, .invalidArgument, "sparsityWeight",
            expected: "from 0 to 1", actual: "\(configuration.sparsityWeight)")
        if let scale = configuration.softmaxScale {
            try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        }
        if let orders {
            try require(
                orders.count == shape.queryHeads, .invalidShape, "orders",
                expected: "one per query head (\(shape.queryHeads))", actual: "\(orders.count)")
            for head in orders.indices {
                let first = orders[head / shape.queryHeadsPerKVHead * shape.queryHeadsPerKVHead]
                try require(
                    orders[head] == first, .invalidArgument, "orders[\(head)]",
                    expected: "\(first), as of the other query heads of its KV head", actual: "\(orders[head])")
            }
        }
        self.shape = shape
        self.configuration = configuration
        self.slots = slots
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        candidates = (0..<shape.queryHeads).map { head in orders.map { [$0[head]] } ?? PAROAxisOrder.allCases }
        samples = Array(repeating: 0, count: slots)
        // Empty sums stand for zeros until the first sample.
        sums = Array(repeating: [], count: slots)
    }

    public var geometry: VideoGeometry { blocks.geometry }

    /// Adds the queries and keys of a call. They are read in one pass, and their attention is computed 256 rows at a time.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × tokens × `headDim`, any layout.
    ///   - key: `kvHeads` × tokens × `headDim`, any layout.
    ///   - slot: the part of the denoising steps from which the call is.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape; `.invalidArgument` for a slot that is not
    ///   there, and naming the first query whose scores are not finite. Nothing is added then.
    public mutating func add<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, slot: Int = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        try require(
            sums.indices.contains(slot), .invalidArgument, "slot", expected: "from 0 to \(slots - 1)", actual: "\(slot)")
        let sample = try PAROSample(self, query: query, key: key, on: pool)
        var added: [[PAROBlockSums]] = []
        for head in 0..<shape.queryHeads {
            added.append(try sample.sums(head: head, orders: candidates[head], on: pool))
        }
        if sums[slot].isEmpty {
            sums[slot] = added
        } else {
            for head in added.indices {
                for candidate in added[head].indices { sums[slot][head][candidate].add(added[head][candidate]) }
            }
        }
        samples[slot] += 1
    }

    /// Adds tensors `[heads, tokens, headDim]`.
    /// - Throws: as `add` with views, and `.invalidShape` for another rank.
    public mutating func add<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, slot: Int = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try add(query: query.view(named: "query"), key: key.view(named: "key"), slot: slot, on: pool)
    }

    /// The mean mass of every block in one order of a head, `[blockRows, blockColumns]`: each row adds up to 1.
    ///
    /// - Throws: `.invalidArgument` for a head, an order or a slot that is not calibrated.
    public func masses(head: Int, order: PAROAxisOrder, slot: Int = 0) throws(SparseKernelsError) -> [Double] {
        try require(
            candidates.indices.contains(head), .invalidArgument, "head", expected: "from 0 to \(candidates.count - 1)",
            actual: "\(head)")
        let index = candidates[head].firstIndex(of: order)
        try require(
            index != nil, .invalidArgument, "order", expected: "one of \(candidates[head])", actual: "\(order)")
        try checkSamples(slot)
        return sums[slot][head][index!].masses.map { $0 / Double(samples[slot]) }
    }

    private func checkSamples(_ slot: Int) throws(SparseKernelsError) {
        try require(
            samples.indices.contains(slot) && samples[slot] > 0, .invalidArgument, "slot",
            expected: "one with samples, from 0 to \(slots - 1)", actual: "\(slot)")
    }

    /// The scores of all orders of a head, over all slots.
    /// - Throws: `.invalidArgument` for a head that is not there or a slot without samples.
    public func scores(head: Int) throws(SparseKernelsError) -> [OrderScore] {
        var measured: [(sparsity: Double, incoherence: Double)] = []
        for order in candidates.indices.contains(head) ? candidates[head] : [.frameHeightWidth] {
            var (sparsity, incoherence) = (0.0, 0.0)
            for slot in 0..<slots {
                sparsity += self.sparsity(try masses(head: head, order: order, slot: slot))
                let index = candidates[head].firstIndex(of: order)!
                incoherence += sums[slot][head][index].incoherence / Double(samples[slot])
            }
            measured.append((sparsity / Double(slots), incoherence / Double(slots)))
        }
        let most = measured.reduce(0) { max($0, $1.sparsity) }
        let least = measured.reduce(Double.infinity) { min($0, $1.incoherence) }
        let weight = configuration.sparsityWeight
        return zip(candidates[head], measured).map { order, value in
            OrderScore(
                order: order, sparsity: value.sparsity, incoherence: value.incoherence,
                total: weight * (most > 0 ? value.sparsity / most : 0) + (1 - weight) * least / value.incoherence)
        }
    }

    /// The part of the free blocks whose mass is below ε of a uniform block's.
    private func sparsity(_ masses: [Double]) -> Double {
        let (free, columns) = (blocks.free, blocks.grid.blockColumns)
        if free.isEmpty { return 0 }
        let limit = configuration.emptyMass / Double(geometry.tokens)
        var empty = 0
        for row in free {
            for column in free where masses[row * columns + column] < limit * Double(blocks.grid.key[column].count) {
                empty += 1
            }
        }
        return Double(empty) / Double(free.count * free.count)
    }

    /// The best order of every query head; equal ones by number.
    /// - Throws: `.invalidArgument` for a slot without samples.
    public func orders() throws(SparseKernelsError) -> [PAROAxisOrder] {
        let group = shape.queryHeadsPerKVHead
        var orders: [PAROAxisOrder] = []
        for first in stride(from: 0, to: shape.queryHeads, by: group) {
            if candidates[first].count == 1 {
                orders += candidates[first..<first + group].map { $0[0] }
                continue
            }
            var totals = [Double](repeating: 0, count: candidates[first].count)
            for head in first..<first + group {
                for (index, score) in try scores(head: head).enumerated() { totals[index] += score.total }
            }
            let best = totals.indices.reduce(0) { totals[$1] > totals[$0] ? $1 : $0 }
            orders += Array(repeating: candidates[first][best], count: group)
        }
        return orders
    }

    /// The plan with the best order of every head and the blocks that the budgets leave.
    ///
    /// - Parameter budgets: one for all query heads, or one per head.
    /// - Throws: `.invalidShape` for another number of budgets, `.invalidArgument` for a budget out of range or a slot without
    ///   samples.
    public func plan(_ budgets: [PAROBlockBudget]) throws(SparseKernelsError) -> PAROAttentionPlan {
        try require(
            budgets.count == 1 || budgets.count == shape.queryHeads, .invalidShape, "budgets",
            expected: "1 or one per query head (\(shape.queryHeads))", actual: "\(budgets.count)")
        for (index, budget) in budgets.enumerated() { try budget.validate(named: "budgets[\(index)]") }
        let orders = try orders()
        var masks: [BlockMask] = []
        for slot in 0..<slots {
            var kept: [[Bool]] = []
            for head in 0..<shape.queryHeads {
                kept.append(
                    budgets[budgets.count == 1 ? 0 : head].kept(
                        try masses(head: head, order: orders[head], slot: slot), blocks: blocks))
            }
            let free = blocks.free
            masks.append(
                try blocks.mask(heads: shape.queryHeads) { head, row, column in
                    kept[head][(row - free.lowerBound) * free.count + column - free.lowerBound]
                })
        }
        return try PAROAttentionPlan(geometry: geometry, orders: orders, masks: masks)
    }
}
