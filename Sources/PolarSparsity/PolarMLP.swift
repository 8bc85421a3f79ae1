public import SparseKernels

/// An MLP of which a call computes some channels, with a gate or without:
///
///     h_I = f(x · W_up[I]ᵀ + b_I)                          y = h_I · W_down[:, I]ᵀ + b
///     h_I = f(x · W_gate[I]ᵀ) ⊙ (x · W_up[I]ᵀ)             of a gated one
///
/// ```swift
/// let mlp = try PolarMLP(up: fc1, down: fc2, upBias: b1, downBias: b2, function: .relu)
/// let neurons = try router.select(x, .strongest(1024))
/// try mlp.run(x, neurons: neurons, into: &y, workspace: &workspace)
/// ```
///
/// - Exactness: that of `SparseLinear`. When every channel that is not selected is 0 for all tokens, as most are behind ReLU,
///   nothing is lost.
/// - Complexity: 2, or 3 with a gate, · selected channels · width multiply-adds per token.
/// - Scratch: that of the layers, kept by the pool; one or two rows of channels per token, kept by the workspace.
/// - Source: Polar Sparsity (arXiv 2505.14884), section 4.1.
public struct PolarMLP: Sendable {
    public let function: GatedActivation.Function
    private let gate: SparseLinear?
    private let up: SparseLinear
    private let down: SparseLinear
    private let activation: GatedActivation

    /// - Parameters:
    ///   - gate: `[channels, width]`; nil for an MLP without a gate.
    ///   - up: `[channels, width]`, of `Float`, `Float16` or `BFloat16`; all weights are kept in their type.
    ///   - down: `[width, channels]`.
    ///   - upBias: `[channels]`, without a gate only.
    ///   - downBias: `[width]`.
    ///   - function: f.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` naming the weight or bias that does not fit; `.invalidArgument` for a bias that is not finite, or
    ///   `upBias` beside a gate; `.unsupportedInstructionSet`.
    public init<W: AttentionElement>(
        gate: Tensor<W>? = nil, up: Tensor<W>, down: Tensor<W>, upBias: Tensor<Float>? = nil, downBias: Tensor<Float>? = nil,
        function: GatedActivation.Function = .relu, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            up.shape.count == 2 && up.shape.allSatisfy { $0 >= 1 }, .invalidShape, "up",
            expected: "[channels, width], with elements", actual: "\(up.shape)")
        try require(
            down.shape == [up.shape[1], up.shape[0]], .invalidShape, "down", expected: "\([up.shape[1], up.shape[0]])",
            actual: "\(down.shape)")
        if let gate {
            try require(
                gate.shape == up.shape, .invalidShape, "gate", expected: "\(up.shape), as up has", actual: "\(gate.shape)")
            try require(upBias == nil, .invalidArgument, "upBias", expected: "none beside a gate", actual: "a bias")
            self.gate = try SparseLinear(weight: gate, picking: .outputs, instructionSet: instructionSet, on: pool)
        } else {
            self.gate = nil
        }
        self.function = function
        activation = try GatedActivation(function, instructionSet: instructionSet)
        self.up = try SparseLinear(weight: up, picking: .outputs, bias: upBias, instructionSet: instructionSet, on: pool)
        self.down = try SparseLinear(weight: down, picking: .inputs, bias: downBias, instructionSet: instructionSet, on: pool)
    }

    /// The features of x and y.
    public var width: Int { up.inFeatures }
    /// The channels between the projections.
    public var channels: Int { up.outFeatures }
    /// Bytes of the weights.
    public var byteCount: Int { (gate?.byteCount ?? 0) + up.byteCount + down.byteCount }

    /// Memory between the projections, which grows to the largest call.
    public struct Workspace: Sendable {
        var gate = try! Tensor<Float>(zeros: [0])
        var up = try! Tensor<Float>(zeros: [0])
        var hidden = try! Tensor<Float>(zeros: [0])

        public init() {}

        mutating func reserve(_ count: Int, hasGate: Bool) throws(SparseKernelsError) {
            if hidden.count < count {
                up = try Tensor(zeros: [count])
                hidden = try Tensor(zeros: [count])
            }
            if hasGate && gate.count < count { gate = try Tensor(zeros: [count]) }
        }
    }

    /// Computes y for the rows of x, with the channels of a selection.
    ///
    /// - Parameters:
    ///   - x: `[tokens, width]`; may have no tokens.
    ///   - neurons: the channels to compute; nil means all.
    ///   - y: `[tokens, width]`, overwritten.
    ///   - workspace: memory that calls use one after the other.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    public func run(
        _ x: MatrixView<Float>, neurons: ChannelSubset? = nil, into y: consuming MutableMatrixView<Float>,
        workspace w: inout Workspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            y.rows == x.rows && y.columns == width, .invalidShape, "y", expected: "\(x.rows) × \(width)",
            actual: "\(y.rows) × \(y.columns)")
        let count = try activate(x, neurons, &w, on: pool)
        try down.run(
            x: MatrixView(w.hidden.span, rows: x.rows, columns: count, named: "hidden"), channels: neurons, y: y, on: pool)
    }

    /// The channels of every row, `[tokens, channels]`: what a router is fitted to and calibrated with.
    ///
    /// - Parameters:
    ///   - x: `[tokens, width]`.
    ///   - workspace: memory that calls use one after the other.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for another width.
    public func hidden(
        of x: MatrixView<Float>, workspace w: inout Workspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let count = try activate(x, nil, &w, on: pool)
        let elements = w.hidden.span
        return try Tensor([x.rows, count]) { elements[$0] }
    }

    /// h of the selected channels, in the first rows of the workspace. Returns their number.
    private func activate(
        _ x: MatrixView<Float>, _ neurons: ChannelSubset?, _ w: inout Workspace, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Int {
        try require(x.columns == width, .invalidShape, "x", expected: "\(width) columns", actual: "\(x.columns)")
        if let neurons {
            try require(
                neurons.width == channels, .invalidShape, "neurons", expected: "a subset of \(channels)",
                actual: "of \(neurons.width)")
        }
        let (rows, count) = (x.rows, neurons?.count ?? channels)
        try w.reserve(rows * channels, hasGate: gate != nil)
        try up.run(x: x, channels: neurons, into: &w.up, on: pool)
        guard let gate else {
            try activation.run(rows: rows, columns: count, of: w.up, into: &w.hidden, on: pool)
            return count
        }
        try gate.run(x: x, channels: neurons, into: &w.gate, on: pool)
        try activation.run(rows: rows, columns: count, gate: w.gate, up: w.up, into: &w.hidden, on: pool)
        return count
    }
}
