internal import KernelInterface

/// A linear layer whose weights are numbers of 8, 16 or 32 bits: y = epilogue(x · Wᵀ + bias), in single precision.
///
/// Weights are reordered once, when the layer is made, and keep their type: a step of decoding reads two bytes per weight of
/// `Float16` and `BFloat16`, one of ``E4M3`` and ``E5M2``, and a product with many rows packs nothing per call, as `GEMM` must.
///
/// ```swift
/// let projection = try FloatLinear(weight: w)            // [outFeatures, inFeatures], Float, Float16 or BFloat16
/// let gateAndUp = try FloatLinear(weights: [gate, up])   // one product with both: their outputs side by side
/// let small = try FloatLinear(weight: Float8Tensor<E4M3>(w))   // a quarter of the bytes of Float
/// let y = try projection(x)                              // [tokens, outFeatures]
/// ```
///
/// - Exactness: weights and activations are widened, which is exact; products are summed in `Float`. Sums with weights of 8 bits are
///   multiplied by 1 / scale at the end. Non-finite input gives the result of IEEE arithmetic in its own row. Results are bitwise
///   equal for every number of threads, and the result of a row does not depend on the other rows.
/// - Complexity: M·N·K multiply-adds. With one row it is bound by reading the weights.
/// - Scratch: `scratchByteCount` per thread and, for activations of 16 bits, their copies in single precision, kept by the pool.
/// - Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), with B packed ahead of time.
public struct FloatLinear: Sendable {
    public let outFeatures: Int
    public let inFeatures: Int
    public let epilogue: Epilogue
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    let type: WeightType
    /// Panels [inFeatures][lanes], of up to two registers of output features.
    let weights: TensorStorage
    /// 1 / scale of every output feature, and 2⁸ times that for E4M3; nil for weights without scales.
    let factors: TensorStorage?
    let bias: TensorStorage?

    /// Makes a layer of one weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`, as a checkpoint has it.
    ///   - bias: `[outFeatures]`.
    ///   - epilogue: the function that is applied last.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` for a weight that is no matrix with elements, or a bias of another size; `.invalidArgument` for a
    ///   bias that is not finite; `.unsupportedInstructionSet`.
    public init<W: AttentionElement>(
        weight: Tensor<W>, bias: Tensor<Float>? = nil, epilogue: Epilogue = .none, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(weights: [weight], bias: bias, epilogue: epilogue, instructionSet: instructionSet, on: pool)
    }

    /// Makes one layer of several over the same input, such as query, key and value, or gate and up. Their outputs lie side by
    /// side, in this order.
    ///
    /// - Parameters: those of `init(weight:…)`; `weights` are `[outFeatures of each, inFeatures]`, and `bias` is that of all.
    /// - Throws: the errors of `init(weight:…)`, and `.invalidShape` for no weights or weights of different widths.
    public init<W: AttentionElement>(
        weights parts: [Tensor<W>], bias: Tensor<Float>? = nil, epilogue: Epilogue = .none,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            parts, type: WeightType(W.storageType), factors: nil, bias: bias, epilogue: epilogue,
            instructionSet: instructionSet, on: pool)
    }

    /// - Parameter factors: what the sums of each part are multiplied by; nil for 1.
    init<W: TensorElement>(
        _ parts: [Tensor<W>], type: WeightType, factors: [Float]?, bias: Tensor<Float>?, epilogue: Epilogue,
        instructionSet: InstructionSet?, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let name = parts.count == 1 ? "weight" : "weights"
        for part in parts {
            try require(
                part.shape.count == 2 && part.shape[0] >= 1 && part.shape[1] >= 1 && part.shape[1] == parts[0].shape[1],
                .invalidShape, name, expected: "[outFeatures, \(parts[0].shape.last ?? 0)], with elements",
                actual: "\(part.shape)")
        }
        try require(!parts.isEmpty, .invalidShape, name, expected: "one or more", actual: "none")
        let (rows, depth) = (parts.reduce(0) { $0 + $1.shape[0] }, parts[0].shape[1])
        if let bias {
            try require(bias.shape == [rows], .invalidShape, "bias", expected: "\([rows])", actual: "\(bias.shape)")
            try bias.requireFinite(named: "bias")
        }
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        let kernels = self.instructionSet.kernels
        self.kernels = kernels
        outFeatures = rows
        inFeatures = depth
        self.epilogue = epilogue
        self.type = type
        let lanes = (rows + kernels.sizes.laneCount - 1) / kernels.sizes.laneCount * kernels.sizes.laneCount
        let storage = TensorStorage(byteCount: lanes * depth * MemoryLayout<W>.size)
        weights = storage
        let target = storage.pointer.assumingMemoryBound(to: W.self)
        var first = 0
        for part in parts {
            part.span.withUnsafeBufferPointer { source in
                FloatPacking(
                    source: source.baseAddress!, rows: part.shape[0], firstRow: first, target: target, lanes: lanes,
                    depth: depth, panelWidth: kernels.sizes.weightPanelWidth
                ).run(on: pool)
            }
            first += part.shape[0]
        }
        for row in rows..<lanes {
            let panel = row / kernels.sizes.weightPanelWidth * kernels.sizes.weightPanelWidth
            let width = min(kernels.sizes.weightPanelWidth, lanes - panel)
            for k in 0..<depth { target[panel * depth + k * width + row - panel] = .zero }
        }
        if let factors {
            let padded = TensorStorage(byteCount: lanes * 4)
            let target = padded.pointer.assumingMemoryBound(to: Float.self)
            (target + rows).initialize(repeating: 0, count: lanes - rows)
            first = 0
            for (part, factor) in zip(parts, factors) {
                (target + first).initialize(repeating: factor, count: part.shape[0])
                first += part.shape[0]
            }
            self.factors = padded
        } else {
            self.factors = nil
        }
        if let bias {
            let padded = TensorStorage(byteCount: lanes * 4)
            let target = padded.pointer.assumingMemoryBound(to: Float.self)
            for lane in 0..<lanes { target[lane] = lane < rows ? bias[flat: lane] : 0 }
            self.bias = padded
        } else {
            self.bias = nil
        }
    }

    /// Bytes of weights, scales and bias, with rows filled up to whole registers.
    public var byteCount: Int { weights.byteCount + (factors?.byteCount ?? 0) + (bias?.byteCount ?? 0) }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int {
        max(QuantizedScratch.activationByteCount, QuantizedScratch.productByteCount(rank: 0))
    }

    // MARK: - Run

    /// Computes y for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`, of any attention element type and row stride. May have no tokens.
    ///   - y: `[tokens, outFeatures]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: inFeatures)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, outFeatures))
        if x.rows == 0 { return }
        // Pointers are used only until this call returns, which borrows or owns the views.
        FloatLinearCall(layer: self, x: RowOperand(x), y: RowTarget(&y)).run(rows: x.rows, on: pool)
    }

    /// Computes y for the rows of x into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x: x.matrixView(named: "x"), y: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Computes y for the rows of x, `[tokens, outFeatures]`, in a new tensor.
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
