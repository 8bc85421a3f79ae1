/// Where rows are in the buffers of a rank, for element types of some sizes.
///
/// Keys and values are by heads: the keys of a head are adjacent, as kernels read them fastest, and behind the keys of all
/// heads are the values. The rows of a rank of the group are a part of each head, so that they come as a message per head, in
/// place.
///
/// Queries are by tokens: those of a rank are one message, and the messages of all ranks are one operand in place.
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

    /// The places of keys and values in a buffer for some tokens.
    func keyPlaces(heads: Int, tokens: Int) -> KeyPlaces {
        KeyPlaces(heads: heads, tokens: tokens, keyBytes: headDim * keyBytes, valueBytes: valueDim * keyBytes)
    }

    /// The key/value heads of all ranks.
    var allKVHeads: Int { kvHeads * ulysses / copies }

    // MARK: - Operands

    func queryGeometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: queryHeads, tokens: tokens, channels: headDim, layout: .nhd, named: "query")
    }

    func keyGeometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: kvHeads, tokens: tokens, channels: headDim, layout: .hnd, named: "key")
    }

    func valueGeometry(tokens: Int) throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: kvHeads, tokens: tokens, channels: valueDim, layout: .hnd, named: "value")
    }

    /// The first byte of the values in a buffer of keys.
    func valueOffset(tokens: Int) -> Int { keyPlaces(heads: kvHeads, tokens: tokens).value(head: 0, row: 0) }

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

/// Where keys and values are in a buffer: `[heads, tokens, headDim]`, and behind it `[heads, tokens, valueDim]`.
struct KeyPlaces {
    let heads: Int
    let tokens: Int
    /// Bytes of a key of a head, and of a value.
    let keyBytes: Int
    let valueBytes: Int

    /// The first byte of a key.
    func key(head: Int, row: Int) -> Int { (head * tokens + row) * keyBytes }
    /// The first byte of a value.
    func value(head: Int, row: Int) -> Int { heads * tokens * keyBytes + (head * tokens + row) * valueBytes }

    /// The keys of some rows of a head.
    func keys(head: Int, _ rows: Range<Int>) -> Range<Int> {
        let first = key(head: head, row: rows.lowerBound)
        return first..<first + rows.count * keyBytes
    }

    /// The values of some rows of a head.
    func values(head: Int, _ rows: Range<Int>) -> Range<Int> {
        let first = value(head: head, row: rows.lowerBound)
        return first..<first + rows.count * valueBytes
    }
}
