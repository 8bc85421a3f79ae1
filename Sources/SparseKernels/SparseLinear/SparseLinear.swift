internal import KernelInterface

/// A linear layer of which a call uses some channels: outputs, or inputs.
///
/// The weight is stored once, in its own type, in the orientation in which the channels that may be picked are rows. A subset is
/// then a list of rows, which kernels read where they are; nothing is copied when the subset changes from call to call.
///
/// ```swift
/// let gate = try SparseLinear(weight: g, picking: .outputs)     // g, u: [inner, model]
/// let up = try SparseLinear(weight: u, picking: .outputs)
/// let down = try SparseLinear(weight: d, picking: .inputs)      // d: [model, inner]
/// try gate.run(x: x, channels: kept, y: a)                      // [tokens, kept.count]
/// try up.run(x: x, channels: kept, y: b)
/// try down.run(x: hidden, channels: kept, y: y)                 // hidden: [tokens, kept.count]
/// ```
///
/// Matrices of picked channels are compact: column *t* belongs to the channel `subset.indices[t]`. ``ColumnMoves`` takes them
/// from wide matrices, and back.
///
/// - Exactness: weights are widened, which is exact, and products are summed in `Float`; sums with weights of 8 bits are multiplied by
///   1 / scale. Non-finite input gives the result of IEEE arithmetic in its own row. Channels that are not picked are never read.
///   Results are bitwise equal for every number of threads. One row, up to 16 rows, and more are summed in orders of their own.
/// - Complexity: M · picked channels · depth multiply-adds; with few rows, reading the picked part of the weight.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: SparseLoRA (arXiv 2506.16500), section 3.1; CATS (arXiv 2404.08763), section 4.
public struct SparseLinear: Sendable {
    /// The side of a layer whose channels may be picked.
    public enum Side: String, Hashable, Sendable, Codable, CaseIterable {
        /// Output features: rows of the weight `[outFeatures, inFeatures]`.
        case outputs
        /// Input features: its columns. The layer stores the transpose.
        case inputs
    }

    public let outFeatures: Int
    public let inFeatures: Int
    /// The side whose channels may be picked.
    public let side: Side
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    let type: WeightType
    /// `[channels, depth]`, row-major.
    let weights: TensorStorage
    /// What products are multiplied by: 1 / scale of weights of 8 bits, and 2⁸ times that for E4M3.
    let factor: Float
    let bias: Tensor<Float>?

    /// Makes a layer of a weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`, as a checkpoint has it, of `Float`, `Float16` or `BFloat16`; it is kept in its type.
    ///   - side: the side whose channels may be picked.
    ///   - bias: `[outFeatures]`.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that transpose the weight, for `.inputs`.
    /// - Throws: `.invalidShape` for a weight that is no matrix with elements, more than 2³¹ − 1 features, or a bias of another
    ///   size; `.invalidArgument` for a bias that is not finite; `.unsupportedInstructionSet`.
    public init<W: AttentionElement>(
        weight: Tensor<W>, picking side: Side, bias: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            weight, type: WeightType(W.storageType), factor: 1, picking: side, bias: bias, instructionSet: instructionSet,
            on: pool)
    }

    /// Makes a layer of a weight in 8-bit floats, which stays in them: products with the codes are divided by their scale.
    ///
    /// - Parameters: those of `init(weight:…)` for other types; `weight` has codes and their scale.
    /// - Throws: the errors of `init(weight:…)` for other types; `.invalidArgument` for codes that are not finite, or a scale whose
    ///   reciprocal is not a normal number.
    public init<Code: Float8>(
        weight: Float8Tensor<Code>, picking side: Side, bias: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        // Kernels read codes of E4M3 in units of 2⁻⁸.
        let factor = 1 / weight.scale * Code.weightUnit
        try require(
            factor.isNormal, .invalidArgument, "weight.scale", expected: "from 2⁻¹¹⁹ to 2¹²⁵", actual: "\(weight.scale)")
        let bad = weight.codes.span.withUnsafeBufferPointer { codes in codes.indices.first { !codes[$0].isFinite } }
        try require(
            bad == nil, .invalidArgument, "weight", expected: "finite", actual: "a code that is not, at element \(bad ?? 0)")
        try self.init(
            weight.codes, type: WeightType(Code.kernelType), factor: factor, picking: side, bias: bias,
            instructionSet: instructionSet, on: pool)
    }

    private init<W: TensorElement>(
        _ weight: Tensor<W>, type: WeightType, factor: Float, picking side: Side, bias: Tensor<Float>?,
        instructionSet: InstructionSet?, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try require(
            weight.shape.count == 2 && weight.shape.allSatisfy { $0 >= 1 && $0 <= Int(Int32.max) }, .invalidShape, "weight",
            expected: "[outFeatures, inFeatures], from 1 to 2³¹ − 1 each", actual: "\(weight.shape)")
        if let bias {
            try require(
                bias.shape == [weight.shape[0]], .invalidShape, "bias", expected: "\([weight.shape[0]])",
                actual: "\(bias.shape)")
            try bias.requireFinite(named: "bias")
        }
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        outFeatures = weight.shape[0]
        inFeatures = weight.shape[1]
        self.side = side
        self.bias = bias
        self.type = type
        self.factor = factor
        switch side {
        case .outputs:
            // The tensor's own memory: a layer costs no copy.
            weights = weight.storage
        case .inputs:
            let storage = TensorStorage(byteCount: weight.count * MemoryLayout<W>.stride)
            let target = storage.pointer.assumingMemoryBound(to: W.self)
            weight.span.withUnsafeBufferPointer { source in
                WeightTransposition(
                    source: source.baseAddress!, rows: weight.shape[0], columns: weight.shape[1], target: target
                ).run(on: pool)
            }
            weights = storage
        }
    }

    /// The number of channels that may be picked: the features of `side`.
    public var channels: Int { side == .outputs ? outFeatures : inFeatures }
    /// The features of the other side.
    public var depth: Int { side == .outputs ? inFeatures : outFeatures }
    /// Bytes of the weight and the bias.
    public var byteCount: Int { channels * depth * type.byteCount + (bias?.count ?? 0) * 4 }
    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { max(PickedScratch.byteCount, PickedScratch.rowByteCount) }

    // MARK: - Run

    /// Computes the outputs for the rows of x, with some of the channels.
    ///
    /// With `.outputs`, y_t = x · W[I_t, :]ᵀ + bias[I_t] for the picked outputs I. With `.inputs`, y = Σ_t x_t · W[:, I_t] + bias: the
    /// inputs that are not picked count as 0. An empty subset gives no columns, or the bias.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`, or `[tokens, picked]` for `.inputs`; may have no tokens.
    ///   - subset: the channels; nil means all.
    ///   - y: `[tokens, picked]`, or `[tokens, outFeatures]` for `.inputs`.
    ///   - accumulates: whether the result is added to what y holds, instead of replacing it.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for a subset of another width, and naming the operand that disagrees; nothing is written then.
    public func run(
        x: MatrixView<Float>, channels subset: ChannelSubset? = nil, y: consuming MutableMatrixView<Float>,
        accumulates: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let picked = try pickedCount(subset)
        let (inputs, outputs) = side == .outputs ? (inFeatures, picked) : (picked, outFeatures)
        try requireColumns("x", x.columns, expected: inputs)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, outputs))
        multiply(
            RowOperand(x), rows: x.rows, subset, isTransposed: side == .outputs, addsBias: true, into: RowTarget(&y),
            accumulates: accumulates, on: pool)
    }

    /// Computes the gradient with respect to x from that of the outputs, with the same channels as `run`.
    ///
    /// With `.outputs`, dx = Σ_t dy_t · W[I_t, :]; with `.inputs`, dx_t = dy · W[:, I_t], for the picked inputs alone. The weight is
    /// frozen, so there is no gradient of it.
    ///
    /// - Parameters:
    ///   - dy: `[tokens, picked]`, or `[tokens, outFeatures]` for `.inputs`; may have no tokens.
    ///   - subset: the channels; nil means all.
    ///   - dx: `[tokens, inFeatures]`, or `[tokens, picked]` for `.inputs`.
    ///   - accumulates: whether the gradient is added to what dx holds, instead of replacing it.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for a subset of another width, and naming the operand that disagrees; nothing is written then.
    public func inputGradient(
        _ dy: MatrixView<Float>, channels subset: ChannelSubset? = nil, into dx: consuming MutableMatrixView<Float>,
        accumulates: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let picked = try pickedCount(subset)
        let (inputs, outputs) = side == .outputs ? (inFeatures, picked) : (picked, outFeatures)
        try requireColumns("dy", dy.columns, expected: outputs)
        try requireMatrix("dx", rows: dx.rows, columns: dx.columns, expected: (dy.rows, inputs))
        multiply(
            RowOperand(dy), rows: dy.rows, subset, isTransposed: side == .inputs, addsBias: false, into: RowTarget(&dx),
            accumulates: accumulates, on: pool)
    }

    private func pickedCount(_ subset: ChannelSubset?) throws(SparseKernelsError) -> Int {
        guard let subset else { return channels }
        try require(
            subset.width == channels, .invalidShape, "channels",
            expected: "a subset of \(channels), the layer's \(side == .outputs ? "outputs" : "inputs")",
            actual: "of \(subset.width)")
        return subset.count
    }

    /// C (+)= A · B[I]ᵀ or A · B[I], of operands that were checked.
    private func multiply(
        _ a: RowOperand, rows: Int, _ subset: ChannelSubset?, isTransposed: Bool, addsBias: Bool, into c: RowTarget,
        accumulates: Bool, on pool: WorkerPool
    ) {
        let bias = addsBias ? bias?.span.withUnsafeBufferPointer { $0.baseAddress } : nil
        guard let subset, !subset.isAll else {
            var call = PickedProductCall(
                self, a: a, rows: rows, list: nil, picked: channels, isTransposed: isTransposed, bias: bias, c: c,
                accumulates: accumulates)
            return call.run(on: pool)
        }
        subset.indices.withUnsafeBufferPointer { list in
            var call = PickedProductCall(
                self, a: a, rows: rows, list: list.baseAddress, picked: list.count, isTransposed: isTransposed, bias: bias,
                c: c,
                accumulates: accumulates)
            call.run(on: pool)
        }
    }
}

/// Transposes a weight. A task writes a stretch of rows of the target.
private struct WeightTransposition<Element: TensorElement>: PoolCall {
    let source: UnsafePointer<Element>
    let rows: Int
    let columns: Int
    let target: UnsafeMutablePointer<Element>

    /// Rows of the target per task: a cache line of the source or more.
    private static var taskColumns: Int { 32 }

    func run(on pool: WorkerPool) {
        pool.run(self, tasks: (columns + Self.taskColumns - 1) / Self.taskColumns, work: rows * columns)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * Self.taskColumns
        let end = min(columns, first + Self.taskColumns)
        for row in 0..<rows {
            let line = source + row * columns
            for column in first..<end { target[column * rows + row] = line[column] }
        }
    }
}
