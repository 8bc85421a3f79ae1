/// Sums of squares of (f(g) · u), channel by channel, with g and u products of low-rank factors.
public struct HiddenSquaresArguments {
    /// `tokens` rows of 2·`rank` floats, for gate and then for up.
    public var t: UnsafePointer<Float>
    public var tStride: Int
    public var tokens: Int
    public var rank: Int
    /// `rank` rows of `channels` floats, `factorStride` apart.
    public var gate: UnsafePointer<Float>
    public var up: UnsafePointer<Float>
    public var factorStride: Int
    /// A multiple of 16, which every level's lanes divide.
    public var channels: Int
    /// `channels` sums, to which those of this call are added.
    public var sums: UnsafeMutablePointer<Double>
    public var function: RowFunction

    public init(
        t: UnsafePointer<Float>, tStride: Int, tokens: Int, rank: Int, gate: UnsafePointer<Float>, up: UnsafePointer<Float>,
        factorStride: Int, channels: Int, sums: UnsafeMutablePointer<Double>, function: RowFunction
    ) {
        self.t = t
        self.tStride = tStride
        self.tokens = tokens
        self.rank = rank
        self.gate = gate
        self.up = up
        self.factorStride = factorStride
        self.channels = channels
        self.sums = sums
        self.function = function
    }
}
