import Communication
import Foundation

/// Ranks that stay, as threads of this process, and do what they are told: what they need is made once and used in every call.
final class RankTeam<Member>: @unchecked Sendable {
    /// What belongs to each rank. To be used while no call is under way.
    private(set) var members: [Member] = []
    private let desk: RankDesk<Member>

    var count: Int { members.count }

    /// Starts the ranks, and returns when each has made what it needs.
    init(ranks: Int, make: @escaping @Sendable (LocalCommunicator) throws(SparseKernelsError) -> Member) throws {
        let desk = RankDesk<Member>(ranks: ranks)
        self.desk = desk
        Thread.detachNewThread {
            do throws(SparseKernelsError) {
                _ = try LocalCommunicator.run(ranks: ranks) { (communicator) throws(SparseKernelsError) in
                    let member = try make(communicator)
                    desk.enter(member, rank: communicator.rank)
                    var calls = 0
                    while let work = desk.next(after: calls) {
                        calls += 1
                        try work(member)
                        desk.finish()
                    }
                }
            } catch {
                desk.fail(error)
            }
        }
        try desk.wait()
        members = desk.all
    }

    deinit { desk.close() }

    /// Has every rank do the same, and returns when all are done.
    func call(_ work: @escaping @Sendable (Member) throws(SparseKernelsError) -> Void) throws {
        desk.post(work)
        try desk.wait()
    }
}

/// Where ranks wait for work. They keep it, so that it does not end with the team.
private final class RankDesk<Member>: @unchecked Sendable {
    typealias Work = @Sendable (Member) throws(SparseKernelsError) -> Void

    private let condition = NSCondition()
    private let ranks: Int
    private var members: [Member?]
    private var work: Work?
    private var calls = 0
    /// Ranks that have not finished the last call; at first those that have not entered.
    private var busy: Int
    private var isClosed = false
    private var failure: SparseKernelsError?

    init(ranks: Int) {
        (self.ranks, busy) = (ranks, ranks)
        members = Array(repeating: nil, count: ranks)
    }

    var all: [Member] { members.map { $0! } }

    private func change(_ body: () -> Void) {
        condition.lock()
        body()
        condition.broadcast()
        condition.unlock()
    }

    func enter(_ member: Member, rank: Int) {
        change {
            members[rank] = member
            busy -= 1
        }
    }

    func post(_ work: @escaping Work) {
        change {
            self.work = work
            busy = ranks
            calls += 1
        }
    }

    func finish() {
        condition.lock()
        busy -= 1
        if busy == 0 { condition.broadcast() }
        condition.unlock()
    }

    func fail(_ error: SparseKernelsError) { change { failure = error } }

    func close() { change { isClosed = true } }

    /// The work of the call after some; nil when there will be none.
    func next(after count: Int) -> Work? {
        condition.lock()
        defer { condition.unlock() }
        while calls == count && !isClosed { condition.wait() }
        return calls == count ? nil : work
    }

    /// Returns when no rank is busy.
    func wait() throws {
        condition.lock()
        defer { condition.unlock() }
        while busy > 0 && failure == nil { condition.wait() }
        if let failure { throw failure }
    }
}
