/// The extents and the storage of one state of a recurrent layer: see ``RecurrentStates`` for which layer has which.
public struct RecurrentStateShape: Hashable, Sendable {
    public let heads: Int
    /// Rows of a head's matrix, 0 or more.
    public let rows: Int
    public let columns: Int
    public let format: RecurrentStates.Format

    public init(heads: Int, rows: Int, columns: Int, format: RecurrentStates.Format = .float32) {
        self.heads = heads
        self.rows = rows
        self.columns = columns
        self.format = format
    }

    /// The state of a causal convolution: its last width − 1 inputs.
    public static func convolution(
        channels: Int, width: Int, format: RecurrentStates.Format = .float32
    ) -> RecurrentStateShape {
        RecurrentStateShape(heads: 1, rows: width - 1, columns: channels, format: format)
    }

    /// As text for files: `heads×rows×columns:format` in ASCII.
    var text: String { "\(heads)x\(rows)x\(columns):\(format.rawValue)" }

    /// Reads `text` back; nil for anything that `text` does not write.
    init?(_ text: Substring) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2, let format = RecurrentStates.Format(rawValue: String(parts[1])) else { return nil }
        let extents = parts[0].split(separator: "x", omittingEmptySubsequences: false).compactMap { Int($0) }
        guard extents.count == 3 else { return nil }
        self.init(heads: extents[0], rows: extents[1], columns: extents[2], format: format)
        if self.text != text { return nil }
    }
}

extension RecurrentStates {
    /// States of this shape that are zero.
    /// - Throws: the errors of the other initialiser.
    public convenience init(slots: Int, shape: RecurrentStateShape) throws(SparseKernelsError) {
        try self.init(slots: slots, heads: shape.heads, rows: shape.rows, columns: shape.columns, format: shape.format)
    }

    public var shape: RecurrentStateShape {
        RecurrentStateShape(heads: heads, rows: rows, columns: columns, format: format)
    }
}
