internal import KernelInterface

/// Rows, or columns, cut into tasks of equal size.
struct LoRATiles {
    /// Rows of a task, and columns of a piece of its output.
    static let tile = 256

    let rows: Int

    var count: Int { (rows + Self.tile - 1) / Self.tile }

    func part(_ task: Int) -> (first: Int, count: Int) {
        let first = task * Self.tile
        return (first, min(Self.tile, rows - first))
    }

    /// Bytes of the products of a tile.
    static func byteCount(rank: Int) -> Int { (tile * tile + 2 * tile * rank) * 4 }
}

/// t = x · aᵀ and y += scale · t · bᵀ, for some rows.
struct LoRAForwardCall: PoolCall {
    let plan: LoRAOperator
    let tiles: LoRATiles
    let x: RowOperand
    let a: UnsafePointer<Float>
    let b: UnsafePointer<Float>
    let scale: Float
    let t: UnsafeMutablePointer<Float>
    let y: RowTarget

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (first, count) = tiles.part(task)
        let projected = t + first * plan.rank
        GEMM.multiply(
            rows: count, columns: plan.rank, depth: plan.inFeatures,
            a: x.from(first).base.assumingMemoryBound(to: Float.self), aStride: x.stride, b: a, bStride: plan.inFeatures,
            transposesB: true, c: projected, cStride: plan.rank, scratch: scratch, instructionSet: plan.instructionSet)
        plan.addProduct(
            projected, rows: count, b, transposesB: true, columns: plan.outFeatures, scale: scale, to: y.from(first),
            scratch)
    }
}

/// dt = scale · dy · b and dx += dt · a, for some rows.
struct LoRABackwardCall: PoolCall {
    let plan: LoRAOperator
    let tiles: LoRATiles
    let dy: RowOperand
    let a: UnsafePointer<Float>
    let b: UnsafePointer<Float>
    let scale: Float
    let dt: UnsafeMutablePointer<Float>
    let dx: RowTarget?

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (first, count) = tiles.part(task)
        let projected = dt + first * plan.rank
        GEMM.multiply(
            rows: count, columns: plan.rank, depth: plan.outFeatures,
            a: dy.from(first).base.assumingMemoryBound(to: Float.self), aStride: dy.stride, b: b, bStride: plan.rank,
            transposesB: false, c: projected, cStride: plan.rank, scratch: scratch, instructionSet: plan.instructionSet)
        var scaled = AddRowsArguments(
            x: projected, xStride: plan.rank, y: projected, yStride: plan.rank, rows: count, columns: plan.rank,
            scale: scale, accumulates: false)
        plan.kernels.addScaledRows(&scaled)
        guard let dx else { return }
        plan.addProduct(
            projected, rows: count, a, transposesB: false, columns: plan.inFeatures, scale: 1, to: dx.from(first), scratch)
    }
}

extension LoRAOperator {
    /// target += scale · t · factor, or · factorᵀ, a tile at a time.
    fileprivate func addProduct(
        _ t: UnsafePointer<Float>, rows: Int, _ factor: UnsafePointer<Float>, transposesB: Bool, columns: Int, scale: Float,
        to target: RowTarget, _ scratch: UnsafeMutableRawPointer
    ) {
        let product = (scratch + GEMM.taskScratchByteCount).assumingMemoryBound(to: Float.self)
        let tiles = LoRATiles(rows: columns)
        for tile in 0..<tiles.count {
            let (first, count) = tiles.part(tile)
            GEMM.multiply(
                rows: rows, columns: count, depth: rank, a: t, aStride: rank,
                b: transposesB ? factor + first * rank : factor + first, bStride: transposesB ? rank : columns,
                transposesB: transposesB, c: product, cStride: count, scratch: scratch, instructionSet: instructionSet)
            var sum = AddRowsArguments(
                x: product, xStride: count, y: target.base.assumingMemoryBound(to: Float.self) + first,
                yStride: target.stride, rows: rows, columns: count, scale: scale)
            kernels.addScaledRows(&sum)
        }
    }
}

/// gradient += thin · wide, or its transpose, for some columns of the wide matrix.
struct LoRAFactorCall: PoolCall {
    let plan: LoRAOperator
    let tiles: LoRATiles
    /// [rank, rows].
    let thin: UnsafePointer<Float>
    let rows: Int
    let wide: RowOperand
    let gradient: UnsafeMutablePointer<Float>
    let gradientStride: Int
    let transposes: Bool

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (first, count) = tiles.part(task)
        let rank = plan.rank
        let product = (scratch + GEMM.taskScratchByteCount).assumingMemoryBound(to: Float.self)
        GEMM.multiply(
            rows: rank, columns: count, depth: rows, a: thin, aStride: rows,
            b: wide.base.assumingMemoryBound(to: Float.self) + first, bStride: wide.stride, transposesB: false, c: product,
            cStride: count, scratch: scratch, instructionSet: plan.instructionSet)
        if transposes {
            let transposed = product + rank * count
            var transpose = TransposeArguments(
                source: product, stride: count, rows: rank, columns: count, target: transposed, targetStride: rank)
            plan.kernels.transposeRows(&transpose)
            var sum = AddRowsArguments(
                x: transposed, xStride: rank, y: gradient + first * rank, yStride: rank, rows: count, columns: rank)
            plan.kernels.addScaledRows(&sum)
        } else {
            var sum = AddRowsArguments(
                x: product, xStride: count, y: gradient + first, yStride: gradientStride, rows: rank, columns: count)
            plan.kernels.addScaledRows(&sum)
        }
    }
}
