internal import SparseKernels

/// One quantised row of a weight.
struct ProgressiveRow: Sendable {
    /// The reason why a row cannot be quantised.
    enum Failure: Error {
        case notFinite, scaleOverflow, bracketOverflow
    }

    /// Pairs of nibbles, with the even column in the low nibble.
    private(set) var codes: [UInt8]
    private(set) var scales: [Float] = []
    private(set) var offsets: [Float] = []
    private(set) var channelScale: Float = 1

    /// - Parameters:
    ///   - groupSize: nil means one level.
    ///   - byteCount: bytes of the codes, including padding.
    init(_ row: Span<Float>, groupSize: Int?, range: Float, byteCount: Int) throws(Failure) {
        codes = [UInt8](repeating: 0, count: byteCount)
        let (low, high) = try Self.extremes(of: row)
        guard let groupSize else {
            try quantizeChannel(row, low: low, high: high)
            return
        }
        channelScale = try Self.half(max(high, -low) / range)
        if channelScale == 0 { channelScale = 1 }
        for start in stride(from: 0, to: row.count, by: groupSize) {
            try quantizeGroup(row, start..<min(row.count, start + groupSize), range: range)
        }
    }

    /// Quantises one level, with scale and zero in fp16.
    private mutating func quantizeChannel(_ row: Span<Float>, low: Float, high: Float) throws(Failure) {
        let rounded = try Self.half((high - low) / 15)
        let scale = rounded == 0 ? 1 : rounded
        let zero = try Self.half(-low)
        for column in 0..<row.count { store(Self.code((row[column] + zero) / scale), column) }
        scales.append(scale)
        offsets.append(zero)
    }

    /// Quantises level 2 of one group. Scale and zero are integers.
    private mutating func quantizeGroup(_ row: Span<Float>, _ members: Range<Int>, range: Float) throws(Failure) {
        let channelScale = channelScale
        // The scale was rounded, so |w| can be a little above the range, and far above it where fp16 is subnormal.
        func levelOne(_ column: Int) -> Float { max(-range, min(range, row[column] / channelScale)) }

        var (low, high) = (Float.infinity, -Float.infinity)
        for column in members {
            let value = levelOne(column)
            low = value < low ? value : low
            high = value > high ? value : high
        }
        let rounded = ((high - low) / 15).rounded(.toNearestOrEven)
        let scale = rounded == 0 ? 1 : rounded
        let zero = (-low).rounded(.toNearestOrEven)
        // Codes grow with the weight, so all brackets of the group are between these two.
        guard
            Float(Self.code((high + zero) / scale)) * scale - zero <= 127,
            Float(Self.code((low + zero) / scale)) * scale - zero >= -128
        else { throw .bracketOverflow }
        for column in members { store(Self.code((levelOne(column) + zero) / scale), column) }
        scales.append(scale)
        offsets.append(zero)
    }

    private static func extremes(of row: Span<Float>) throws(Failure) -> (low: Float, high: Float) {
        var (low, high) = (Float.infinity, -Float.infinity)
        var isFinite = true
        for column in 0..<row.count {
            let value = row[column]
            isFinite = isFinite && value.isFinite
            low = value < low ? value : low
            high = value > high ? value : high
        }
        guard isFinite else { throw .notFinite }
        return (low, high)
    }

    private static func half(_ value: Float) throws(Failure) -> Float {
        let rounded = roundedToHalf(value)
        guard rounded.isFinite else { throw .scaleOverflow }
        return rounded
    }

    private static func code(_ value: Float) -> UInt8 {
        UInt8(max(0, min(15, value.rounded(.toNearestOrEven))))
    }

    private mutating func store(_ code: UInt8, _ column: Int) {
        codes[column / 2] |= column % 2 == 0 ? code : code << 4
    }
}
