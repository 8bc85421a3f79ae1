internal import KernelInterface

/// The products of an adapter of one linear layer, forward and backward. `W` itself, which is frozen, is not part of it.
///
///     t = x · aᵀ        y += scale · t · bᵀ
///
///     dt = scale · dy · b        da += dtᵀ · x        db += scale · dyᵀ · t        dx += dt · a
///
/// ```swift
/// let adapter = try LoRAOperator(inFeatures: 4096, outFeatures: 4096, rank: 32)
/// var t = try Tensor<Float>(zeros: [2048, 32])
/// try adapter.run(x: x.matrixView(), factors: factors, projected: &t, adding: y.mutableMatrixView())
/// try adapter.gradient(
///     x: x.matrixView(), projected: t, factors: factors, outputGradient: dy.matrixView(), a: &da, b: &db,
///     adding: dx.mutableMatrixView())
/// ```
///
/// - Exactness: each product is within λ·√K·2⁻²⁴ of the sum of magnitudes, as ``GEMM`` is.
/// - Non-finite input propagates as in IEEE arithmetic. Results are bitwise equal for every number of threads.
/// - Complexity: M · rank · (in + out) multiply-adds forward and twice that backward, for M rows. Memory bandwidth limits them as much as
///   arithmetic does: rows are read once per product.
/// - Scratch: `scratchByteCount` per thread, and a workspace of `workspaceByteCount(rows:)`; a forward pass counts no rows.
/// - Source: Hu et al., 2021 (arXiv 2106.09685).
public struct LoRAOperator: Sendable {
    /// Columns of x.
    public let inFeatures: Int
    /// Columns of y.
    public let outFeatures: Int
    /// Columns of t.
    public let rank: Int
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    let kernels: any KernelTable.Type

    /// Makes the plan.
    ///
    /// - Parameters:
    ///   - inFeatures: columns of x, at least 0.
    ///   - outFeatures: columns of y, at least 0.
    ///   - rank: r, at least 1.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for an extent out of range, `.unsupportedInstructionSet`.
    public init(
        inFeatures: Int, outFeatures: Int, rank: Int, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, extent, least) in [("inFeatures", inFeatures, 0), ("outFeatures", outFeatures, 0), ("rank", rank, 1)] {
            try require(
                extent >= least && extent < 1 << 31, .invalidShape, name, expected: "at least \(least) and below 2³¹",
                actual: "\(extent)")
        }
        self.inFeatures = inFeatures
        self.outFeatures = outFeatures
        self.rank = rank
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { max(LoRARowsCall.scratchByteCount, LoRAFactorCall.scratchByteCount(rank: rank)) }

    /// Bytes of the workspace of a call: both factors as panels, and dt in a backward pass.
    public func workspaceByteCount(rows: Int) -> Int {
        (panelFloats(inFeatures) + panelFloats(outFeatures) + rows * rank) * 4
    }

    /// Floats of a factor as panels, in either orientation, in whole cache lines.
    private func panelFloats(_ features: Int) -> Int {
        max(
            PanelLayout.floats(depth: features, columns: rank),
            (PanelLayout.floats(depth: rank, columns: features) + 15) / 16 * 16)
    }

    /// Computes t = x · aᵀ and y += scale · t · bᵀ.
    ///
    /// - Parameters:
    ///   - x: M × inFeatures.
    ///   - factors: of this plan's extents.
    ///   - t: `[M or more, rank]`. The first M rows are overwritten, for the backward pass.
    ///   - y: M × outFeatures, to which the product is added.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run(
        x: MatrixView<Float>, factors: LoRAFactors, projected t: inout Tensor<Float>,
        adding y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: inFeatures)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, outFeatures))
        try check(factors)
        try requireProjected(t, rows: x.rows)
        if x.rows == 0 { return }
        let (operand, rows, target, projected) = (RowOperand(x), x.rows, RowTarget(&y), t.uniqueAddress())
        pool.withWorkspace(byteCount: workspaceByteCount(rows: 0)) { workspace in
            let first = workspace.assumingMemoryBound(to: Float.self)
            let second = first + panelFloats(inFeatures)
            LoRAPackCall(
                kernels: kernels,
                first: PackPanelsArguments(
                    source: factors.a.address, stride: inFeatures, isTransposed: true, depth: inFeatures, columns: rank,
                    scale: 1, panels: first),
                second: PackPanelsArguments(
                    source: factors.b.address, stride: rank, isTransposed: true, depth: rank, columns: outFeatures,
                    scale: factors.scale, panels: second)
            ).run(on: pool)
            LoRARowsCall(
                kernels: kernels, rank: rank, rows: rows, wide: operand, wideColumns: inFeatures, first: first,
                narrow: projected, second: second, target: target, targetColumns: outFeatures
            ).run(on: pool)
        }
    }

    /// Adds the gradients of the factors and of x.
    ///
    /// - Parameters:
    ///   - x: M × inFeatures, as in the forward pass.
    ///   - t: what the forward pass kept.
    ///   - factors: as in the forward pass.
    ///   - dy: M × outFeatures.
    ///   - aGradient: `[rank, inFeatures]`, added to.
    ///   - bGradient: `[outFeatures, rank]`, added to.
    ///   - dx: M × inFeatures, added to.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func gradient(
        x: MatrixView<Float>, projected t: Tensor<Float>, factors: LoRAFactors, outputGradient dy: MatrixView<Float>,
        a aGradient: inout Tensor<Float>, b bGradient: inout Tensor<Float>,
        adding dx: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check(x, t, factors, dy, aGradient, bGradient)
        try requireMatrix("dx", rows: dx.rows, columns: dx.columns, expected: (x.rows, inFeatures))
        if x.rows == 0 { return }
        let target = RowTarget(&dx)
        addGradients(
            RowOperand(x), rows: x.rows, t, factors, RowOperand(dy), aGradient.uniqueAddress(), bGradient.uniqueAddress(),
            dx: target, on: pool)
    }

    /// Adds the gradients of the factors, for a first layer, whose input needs none.
    ///
    /// - Parameters:
    ///   - x: M × inFeatures, as in the forward pass.
    ///   - t: what the forward pass kept.
    ///   - factors: as in the forward pass.
    ///   - dy: M × outFeatures.
    ///   - aGradient: `[rank, inFeatures]`, added to.
    ///   - bGradient: `[outFeatures, rank]`, added to.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func gradient(
        x: MatrixView<Float>, projected t: Tensor<Float>, factors: LoRAFactors, outputGradient dy: MatrixView<Float>,
        a aGradient: inout Tensor<Float>, b bGradient: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check(x, t, factors, dy, aGradient, bGradient)
        if x.rows == 0 { return }
        addGradients(
            RowOperand(x), rows: x.rows, t, factors, RowOperand(dy), aGradient.uniqueAddress(), bGradient.uniqueAddress(),
            dx: nil, on: pool)
    }

    private func check(_ factors: LoRAFactors) throws(SparseKernelsError) {
        try requireShape(factors.a, "factors.a", rank, inFeatures)
        try requireShape(factors.b, "factors.b", outFeatures, rank)
    }

    private func check(
        _ x: MatrixView<Float>, _ t: Tensor<Float>, _ factors: LoRAFactors, _ dy: MatrixView<Float>,
        _ aGradient: Tensor<Float>, _ bGradient: Tensor<Float>
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: inFeatures)
        try requireMatrix("outputGradient", rows: dy.rows, columns: dy.columns, expected: (x.rows, outFeatures))
        try check(factors)
        try requireProjected(t, rows: x.rows)
        try requireShape(aGradient, "a", rank, inFeatures)
        try requireShape(bGradient, "b", outFeatures, rank)
    }

    private func requireProjected(_ t: Tensor<Float>, rows: Int) throws(SparseKernelsError) {
        try require(
            t.shape.count == 2 && t.shape[0] >= rows && t.shape[1] == rank, .invalidShape, "projected",
            expected: "[\(rows) or more, \(rank)]", actual: "\(t.shape)")
    }

    private func addGradients(
        _ x: RowOperand, rows: Int, _ t: Tensor<Float>, _ factors: LoRAFactors, _ dy: RowOperand,
        _ aGradient: UnsafeMutablePointer<Float>, _ bGradient: UnsafeMutablePointer<Float>, dx: RowTarget?,
        on pool: WorkerPool
    ) {
        pool.withWorkspace(byteCount: workspaceByteCount(rows: rows)) { workspace in
            let first = workspace.assumingMemoryBound(to: Float.self)
            let second = first + panelFloats(outFeatures)
            let dt = second + panelFloats(inFeatures)
            LoRAPackCall(
                kernels: kernels,
                first: PackPanelsArguments(
                    source: factors.b.address, stride: rank, isTransposed: false, depth: outFeatures, columns: rank,
                    scale: factors.scale, panels: first),
                second: dx == nil
                    ? nil
                    : PackPanelsArguments(
                        source: factors.a.address, stride: inFeatures, isTransposed: false, depth: rank,
                        columns: inFeatures, scale: 1, panels: second)
            ).run(on: pool)
            LoRARowsCall(
                kernels: kernels, rank: rank, rows: rows, wide: dy, wideColumns: outFeatures, first: first, narrow: dt,
                second: second, target: dx, targetColumns: inFeatures
            ).run(on: pool)
            LoRAFactorCall(
                kernels: kernels, rank: rank, rows: rows, x: x, inFeatures: inFeatures, dt: dt, a: aGradient, dy: dy,
                outFeatures: outFeatures, t: t.address, b: bGradient, scale: factors.scale
            ).run(on: pool)
        }
    }
}

/// Throws `.invalidShape` unless a tensor is a matrix of these extents.
func requireShape(_ tensor: Tensor<Float>, _ name: String, _ rows: Int, _ columns: Int) throws(SparseKernelsError) {
    try require(
        tensor.shape.count == 2 && tensor.shape[0] == rows && tensor.shape[1] == columns, .invalidShape, name,
        expected: "[\(rows), \(columns)]", actual: "\(tensor.shape)")
}
