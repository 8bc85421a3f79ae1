/// The three projections of an expert: down(f(gate x) · up x).
///
/// ```swift
/// let expert = try GatedExpert(gate: w1, up: w3, down: w2)     // tensors of Float, Float16, BFloat16, or Float8Tensor
/// let small = try GatedExpert(
///     gate: QuantizedLinear(gateWeight, activation: .int8PerToken), up: …, down: …)
/// ```
///
/// Weights keep their type, as those of ``FloatLinear`` and ``QuantizedLinear`` do. Biases are added where the projections have them.
public struct GatedExpert: Sendable {
    enum Projections: Sendable {
        case numbers(gate: FloatLinear, up: FloatLinear, down: FloatLinear)
        case codes(gate: QuantizedLinear, up: QuantizedLinear, down: QuantizedLinear)
    }

    let projections: Projections
    /// Features of the input and of the output.
    public let width: Int
    /// Features between the projections.
    public let hiddenWidth: Int
    /// The instruction set whose kernels read the weights.
    public let instructionSet: InstructionSet
    /// Bytes of the weights of all projections.
    public let byteCount: Int

    /// Makes an expert of three projections whose weights are numbers.
    ///
    /// - Parameters:
    ///   - gate: `[hiddenWidth, width]`.
    ///   - up: `[hiddenWidth, width]`.
    ///   - down: `[width, hiddenWidth]`.
    /// - Throws: `.invalidShape` for projections that do not fit together; `.invalidArgument` for one with an epilogue, or for another
    ///   instruction set.
    public init(gate: FloatLinear, up: FloatLinear, down: FloatLinear) throws(SparseKernelsError) {
        projections = .numbers(gate: gate, up: up, down: down)
        (width, hiddenWidth, instructionSet) = (gate.inFeatures, gate.outFeatures, gate.instructionSet)
        byteCount = gate.byteCount + up.byteCount + down.byteCount
        try check("up", up.inFeatures, up.outFeatures, up.instructionSet, from: width, to: hiddenWidth)
        try check("down", down.inFeatures, down.outFeatures, down.instructionSet, from: hiddenWidth, to: width)
        try Self.check([("gate", gate.epilogue), ("up", up.epilogue), ("down", down.epilogue)])
    }

    /// Makes an expert of three quantised projections.
    ///
    /// - Parameters:
    ///   - gate: `[hiddenWidth, width]`.
    ///   - up: `[hiddenWidth, width]`. It quantises its input as `gate` does, so that this is done once.
    ///   - down: `[width, hiddenWidth]`.
    /// - Throws: `.invalidShape` for projections that do not fit together; `.invalidArgument` for one with an epilogue or a low-rank
    ///   branch, for another instruction set, and for an `up` that quantises its input in another way.
    public init(gate: QuantizedLinear, up: QuantizedLinear, down: QuantizedLinear) throws(SparseKernelsError) {
        projections = .codes(gate: gate, up: up, down: down)
        (width, hiddenWidth, instructionSet) = (gate.inFeatures, gate.outFeatures, gate.weight.instructionSet)
        byteCount = gate.byteCount + up.byteCount + down.byteCount
        try check("up", up.inFeatures, up.outFeatures, up.weight.instructionSet, from: width, to: hiddenWidth)
        try check("down", down.inFeatures, down.outFeatures, down.weight.instructionSet, from: hiddenWidth, to: width)
        try Self.check([("gate", gate.epilogue), ("up", up.epilogue), ("down", down.epilogue)])
        for (name, layer) in [("gate", gate), ("up", up), ("down", down)] {
            try require(
                layer.rank == 0, .invalidArgument, name, expected: "no low-rank branch", actual: "one of rank \(layer.rank)")
        }
        // The group of layers has the checks of what they must share, and its error names the part that differs.
        do {
            _ = try QuantizedLinearGroup([gate, up])
        } catch {
            throw SparseKernelsError(error.code, "up", expected: error.expected + ", as gate", actual: error.actual)
        }
    }

    /// Makes an expert of three weights as a checkpoint has them.
    ///
    /// - Parameters:
    ///   - gate: `[hiddenWidth, width]`.
    ///   - up: `[hiddenWidth, width]`.
    ///   - down: `[width, hiddenWidth]`.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: the errors of `FloatLinear` and of `init(gate:up:down:)` with layers.
    public init<W: AttentionElement>(
        gate: Tensor<W>, up: Tensor<W>, down: Tensor<W>, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            gate: FloatLinear(weight: gate, instructionSet: instructionSet, on: pool),
            up: FloatLinear(weight: up, instructionSet: instructionSet, on: pool),
            down: FloatLinear(weight: down, instructionSet: instructionSet, on: pool))
    }

    /// Makes an expert of three weights of 8-bit floats, which stay in them.
    /// - Throws: the errors of `FloatLinear` and of `init(gate:up:down:)` with layers.
    public init<Code: Float8>(
        gate: Float8Tensor<Code>, up: Float8Tensor<Code>, down: Float8Tensor<Code>, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            gate: FloatLinear(weight: gate, instructionSet: instructionSet, on: pool),
            up: FloatLinear(weight: up, instructionSet: instructionSet, on: pool),
            down: FloatLinear(weight: down, instructionSet: instructionSet, on: pool))
    }

    // MARK: - Checks

    private func check(
        _ name: String, _ inFeatures: Int, _ outFeatures: Int, _ set: InstructionSet, from: Int, to: Int
    ) throws(SparseKernelsError) {
        try require(
            inFeatures == from && outFeatures == to, .invalidShape, name, expected: "\([to, from]), as gate has it",
            actual: "\([outFeatures, inFeatures])")
        try require(
            set == instructionSet, .invalidArgument, name, expected: "made for \(instructionSet), as gate",
            actual: "\(set)")
    }

    private static func check(_ epilogues: [(name: String, epilogue: Epilogue)]) throws(SparseKernelsError) {
        for (name, epilogue) in epilogues {
            try require(
                epilogue == .none, .invalidArgument, name, expected: "no epilogue; the layer has the activation",
                actual: "\(epilogue)")
        }
    }
}
