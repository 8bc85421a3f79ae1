internal import KernelInterface

/// The norm of gradients, and clipping by it.
///
/// - Exactness: squares are added in `Double`, in an order that does not depend on threads. They do not overflow.
/// - Complexity: O(elements), bound by memory.
/// - Scratch: a workspace of 8 bytes per 16384 elements of the largest tensor.
/// - Source: `torch.nn.utils.clip_grad_norm_`.
public enum GradientNorm {
    /// The root of the sum of the squares of all elements: NaN if one is NaN, else ∞ if one is infinite. So it tells whether a step can be
    /// taken.
    public static func norm(of gradients: [Tensor<Float>], on pool: WorkerPool = .shared) -> Double {
        let kernels = InstructionSet.available[0].kernels
        var total = 0.0
        // An iterator would allocate in debug builds.
        for index in 0..<gradients.count {
            let call = SquaresCall(kernels: kernels, x: gradients[index].address, count: gradients[index].count)
            pool.withWorkspace(byteCount: call.tasks * 8) { workspace in
                let sums = workspace.assumingMemoryBound(to: Double.self)
                pool.run(SquaresCall(call, into: sums), tasks: call.tasks, work: call.count * 4)
                for task in 0..<call.tasks { total += sums[task] }
            }
        }
        return total.squareRoot()
    }

    /// Scales all gradients by one factor, so that their norm is at most `limit`: limit / (norm + 10⁻⁶) where that is below 1.
    ///
    /// - Parameters:
    ///   - gradients: changed only if their norm is finite and too large.
    ///   - limit: the largest norm, positive.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the norm before.
    /// - Throws: `.invalidArgument` for a limit that is not positive and finite; nothing is written then.
    @discardableResult
    public static func clip(
        _ gradients: inout [Tensor<Float>], to limit: Double, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Double {
        try require(
            limit > 0 && limit.isFinite, .invalidArgument, "limit", expected: "positive and finite", actual: "\(limit)")
        let norm = norm(of: gradients, on: pool)
        let factor = limit / (norm + 1e-6)
        if !norm.isFinite || factor >= 1 { return norm }
        let kernels = InstructionSet.available[0].kernels
        for index in 0..<gradients.count {
            let call = ScaleCall(
                kernels: kernels, x: gradients[index].uniqueAddress(), count: gradients[index].count, factor: Float(factor))
            pool.run(call, tasks: call.tasks, work: call.count * 8)
        }
        return norm
    }
}

/// Elements of a task: 64 KB.
private let part = 16_384

private struct SquaresCall: PoolCall {
    let kernels: any KernelTable.Type
    let x: UnsafePointer<Float>
    let count: Int
    let sums: UnsafeMutablePointer<Double>?

    init(kernels: any KernelTable.Type, x: UnsafePointer<Float>, count: Int) {
        (self.kernels, self.x, self.count, sums) = (kernels, x, count, nil)
    }

    init(_ call: SquaresCall, into sums: UnsafeMutablePointer<Double>) {
        (kernels, x, count, self.sums) = (call.kernels, call.x, call.count, sums)
    }

    var tasks: Int { (count + part - 1) / part }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * part
        sums![task] = kernels.sumSquares(x + first, count: min(part, count - first))
    }
}

private struct ScaleCall: PoolCall {
    let kernels: any KernelTable.Type
    let x: UnsafeMutablePointer<Float>
    let count: Int
    let factor: Float

    var tasks: Int { (count + part - 1) / part }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * part
        let columns = min(part, count - first)
        var arguments = AddRowsArguments(
            x: x + first, xStride: columns, y: x + first, yStride: columns, rows: 1, columns: columns, scale: factor,
            accumulates: false)
        kernels.addScaledRows(&arguments)
    }
}
