internal import Foundation
internal import KernelInterface

/// Rotary position embedding: pairs of channels of queries and keys are rotated by angles in proportion to the position.
///
/// ```swift
/// let rotary = try RotaryEmbedding(headDim: 128, theta: 500_000, scaling: .llama3(factor: 8, originalLength: 8192))
/// let table = try rotary.table(positions: [4096])
/// try table.rotate(&query)
/// try table.rotate(&key)
/// ```
///
/// A table of cosines and sines is made once per step and serves all layers, queries and keys.
///
/// - Exactness: angles are integers modulo a turn, from frequencies in `Double`; the error of an angle is 10⁻⁹ at any position below a
///   million. Cosines and sines are within 3·10⁻⁷ before the attention factor, rotated channels within 4·10⁻⁷·(abs(x₁) + abs(x₂)).
///   Hugging Face transformers computes angles in `Float`, with an error of up to 6·10⁻⁸·angle: 0.06 at a million.
/// - Source: Su et al., 2021 (arXiv 2104.09864); `modeling_rope_utils.py`, `apply_rotary_pos_emb` of Hugging Face transformers.
public struct RotaryEmbedding: Hashable, Sendable {
    /// Which channels form a pair.
    public enum Pairing: String, Hashable, Sendable, CaseIterable {
        /// Channel i with channel i + n of 2n rotated ones: `rotate_half` of transformers, for Llama, Qwen and most others.
        case halfSplit
        /// Channel 2i with channel 2i + 1: the original form, for GPT-J and the checkpoints of Meta.
        case interleaved
    }

    public let headDim: Int
    /// The channels that are rotated, from the first on; the others stay as they are.
    public let rotatedChannels: Int
    /// θ, the base of the frequencies.
    public let theta: Double
    public let pairing: Pairing
    public let scaling: Scaling
    /// The instruction set that makes tables and rotates.
    public let instructionSet: InstructionSet
    /// ω of every cosine of a row of a table, in 2⁻⁶⁴ turns, for sequences that need no other base.
    private let turns: [UInt64]

    /// - Parameters:
    ///   - headDim: channels of a head, at least 2.
    ///   - rotatedChannels: an even number of them, 2…`headDim`; nil means all.
    ///   - theta: above 1.
    ///   - pairing: which channels form a pair.
    ///   - scaling: the rule for long contexts.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for channels, `.invalidArgument` for a θ or an option of the rule out of range,
    ///   `.unsupportedInstructionSet`.
    public init(
        headDim: Int, rotatedChannels: Int? = nil, theta: Double = 10_000, pairing: Pairing = .halfSplit,
        scaling: Scaling = .none, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            headDim >= 2 && headDim < 1 << 30, .invalidShape, "headDim", expected: "at least 2 and below 2³⁰",
            actual: "\(headDim)")
        let channels = rotatedChannels ?? headDim
        try require(
            channels >= 2 && channels <= headDim && channels % 2 == 0, .invalidShape, "rotatedChannels",
            expected: "even and from 2 to \(headDim)", actual: "\(channels)")
        try require(theta > 1 && theta.isFinite, .invalidArgument, "theta", expected: "above 1, and finite", actual: "\(theta)")
        try scaling.check(rotatedChannels: channels)
        self.headDim = headDim
        self.rotatedChannels = channels
        self.theta = theta
        self.pairing = pairing
        self.scaling = scaling
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        turns = Self.turns(
            scaling.frequencies(channels: channels, theta: theta, length: 0), Self.layout(channels, pairing))
    }

    /// ω of every pair, in radians per position.
    /// - Parameter length: the length of the sequence, which only dynamic NTK looks at.
    public func frequencies(length: Int = 0) -> [Double] {
        scaling.frequencies(channels: rotatedChannels, theta: theta, length: length)
    }

    /// The factor on cosines and sines: YaRN's attention factor, or 1.
    public var attentionFactor: Double { scaling.cosineFactor }

    /// Cosines and sines of some positions.
    ///
    /// - Parameters:
    ///   - positions: the position of each token of the operands to rotate: any numbers in any order.
    ///   - length: the length of the sequence, which only dynamic NTK looks at; nil means one more than the largest position.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for a table whose size overflows.
    /// - Complexity: O(positions · rotatedChannels).
    public func table(
        positions: [Int], length: Int? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> RotaryTable {
        let layout = Self.layout(rotatedChannels, pairing)
        var frequencies = turns
        if case .dynamicNTK(_, let originalLength) = scaling {
            let length = length ?? (positions.max() ?? 0) &+ 1
            if length > originalLength { frequencies = Self.turns(self.frequencies(length: length), layout) }
        }
        var values = try Tensor<Float>(zeros: [positions.count, layout.stride])
        if !positions.isEmpty {
            let tasks = RowTasks(rows: positions.count, bytesPerRow: layout.stride * 8)
            let target = values.mutableAddress()
            positions.withUnsafeBufferPointer { positions in
                frequencies.withUnsafeBufferPointer { frequencies in
                    let arguments = MakeRotationsArguments(
                        positions: positions.baseAddress!, rows: positions.count, layout: layout,
                        frequencies: frequencies.baseAddress!, factor: Float(attentionFactor), table: target)
                    pool.run(
                        MakeRotationsCall(kernels: instructionSet.kernels, arguments: arguments, tasks: tasks), tasks)
                }
            }
        }
        return RotaryTable(headDim: headDim, layout: layout, values: values, kernels: instructionSet.kernels)
    }

    private static func layout(_ channels: Int, _ pairing: Pairing) -> RotationLayout {
        RotationLayout(pairs: channels / 2, isInterleaved: pairing == .interleaved)
    }

    /// Frequencies as numbers of 2⁻⁶⁴ turns modulo a turn, one per cosine of a row of a table, and 0 in its padding.
    private static func turns(_ frequencies: [Double], _ layout: RotationLayout) -> [UInt64] {
        var result = [UInt64](repeating: 0, count: layout.width)
        for (pair, frequency) in frequencies.enumerated() {
            let turns = (frequency / (2 * .pi)).truncatingRemainder(dividingBy: 1)
            // Below 2⁶⁴, because the largest double below 1 is 1 − 2⁻⁵³.
            let steps = UInt64(turns * 0x1p64)
            if layout.isInterleaved {
                (result[2 * pair], result[2 * pair + 1]) = (steps, steps)
            } else {
                result[pair] = steps
            }
        }
        return result
    }
}

private struct MakeRotationsCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: MakeRotationsArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.positions = arguments.positions + first
        part.table = arguments.table + first * arguments.layout.stride
        part.rows = tasks.count(task)
        kernels.makeRotations(&part)
    }
}
