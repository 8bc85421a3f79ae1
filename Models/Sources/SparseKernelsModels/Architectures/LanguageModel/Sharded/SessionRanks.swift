import Communication
import SparseKernels

/// What the ranks of a session tell each other beside attention: that they were asked for the same, and rows that one of them has.
///
/// All calls are collective: every rank makes them in the same order.
final class SessionRanks {
    let communicator: any Communicator
    /// An error that all ranks throw, because they agreed on it. Others are those of one rank.
    var sharedError: SparseKernelsError?
    private var buffer: MessageBuffer
    private let digests: MessageBuffer

    var rank: Int { communicator.rank }
    var count: Int { communicator.count }

    /// - Throws: `.communication`, naming `model` or `options`, when other ranks have others.
    init(
        _ communicator: any Communicator, _ model: LanguageModel, _ options: SessionOptions
    ) throws(SparseKernelsError) {
        self.communicator = communicator
        buffer = try MessageBuffer(byteCount: 0)
        digests = try MessageBuffer(of: UInt64.self, count: communicator.count)
        let rank = model.rank.map { ", branches of rank \($0)" } ?? ""
        let description = "\(model.linear)\(rank), \(model.byteCount) bytes, \(model.configuration)"
        try communicator.agree(on: Self.withoutModules(description), "model")
        try communicator.agree(on: Self.withoutModules("\(options)"), "options")
    }

    /// The description of a value, without the names of modules that cases of enumerations have.
    private static func withoutModules(_ text: String) -> String {
        ["SparseKernelsModels.", "SparseKernels.", "NemotronH."].reduce(text) { $0.replacing($1, with: "") }
    }

    // MARK: - Agreeing

    /// Throws on every rank unless all are about to run the same.
    ///
    /// - Parameters:
    ///   - tokens: those of each sequence.
    ///   - sequences: their numbers.
    ///   - rows: the logits that are asked for.
    func agree(
        _ tokens: [[Int]], _ sequences: [SessionSequence], _ rows: LanguageSession.LogitRows
    ) throws(SparseKernelsError) {
        var digest = Fingerprint()
        digest.add(rows == .all ? 1 : 0)
        for sequence in sequences { digest.add(sequence) }
        for list in tokens {
            digest.add(list.count)
            for token in list { digest.add(token) }
        }
        // Elements are borrowed from a variable of this call.
        let digests = digests
        do {
            var own = digests.mutableElements(UInt64.self)
            own[rank] = digest.value
        }
        try communicator.allGather(digests, counts: Array(repeating: 8, count: count))
        let all = digests.elements(UInt64.self)
        for other in 0..<count where all[other] != all[0] {
            throw SparseKernelsError(
                .communication, "tokens",
                expected: "the same tokens of the same sequences on all ranks of \(communicator.name), as on rank 0",
                actual: "others on rank \(other)")
        }
    }

    /// The numbers that rank 0 gives. The list has the same length on every rank.
    func first(_ values: [Int]) throws(SparseKernelsError) -> [Int] {
        try communicator.broadcast(values, from: 0)
    }

    /// Tells the other ranks of an error, unless they have it too.
    func report(_ error: SparseKernelsError) {
        if error != sharedError && error.code != .communication { communicator.fail(error) }
        sharedError = nil
    }

    // MARK: - Rows

    /// Gives every rank the rows that others have.
    ///
    /// - Parameters:
    ///   - rows: `[rows, width]`, of which this rank's are in place.
    ///   - owners: the rank that has each row; nil where all have it.
    func complete(_ rows: inout Tensor<Float>, owners: [Int?]) throws(SparseKernelsError) {
        var places = Array(repeating: [Int](), count: count)
        for (row, owner) in owners.enumerated() {
            if let owner { places[owner].append(row) }
        }
        let total = places.reduce(0) { $0 + $1.count }
        if total == 0 { return }
        let width = rows.shape[1]
        let message = try memory(byteCount: total * width * 4)
        let start = places[..<rank].reduce(0) { $0 + $1.count }
        do {
            let source = rows.span
            var target = message.mutableElements(Float.self, count: total * width)
            for (index, row) in places[rank].enumerated() {
                for i in 0..<width { target[(start + index) * width + i] = source[row * width + i] }
            }
        }
        try communicator.allGather(message, counts: places.map { $0.count * width * 4 })
        let source = message.elements(Float.self, count: total * width)
        var target = rows.mutableSpan
        var index = 0
        for (owner, list) in places.enumerated() {
            for row in list {
                if owner != rank {
                    for i in 0..<width { target[row * width + i] = source[index * width + i] }
                }
                index += 1
            }
        }
    }

    /// Memory for a message, which is kept for the next one.
    private func memory(byteCount: Int) throws(SparseKernelsError) -> MessageBuffer {
        if buffer.byteCount < byteCount { buffer = try MessageBuffer(byteCount: byteCount) }
        return buffer
    }
}
