public import SparseKernels

/// The memory of a layer between its projections, which layers use one after the other. It grows to the largest call, and is
/// allocated then only.
public struct CATSWorkspace: Sendable {
    /// `[tokens, innerWidth]` in their first rows: x · W_gateᵀ, what the threshold leaves of f of it, and its product with up.
    var gate = Self.empty
    var activated = Self.empty
    var up = Self.empty
    /// The channels of a call.
    var channels = ChannelSubset(all: 0)

    private static var empty: Tensor<Float> { try! Tensor(zeros: [0]) }

    public init() {}

    /// Makes room for calls of so many tokens.
    /// - Throws: `.invalidShape` for a size that overflows.
    public mutating func reserve(tokens: Int, innerWidth: Int) throws(SparseKernelsError) {
        let (count, overflow) = tokens.multipliedReportingOverflow(by: innerWidth)
        try require(
            tokens >= 0 && innerWidth >= 0 && !overflow, .invalidShape, "tokens",
            expected: "0 or more rows of a size that does not overflow", actual: "\(tokens) of \(innerWidth)")
        if gate.count >= count { return }
        gate = try Tensor(zeros: [count])
        activated = try Tensor(zeros: [count])
        up = try Tensor(zeros: [count])
    }

    /// Bytes of the rows.
    public var byteCount: Int { 4 * (gate.count + activated.count + up.count + channels.width) }
}
