internal import KernelInterface

/// C = A·B or A·Bᵀ in single precision, row-major.
///
/// Every kernel of this package uses its register tile; the cache blocks are its own.
///
/// - Non-finite input propagates as in IEEE arithmetic. Results are bitwise equal for every number of threads.
/// - Complexity: M·N·K multiply-adds.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008).
public struct GEMM: Sendable {
    /// Rows of A and C.
    public let m: Int
    /// Columns of C.
    public let n: Int
    /// Columns of A, which are the reduction.
    public let k: Int
    /// Whether B is given as `[n, k]`, like the weights of a linear layer.
    public let transposesB: Bool
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    private let kernels: any KernelTable.Type

    /// Makes the plan. Without rows or columns nothing is written, and without depth the result is zeros.
    ///
    /// - Throws: `.invalidShape` for a negative extent or 2⁶² multiply-adds or more, `.unsupportedInstructionSet`.
    public init(
        m: Int, n: Int, k: Int, transposesB: Bool = false, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, extent) in [("m", m), ("n", n), ("k", k)] {
            try require(extent >= 0, .invalidShape, name, expected: "at least 0", actual: "\(extent)")
        }
        let (area, areaOverflow) = m.multipliedReportingOverflow(by: n)
        let (work, workOverflow) = area.multipliedReportingOverflow(by: k)
        try require(
            !areaOverflow && !workOverflow && work < 1 << 62, .invalidShape, "m, n, k", expected: "m · n · k below 2⁶²",
            actual: "\(m) · \(n) · \(k)")
        self.m = m
        self.n = n
        self.k = k
        self.transposesB = transposesB
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { GEMMScratch.byteCount }

    /// Computes the product into the caller's memory.
    ///
    /// - Parameters:
    ///   - a: m × k.
    ///   - b: k × n, or n × k when `transposesB`.
    ///   - c: m × n, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run(
        a: MatrixView<Float>, b: MatrixView<Float>, c: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check("a", a.rows, a.columns, m, k)
        try check("b", b.rows, b.columns, transposesB ? n : k, transposesB ? k : n)
        try check("c", c.rows, c.columns, m, n)
        let cStride = c.rowStride
        if m == 0 || n == 0 { return }
        if k == 0 {
            for row in 0..<m { for column in 0..<n { c.span[row * cStride + column] = 0 } }
            return
        }
        // With few rows the product is bound by memory, so the work is counted by the bytes of B.
        let work = hasFewRows ? max(m, 4) * n * k : m * n * k
        let threads = work < WorkerPool.workCutoff ? 1 : pool.threads
        // Pointers are used only until this call returns, which borrows or owns the views.
        let call = Call(
            plan: self, a: a.span.withUnsafeBufferPointer { $0.baseAddress! }, aStride: a.rowStride,
            b: b.span.withUnsafeBufferPointer { $0.baseAddress! }, bStride: b.rowStride,
            c: c.span.withUnsafeMutableBufferPointer { $0.baseAddress! }, cStride: cStride,
            blocks: hasFewRows
                ? GEMMBlocks(rows: m, columns: n, depth: k, transposesB: transposesB, threads: threads)
                : GEMMBlocks(m: m, n: n, threads: threads, kernels: kernels))
        pool.run(call, tasks: call.blocks.count, work: work, scratchByteCount: scratchByteCount)
    }

    /// Whether B is read in place, without packing.
    private var hasFewRows: Bool { m <= GEMMScratch.fewRows }

    /// Computes the product of rank-2 tensors into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views.
    public func run(
        a: Tensor<Float>, b: Tensor<Float>, into c: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(a: a.matrixView(named: "a"), b: b.matrixView(named: "b"), c: c.mutableMatrixView(named: "c"), on: pool)
    }

    private func check(
        _ name: String, _ rows: Int, _ columns: Int, _ expectedRows: Int, _ expectedColumns: Int
    ) throws(SparseKernelsError) {
        try require(
            rows == expectedRows && columns == expectedColumns, .invalidShape, name,
            expected: "\(expectedRows) × \(expectedColumns)", actual: "\(rows) × \(columns)")
    }

    /// One `run`. Its tasks are blocks of C, which are independent.
    private struct Call: PoolCall {
        let plan: GEMM
        let a: UnsafePointer<Float>
        let aStride: Int
        let b: UnsafePointer<Float>
        let bStride: Int
        let c: UnsafeMutablePointer<Float>
        let cStride: Int
        let blocks: GEMMBlocks

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let row = task % blocks.rowBlocks * blocks.rows
            let column = task / blocks.rowBlocks * blocks.columns
            var arguments = GEMMArguments(
                a: a + row * aStride, aStride: aStride, b: plan.transposesB ? b + column * bStride : b + column,
                bStride: bStride, bIsTransposed: plan.transposesB, c: c + row * cStride + column, cStride: cStride,
                rows: min(blocks.rows, plan.m - row), columns: min(blocks.columns, plan.n - column), depth: plan.k,
                scratch: scratch)
            if plan.hasFewRows {
                plan.kernels.multiplyRows(&arguments)
            } else {
                plan.kernels.multiplyBlock(&arguments)
            }
        }
    }
}
