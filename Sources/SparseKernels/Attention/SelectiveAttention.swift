/// Exact attention over keys that are first chosen for each query from the operands of the call.
///
/// A method implements three requirements: `shape`, `select` and `attention(over:)`. Extensions add calls with tensors,
/// attention into the caller's memory, and attention into new memory that also returns the selection. Methods that choose
/// without the values, as most do, conform to `PredictiveAttention`. With one plan for all calls it is an `AttentionOperator`.
///
/// ```swift
/// let result = try method(query: query, key: key, value: value)   // result.state, and the properties of `Selected`
/// ```
public protocol SelectiveAttention: Sendable {
    /// The selection, such as a mask, with the properties that results have.
    associatedtype Selected: Sendable
    /// The operator that attends: `BlockSparseAttention`, or one with more steps, such as reordering tokens.
    associatedtype Attention: AttentionOperator = BlockSparseAttention

    /// The sizes that operands must have.
    var shape: AttentionShape { get }

    /// Chooses the keys of each query.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`. Any strides that keep channels adjacent, here and below.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    func select<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Selected

    /// The plan of attention over a selection.
    /// - Throws: `.invalidShape` or `.invalidArgument` for a selection that does not fit the shape.
    func attention(over selected: Selected) throws(SparseKernelsError) -> Attention
}

extension SelectiveAttention {
    /// The attention of a call and its selection.
    public typealias Result = SelectiveAttentionResult<Selected>

    /// Chooses, then attends into the caller's memory. No operand is copied, unless the method's documentation says so.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`. Any strides that keep channels adjacent, here and below.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - output: `queryHeads` × `queryLength` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials over the kept keys of each row, `[queryHeads, queryLength]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape; then nothing is computed or written.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Selected {
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp?.count)
        let selected = try select(query: query, key: key, value: value, on: pool)
        try attention(over: selected).run(
            query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
        return selected
    }

    /// Chooses, then attends with tensors `[heads, tokens, channels]` into a tensor that is reused from call to call.
    /// - Throws: as `run` with views, and `.invalidShape` for another rank.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Selected {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), on: pool)
    }

    /// Chooses, then attends with tensors `[heads, tokens, channels]` into new memory.
    /// - Throws: as `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Result {
        let (state, selected) = try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                output: output, logSumExp: logSumExp, on: pool)
        }
        return Result(state: state, selected: selected)
    }
}

/// Selective attention that predicts from queries and keys alone which keys matter.
///
/// ```swift
/// let selected = try method.select(query: query, key: key)   // the choice alone
/// let plan = try method.attention(over: selected)            // an operator, for as many calls as the choice holds
/// ```
public protocol PredictiveAttention: SelectiveAttention {
    /// Chooses the keys of each query. See `SelectiveAttention.select`.
    func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Selected
}

extension PredictiveAttention {
    /// Chooses without using the values.
    /// - Throws: as `select` without values.
    public func select<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Selected {
        try select(query: query, key: key, on: pool)
    }

    /// Chooses from tensors `[heads, tokens, headDim]`.
    /// - Throws: as `select` with views, and `.invalidShape` for another rank.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Selected {
        try select(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }
}

/// The attention of a call to `SelectiveAttention`, and its selection, whose properties are also properties of the result.
@dynamicMemberLookup
public struct SelectiveAttentionResult<Selected: Sendable>: Sendable {
    public let state: AttentionState
    public let selected: Selected

    public subscript<Value>(dynamicMember path: KeyPath<Selected, Value>) -> Value { selected[keyPath: path] }
}

extension SelectiveAttentionResult where Selected == BlockMask {
    /// The kept blocks, with one head per query head.
    public var mask: BlockMask { selected }
}
