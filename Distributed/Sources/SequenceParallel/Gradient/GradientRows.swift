/// Where the heads of which rank of a group are, and how wide the rows are that ranks exchange.
struct GradientHeads {
    let queryHeads: Int
    let kvHeads: Int
    let headDim: Int
    let valueDim: Int
    let ulysses: Int

    /// Query heads of a rank after the exchange.
    var localQueryHeads: Int { queryHeads / ulysses }
    /// Key/value heads of a rank after the exchange. Where ranks are more than heads, several have the same one.
    var localKVHeads: Int { max(1, kvHeads / ulysses) }
    /// Ranks that have the same key/value head.
    var copies: Int { max(1, ulysses / kvHeads) }
    /// The first query head of a rank.
    func queryHead(ofPlace place: Int) -> Int { place * localQueryHeads }
    /// The first key/value head of a rank.
    func kvHead(ofPlace place: Int) -> Int { place / copies * localKVHeads }

    /// Floats of a token's row of queries: heads of Q, of O, of dO, and their LSE.
    var queryRow: Int { localQueryHeads * (headDim + 2 * valueDim + 1) }
    /// Floats of a token's row of keys and values, and of their gradients.
    var keyRow: Int { localKVHeads * (headDim + valueDim) }
    /// Floats of a token's row of gradients of queries.
    var queryGradientRow: Int { localQueryHeads * headDim }
}

/// Some heads of keys and values, or of their gradients, in rows of heads of keys and then heads of values.
struct KeyRowLayout {
    private let heads: GradientHeads
    private let rowHeads: Int
    private let head: Int
    private let count: Int
    private let tokens: Int

    /// - Parameters:
    ///   - rowHeads: the heads in a row.
    ///   - head: the first of `count` heads.
    init(_ heads: GradientHeads, rowHeads: Int, _ head: Int, _ count: Int, tokens: Int) {
        (self.heads, self.rowHeads, self.head, self.count, self.tokens) = (heads, rowHeads, head, count, tokens)
    }

    /// Where the heads begin in the first row.
    var keyByte: Int { 4 * head * heads.headDim }
    var valueByte: Int { 4 * (rowHeads * heads.headDim + head * heads.valueDim) }

    func geometries() throws(SparseKernelsError) -> (key: TensorGeometry, value: TensorGeometry) {
        let columns = rowHeads * (heads.headDim + heads.valueDim)
        let key = try TensorGeometry(
            heads: count, tokens: tokens, channels: heads.headDim, headStride: heads.headDim, tokenStride: columns,
            named: "key")
        let value = try TensorGeometry(
            heads: count, tokens: tokens, channels: heads.valueDim, headStride: heads.valueDim, tokenStride: columns,
            named: "value")
        return (key, value)
    }
}

extension RowMemory {
    /// The channels of a row of floats.
    func floats(_ head: Int, _ token: Int) -> UnsafeMutablePointer<Float> {
        (base + head * headStride + token * tokenStride).assumingMemoryBound(to: Float.self)
    }
}

/// Adjacent rows of floats in a buffer.
struct GradientMatrix: @unchecked Sendable {
    let base: UnsafeMutablePointer<Float>
    let columns: Int

    init(_ buffer: MessageBuffer, columns: Int, firstRow: Int = 0) {
        base = buffer.address.assumingMemoryBound(to: Float.self) + firstRow * columns
        self.columns = columns
    }

    func row(_ row: Int) -> UnsafeMutablePointer<Float> { base + row * columns }

    func clear(rows: Int, on pool: WorkerPool) {
        pool.forEachRange(of: rows, workPerItem: columns) { range in
            row(range.lowerBound).update(repeating: 0, count: range.count * columns)
        }
    }

    /// Adds the rows of another matrix, channel by channel, to rows from `first` on.
    func add(_ other: GradientMatrix, rows: Int, at first: Int = 0, on pool: WorkerPool) {
        pool.forEachRange(of: rows, workPerItem: 2 * columns) { range in
            let (sums, terms) = (row(first + range.lowerBound), other.row(range.lowerBound))
            GradientMatrix.add(terms, to: sums, count: range.count * columns)
        }
    }

    /// Sixteen at a time: debug builds of this loop take as long as the attention otherwise.
    static func add(_ terms: UnsafePointer<Float>, to sums: UnsafeMutablePointer<Float>, count: Int) {
        var i = 0
        while i + 16 <= count {
            let a = UnsafeRawPointer(sums + i).loadUnaligned(as: SIMD16<Float>.self)
            let b = UnsafeRawPointer(terms + i).loadUnaligned(as: SIMD16<Float>.self)
            UnsafeMutableRawPointer(sums + i).storeBytes(of: a + b, as: SIMD16<Float>.self)
            i += 16
        }
        while i < count {
            sums[i] += terms[i]
            i += 1
        }
    }
}
