public import SparseKernels

/// The temporal encoder of STORM: Mamba layers between the vision encoder and the language model, over the tokens of all frames as one
/// sequence, frame after frame, each frame from left to right and from top to bottom.
///
/// ```swift
/// let encoder = try STORMEncoder(file, configuration)
/// let states = try encoder.makeStates()
/// try encoder.run(&tokens, states: states)                      // [frames · tokens of a frame, width]
/// let fewer = try STORMTokenReduction(temporalPool: 4)(frames)  // [frames, rows, columns, width]
/// ```
///
/// A bidirectional encoder sees a whole video in each call, so its states are zero before it. With `.forwardOnly` calls continue each
/// other, and frames may come in parts of any number of tokens.
///
/// - Exactness: single precision; that of the operators. Results are bitwise equal for every number of threads.
/// - Complexity: per token, layer and direction, what `SelectiveScan` and `CausalConvolution` take for `innerWidth` channels, and products
///   with `width · 2 · innerWidth + innerWidth · (2 · dtRank + 2 · stateSize) + innerWidth · width` multiply-adds; linear in tokens.
/// - Memory: about `4 · (7 · innerWidth + width)` bytes per token, which `STORMStates` keeps.
/// - Source: "Token-Efficient Long Video Understanding for Multimodal LLMs" (2025), arXiv 2503.04130, section 3. No code was released.
public struct STORMEncoder: Sendable {
    public let configuration: STORMConfiguration
    public let layers: [STORMLayer]

    /// - Parameters:
    ///   - weights: the parameters of the layers, as many as the configuration says.
    ///   - configuration: the sizes.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for another number of layers, and the errors of `STORMLayer`.
    public init(
        _ weights: [STORMLayerWeights], _ configuration: STORMConfiguration, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try configuration.check()
        try require(
            weights.count == configuration.layers, .invalidShape, "weights", expected: "\(configuration.layers) layers",
            actual: "\(weights.count)")
        self.configuration = configuration
        var layers: [STORMLayer] = []
        for layer in weights { layers.append(try STORMLayer(layer, configuration, instructionSet: instructionSet)) }
        self.layers = layers
    }

    /// The encoder of a file with tensors `layers.0.…`, `layers.1.…`, named as `STORMLayerWeights` says.
    /// - Throws: `.notFound`, `.invalidElementType`, and the errors of the initialiser with weights.
    public init(
        _ file: SafetensorsFile, _ configuration: STORMConfiguration, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try configuration.check()
        var weights: [STORMLayerWeights] = []
        for layer in 0..<configuration.layers {
            weights.append(
                try STORMLayerWeights(file, prefix: "layers.\(layer)", combination: configuration.combination))
        }
        try self.init(weights, configuration, instructionSet: instructionSet)
    }

    /// Memory for calls, with states of zeros.
    /// - Parameters:
    ///   - slots: sequences that can be in a call, or be streamed side by side; at least 1.
    ///   - format: of the states of the scans.
    /// - Throws: `.invalidArgument` for no slots, `.capacityExceeded` when the system refuses the memory.
    public func makeStates(
        slots: Int = 1, format: RecurrentStates.Format = .float32
    ) throws(SparseKernelsError) -> STORMStates {
        try require(slots >= 1, .invalidArgument, "slots", expected: "at least 1", actual: "\(slots)")
        return try STORMStates(slots: slots, format: format, layers: layers)
    }

    /// Encodes the tokens of one video, in slot 0.
    ///
    /// - Parameters:
    ///   - x: `[tokens, width]`, replaced by the encoded tokens.
    ///   - states: the memory of this encoder.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `run` with a batch.
    public func run(
        _ x: inout Tensor<Float>, states: STORMStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let batch = try PackedSequences(lengths: [x.shape.first ?? 0])
        try run(&x, batch: batch, states: states, on: pool)
    }

    /// Encodes the tokens of several videos, which do not see each other.
    ///
    /// - Parameters:
    ///   - x: `[tokens, width]`, the videos of `batch` one after the other; replaced by the encoded tokens.
    ///   - batch: tokens of the videos, and their slots.
    ///   - states: the memory of this encoder.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for tokens of another width or number, or states of another encoder, `.invalidArgument` for a slot that
    ///   is not there; nothing is written then.
    public func run(
        _ x: inout Tensor<Float>, batch: PackedSequences, states: STORMStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let width = configuration.width
        try require(
            x.shape == [batch.tokenCount, width], .invalidShape, "x", expected: "\([batch.tokenCount, width])",
            actual: "\(x.shape)")
        try require(
            states.forward.count == layers.count && states.backward.isEmpty == !configuration.combination.isBidirectional,
            .invalidShape, "states", expected: "those of this encoder, of \(layers.count) layers",
            actual: "\(states.forward.count) layers")
        let first = states.forward[0].scan
        try require(
            first.rows == configuration.stateSize && first.columns == configuration.innerWidth, .invalidShape, "states",
            expected: "\(configuration.stateSize) × \(configuration.innerWidth)", actual: "\(first.rows) × \(first.columns)")
        try batch.requireSlots(in: first)
        if batch.tokenCount == 0 { return }
        let isBidirectional = configuration.combination.isBidirectional
        for (layer, forward) in zip(layers, states.forward) {
            if isBidirectional { for slot in batch.slots { try forward.reset(slot) } }
            try layer.run(
                &x, batch, forward: forward, backward: isBidirectional ? states.backward[0] : nil, states.buffers, pool)
        }
    }
}
