public import SparseKernels

/// The states of one direction of a layer.
struct STORMDirectionStates {
    let convolution: RecurrentStates
    let scan: RecurrentStates

    init(slots: Int, _ direction: STORMDirection, _ format: RecurrentStates.Format) throws(SparseKernelsError) {
        convolution = try direction.convolution.makeStates(slots: slots)
        scan = try RecurrentStates(
            slots: slots, heads: 1, rows: direction.scan.stateSize, columns: direction.scan.channels, format: format)
    }

    func reset(_ slot: Int) throws(SparseKernelsError) {
        try convolution.reset(slot)
        try scan.reset(slot)
    }
}

/// The memory of an encoder: the states of its layers for several sequences, and what a call computes in between.
///
/// Calls reuse the memory; it grows with the longest call. The class is not `Sendable`: one call at a time.
public final class STORMStates {
    public let slots: Int
    public let format: RecurrentStates.Format
    /// One per layer.
    let forward: [STORMDirectionStates]
    /// One for all layers, because the backward direction keeps nothing; empty without one.
    let backward: [STORMDirectionStates]
    let buffers: STORMBuffers

    init(slots: Int, format: RecurrentStates.Format, layers: [STORMLayer]) throws(SparseKernelsError) {
        self.slots = slots
        self.format = format
        var forward: [STORMDirectionStates] = []
        for layer in layers { forward.append(try STORMDirectionStates(slots: slots, layer.forward, format)) }
        self.forward = forward
        backward =
            layers[0].configuration.combination.isBidirectional
            ? [try STORMDirectionStates(slots: slots, layers[0].backward ?? layers[0].forward, format)] : []
        buffers = try STORMBuffers(layers[0].configuration)
    }

    /// Bytes of states, without what calls compute in between.
    public var byteCount: Int {
        (forward + backward).reduce(0) { $0 + $1.convolution.byteCount + $1.scan.byteCount }
    }

    /// Bytes of memory that calls share, which grows with their tokens.
    public var workspaceByteCount: Int { buffers.byteCount }

    /// Makes the states of a sequence zero in all layers, for the first frames of another video.
    /// - Throws: `.invalidArgument` for a slot that is not there.
    public func reset(_ slot: Int) throws(SparseKernelsError) {
        for states in forward { try states.reset(slot) }
        for states in backward { try states.reset(slot) }
    }

    /// The states of the scan of a layer, forward, `[stateSize, innerWidth]` in a slot.
    public func scanStates(ofLayer layer: Int) -> RecurrentStates { forward[layer].scan }
}

/// What a layer computes in between, a row per token.
final class STORMBuffers {
    private let configuration: STORMConfiguration
    private(set) var tokens = 0
    /// The normalised tokens, and later what is added to them.
    var normalized: Tensor<Float>
    /// x and the gate, side by side.
    var projected: Tensor<Float>
    var convolved: Tensor<Float>
    var selected: Tensor<Float>
    var steps: Tensor<Float>
    /// The output of the forward direction, or of both side by side.
    var scanned: Tensor<Float>
    /// That of the backward direction, where both are added.
    var second: Tensor<Float>

    init(_ configuration: STORMConfiguration) throws(SparseKernelsError) {
        self.configuration = configuration
        let none = try Tensor<Float>(zeros: [0, 0])
        (normalized, projected, convolved, selected, steps, scanned, second) = (none, none, none, none, none, none, none)
    }

    /// Makes room for the tokens of a call.
    func reserve(tokens: Int) throws(SparseKernelsError) {
        if tokens <= self.tokens { return }
        let (inner, both) = (configuration.innerWidth, configuration.combination == .concatenation)
        self.tokens = 0
        normalized = try Tensor(zeros: [tokens, configuration.width])
        projected = try Tensor(zeros: [tokens, 2 * inner])
        convolved = try Tensor(zeros: [tokens, inner])
        selected = try Tensor(zeros: [tokens, configuration.dtRank + 2 * configuration.stateSize])
        steps = try Tensor(zeros: [tokens, inner])
        scanned = try Tensor(zeros: [tokens, both ? 2 * inner : inner])
        second = try Tensor(zeros: [configuration.combination.isBidirectional && !both ? tokens : 0, inner])
        self.tokens = tokens
    }

    var byteCount: Int {
        4 * (normalized.count + projected.count + convolved.count + selected.count + steps.count + scanned.count + second.count)
    }
}
