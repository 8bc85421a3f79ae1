internal import KernelInterface

/// The gradients of the weight and the bias of a linear layer: dW += dyᵀ · x and db += Σ over rows of dy.
///
/// ```swift
/// let gradient = try LinearGradient(inFeatures: 512, outFeatures: 1536)
/// try gradient.run(x: x.matrixView(), outputGradient: dy.matrixView(), weight: &dW)
/// ```
///
/// Adapters need it no more than a frozen layer does. It is here for layers that are trained whole.
///
/// - Exactness: each sum is within λ·√M·2⁻²⁴ of the sum of magnitudes over M rows, as that of ``GEMM`` is.
/// - Non-finite input propagates as in IEEE arithmetic. Results are bitwise equal for every number of threads.
/// - Complexity: M · inFeatures · outFeatures multiply-adds.
/// - Scratch: `scratchByteCount` per thread, and a workspace as large as dy.
/// - Source: the derivative.
public struct LinearGradient: Sendable {
    /// Columns of x and of the weight.
    public let inFeatures: Int
    /// Columns of dy and rows of the weight.
    public let outFeatures: Int
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - inFeatures: columns of x, at least 0.
    ///   - outFeatures: columns of dy, at least 0.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for an extent out of range, `.unsupportedInstructionSet`.
    public init(
        inFeatures: Int, outFeatures: Int, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, extent) in [("inFeatures", inFeatures), ("outFeatures", outFeatures)] {
            try require(
                extent >= 0 && extent < 1 << 31, .invalidShape, name, expected: "at least 0 and below 2³¹",
                actual: "\(extent)")
        }
        self.inFeatures = inFeatures
        self.outFeatures = outFeatures
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int {
        GEMM.taskScratchByteCount + LinearGradientCall.tile * LinearGradientCall.tile * 4
    }

    /// Adds the gradient of the weight.
    ///
    /// - Parameters:
    ///   - x: M × inFeatures, as in the forward pass.
    ///   - outputGradient: dy, M × outFeatures.
    ///   - weight: dW, `[outFeatures, inFeatures]`, added to.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run(
        x: MatrixView<Float>, outputGradient: MatrixView<Float>, weight: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check(x, outputGradient, weight)
        addWeight(x, outputGradient, weight.uniqueAddress(), on: pool)
    }

    /// Adds the gradients of the weight and of the bias.
    ///
    /// - Parameters:
    ///   - x: M × inFeatures, as in the forward pass.
    ///   - outputGradient: dy, M × outFeatures.
    ///   - weight: dW, `[outFeatures, inFeatures]`, added to.
    ///   - bias: db, `[outFeatures]`, to which the sum over the rows, in their order, is added.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run(
        x: MatrixView<Float>, outputGradient: MatrixView<Float>, weight: inout Tensor<Float>, bias: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check(x, outputGradient, weight)
        try require(
            bias.shape.count == 1 && bias.shape[0] == outFeatures, .invalidShape, "bias", expected: "[\(outFeatures)]",
            actual: "\(bias.shape)")
        addWeight(x, outputGradient, weight.uniqueAddress(), on: pool)
        if x.rows == 0 || outFeatures == 0 { return }
        let call = BiasGradientCall(
            kernels: kernels, dy: RowOperand(outputGradient), rows: x.rows, columns: outFeatures,
            bias: bias.uniqueAddress())
        pool.run(
            call, tasks: call.count, work: x.rows * outFeatures * 4, scratchByteCount: 2 * BiasGradientCall.tile * 4)
    }

    private func check(
        _ x: MatrixView<Float>, _ dy: MatrixView<Float>, _ weight: Tensor<Float>
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: inFeatures)
        try requireMatrix("outputGradient", rows: dy.rows, columns: dy.columns, expected: (x.rows, outFeatures))
        try requireShape(weight, "weight", outFeatures, inFeatures)
    }

    private func addWeight(
        _ x: MatrixView<Float>, _ dy: MatrixView<Float>, _ weight: UnsafeMutablePointer<Float>, on pool: WorkerPool
    ) {
        if x.rows == 0 || inFeatures == 0 || outFeatures == 0 { return }
        let (wide, operand, rows) = (RowOperand(x), RowOperand(dy), x.rows)
        pool.withWorkspace(byteCount: rows * outFeatures * 4) { workspace in
            let thin = workspace.assumingMemoryBound(to: Float.self)
            let transpose = TransposeCall(
                kernels: kernels, source: operand, rows: rows, columns: outFeatures, target: thin)
            pool.run(transpose, tasks: transpose.count, work: rows * outFeatures * 8)
            let call = LinearGradientCall(
                kernels: kernels, instructionSet: instructionSet, dy: thin, rows: rows, x: wide, inFeatures: inFeatures,
                outFeatures: outFeatures, weight: weight)
            pool.run(
                call, tasks: call.count, work: rows * inFeatures * outFeatures, scratchByteCount: scratchByteCount)
        }
    }
}

/// Rows of a transposed matrix.
private struct TransposeCall: PoolCall {
    let kernels: any KernelTable.Type
    let source: RowOperand
    let rows: Int
    let columns: Int
    let target: UnsafeMutablePointer<Float>

    var count: Int { (columns + 63) / 64 }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * 64
        var arguments = TransposeArguments(
            source: source.base.assumingMemoryBound(to: Float.self) + first, stride: source.stride, rows: rows,
            columns: min(64, columns - first), target: target + first * rows, targetStride: rows)
        kernels.transposeRows(&arguments)
    }
}

/// A tile of dW.
private struct LinearGradientCall: PoolCall {
    static let tile = 384

    let kernels: any KernelTable.Type
    let instructionSet: InstructionSet
    /// [outFeatures, rows].
    let dy: UnsafePointer<Float>
    let rows: Int
    let x: RowOperand
    let inFeatures: Int
    let outFeatures: Int
    let weight: UnsafeMutablePointer<Float>

    private var rowTiles: Int { (outFeatures + Self.tile - 1) / Self.tile }
    var count: Int { rowTiles * ((inFeatures + Self.tile - 1) / Self.tile) }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (row, column) = (task % rowTiles * Self.tile, task / rowTiles * Self.tile)
        let (height, width) = (min(Self.tile, outFeatures - row), min(Self.tile, inFeatures - column))
        let product = (scratch + GEMM.taskScratchByteCount).assumingMemoryBound(to: Float.self)
        GEMM.multiply(
            rows: height, columns: width, depth: rows, a: dy + row * rows, aStride: rows,
            b: x.base.assumingMemoryBound(to: Float.self) + column, bStride: x.stride, transposesB: false, c: product,
            cStride: width, scratch: scratch, instructionSet: instructionSet)
        var sum = AddRowsArguments(
            x: product, xStride: width, y: weight + row * inFeatures + column, yStride: inFeatures, rows: height,
            columns: width)
        kernels.addScaledRows(&sum)
    }
}

/// Columns of db.
private struct BiasGradientCall: PoolCall {
    static let tile = 256

    let kernels: any KernelTable.Type
    let dy: RowOperand
    let rows: Int
    let columns: Int
    let bias: UnsafeMutablePointer<Float>

    var count: Int { (columns + Self.tile - 1) / Self.tile }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * Self.tile
        let count = min(Self.tile, columns - first)
        let sums = scratch.assumingMemoryBound(to: Float.self)
        var operand = dy
        operand.base += first * 4
        kernels.sumRows(&operand, from: 0, to: rows, channels: count, staging: sums + Self.tile, into: sums)
        var sum = AddRowsArguments(x: sums, xStride: count, y: bias + first, yStride: count, rows: 1, columns: count)
        kernels.addScaledRows(&sum)
    }
}
