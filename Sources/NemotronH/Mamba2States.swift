public import SparseKernels

/// The states of one Mamba-2 layer for several sequences, a slot each: what is decayed and added to, and the last tokens that the
/// convolution still sees.
///
/// ```swift
/// let states = try Mamba2States(slots: 4, configuration)
/// try states.reset(2)
/// ```
///
/// The layer has one writer at a time, as `RecurrentStates` have. Copies share the states.
public struct Mamba2States {
    /// A matrix of `convolutionWidth` − 1 tokens × `convolvedWidth`, the oldest token first, before the convolution.
    public let convolution: RecurrentStates
    /// `heads` matrices of `stateSize` × `headDim`.
    public let recurrence: RecurrentStates

    /// States that someone else keeps, such as a pool of several layers.
    /// - Throws: `.invalidShape` for states of other sizes than the layer's, or two of different numbers of slots.
    public init(
        convolution: RecurrentStates, recurrence: RecurrentStates, _ c: Mamba2Configuration
    ) throws(SparseKernelsError) {
        (self.convolution, self.recurrence) = (convolution, recurrence)
        try requireFit(c)
    }

    /// Throws `.invalidShape` unless the states are those of a layer.
    func requireFit(_ c: Mamba2Configuration) throws(SparseKernelsError) {
        try convolution.requireShape(c.convolutionState, named: "convolution")
        try recurrence.requireShape(c.recurrenceState(), named: "recurrence")
        try require(
            convolution.slots == recurrence.slots, .invalidShape, "recurrence", expected: "\(convolution.slots) slots",
            actual: "\(recurrence.slots)")
    }

    /// States that are zero.
    ///
    /// - Parameters:
    ///   - slots: sequences that can have a state at a time.
    ///   - configuration: that of the layer.
    ///   - format: the storage of the matrices that decay; those of the convolution are single precision.
    /// - Throws: `.invalidShape` for a negative number of slots or a size that overflows; `.capacityExceeded` when the system
    ///   refuses the memory.
    public init(
        slots: Int, _ configuration: Mamba2Configuration, format: RecurrentStates.Format = .float32
    ) throws(SparseKernelsError) {
        convolution = try RecurrentStates(slots: slots, shape: configuration.convolutionState)
        recurrence = try RecurrentStates(slots: slots, shape: configuration.recurrenceState(format))
    }

    public var slots: Int { recurrence.slots }
    /// Bytes of both states of a slot.
    public var bytesPerSlot: Int { convolution.bytesPerSlot + recurrence.bytesPerSlot }
    public var byteCount: Int { convolution.byteCount + recurrence.byteCount }

    /// Makes the states of a slot zero: a sequence begins.
    /// - Throws: `.invalidArgument` for a slot that is not there.
    public func reset(_ slot: Int) throws(SparseKernelsError) {
        try convolution.reset(slot)
        try recurrence.reset(slot)
    }

    /// Replaces the states of a slot by those of another.
    /// - Throws: `.invalidArgument` for a slot that is not there.
    public func copy(from source: Int, to target: Int) throws(SparseKernelsError) {
        try convolution.copy(from: source, to: target)
        try recurrence.copy(from: source, to: target)
    }
}

extension Mamba2Configuration {
    /// The state of the convolution: the last inputs, the oldest first.
    public var convolutionState: RecurrentStateShape { .convolution(channels: convolvedWidth, width: convolutionWidth) }

    /// The state of the recurrence.
    public func recurrenceState(_ format: RecurrentStates.Format = .float32) -> RecurrentStateShape {
        RecurrentStateShape(heads: heads, rows: stateSize, columns: headDim, format: format)
    }

    /// Both, as a pool of several layers or a `HybridCache` takes them: the convolution's comes first.
    public func stateShapes(_ format: RecurrentStates.Format = .float32) -> [RecurrentStateShape] {
        [convolutionState, recurrenceState(format)]
    }
}
