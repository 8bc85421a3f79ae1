internal import KernelInterface

/// An orthogonal rotation of rows, x ← x · Q with Q = diag(signs) · H / √n, that spreads outliers over all channels.
///
/// Since Q · Qᵀ = 1, a linear layer keeps its result when activations and weights are both rotated: (x · Q) · (W · Q)ᵀ = x · Wᵀ.
/// After the rotation, the values of a group are of similar size and quantise better.
///
/// H is a Hadamard matrix, entries ±1. Sizes: n = 2^p · m, where m is a product of odd numbers up to 43 and each of them has a factor 4
/// of 2^p to itself. That covers every power of two and, for instance, 3072 = 256 · 12, 11008 = 64 · 172, 14336 = 512 · 28 and
/// 29568 = 2 · 12 · 28 · 44. For other n give a `blockSize`: H is then block-diagonal.
///
/// - Non-finite input spoils its own row only, or its own block of it.
/// - Results are bitwise the same for every number of threads.
/// - Complexity: n · (p' + Σ orders) additions per row, for the orders 4·mᵢ and the rest 2^p'.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: Ashkboos et al., "QuaRot" (arXiv 2404.00456), section 3; matrices after Sylvester, Paley and Williamson.
public struct HadamardRotation: Sendable {
    /// n, channels of a row.
    public let count: Int
    /// Channels that are rotated among each other: n, unless given.
    public let blockSize: Int
    /// Of the random signs; nil: none.
    public let seed: UInt64?
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    /// Orders 12, 20 … 172 of the factors that are no powers of two, outermost first.
    let orders: [Int]
    /// The power of two that remains: the innermost factor.
    let powerOfTwo: Int
    private let kernels: any KernelTable.Type
    /// For every order H, then Hᵀ, one after the other.
    private let matrices: Tensor<Float>
    /// `[count]`: signs / √blockSize.
    private let multipliers: Tensor<Float>

    /// - Parameters:
    ///   - count: channels of a row.
    ///   - blockSize: a divisor of `count` with a known Hadamard matrix; nil: `count` itself.
    ///   - seed: of random signs, one per channel, which make different layers independent. nil: no signs.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
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

    /// The largest power of two that divides a count: a block size that always works.
    public static func largestPowerOfTwo(dividing count: Int) -> Int { count & -count }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { orders.isEmpty ? 0 : GEMMScratch.byteCount + count * 4 }

    /// Rotates rows in the caller's memory: x ← x · Q, or x ← x · Qᵀ, which undoes it.
    ///
    /// - Parameters:
    ///   - rows: any number of rows of `count` channels.
    ///   - inverse: multiply by Qᵀ.
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

    /// x · Q for the rows of x, in a new tensor: activations as they come, or a weight `[outFeatures, inFeatures]` ahead of time.
    ///
    /// - Parameters:
    ///   - rows: `[rows, count]`.
    ///   - inverse: multiply by Qᵀ.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: as `run`, and `.invalidShape` for another rank.
    public func callAsFunction(
        _ rows: Tensor<Float>, inverse: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var result = rows
        try run(rows: result.mutableMatrixView(named: "rows"), inverse: inverse, on: pool)
        return result
    }

    // MARK: - Sizes

    /// Orders 4·mᵢ whose product divides the size and leaves a power of two; nil when there are none. Of several, those with the smallest
    /// sum, which is what they cost.
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
