/// The checks of arguments that all communicators make.
package enum CommunicatorChecks {
    package static func check(peer: Int, of count: Int, _ operation: String) throws(SparseKernelsError) {
        guard peer >= 0 && peer < count else {
            throw SparseKernelsError(
                .invalidArgument, "rank of \(operation)", expected: "from 0 to \(count - 1)", actual: "\(peer)")
        }
    }

    package static func check(
        _ bytes: Range<Int>, of message: MessageBuffer, _ operation: String
    ) throws(SparseKernelsError) {
        guard bytes.lowerBound >= 0 && bytes.upperBound <= message.byteCount else {
            throw SparseKernelsError(
                .invalidArgument, "bytes of \(operation)", expected: "within the \(message.byteCount) bytes of the buffer",
                actual: "\(bytes)")
        }
    }

    package static func check(tag: Int, _ operation: String) throws(SparseKernelsError) {
        guard tag >= 0 && tag <= 32767 else {
            throw SparseKernelsError(.invalidArgument, "tag of \(operation)", expected: "from 0 to 32767", actual: "\(tag)")
        }
    }

    /// One count per rank, together within the buffer.
    package static func check(
        _ counts: [Int], _ message: MessageBuffer, ranks: Int, _ name: String
    ) throws(SparseKernelsError) {
        guard counts.count == ranks else {
            throw SparseKernelsError(.invalidArgument, name, expected: "one per rank (\(ranks))", actual: "\(counts.count)")
        }
        var total = 0
        for (rank, count) in counts.enumerated() {
            let (sum, overflow) = total.addingReportingOverflow(count)
            guard count >= 0 && !overflow && sum <= message.byteCount else {
                throw SparseKernelsError(
                    .invalidArgument, "\(name)[\(rank)]",
                    expected: "0 or more, and together at most the \(message.byteCount) bytes of the buffer",
                    actual: "\(count)")
            }
            total = sum
        }
    }

    package static func check(timeLimit: Double) throws(SparseKernelsError) {
        guard timeLimit > 0 && timeLimit <= 1e9 else {
            throw SparseKernelsError(
                .invalidArgument, "timeLimit", expected: "above 0 and at most 10⁹ seconds", actual: "\(timeLimit)")
        }
    }

    package static func check(color: Int?) throws(SparseKernelsError) {
        guard color ?? 0 >= 0 else {
            throw SparseKernelsError(.invalidArgument, "color", expected: "0 or more, or nil", actual: "\(color!)")
        }
    }

    /// The ranks with a color, in the order that they have in the new communicator.
    /// - Parameter answers: color and key of every rank.
    package static func group(_ answers: [[Int]], _ color: Int) -> [Int] {
        answers.indices.filter { answers[$0][0] == color }.sorted { (answers[$0][1], $0) < (answers[$1][1], $1) }
    }
}
