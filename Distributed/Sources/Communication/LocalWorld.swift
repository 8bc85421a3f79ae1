internal import Foundation
internal import Synchronization

/// Where messages between two ranks with a tag queue up. Ranks are those of the world.
struct LocalChannel: Hashable, Sendable {
    let context: Int
    let source: Int
    let target: Int
    let tag: Int
}

/// A message that a rank has sent. Its bytes stay in the sender's buffer until the receiver has copied them.
final class LocalMessage: Sendable {
    let buffer: MessageBuffer
    let bytes: Range<Int>
    fileprivate let finished = Atomic<Bool>(false)

    init(_ buffer: MessageBuffer, _ bytes: Range<Int>) { (self.buffer, self.bytes) = (buffer, bytes) }

    /// Whether the receiver has copied the bytes.
    var isFinished: Bool { finished.load(ordering: .acquiring) }
}

/// A message that a rank wants.
struct LocalReceive {
    let transfer: Transfer
    let channel: LocalChannel
    let buffer: MessageBuffer
    let bytes: Range<Int>
    /// Whether a shorter message is wrong.
    let exactly: Bool
}

/// What comes to one rank: messages, and whatever else it may wait for.
///
/// Each rank has a place with a lock of its own. With one lock for all, every message would wake all ranks and have them look again:
/// an exchange between 16 ranks would take milliseconds.
private final class LocalPlace: @unchecked Sendable {
    let condition = NSCondition()
    let changes = Atomic<Int>(0)
    let isWaiting = Atomic<Bool>(false)
    /// Guarded by the lock.
    var channels: [LocalChannel: [LocalMessage]] = [:]

    /// Changes something, and wakes the rank if it waits.
    func change(_ body: (LocalPlace) -> Void = { _ in }) {
        condition.lock()
        body(self)
        changes.add(1, ordering: .releasing)
        condition.broadcast()
        condition.unlock()
    }
}

/// What ranks that are threads share: queues of messages, and who has left or failed.
final class LocalWorld: @unchecked Sendable {
    private let places: [LocalPlace]
    private let spins: Bool
    /// Guards what follows it.
    private let condition = NSCondition()
    private var nextContext = 1
    private var running: Int
    private var leftWorld: Set<Int> = []
    private var leftContexts: Set<[Int]> = []
    private var failed: (rank: Int, error: SparseKernelsError)?
    /// Whether some rank has left or failed, so that those who wait need not take the lock to see that none has.
    private let isComplete = Atomic<Bool>(true)

    init(ranks: Int) {
        running = ranks
        places = (0..<ranks).map { _ in LocalPlace() }
        spins = ranks <= ProcessInfo.processInfo.activeProcessorCount
    }

    /// Changes whenever something happens that a rank may wait for.
    func generation(of rank: Int) -> Int { places[rank].changes.load(ordering: .acquiring) }

    private func locked<Result>(_ body: () -> Result) -> Result {
        condition.lock()
        defer { condition.unlock() }
        return body()
    }

    // MARK: - Messages

    func post(_ message: LocalMessage, _ channel: LocalChannel) {
        places[channel.target].change { $0.channels[channel, default: []].append(message) }
    }

    func take(_ channel: LocalChannel) -> LocalMessage? {
        let place = places[channel.target]
        place.condition.lock()
        defer { place.condition.unlock() }
        guard var queue = place.channels.removeValue(forKey: channel) else { return nil }
        let message = queue.removeFirst()
        if !queue.isEmpty { place.channels[channel] = queue }
        return message
    }

    /// Says that the bytes of a message are copied.
    func finish(_ message: LocalMessage, of sender: Int) {
        places[sender].change { _ in message.finished.store(true, ordering: .releasing) }
    }

    /// Removes the messages of a rank that nobody has taken.
    func withdraw(_ rank: Int, context: Int) {
        for place in places {
            place.change { $0.channels = $0.channels.filter { $0.key.source != rank || $0.key.context != context } }
        }
    }

    func takeContexts(_ count: Int) -> Int {
        locked {
            defer { nextContext += count }
            return nextContext
        }
    }

    // MARK: - Ranks

    /// Changes who is there, and wakes all ranks.
    private func changeRanks(_ body: () -> Void) {
        locked {
            body()
            isComplete.store(false, ordering: .releasing)
            condition.broadcast()
        }
        for place in places { place.change() }
    }

    func leave(_ rank: Int) {
        changeRanks {
            leftWorld.insert(rank)
            running -= 1
        }
    }

    func leave(_ rank: Int, context: Int) { changeRanks { leftContexts.insert([rank, context]) } }

    func fail(rank: Int, _ error: SparseKernelsError) {
        changeRanks { if failed == nil { failed = (rank, error) } }
    }

    func waitForAll() {
        condition.lock()
        while running > 0 { condition.wait() }
        condition.unlock()
    }

    var failure: (rank: Int, error: SparseKernelsError)? {
        isComplete.load(ordering: .acquiring) ? nil : locked { failed }
    }

    func hasLeft(_ rank: Int, context: Int) -> Bool {
        if isComplete.load(ordering: .acquiring) { return false }
        return locked { leftWorld.contains(rank) || leftContexts.contains([rank, context]) }
    }

    /// The ranks that are still there and wait for nobody, other than one.
    func absent(other rank: Int) -> [Int] {
        let left = locked { leftWorld }
        return places.indices.filter {
            $0 != rank && !places[$0].isWaiting.load(ordering: .acquiring) && !left.contains($0)
        }
    }

    func endWait(_ rank: Int) { places[rank].isWaiting.store(false, ordering: .releasing) }

    /// Waits until something happens after a generation, or the time is over. Then the rank counts as waiting, until `endWait`.
    /// - Parameter deadline: of `WaitClock`.
    func wait(_ rank: Int, for generation: Int, until deadline: Double) {
        if spins {
            // Waking a thread takes as long as some thousand small messages.
            let end = min(deadline, WaitClock.now + 50e-6)
            while WaitClock.now < end {
                if self.generation(of: rank) != generation { return }
            }
        }
        let place = places[rank]
        place.condition.lock()
        defer { place.condition.unlock() }
        place.isWaiting.store(true, ordering: .releasing)
        while self.generation(of: rank) == generation {
            let seconds = deadline - WaitClock.now
            if seconds <= 0 || !place.condition.wait(until: Date(timeIntervalSinceNow: seconds)) { return }
        }
    }
}
