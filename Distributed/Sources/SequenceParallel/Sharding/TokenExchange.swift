/// Moves rows of tokens from the ranks of one sharding to those of another: each rank sends every other the rows that it is to have.
///
/// Runs of tokens that stay neighbours travel as one message, from their rows of one buffer to their rows of the other. Nothing is padded,
/// packed or unpacked: a row is copied once, by the transport.
///
/// ```swift
/// let exchange = try TokenExchange(from: encoded, to: shards, rowByteCount: 4 * width, on: ranks)
/// let embeddings = try exchange(own)          // [tokens of this rank in `encoded`, width] → [its tokens in `shards`, width]
/// ```
///
/// - Complexity: O(*p*) messages, where *p* ranges of tokens of either sharding meet.
public final class TokenExchange {
    public let source: TokenShards
    public let target: TokenShards
    /// The bytes of a token.
    public let rowByteCount: Int

    private let communicator: any Communicator
    /// What this rank sends, receives and keeps, in the order of the tokens. `rows` are those of its buffer.
    private let sends: [(peer: Int, rows: Range<Int>)]
    private let receives: [(peer: Int, rows: Range<Int>)]
    private let copies: [(from: Range<Int>, to: Int)]
    private var transfers: [Transfer] = []

    /// Messages of one exchange share a tag: those between two ranks are sent and received in the order of the tokens.
    private static let tag = 32_011

    /// Makes the plan. Every rank calls it with the same arguments.
    ///
    /// - Parameters:
    ///   - source: who has the rows.
    ///   - target: who is to have them.
    ///   - rowByteCount: bytes of a token's row, at least 1.
    ///   - communicator: the ranks.
    /// - Throws: `.invalidArgument` for shardings of different sequences or of another number of ranks, and for empty rows;
    ///   `.communication` when ranks disagree.
    public init(
        from source: TokenShards, to target: TokenShards, rowByteCount: Int, on communicator: any Communicator
    ) throws(SparseKernelsError) {
        try communicator.agree(on: "\(source.summary) to \(target.summary), rows of \(rowByteCount) bytes", "token exchange")
        try TokenShards.require(source.ranks == communicator.count, "source", "of \(communicator.count) ranks", source.ranks)
        try TokenShards.require(target.ranks == communicator.count, "target", "of \(communicator.count) ranks", target.ranks)
        try TokenShards.require(
            target.length == source.length, "target", "of the \(source.length) tokens of the source", target.length)
        let (size, overflow) = max(1, source.length).multipliedReportingOverflow(by: max(1, rowByteCount))
        try TokenShards.require(
            rowByteCount >= 1 && !overflow && size < 1 << 46, "rowByteCount", "at least 1, and below 2⁴⁶ bytes in all",
            rowByteCount)
        (self.source, self.target, self.rowByteCount) = (source, target, rowByteCount)
        self.communicator = communicator

        var (sends, receives): ([(peer: Int, rows: Range<Int>)], [(peer: Int, rows: Range<Int>)]) = ([], [])
        var copies: [(from: Range<Int>, to: Int)] = []
        let rank = communicator.rank
        Self.forEachMeeting(source, target) { from, to, tokens in
            let sent = from.row + tokens.lowerBound - from.tokens.lowerBound
            let received = to.row + tokens.lowerBound - to.tokens.lowerBound
            if from.rank == rank && to.rank == rank {
                copies.append((sent..<sent + tokens.count, received))
            } else if from.rank == rank {
                sends.append((to.rank, sent..<sent + tokens.count))
            } else if to.rank == rank {
                receives.append((from.rank, received..<received + tokens.count))
            }
        }
        (self.sends, self.receives, self.copies) = (sends, receives, copies)
    }

    /// Bytes that this rank sends to others in one exchange.
    public var sentBytes: Int { sends.reduce(0) { $0 + $1.rows.count } * rowByteCount }

    /// Moves the rows. Every rank calls it.
    ///
    /// - Parameters:
    ///   - rows: this rank's rows of the source, one behind the other from the first byte on.
    ///   - received: where its rows of the target go; another buffer.
    /// - Throws: `.invalidShape` for a buffer that is too small, before anything is sent, and the errors of the communicator.
    public func run(_ rows: MessageBuffer, into received: MessageBuffer) throws(SparseKernelsError) {
        try require(rows, source, "rows")
        try require(received, target, "received")
        guard rows !== received else {
            throw SparseKernelsError(.invalidArgument, "received", expected: "another buffer than the rows", actual: "the same")
        }
        transfers.removeAll(keepingCapacity: true)
        for message in receives {
            transfers.append(
                try communicator.receive(into: received, bytes(message.rows), from: message.peer, tag: Self.tag))
        }
        for message in sends {
            transfers.append(try communicator.send(rows, bytes(message.rows), to: message.peer, tag: Self.tag))
        }
        for copy in copies {
            let from = bytes(copy.from)
            (received.address + copy.to * rowByteCount).copyMemory(
                from: rows.address + from.lowerBound, byteCount: from.count)
        }
        for transfer in transfers { try communicator.wait(for: transfer) }
    }

    /// Moves the rows of a matrix `[tokens of this rank in the source, columns]`. Every rank calls it.
    ///
    /// - Returns: `[tokens of this rank in the target, columns]`.
    /// - Throws: `.invalidShape` for another number of rows, or columns that do not take `rowByteCount` bytes, before anything is sent,
    ///   and the errors of the communicator.
    public func callAsFunction<Element: TensorElement>(_ rows: Tensor<Element>) throws(SparseKernelsError) -> Tensor<Element> {
        let size = MemoryLayout<Element>.stride
        let (own, others) = (source.count(of: communicator.rank), target.count(of: communicator.rank))
        guard rows.shape.count == 2, rows.shape[0] == own, rows.shape[1] * size == rowByteCount else {
            throw SparseKernelsError(
                .invalidShape, "rows", expected: "[\(own), columns of \(rowByteCount) bytes together]",
                actual: "\(rows.shape) of \(size) bytes each")
        }
        let sent = try MessageBuffer(byteCount: own * rowByteCount)
        let received = try MessageBuffer(byteCount: others * rowByteCount)
        let elements = rows.span
        var place = sent.mutableElements(Element.self)
        for i in 0..<own * rows.shape[1] { place[i] = elements[i] }
        try run(sent, into: received)
        let moved = received.elements(Element.self)
        return try Tensor([others, rows.shape[1]], (0..<others * rows.shape[1]).map { moved[$0] })
    }

    private func bytes(_ rows: Range<Int>) -> Range<Int> { rows.lowerBound * rowByteCount..<rows.upperBound * rowByteCount }

    private func require(_ buffer: MessageBuffer, _ shards: TokenShards, _ name: String) throws(SparseKernelsError) {
        let needed = shards.count(of: communicator.rank) * rowByteCount
        guard buffer.byteCount >= needed else {
            throw SparseKernelsError(.invalidShape, name, expected: "\(needed) bytes or more", actual: "\(buffer.byteCount)")
        }
    }

    /// Calls `body` for every run of tokens that is in one piece of either sharding, in order.
    private static func forEachMeeting(
        _ source: TokenShards, _ target: TokenShards,
        _ body: (TokenShards.Piece, TokenShards.Piece, Range<Int>) -> Void
    ) {
        var (i, j) = (0, 0)
        while i < source.pieces.count && j < target.pieces.count {
            let (from, to) = (source.pieces[i], target.pieces[j])
            body(from, to, from.tokens.clamped(to: to.tokens))
            if from.tokens.upperBound <= to.tokens.upperBound { i += 1 }
            if to.tokens.upperBound <= from.tokens.upperBound { j += 1 }
        }
    }
}
