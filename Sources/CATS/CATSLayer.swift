public import SparseKernels

/// A gated MLP whose small activations are skipped: a ← f(x · W_gateᵀ), entries with |a| ≤ t count as 0, and
/// y = (a ⊙ (x · W_upᵀ)) · W_downᵀ reads only what the others need.
///
/// ```swift
/// let layer = try CATSLayer(gate: g, up: u, down: d, threshold: thresholds.values[index])   // as a checkpoint has them
/// var workspace = CATSWorkspace()
/// let computed = try layer.run(x, into: &y, workspace: &workspace)
/// ```
///
/// The gate is dense. Of W_up a token reads the rows of its surviving channels, of W_down their columns, which are stored as rows. So
/// a step at sparsity s reads 1/3 + 2/3 · (1 − s) of the weights. Several tokens share the union of what they keep, with zeros where a
/// token lacks a channel; the union grows with their number, and past `breakEvenDensity`, or with more than `unionTokens`
/// tokens, all channels are computed, with the same zeros. The result is the same up to rounding.
///
/// - Exactness: that of the layers, for the entries that the threshold leaves; with a threshold of 0 the layer is the dense MLP, as
///   only zeros are dropped. NaN is never dropped. Bits do not depend on the number of threads.
/// - Complexity: innerWidth · width multiply-adds per token for the gate, and 2 · computed channels · width for the rest.
/// - Scratch: that of the layers, kept by the pool; three rows of innerWidth floats per token, kept by the workspace.
/// - Source: Lee et al., "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models" (2024, arXiv 2404.08763).
public struct CATSLayer: Sendable {
    /// The features of x and y.
    public let width: Int
    /// The channels between the projections.
    public let innerWidth: Int
    public let function: GatedActivation.Function
    /// t, finite and 0 or more.
    public let threshold: Float
    /// The part of the channels from which on all are computed. Rows of a list are read about as fast as all in order (in half precision, one
    /// to eight tokens, 4096 × 14336), so that it is near 1.
    public let breakEvenDensity: Double
    /// The most tokens whose union is formed. Products of more rows are bound by arithmetic, and their union is nearly everything.
    public let unionTokens: Int

    private let gate: FloatLinear
    private let up: SparseLinear
    private let down: SparseLinear
    private let activation: GatedActivation
    private let active: ActiveColumns

    /// - Parameters:
    ///   - gate: W_gate, `[innerWidth, width]`, of `Float`, `Float16` or `BFloat16`; all weights are kept in their type.
    ///   - up: W_up, `[innerWidth, width]`.
    ///   - down: W_down, `[width, innerWidth]`.
    ///   - threshold: t, finite and 0 or more.
    ///   - function: f.
    ///   - breakEvenDensity: 0 to 1.
    ///   - unionTokens: 1 or more.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` naming the weight that does not fit; `.invalidArgument` for a threshold, a density or a number of
    ///   tokens out of range; `.unsupportedInstructionSet`.
    public init<W: AttentionElement>(
        gate: Tensor<W>, up: Tensor<W>, down: Tensor<W>, threshold: Float, function: GatedActivation.Function = .silu,
        breakEvenDensity: Double = 0.95, unionTokens: Int = 8, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            gate.shape.count == 2 && gate.shape.allSatisfy { $0 >= 1 }, .invalidShape, "gate",
            expected: "[innerWidth, width], with elements", actual: "\(gate.shape)")
        (innerWidth, width) = (gate.shape[0], gate.shape[1])
        try require(
            up.shape == gate.shape, .invalidShape, "up", expected: "\(gate.shape), as the gate has", actual: "\(up.shape)")
        try require(
            down.shape == [width, innerWidth], .invalidShape, "down", expected: "\([width, innerWidth])",
            actual: "\(down.shape)")
        try require(
            breakEvenDensity >= 0 && breakEvenDensity <= 1, .invalidArgument, "breakEvenDensity", expected: "0 to 1",
            actual: "\(breakEvenDensity)")
        try require(unionTokens >= 1, .invalidArgument, "unionTokens", expected: "1 or more", actual: "\(unionTokens)")
        try requireThreshold(threshold, named: "threshold")
        self.function = function
        self.threshold = threshold
        self.breakEvenDensity = breakEvenDensity
        self.unionTokens = unionTokens
        activation = try GatedActivation(function, threshold: threshold, instructionSet: instructionSet)
        active = try ActiveColumns(instructionSet: instructionSet)
        self.gate = try FloatLinear(weight: gate, instructionSet: instructionSet, on: pool)
        self.up = try SparseLinear(weight: up, picking: .outputs, instructionSet: instructionSet, on: pool)
        self.down = try SparseLinear(weight: down, picking: .inputs, instructionSet: instructionSet, on: pool)
    }

    private init(_ layer: CATSLayer, threshold: Float) throws(SparseKernelsError) {
        (width, innerWidth, function) = (layer.width, layer.innerWidth, layer.function)
        (breakEvenDensity, unionTokens) = (layer.breakEvenDensity, layer.unionTokens)
        (gate, up, down, active) = (layer.gate, layer.up, layer.down, layer.active)
        self.threshold = threshold
        activation = try GatedActivation(function, threshold: threshold, instructionSet: layer.instructionSet)
    }

    /// The layer with another threshold, which shares the weights.
    /// - Throws: `.invalidArgument` for a threshold that is negative or not finite.
    public func with(threshold: Float) throws(SparseKernelsError) -> CATSLayer { try CATSLayer(self, threshold: threshold) }

    /// The instruction set that `run` executes.
    public var instructionSet: InstructionSet { gate.instructionSet }

    /// Bytes of the weights.
    public var byteCount: Int { gate.byteCount + up.byteCount + down.byteCount }

    // MARK: - Run

    /// Computes y for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, width]`; may have no tokens.
    ///   - y: `[tokens, width]`, overwritten.
    ///   - workspace: memory that calls use one after the other.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the channels of up and down that were computed: `innerWidth` for all.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    @discardableResult
    public func run(
        _ x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, workspace w: inout CATSWorkspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Int {
        let tokens = x.rows
        try require(
            x.columns == width, .invalidShape, "x", expected: "\(width) columns", actual: "\(x.columns)")
        try require(
            y.rows == tokens && y.columns == width, .invalidShape, "y", expected: "\(tokens) × \(width)",
            actual: "\(y.rows) × \(y.columns)")
        if tokens == 0 { return 0 }
        try w.reserve(tokens: tokens, innerWidth: innerWidth)
        try gate.run(
            x: x, y: MutableMatrixView(w.gate.mutableSpan, rows: tokens, columns: innerWidth, named: "gate"), on: pool)
        if tokens <= unionTokens {
            try activation.run(rows: tokens, columns: innerWidth, of: w.gate, into: &w.activated, on: pool)
            try active.list(rows: tokens, columns: innerWidth, of: w.activated, into: &w.channels, on: pool)
            let count = w.channels.count
            if w.channels.density <= breakEvenDensity {
                try up.run(x: x, channels: w.channels, into: &w.up, on: pool)
                try active.gate(rows: tokens, &w.up, by: w.activated, w.channels, on: pool)
                try down.run(
                    x: MatrixView(w.up.span, rows: tokens, columns: count, named: "hidden"), channels: w.channels, y: y,
                    on: pool)
                return count
            }
        }
        try up.run(x: x, channels: nil, into: &w.up, on: pool)
        try activation.run(rows: tokens, columns: innerWidth, gate: w.gate, up: w.up, into: &w.activated, on: pool)
        try down.run(
            x: MatrixView(w.activated.span, rows: tokens, columns: innerWidth, named: "hidden"), y: y, on: pool)
        return innerWidth
    }

    /// Adds what the layer's threshold would meet, f(x · W_gateᵀ), to a histogram.
    ///
    /// - Parameters:
    ///   - x: `[tokens, width]`, inputs of the layer.
    ///   - histogram: of this layer.
    ///   - workspace: memory that calls use one after the other.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for another width; `.invalidArgument` for activations that are not finite. Nothing is added then.
    public func record(
        _ x: MatrixView<Float>, into histogram: inout ActivationHistogram, workspace w: inout CATSWorkspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            x.columns == width, .invalidShape, "x", expected: "\(width) columns", actual: "\(x.columns)")
        if x.rows == 0 { return }
        try w.reserve(tokens: x.rows, innerWidth: innerWidth)
        try gate.run(
            x: x, y: MutableMatrixView(w.gate.mutableSpan, rows: x.rows, columns: innerWidth, named: "gate"), on: pool)
        try GatedActivation(function, instructionSet: instructionSet).run(
            rows: x.rows, columns: innerWidth, of: w.gate, into: &w.activated, on: pool)
        try histogram.add(MatrixView(w.activated.span, rows: x.rows, columns: innerWidth, named: "activated"))
    }
}
