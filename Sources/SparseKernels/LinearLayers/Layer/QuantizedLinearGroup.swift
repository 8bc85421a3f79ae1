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
    }

    public var inFeatures: Int { layers[0].inFeatures }

    /// Bytes of all layers.
    public var byteCount: Int { layers.reduce(0) { $0 + $1.byteCount } }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { layers.reduce(0) { max($0, $1.scratchByteCount) } }

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
        try require(x.columns == inFeatures, .invalidShape, "x", expected: "\(inFeatures) columns", actual: "\(x.columns)")
        try require(
            y.rows == x.rows && y.columns == outFeatures, .invalidShape, "y", expected: "\(x.rows) × \(outFeatures)",
            actual: "\(y.rows) × \(y.columns)")
        if x.rows == 0 { return }
        let (rows, yStride) = (x.rows, y.rowStride)
        // Pointers are used only until this call returns, which borrows or owns the views.
        let operand = RowOperand(
            base: x.span.withUnsafeBufferPointer { UnsafeRawPointer($0.baseAddress!) }, stride: x.rowStride, type: X.storageType
        )
        let base = y.span.withUnsafeMutableBufferPointer { UnsafeMutableRawPointer($0.baseAddress!) }
        var calls: [QuantizedLinearCall] = []
        var column = 0
        for layer in layers {
            calls.append(
                QuantizedLinearCall(
                    layer: layer, x: operand, y: base + column * MemoryLayout<Y>.size, yStride: yStride, yType: Y.storageType))
            column += layer.outFeatures
        }
        run(calls, rows: rows, on: pool)
    }

    private func run(_ calls: [QuantizedLinearCall], rows: Int, on pool: WorkerPool) {
        let block = ActivationBlock(layers[0], rows: GEMMScratch.block(rows, limit: QuantizedLinear.blockRows, unit: 1))
        var blocks = [block]
        var byteCount = block.byteCount
        for layer in layers.dropFirst() {
            blocks.append(block.sharing(layer, low: byteCount))
            byteCount += ActivationBlock.lowByteCount(layer, rows: block.rows)
        }
        pool.withWorkspace(byteCount: byteCount) { workspace in
            for first in stride(from: 0, to: rows, by: block.rows) {
                let count = min(block.rows, rows - first)
                // The sums of codes are those of the first layer whose weights have offsets; codes are the same for all.
                let quantizing = calls.first { $0.layer.weight.offsets != nil } ?? calls[0]
                let index = calls.firstIndex { $0.layer.weight.offsets != nil } ?? 0
                quantizing.quantize(from: first, rows: count, blocks[index], workspace, on: pool)
                for (other, call) in calls.enumerated() where other != index && call.layer.rank > 0 {
                    call.projectDown(from: first, rows: count, blocks[other], workspace, on: pool)
                }
                let phases = zip(calls, blocks).map { $0.product(from: first, rows: count, $1, workspace) }
                var starts: [Int] = []
                var tasks = 0
                for phase in phases {
                    starts.append(tasks)
                    tasks += phase.productTasks
                }
                phases.withUnsafeBufferPointer { phases in
                    starts.withUnsafeBufferPointer { starts in
                        pool.run(
                            Products(phases: phases.baseAddress!, starts: starts.baseAddress!, count: phases.count),
                            tasks: tasks, work: count * inFeatures * outFeatures, scratchByteCount: scratchByteCount)
                    }
                }
            }
        }
    }

    /// The products of all layers with the rows of a block, layer by layer.
    private struct Products: PoolCall {
        let phases: UnsafePointer<QuantizedLinearCall.Phase>
        let starts: UnsafePointer<Int>
        let count: Int

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            var layer = count - 1
            while starts[layer] > task { layer -= 1 }
            phases[layer].multiply(task: task - starts[layer], scratch: scratch)
        }
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
