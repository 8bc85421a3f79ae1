/// The buffers of a rank's calls. They are allocated by the first call and kept for later ones.
final class ExchangeBuffers {
    private(set) var layout: ExchangeLayout
    private let schedule: RingSchedule
    /// Rows of this rank.
    let tokens: Int

    /// Queries of all rows of the group, received in place.
    private(set) var queries: MessageBuffer
    /// Packed queries for the other ranks of the group, one part behind the other.
    private(set) var packedQueries: MessageBuffer
    /// Keys and values that are attended, those that arrive meanwhile, and those of the step before, which the next group may still be
    /// copying: a rank does not wait for the one behind it unless that is two steps late.
    private(set) var keys: MessageBuffer
    private(set) var nextKeys: MessageBuffer
    private(set) var earlierKeys: MessageBuffer
    /// Packed keys and values of all key/value heads.
    private(set) var packedKeys: MessageBuffer
    /// Outputs and LSE of all rows of the group, in `Float`.
    private(set) var states: MessageBuffer
    /// The result of a piece that is merged.
    private(set) var partial: MessageBuffer
    /// Rounded outputs for other ranks; without bytes when they are `Float`.
    private(set) var packedOutputs: MessageBuffer
    /// Outputs of this rank's rows from the other ranks of the group.
    private(set) var outputs: MessageBuffer

    init(_ layout: ExchangeLayout, _ schedule: RingSchedule, place: Int) {
        (self.layout, self.schedule) = (layout, schedule)
        tokens = schedule.own.rows(ofPlace: place).count
        let none = MessageBuffer.empty
        (queries, packedQueries, keys, nextKeys, earlierKeys, packedKeys) = (none, none, none, none, none, none)
        (states, partial, packedOutputs, outputs) = (none, none, none, none)
    }

    /// Makes room for elements of some sizes.
    func prepare(queryBytes: Int, keyBytes: Int, outputBytes: Int) throws(SparseKernelsError) {
        (layout.queryBytes, layout.keyBytes, layout.outputBytes) = (queryBytes, keyBytes, outputBytes)
        let (rows, ulysses) = (schedule.own.count, layout.ulysses)
        let isGroup = ulysses > 1
        try grow(&queries, isGroup ? rows * layout.queryRowBytes : 0)
        try grow(&packedQueries, isGroup ? ulysses * tokens * layout.queryRowBytes : 0)
        var counts = [rows, 0, 0]
        for (index, step) in schedule.steps.enumerated() where step.arrives {
            // Buffers take turns.
            counts[index % 3] = max(counts[index % 3], schedule.counts[step.group])
        }
        try grow(&keys, counts[0] * layout.keyRowBytes)
        try grow(&nextKeys, counts[1] * layout.keyRowBytes)
        try grow(&earlierKeys, counts[2] * layout.keyRowBytes)
        try grow(&packedKeys, isGroup ? ulysses / layout.copies * tokens * layout.keyRowBytes : 0)
        try grow(&states, rows * (layout.stateRowBytes + layout.logSumExpRowBytes))
        let largest = schedule.slices.reduce(0) { max($0, $1.rows.count) }
        try grow(&partial, largest * (layout.stateRowBytes + layout.logSumExpRowBytes))
        try grow(&packedOutputs, isGroup && outputBytes < 4 ? outputOffset(ofPlace: ulysses) : 0)
        try grow(&outputs, isGroup ? ulysses * homeBytes : 0)
    }

    private func grow(_ buffer: inout MessageBuffer, _ bytes: Int) throws(SparseKernelsError) {
        if buffer.byteCount < bytes { buffer = try MessageBuffer(byteCount: bytes) }
    }

    /// The buffer of a step's keys and values.
    func keys(ofStep step: Int) -> MessageBuffer {
        switch step % 3 {
        case 0: keys
        case 1: nextKeys
        default: earlierKeys
        }
    }

    // MARK: - States

    /// The first byte of the outputs of a rank's rows.
    func stateOffset(ofPlace place: Int) -> Int {
        schedule.own.starts[place] * (layout.stateRowBytes + layout.logSumExpRowBytes)
    }

    /// The first byte of the outputs of a slice.
    func outputOffset(of slice: RingSchedule.Slice) -> Int {
        let row = slice.rows.lowerBound - schedule.own.starts[slice.place]
        return stateOffset(ofPlace: slice.place) + row * layout.stateRowBytes
    }

    /// The first byte of the LSE of a slice.
    func logSumExpOffset(of slice: RingSchedule.Slice) -> Int {
        let rows = schedule.own.rows(ofPlace: slice.place)
        return stateOffset(ofPlace: slice.place) + rows.count * layout.stateRowBytes
            + (slice.rows.lowerBound - rows.lowerBound) * layout.logSumExpRowBytes
    }

    // MARK: - Messages

    /// The first byte of rounded outputs for a rank.
    func outputOffset(ofPlace place: Int) -> Int {
        var offset = 0
        for other in 0..<place {
            offset += layout.messageBytes(tokens: schedule.own.rows(ofPlace: other).count, logSumExp: true)
        }
        return offset
    }

    /// Bytes of the room for the outputs that a rank sends to this one.
    var homeBytes: Int { layout.messageBytes(tokens: tokens, logSumExp: true) }
}

extension MessageBuffer {
    /// A buffer without bytes.
    static var empty: MessageBuffer {
        guard let buffer = try? MessageBuffer(byteCount: 0) else { preconditionFailure("no bytes are always enough") }
        return buffer
    }
}
