internal import KernelInterface

/// Casts matrices to 8-bit floats with one scale, and back.
///
/// ```swift
/// let conversion = try Float8Conversion()
/// let scale = conversion.quantize(x.matrixView(), into: codes.mutableMatrixView())
/// ```
///
/// - Exactness: x · scale is rounded to `Float` and then to the format, to nearest, ties to even; what is too large becomes the largest
///   finite code of its sign, and NaN the code of NaN. Back, code · (1 / scale) is rounded to `Float` and then to the type of y. Every
///   level gives the same bits.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: two passes over memory to quantise with current scaling, one for each other call.
/// - Scratch: four bytes per task for the largest magnitudes.
public struct Float8Conversion: Sendable {
    public let scaling: Float8Scaling
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - scaling: how scales follow from largest magnitudes.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.unsupportedInstructionSet`.
    public init(_ scaling: Float8Scaling = .current, instructionSet: InstructionSet? = nil) throws(SparseKernelsError) {
        self.scaling = scaling
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// The largest magnitude of a matrix: 0 for no elements, NaN when one of them is.
    public func amax<X: AttentionElement>(_ x: MatrixView<X>, on pool: WorkerPool = .shared) -> Float {
        if x.rows == 0 || x.columns == 0 { return 0 }
        let tasks = RowTasks(rows: x.rows, bytesPerRow: x.columns * X.storageType.byteCount)
        var largest: UInt32 = 0
        let operand = RowOperand(x)
        let columns = x.columns
        pool.withWorkspace(byteCount: tasks.count * 4) { workspace in
            let parts = workspace.assumingMemoryBound(to: Float.self)
            pool.run(AmaxCall(kernels: kernels, x: operand, columns: columns, tasks: tasks, parts: parts), tasks)
            // As integers, NaN is the largest magnitude.
            for task in 0..<tasks.count { largest = max(largest, parts[task].bitPattern) }
        }
        return Float(bitPattern: largest)
    }

    /// Quantises with the scale of the matrix: codes = cast(x · scale).
    ///
    /// - Parameters:
    ///   - x: rows × columns.
    ///   - codes: as many rows and columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the scale.
    /// - Throws: `.invalidShape` for other extents of the codes; nothing is written then.
    @discardableResult
    public func quantize<X: AttentionElement, Code: Float8>(
        _ x: MatrixView<X>, into codes: consuming MutableMatrixView<Code>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Float {
        try requireMatrix("codes", rows: codes.rows, columns: codes.columns, expected: (x.rows, x.columns))
        let scale = scaling.scale(amax: amax(x, on: pool), for: Code.self)
        try quantize(x, scale: scale, into: codes, on: pool)
        return scale
    }

    /// Quantises with a given scale, for instance one that was recorded: codes = cast(x · scale).
    ///
    /// - Parameters:
    ///   - x: rows × columns.
    ///   - scale: above 0 and finite.
    ///   - codes: as many rows and columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other extents of the codes, `.invalidArgument` for another scale; nothing is written then.
    public func quantize<X: AttentionElement, Code: Float8>(
        _ x: MatrixView<X>, scale: Float, into codes: consuming MutableMatrixView<Code>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireMatrix("codes", rows: codes.rows, columns: codes.columns, expected: (x.rows, x.columns))
        try requireFloat8Scale(scale)
        if x.rows == 0 || x.columns == 0 { return }
        let operand = RowOperand(x)
        let stride = codes.rowStride
        let target = codes.span.withUnsafeMutableBufferPointer { UnsafeMutableRawPointer($0.baseAddress!) }
        run(
            // Casting to codes reads the numbers only.
            Float8CastArguments(
                numbers: RowTarget(
                    base: UnsafeMutableRawPointer(mutating: operand.base), stride: operand.stride, type: operand.type),
                codes: target, codeStride: stride, type: Code.kernelType, rows: x.rows, columns: x.columns, scale: scale),
            toCodes: true, on: pool)
    }

    /// Computes y = codes / scale.
    ///
    /// - Parameters:
    ///   - codes: rows × columns.
    ///   - scale: what they were quantised with.
    ///   - y: as many rows and columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other extents of y, `.invalidArgument` for a scale that is not above 0 and finite; nothing is written
    ///   then.
    public func dequantize<Code: Float8, Y: AttentionElement>(
        _ codes: MatrixView<Code>, scale: Float, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (codes.rows, codes.columns))
        try requireFloat8Scale(scale)
        if y.rows == 0 || y.columns == 0 { return }
        let source = codes.span.withUnsafeBufferPointer { UnsafeRawPointer($0.baseAddress!) }
        run(
            // Casting from codes reads the codes only.
            Float8CastArguments(
                numbers: RowTarget(&y), codes: UnsafeMutableRawPointer(mutating: source), codeStride: codes.rowStride,
                type: Code.kernelType, rows: codes.rows, columns: codes.columns, scale: 1 / scale),
            toCodes: false, on: pool)
    }

    private func run(_ arguments: Float8CastArguments, toCodes: Bool, on pool: WorkerPool) {
        let tasks = RowTasks(
            rows: arguments.rows, bytesPerRow: arguments.columns * (1 + arguments.numbers.type.byteCount))
        pool.run(Float8CastCall(kernels: kernels, arguments: arguments, tasks: tasks, toCodes: toCodes), tasks)
    }
}

/// Throws `.invalidArgument` unless a scale is above 0 and finite.
func requireFloat8Scale(_ scale: Float) throws(SparseKernelsError) {
    try require(
        scale > 0 && scale.isFinite, .invalidArgument, "scale", expected: "above 0, and finite", actual: "\(scale)")
}

private struct AmaxCall: PoolCall {
    let kernels: any KernelTable.Type
    let x: RowOperand
    let columns: Int
    let tasks: RowTasks
    let parts: UnsafeMutablePointer<Float>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        parts[task] = kernels.largestMagnitude(x.from(tasks.first(task)), rows: tasks.count(task), columns: columns)
    }
}

private struct Float8CastCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: Float8CastArguments
    let tasks: RowTasks
    let toCodes: Bool

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.numbers = arguments.numbers.from(first)
        part.codes = arguments.codes + first * arguments.codeStride
        part.rows = tasks.count(task)
        if toCodes { kernels.castToFloat8(&part) } else { kernels.castFromFloat8(&part) }
    }
}
