internal import KernelInterface

/// C = A·B or A·Bᵀ in single precision, row-major.
///
/// The register tile that every kernel of this package stands on, with cache blocks of its own.
///
/// - Non-finite input propagates as IEEE arithmetic has it. Results are bitwise the same for every number of threads.
/// - Complexity: M·N·K multiply-adds.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008).
public struct GEMM: Sendable {
    /// Rows of A and C.
    public let m: Int
    /// Columns of C.
    public let n: Int
    /// Columns of A: the reduction.
    public let k: Int
    /// B is given as `[n, k]`, as the weights of a linear layer are.
    public let transposesB: Bool
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    private let kernels: KernelTable
    /// Rows and columns of C in one task.
    private let rowBlock: Int
    private let columnBlock: Int

    /// - Throws: `.invalidShape` for an extent below 1 or 2⁶² multiply-adds or more, `.unsupportedInstructionSet`.
    public init(
        m: Int, n: Int, k: Int, transposesB: Bool = false, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, extent) in [("m", m), ("n", n), ("k", k)] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
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
        rowBlock = GEMMScratch.block(m, limit: GEMMScratch.rowBlock, unit: kernels.tileRows)
        columnBlock = GEMMScratch.block(
            n, limit: GEMMScratch.columnBlock / kernels.panelWidth * kernels.panelWidth, unit: kernels.panelWidth)
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
        // Pointers are used only until this call returns; the views are borrowed or owned all the while.
        let call = Call(
            plan: self, a: a.span.withUnsafeBufferPointer { $0.baseAddress! }, aStride: a.rowStride,
            b: b.span.withUnsafeBufferPointer { $0.baseAddress! }, bStride: b.rowStride,
            c: c.span.withUnsafeMutableBufferPointer { $0.baseAddress! }, cStride: cStride)
        let rowBlocks = (m + rowBlock - 1) / rowBlock
        let columnBlocks = (n + columnBlock - 1) / columnBlock
        withUnsafePointer(to: call) { call in
            pool.run(
                tasks: rowBlocks * columnBlocks, work: m * n * k, scratchByteCount: scratchByteCount, context: call
            ) { context, task, scratch in
                context.assumingMemoryBound(to: Call.self).pointee.multiply(task: task, scratch: scratch)
            }
        }
    }

    /// Computes the product of rank-2 tensors into a tensor that is reused from call to call.
    /// - Throws: as `run` with views.
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

    /// One `run`: blocks of C, computed independently of each other.
    private struct Call {
        let plan: GEMM
        let a: UnsafePointer<Float>
        let aStride: Int
        let b: UnsafePointer<Float>
        let bStride: Int
        let c: UnsafeMutablePointer<Float>
        let cStride: Int

        func multiply(task: Int, scratch: UnsafeMutableRawPointer) {
            let rowBlocks = (plan.m + plan.rowBlock - 1) / plan.rowBlock
            let row = task % rowBlocks * plan.rowBlock
            let column = task / rowBlocks * plan.columnBlock
            var arguments = GEMMArguments(
                a: a + row * aStride, aStride: aStride, b: plan.transposesB ? b + column * bStride : b + column,
                bStride: bStride, bIsTransposed: plan.transposesB, c: c + row * cStride + column, cStride: cStride,
                rows: min(plan.rowBlock, plan.m - row), columns: min(plan.columnBlock, plan.n - column),
                depth: plan.k, scratch: scratch)
            plan.kernels.multiplyBlock(&arguments)
        }
    }
}
