internal import KernelInterface

/// An orthogonal rotation of rows, x ← x · Q with Q = diag(signs) · H / √n, that spreads outliers over all channels.
///
/// Since Q · Qᵀ = 1, a linear layer keeps its result when both factors are rotated: (x · Q) · (W · Q)ᵀ = x · Wᵀ.
/// After the rotation, the values of a group are of similar size and quantise better.
///
/// H is a Hadamard matrix, with entries ±1. Sizes are n = 2^p · m, where m is a product of odd numbers up to 43, each of which
/// needs a factor 4 of 2^p of its own. That covers every power of two and, for instance, 3072 = 256 · 12, 11008 = 64 · 172,
/// 14336 = 512 · 28 and 29568 = 2 · 12 · 28 · 44. For other n give a `blockSize`: H is then block-diagonal.
///
/// - Non-finite input affects only its own row, or its own block of the row.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: n · (p' + Σ orders) additions per row, for the orders 4·mᵢ and the rest 2^p'.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: Ashkboos et al., "QuaRot" (arXiv 2404.00456), section 3; matrices after Sylvester, Paley and Williamson.
public struct HadamardRotation: Sendable {
    /// The number of channels of a row, n.
    public let count: Int
    /// The number of channels that are rotated together: n, unless given.
    public let blockSize: Int
    /// The seed of the random signs; nil means no signs.
    public let seed: UInt64?
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    /// The orders 12, 20 … 172 of the factors that are not powers of two, outermost first.
    let orders: [Int]
    /// The remaining power of two, which is the innermost factor.
    let powerOfTwo: Int
    private let kernels: any KernelTable.Type
    /// For every order H, then Hᵀ, one after the other.
    private let matrices: Tensor<Float>
    /// `[count]`: signs / √blockSize.
    private let multipliers: Tensor<Float>

    /// - Parameters:
    ///   - count: the number of channels of a row.
    ///   - blockSize: a divisor of `count` with a known Hadamard matrix; nil means `count` itself.
    ///   - seed: the seed of random signs, one per channel, which make different layers independent; nil means no signs.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a size without a known matrix or a block that does not divide the count,
    ///   `.unsupportedInstructionSet`.
    public init(
        count: Int, blockSize: Int? = nil, seed: UInt64? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(count >= 1, .invalidArgument, "count", expected: "at least 1", actual: "\(count)")
        let size = blockSize ?? count
        try require(
            size >= 1 && count % size == 0, .invalidArgument, "blockSize", expected: "a divisor of \(count)", actual: "\(size)")
        guard let orders = Self.orders(of: size) else {
            throw SparseKernelsError(
                .invalidArgument, blockSize == nil ? "count" : "blockSize",
                expected:
                    "2^p · m, m a product of odd numbers up to \(HadamardMatrix.largestOddFactor) that have a factor 4 each "
                    + "(orders 12, 20, 28 … 172)\(blockSize == nil ? ", or a block size such as \(Self.largestPowerOfTwo(dividing: count))" : "")",
                actual: "\(size)")
        }
        self.count = count
        self.blockSize = size
        self.seed = seed
        self.orders = orders
        powerOfTwo = size / orders.reduce(1, *)
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        let entries = orders.flatMap { order in
            let matrix = HadamardMatrix.entries(order: order).map { Float($0) }
            return matrix + (0..<order * order).map { matrix[$0 % order * order + $0 / order] }
        }
        matrices = try Tensor([entries.count], entries)
        let scale = Float(1 / Double(size).squareRoot())
        var generator = SplitMix64(seed: seed ?? 0)
        multipliers = try Tensor([count]) { _ in seed == nil || generator.next() >> 63 == 0 ? scale : -scale }
    }

    /// The largest power of two that divides a count, which is a block size that always works.
    public static func largestPowerOfTwo(dividing count: Int) -> Int { count & -count }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { orders.isEmpty ? 0 : GEMMScratch.byteCount + count * 4 }

    /// Rotates rows in the caller's memory: x ← x · Q, or its inverse x ← x · Qᵀ.
    ///
    /// - Parameters:
    ///   - rows: any number of rows of `count` channels.
    ///   - inverse: whether to multiply by Qᵀ.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for another number of channels; nothing is written then.
    public func run(
        rows: consuming MutableMatrixView<Float>, inverse: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            rows.columns == count, .invalidShape, "rows", expected: "\(count) columns", actual: "\(rows.columns)")
        let (rowCount, rowStride) = (rows.rows, rows.rowStride)
        if rowCount == 0 { return }
        rows.span.withUnsafeMutableBufferPointer { elements in
            matrices.span.withUnsafeBufferPointer { matrices in
                multipliers.span.withUnsafeBufferPointer { multipliers in
                    let call = RotationCall(
                        rows: elements.baseAddress!, rowStride: rowStride, count: count, orders: orders, powerOfTwo: powerOfTwo,
                        matrices: matrices.baseAddress!, multipliers: multipliers.baseAddress!, isInverse: inverse,
                        kernels: kernels)
                    pool.run(
                        call, tasks: rowCount, work: rowCount * count * (16 + orders.reduce(0, +)),
                        scratchByteCount: scratchByteCount)
                }
            }
        }
    }

    /// Computes x · Q in a new tensor: for activations, or once for a weight `[outFeatures, inFeatures]`.
    ///
    /// - Parameters:
    ///   - rows: `[rows, count]`.
    ///   - inverse: whether to multiply by Qᵀ.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction(
        _ rows: Tensor<Float>, inverse: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var result = rows
        try run(rows: result.mutableMatrixView(named: "rows"), inverse: inverse, on: pool)
        return result
    }

    // MARK: - Sizes

    /// The orders 4·mᵢ whose product divides the size and leaves a power of two; nil when there are none. Of several solutions
    /// it takes the one with the smallest sum, which determines the cost.
    package static func orders(of size: Int) -> [Int]? {
        let powerOfTwo = largestPowerOfTwo(dividing: size)
        return oddFactors(of: size / powerOfTwo, atLeast: 3, limit: powerOfTwo.trailingZeroBitCount / 2)?.map { 4 * $0 }
    }

    private static func oddFactors(of odd: Int, atLeast least: Int, limit: Int) -> [Int]? {
        if odd == 1 { return [] }
        if limit == 0 { return nil }
        var best: [Int]?
        for factor in stride(from: least, through: min(odd, HadamardMatrix.largestOddFactor), by: 2) where odd % factor == 0 {
            guard let rest = oddFactors(of: odd / factor, atLeast: factor, limit: limit - 1) else { continue }
            if best.map({ factor + rest.reduce(0, +) < $0.reduce(0, +) }) ?? true { best = [factor] + rest }
        }
        return best
    }
}
