/// Where rows are in the buffers of a rank, for element types of some sizes.
///
/// Rows of queries, and in groups of several ranks also those of keys and values, are by tokens: the queries of a token's heads,
/// and its keys beside its values. A rank's part of them is one message, and the parts of all ranks are one operand in place. A group of one
/// rank keeps the keys of a head, and its values, as adjacent rows.
///
/// States are the outputs of the rows of a rank, by tokens, and then their LSE by slices: `[heads, rows of the slice]`.
struct ExchangeLayout: Hashable {
    let queryHeads: Int
    let kvHeads: Int
    let headDim: Int
    let valueDim: Int
    /// Ranks of the group.
    let ulysses: Int
    /// Ranks of a group that have the same key/value head.
    let copies: Int
    var queryBytes = 4
    var keyBytes = 4
    var outputBytes = 4

    /// - Parameters: the heads of all ranks.
    init(queryHeads: Int, kvHeads: Int, headDim: Int, valueDim: Int, ulysses: Int) {
        self.queryHeads = queryHeads / ulysses
        self.kvHeads = max(1, kvHeads / ulysses)
        copies = max(1, ulysses / kvHeads)
        (self.headDim, self.valueDim, self.ulysses) = (headDim, valueDim, ulysses)
    }

    // MARK: - Rows

    /// Bytes of a token's queries.
    var queryRowBytes: Int { queryHeads * headDim * queryBytes }
    /// Bytes of a token's keys and values.
    var keyRowBytes: Int { kvHeads * (headDim + valueDim) * keyBytes }
    /// Bytes of a token's outputs in `Float`, and of their LSE.
    var stateRowBytes: Int { queryHeads * valueDim * 4 }
    var logSumExpRowBytes: Int { queryHeads * 4 }

    /// The query heads of a rank of the group, and the first key/value head.
    func firstQueryHead(ofPlace place: Int) -> Int { place * queryHeads }
    func firstKVHead(ofPlace place: Int) -> Int { place / copies * kvHeads }

    /// Places in a buffer for the queries of some tokens.
    func queryMemory(_ base: UnsafeMutableRawPointer) -> RowMemory {
        RowMemory(base: base, headStride: headDim * queryBytes, tokenStride: queryRowBytes)
    }

    /// Places in a buffer for the keys and values of some tokens.
    func keyMemory(_ base: UnsafeMutableRawPointer, tokens: Int) -> (key: RowMemory, value: RowMemory) {
        let (key, value) = (headDim * keyBytes, valueDim * keyBytes)
        if ulysses == 1 {
            return (
                RowMemory(base: base, headStride: tokens * key, tokenStride: key),
                RowMemory(base: base + kvHeads * tokens * key, headStride: tokens * value, tokenStride: value)
            )
        }
        return (
            RowMemory(base: base, headStride: key, tokenStride: keyRowBytes),
            RowMemory(base: base + kvHeads * key, headStride: value, tokenStride: keyRowBytes)
        )
    }

    // MARK: - Operands

    func queryGeometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: queryHeads, tokens: tokens, channels: headDim, layout: .nhd, named: "query")
    }

    func keyGeometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try geometry(tokens, channels: headDim)
    }

    func valueGeometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try geometry(tokens, channels: valueDim)
    }

    /// The first byte of the values of a buffer.
    func valueOffset(tokens: Int) -> Int { (ulysses == 1 ? tokens : 1) * kvHeads * headDim * keyBytes }

    private func geometry(_ tokens: Int, channels: Int) throws(SparseKernelsError) -> TensorGeometry {
        if ulysses == 1 {
            return try TensorGeometry(heads: kvHeads, tokens: tokens, channels: channels, layout: .hnd, named: "key")
        }
        return try TensorGeometry(
            heads: kvHeads, tokens: tokens, channels: channels, headStride: channels,
            tokenStride: kvHeads * (headDim + valueDim), named: "key")
    }

    /// The outputs of a slice.
    func stateGeometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: queryHeads, tokens: tokens, channels: valueDim, layout: .nhd, named: "output")
    }

    // MARK: - Messages with output

    /// Bytes of the outputs of some tokens, up to where their LSE begin.
    func outputBytes(tokens: Int) -> Int { (tokens * queryHeads * valueDim * outputBytes + 3) / 4 * 4 }

    /// Bytes of the message that takes the output of some tokens home.
    func messageBytes(tokens: Int, logSumExp: Bool) -> Int {
        outputBytes(tokens: tokens) + (logSumExp ? tokens * logSumExpRowBytes : 0)
    }
}
