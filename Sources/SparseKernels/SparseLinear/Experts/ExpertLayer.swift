internal import KernelInterface

/// A mixture of experts: y = Σ over the chosen experts of weight · down(f(gate x) · up x), plus the shared experts.
///
/// ```swift
/// let layer = try ExpertLayer(experts)                                  // [GatedExpert]
/// let routing = try ExpertRouter(experts: 64, expertsPerToken: 6)(logits)
/// let y = try layer(x, routing: routing)                                // [tokens, width]
/// ```
///
/// Rows are grouped by expert, so that every expert reads its weights once for all its tokens, whatever their number; no token is
/// dropped. The projections of all experts are tasks of one call, and large experts are cut into panels, so that threads share even a
/// single one.
///
/// - Exactness: that of ``FloatLinear`` and ``QuantizedLinear`` in the three projections, and of ``GatedActivation``. A token adds its
///   experts in the order of its slots, then the shared experts in theirs. Results are bitwise equal for every number of threads.
///   They do not depend on the other tokens of the call, except that a token which is the only one of an expert sums in another order
///   where weights have nibbles with floating-point activations.
/// - Non-finite input gives non-finite output in its own row, and changes no other row.
/// - Complexity: 3 · slots · width · hiddenWidth multiply-adds. With few rows per expert it is bound by reading the weights of the
///   experts that have tokens.
/// - Scratch: `workspaceByteCount(tokens:)` once and `scratchByteCount` per thread, kept by the pool.
/// - Source: Gale et al., MegaBlocks (arXiv 2211.15841): dropless grouped products; DeepSeekMoE (arXiv 2401.06066): shared experts.
public struct ExpertLayer: Sendable {
    public var experts: [GatedExpert] { routed.experts }
    /// Experts that every token has, with weight 1.
    public var sharedExperts: [GatedExpert] { shared?.experts ?? [] }
    /// The function f of the gates.
    public let activation: GatedActivation.Function
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    let routed: ExpertBank
    let shared: ExpertBank?
    let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - experts: one or more experts of one shape, whose activations have one format.
    ///   - shared: experts that every token has, of one shape and format; their hidden width, type and format may be others.
    ///   - activation: f.
    /// - Throws: `.invalidShape` for no experts, or experts of different shapes; `.invalidArgument` for experts of another instruction set
    ///   or format of activations, and for more than 65536 experts.
    public init(
        _ experts: [GatedExpert], shared: [GatedExpert] = [], activation: GatedActivation.Function = .silu
    ) throws(SparseKernelsError) {
        try require(!experts.isEmpty, .invalidShape, "experts", expected: "one or more", actual: "none")
        try ExpertRouting.requireCounts(experts: experts.count, expertsPerToken: 1)
        routed = try ExpertBank(experts, named: "experts")
        instructionSet = experts[0].instructionSet
        if shared.isEmpty {
            self.shared = nil
        } else {
            let bank = try ExpertBank(shared, named: "shared")
            try require(
                bank.width == routed.width, .invalidShape, "shared", expected: "\(routed.width) features, as experts",
                actual: "\(bank.width)")
            try require(
                shared[0].instructionSet == instructionSet, .invalidArgument, "shared",
                expected: "made for \(instructionSet), as experts", actual: "\(shared[0].instructionSet)")
            self.shared = bank
        }
        self.activation = activation
        kernels = instructionSet.kernels
    }

    /// Features of x and y.
    public var width: Int { routed.width }
    /// Features between the projections of the routed experts.
    public var hiddenWidth: Int { routed.hiddenWidth }

    /// Bytes of the weights of all experts.
    public var byteCount: Int {
        experts.reduce(0) { $0 + $1.byteCount } + sharedExperts.reduce(0) { $0 + $1.byteCount }
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { ExpertCall.scratchByteCount }

    /// Bytes that the threads share, for the activations of up to 2048 tokens.
    public func workspaceByteCount(tokens: Int, expertsPerToken: Int) -> Int {
        ExpertWorkspace(
            self, tokens: min(tokens, Self.passTokens), slots: expertsPerToken, sortsAgain: tokens > Self.passTokens
        ).byteCount
    }

    /// Tokens whose activations exist at one time. Longer batches read the weights once for every so many tokens, which is rarely
    /// enough that products stay bound by arithmetic.
    static let passTokens = 2048

    // MARK: - Run

    /// Computes y for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, width]`, of any attention element type and row stride. May have no tokens.
    ///   - routing: the experts of every token.
    ///   - y: `[tokens, width]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, routing: ExpertRouting, y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: width)
        try require(
            routing.experts == routed.experts.count, .invalidShape, "routing",
            expected: "\(routed.experts.count) experts, as the layer", actual: "\(routing.experts)")
        try require(
            routing.tokens == x.rows, .invalidShape, "routing", expected: "\(x.rows) tokens, as x",
            actual: "\(routing.tokens)")
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, width))
        if x.rows == 0 { return }
        // Pointers are used only until this call returns, which borrows or owns the views and the routing.
        withExtendedLifetime((routing, self)) {
            ExpertCall.run(self, x: RowOperand(x), routing: routing, y: RowTarget(&y), on: pool)
        }
    }

    /// Computes y for the rows of x into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, routing: ExpertRouting, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x: x.matrixView(named: "x"), routing: routing, y: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Computes y for the rows of x, `[tokens, width]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, routing: ExpertRouting, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try requireColumns("x", x.matrixView(named: "x").columns, expected: width)
        var y = try Tensor<Float>(zeros: [x.shape[0], width])
        try run(x, routing: routing, into: &y, on: pool)
        return y
    }
}
