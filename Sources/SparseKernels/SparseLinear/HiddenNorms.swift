internal import KernelInterface

/// Norms over tokens of hidden values f(g) · u of a gated layer, with g and u products of low-rank factors. No matrix of hidden values
/// exists at any time.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity: tokens · channels · (2 · rank multiply-adds and one f).
/// - Scratch: 64 bytes per thread.
package struct HiddenNorms: Sendable {
    /// Hidden channels.
    package let channels: Int
    package let rank: Int
    package let function: GatedActivation.Function
    /// `[rank, channels]`, with columns of zeros up to a multiple of `unit`.
    private let gate: Tensor<Float>
    private let up: Tensor<Float>

    /// Lanes of all levels divide this.
    private static let unit = 16
    /// Channels of a task, a multiple of `unit`; the factors of rank 8 are 8 KiB.
    private static let taskChannels = 128
    /// Tokens of a call of the kernel, which sums squares in single precision.
    private static let callTokens = 64

    /// - Parameters:
    ///   - gate: `[channels, rank]`.
    ///   - up: `[channels, rank]`.
    ///   - function: f.
    /// - Throws: `.invalidShape` for factors of different shapes.
    package init(
        gate: Tensor<Float>, up: Tensor<Float>, function: GatedActivation.Function
    ) throws(SparseKernelsError) {
        try require(
            gate.shape.count == 2 && gate.shape[1] >= 1, .invalidShape, "gate", expected: "[channels, rank]",
            actual: "\(gate.shape)")
        try require(up.shape == gate.shape, .invalidShape, "up", expected: "\(gate.shape)", actual: "\(up.shape)")
        let (channels, rank) = (gate.shape[0], gate.shape[1])
        let width = (channels + Self.unit - 1) / Self.unit * Self.unit
        func flipped(_ factor: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
            let elements = factor.elements
            return try Tensor([rank, width]) { index in
                let (row, channel) = (index / width, index % width)
                return channel < channels ? elements[channel * rank + row] : 0
            }
        }
        self.channels = channels
        self.rank = rank
        self.function = function
        self.gate = try flipped(gate)
        self.up = try flipped(up)
    }

    /// The norm of every channel.
    ///
    /// - Parameters:
    ///   - t: tokens × 2 · rank, the inputs of the factors of gate and then of up.
    ///   - instructionSet: a level that this machine has.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for a t of another width.
    package func callAsFunction(
        _ t: MatrixView<Float>, instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) -> [Float] {
        try requireColumns("t", t.columns, expected: 2 * rank)
        let width = gate.shape[1]
        var sums = try Tensor<Double>(zeros: [width])
        if t.rows > 0 && width > 0 {
            let call = HiddenNormsCall(
                arguments: HiddenSquaresArguments(
                    t: t.span.withUnsafeBufferPointer { $0.baseAddress! }, tStride: t.rowStride, tokens: t.rows, rank: rank,
                    gate: gate.span.withUnsafeBufferPointer { $0.baseAddress! },
                    up: up.span.withUnsafeBufferPointer { $0.baseAddress! }, factorStride: width, channels: width,
                    sums: sums.uniqueAddress(), function: function.kernel),
                taskChannels: Self.taskChannels, callTokens: Self.callTokens, kernels: instructionSet.kernels)
            // A function value takes as long as about sixteen vectors of multiply-adds.
            pool.run(
                call, tasks: (width + Self.taskChannels - 1) / Self.taskChannels, work: t.rows * width * (2 * rank + 16),
                scratchByteCount: Self.unit * 4)
        }
        let elements = sums.span
        return (0..<channels).map { Float(elements[$0].squareRoot()) }
    }
}

/// A task is a block of channels, for all tokens.
private struct HiddenNormsCall: PoolCall {
    let arguments: HiddenSquaresArguments
    let taskChannels: Int
    let callTokens: Int
    let kernels: any KernelTable.Type

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * taskChannels
        var part = arguments
        part.gate += first
        part.up += first
        part.sums += first
        part.channels = min(taskChannels, arguments.channels - first)
        for token in stride(from: 0, to: arguments.tokens, by: callTokens) {
            part.t = arguments.t + token * arguments.tStride
            part.tokens = min(callTokens, arguments.tokens - token)
            kernels.sumHiddenSquares(&part, scratch: scratch.assumingMemoryBound(to: Float.self))
        }
    }
}
