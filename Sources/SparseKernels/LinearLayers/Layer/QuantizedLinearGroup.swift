internal import KernelInterface

/// Several quantised layers over one input: query, key and value, or gate and up. The input is quantised once, and all products
/// are tasks of one call.
///
/// ```swift
/// let projections = try QuantizedLinearGroup([query, key, value])
/// try projections.run(x, into: &qkv)   // [tokens, Σ outFeatures], the outputs side by side
/// ```
///
/// Results have the bits of the layers run one by one. Weights that may be quantised as one, with one low-rank branch for all,
/// are better stacked before they are quantised; this type is for layers of checkpoints, which were quantised separately.
///
/// - Complexity: the sum of the products, and one pass over x for the codes; one more for each further low-rank branch.
/// - Scratch: the workspace of the first layer and the projections of the other branches, once; `scratchByteCount` per thread.
/// - Source: the fused `qkv_proj` of nunchaku and QServe, whose parts share their activations.
public struct QuantizedLinearGroup: Sendable {
    public let layers: [QuantizedLinear]
    /// Σ outFeatures.
    public let outFeatures: Int
    /// Bytes of scratch that each thread of the pool needs.
    public let scratchByteCount: Int
    /// The layer that quantises the input for all.
    fileprivate let coding: Int
    /// Whether a product may use quiet weights.
    fileprivate let hasQuietWeight: Bool

    /// - Parameter layers: one or more layers that quantise their input alike: of one width, activation format, group size and
    ///   instruction set, with equal smoothing factors.
    /// - Throws: `.invalidShape` for no layers or another width; `.invalidArgument` naming the layer that quantises its input
    ///   in another way than the first.
    public init(_ layers: [QuantizedLinear]) throws(SparseKernelsError) {
        try require(!layers.isEmpty, .invalidShape, "layers", expected: "one or more", actual: "none")
        let first = layers[0]
        for (index, layer) in layers.enumerated().dropFirst() {
            let name = "layers[\(index)]"
            try require(
                layer.inFeatures == first.inFeatures, .invalidShape, name, expected: "\(first.inFeatures) input features",
                actual: "\(layer.inFeatures)")
            try require(
                layer.activation == first.activation, .invalidArgument, "\(name).activation",
                expected: "\(first.activation), as layers[0]", actual: "\(layer.activation)")
            let (a, b) = (first.weight.layout, layer.weight.layout)
            try require(
                a.groupSize == b.groupSize && a.paddedInFeatures == b.paddedInFeatures && layer.zeroCode == first.zeroCode,
                .invalidArgument, "\(name).weight", expected: "groups of \(a.groupSize), as layers[0]",
                actual: "groups of \(b.groupSize), or codes of another kind")
            try require(
                layer.weight.instructionSet == first.weight.instructionSet, .invalidArgument, "\(name).weight",
                expected: "packed for \(first.weight.instructionSet)", actual: "\(layer.weight.instructionSet)")
            try require(
                layer.smooth == first.smooth, .invalidArgument, "\(name).smooth", expected: "the factors of layers[0]",
                actual: "others")
        }
        self.layers = layers
        outFeatures = layers.reduce(0) { $0 + $1.outFeatures }
        scratchByteCount = layers.reduce(0) { max($0, $1.scratchByteCount) }
        // The codes are the same for all, and so are their sums, which only weights with offsets need.
        coding = layers.firstIndex { $0.weight.offsets != nil } ?? 0
        hasQuietWeight = layers.contains { $0.hasQuietWeight }
    }

    public var inFeatures: Int { layers[0].inFeatures }

    /// Bytes of all layers.
    public var byteCount: Int { layers.reduce(0) { $0 + $1.byteCount } }

    /// Computes the outputs of all layers for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`; may have no tokens.
    ///   - y: `[tokens, Σ outFeatures]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layers; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: inFeatures)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, outFeatures))
        if x.rows == 0 { return }
        // Pointers are used only until this call returns, which borrows or owns the views.
        GroupCall(group: self, x: RowOperand(x), y: RowTarget(&y)).run(rows: x.rows, on: pool)
    }

    /// Computes the outputs of all layers into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x: x.matrixView(named: "x"), y: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Computes the outputs of all layers, `[tokens, Σ outFeatures]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let rows = try x.matrixView(named: "x").rows
        var y = try Tensor<Float>(zeros: [rows, outFeatures])
        try run(x, into: &y, on: pool)
        return y
    }
}

/// One `run` of a group. The calls of its layers are made where they are needed, because a list of them would be allocated.
private struct GroupCall {
    let group: QuantizedLinearGroup
    let x: RowOperand
    let y: RowTarget

    func run(rows: Int, on pool: WorkerPool) {
        let shared = ActivationBlock(
            group.layers[0], rows: GEMMScratch.block(rows, limit: QuantizedLinear.blockRows, unit: 1),
            hasTurnedCodes: group.hasQuietWeight)
        var byteCount = shared.byteCount
        for index in 1..<group.layers.count {
            byteCount += ActivationBlock.lowByteCount(group.layers[index], rows: shared.rows)
        }
        pool.withWorkspace(byteCount: byteCount) { workspace in
            var first = 0
            while first < rows {
                let count = min(shared.rows, rows - first)
                let coding = member(group.coding, shared)
                coding.call.quantize(from: first, rows: count, coding.block, workspace, on: pool)
                for index in 0..<group.layers.count where index != group.coding && group.layers[index].rank > 0 {
                    let member = member(index, shared)
                    member.call.projectDown(from: first, rows: count, member.block, workspace, on: pool)
                }
                var products = Products(call: self, shared: shared, workspace: workspace, first: first, rows: count)
                products.share(among: pool.threads)
                pool.run(
                    products, tasks: products.taskCount,
                    work: QuantizedLinearCall.work(count, group.inFeatures, group.outFeatures),
                    scratchByteCount: group.scratchByteCount)
                first += count
            }
        }
    }

    /// The call of one layer, and its block of activations, whose codes are those of `shared`.
    func member(_ index: Int, _ shared: ActivationBlock) -> (call: QuantizedLinearCall, block: ActivationBlock) {
        var (column, low) = (0, shared.byteCount)
        for earlier in 0..<index {
            column += group.layers[earlier].outFeatures
            if earlier > 0 { low += ActivationBlock.lowByteCount(group.layers[earlier], rows: shared.rows) }
        }
        let layer = group.layers[index]
        let call = QuantizedLinearCall(layer: layer, x: x, y: y.from(column: column))
        return (call, index == 0 ? shared : shared.sharing(layer, low: low))
    }

    /// The products of all layers with the rows of a block, layer by layer.
    struct Products: PoolCall {
        let call: GroupCall
        let shared: ActivationBlock
        let workspace: UnsafeMutableRawPointer
        let first: Int
        let rows: Int
        /// Products of a layer that are one task. To make a layer's call takes as long as a small product, and has to be done for
        /// each task.
        private var taskProducts = 1

        init(call: GroupCall, shared: ActivationBlock, workspace: UnsafeMutableRawPointer, first: Int, rows: Int) {
            (self.call, self.shared, self.workspace, self.first, self.rows) = (call, shared, workspace, first, rows)
        }

        /// Makes some tasks for each thread, of which the last ones to finish are not long.
        mutating func share(among threads: Int) { taskProducts = max(1, taskCount / (16 * threads)) }

        private func tasks(_ phase: QuantizedLinearCall.Phase) -> Int {
            (phase.productTasks + taskProducts - 1) / taskProducts
        }

        var taskCount: Int {
            var count = 0
            for index in 0..<call.group.layers.count { count += tasks(phase(index)) }
            return count
        }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            var (index, task) = (0, task)
            while true {
                let phase = phase(index)
                let count = tasks(phase)
                if task < count {
                    var product = task * taskProducts
                    let end = min(product + taskProducts, phase.productTasks)
                    while product < end {
                        phase.multiply(task: product, scratch: scratch)
                        product += 1
                    }
                    return
                }
                task -= count
                index += 1
            }
        }

        private func phase(_ index: Int) -> QuantizedLinearCall.Phase {
            let member = call.member(index, shared)
            return member.call.product(from: first, rows: rows, member.block, workspace)
        }
    }
}
