import Communication
import Foundation
import SparseKernels

/// A check that all ranks make together.
struct RankCheck: Sendable {
    let name: String
    /// What is wrong on this rank, or nil.
    let body: @Sendable (any Communicator) throws(SparseKernelsError) -> String?

    init(_ name: String, _ body: @escaping @Sendable (any Communicator) throws(SparseKernelsError) -> String?) {
        (self.name, self.body) = (name, body)
    }
}

enum RankChecks {
    static let all = messages + collectives + groups + attention

    /// Makes all checks, and prints on rank 0.
    /// - Returns: the number of those that failed on any rank.
    static func run(on ranks: any Communicator, transport: String) throws(SparseKernelsError) -> Int {
        if ranks.rank == 0 { print("\(ranks.count) ranks, \(transport)") }
        var failures = 0
        for check in all {
            let start = WaitClock.now
            let reasons = try ranks.gather(try check.body(ranks) ?? "")
            if ranks.rank == 0 {
                let seconds = String(format: "%.3f s", WaitClock.now - start)
                let wrong = reasons.indices.filter { !reasons[$0].isEmpty }
                print((wrong.isEmpty ? "right  " : "WRONG  ") + check.name + " (\(seconds))")
                for rank in wrong { print("       rank \(rank): \(reasons[rank])") }
            }
            if reasons.contains(where: { !$0.isEmpty }) { failures += 1 }
        }
        if ranks.rank == 0 {
            print(failures == 0 ? "All \(all.count) checks passed" : "\(failures) of \(all.count) checks failed")
            fflush(nil)
        }
        return failures
    }

    /// A byte that tells where it comes from.
    static func byte(_ source: Int, _ target: Int, _ index: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: 31 &* source &+ 7 &* target &+ index &+ index >> 8 &+ 1)
    }

    static func fill(_ message: MessageBuffer, _ bytes: Range<Int>, _ source: Int, _ target: Int) {
        var elements = message.mutableElements(UInt8.self)
        for i in bytes { elements[i] = byte(source, target, i - bytes.lowerBound) }
    }

    /// What differs in a message that has come.
    static func difference(
        _ message: MessageBuffer, _ bytes: Range<Int>, _ source: Int, _ target: Int
    ) -> String? {
        let elements = message.elements(UInt8.self)
        guard let i = bytes.first(where: { elements[$0] != byte(source, target, $0 - bytes.lowerBound) }) else { return nil }
        return "byte \(i - bytes.lowerBound) of \(bytes.count) from rank \(source) is \(elements[i])"
    }
}
