/// Cosines of rows with one vector: x·p / (max(‖x‖, ε) · max(‖p‖, ε)).
public struct CosineArguments {
    public var x: RowOperand
    public var rows: Int
    /// At least 1.
    public var channels: Int
    /// p, `channels` floats.
    public var vector: UnsafePointer<Float>
    /// max(‖p‖, ε).
    public var vectorNorm: Float
    public var epsilon: Float
    /// One float per row.
    public var scores: UnsafeMutablePointer<Float>

    public init(
        x: RowOperand, rows: Int, channels: Int, vector: UnsafePointer<Float>, vectorNorm: Float, epsilon: Float,
        scores: UnsafeMutablePointer<Float>
    ) {
        self.x = x
        self.rows = rows
        self.channels = channels
        self.vector = vector
        self.vectorNorm = vectorNorm
        self.epsilon = epsilon
        self.scores = scores
    }
}
