/// Lets all ranks succeed or fail together, before any of them has changed something.
///
/// Each rank says in one small message whether it can go on, and what it is about to do. Ranks are then told apart that were
/// called with other arguments, and one that cannot go on stops all of them.
final class RankAgreement {
    private let communicator: any Communicator
    private let message: MessageBuffer
    private let counts: [Int]

    /// Bytes of what a rank says.
    static let byteCount = 2 * MemoryLayout<Int>.stride

    init(_ communicator: any Communicator) throws(SparseKernelsError) {
        self.communicator = communicator
        message = try MessageBuffer(byteCount: communicator.count * Self.byteCount)
        counts = Array(repeating: Self.byteCount, count: communicator.count)
    }

    /// Throws on every rank what one of them cannot do, or when they do not do the same.
    ///
    /// - Parameters:
    ///   - failure: why this rank cannot go on; nil when it can.
    ///   - fingerprint: what is about to be done.
    ///   - operation: what errors call it.
    /// - Throws: the error of the lowest rank that has one, the same on all ranks; `.communication` for another fingerprint.
    func settle(
        _ failure: SparseKernelsError?, _ fingerprint: CallFingerprint, _ operation: String
    ) throws(SparseKernelsError) {
        if communicator.count == 1 {
            if let failure { throw failure }
            return
        }
        Self.write(failure, fingerprint, to: message, atByte: communicator.rank * Self.byteCount)
        try communicator.allGather(message, counts: counts)
        try check(message, stride: Self.byteCount, failure, operation)
    }

    /// Writes what a rank says into a message.
    static func write(
        _ failure: SparseKernelsError?, _ fingerprint: CallFingerprint, to message: MessageBuffer, atByte offset: Int
    ) {
        var words = message.mutableElements(Int.self, atByte: offset, count: 2)
        words[0] = failure == nil ? 0 : 1
        words[1] = fingerprint.value
    }

    /// Looks at what the ranks said, each at a multiple of `stride`, and throws as `settle`.
    func check(
        _ message: MessageBuffer, stride: Int, _ failure: SparseKernelsError?, _ operation: String
    ) throws(SparseKernelsError) {
        var (fails, other, first) = (false, -1, 0)
        for rank in 0..<communicator.count {
            let words = message.elements(Int.self, atByte: rank * stride, count: 2)
            if words[0] != 0 { fails = true }
            if rank == 0 { first = words[1] }
            if words[1] != first, other < 0 { other = rank }
        }
        if fails { try share(failure) }
        if other >= 0 {
            throw SparseKernelsError(
                .communication, operation, expected: "called with the same arguments on all ranks of \(communicator.name)",
                actual: "others on rank \(other) than on rank 0")
        }
    }

    /// Throws the error of the lowest rank that has one. All ranks call it when one of them has.
    private func share(_ failure: SparseKernelsError?) throws(SparseKernelsError) {
        let separator = "\u{1f}"
        let texts = try communicator.gather(
            failure.map { [$0.code.description, $0.argument, $0.expected, $0.actual].joined(separator: separator) } ?? "")
        guard let rank = texts.indices.first(where: { !texts[$0].isEmpty }) else { return }
        let parts = texts[rank].split(separator: separator, omittingEmptySubsequences: false).map(String.init)
        let code = Self.codes.first { $0.description == parts[0] } ?? .communication
        throw SparseKernelsError(code, parts[1], expected: parts[2], actual: "\(parts[3]), on rank \(rank)")
    }

    /// The codes that travel.
    private static let codes: [SparseKernelsError.Code] = [
        .invalidShape, .invalidStride, .invalidArgument, .invalidElementType, .unsupportedInstructionSet, .malformedFile,
        .misalignedData, .notFound, .capacityExceeded, .unknownSequence, .inputOutput, .communication,
    ]
}

/// A number for what a rank is about to do, the same in every process that is about to do the same.
struct CallFingerprint {
    private var words = Fingerprint()

    init(_ operation: StaticString, _ first: Int, _ second: Int = 0) {
        operation.withUTF8Buffer { for byte in $0 { add(Int(byte)) } }
        add(first)
        add(second)
    }

    mutating func add(_ word: Int) { words.add(word) }

    mutating func add(_ shards: TokenShards) {
        for piece in shards.pieces {
            add(piece.rank)
            add(piece.tokens.count)
        }
    }

    var value: Int { Int(Int64(bitPattern: words.value)) }
}

/// What a throwing call threw.
func catching(_ body: () throws(SparseKernelsError) -> Void) -> SparseKernelsError? {
    do throws(SparseKernelsError) {
        try body()
        return nil
    } catch {
        return error
    }
}
