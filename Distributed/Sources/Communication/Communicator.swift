/// Ranks that work on one task and send each other messages: processes of one or several machines (`MPICommunicator`), or threads
/// of one process (``LocalCommunicator``).
///
/// Every rank makes the same collective calls (barrier, broadcast, all-gather, all-to-all, split) in the same order. A communicator
/// belongs to the thread that got it, and only this thread calls it. Messages are bytes; what they mean is agreed before.
///
/// ```swift
/// let sums = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
///     let values = try ranks.gather([ranks.rank])         // [[0], [1], [2], [3]] on every rank
///     return values.reduce(0) { $0 + $1[0] }
/// }                                                       // [6, 6, 6, 6]
/// ```
///
/// **Failures.** A call that waits for another rank ends with `.communication`, which names the rank and the operation, when that
/// rank died, left, said that it failed (``fail(_:)``), sends more than there is room for, or does not answer within
/// ``timeLimit`` seconds. No call waits longer. Such an error ends the whole task: the other ranks' calls throw it too, and every
/// later call of a communicator of this world fails. Wrong arguments (`.invalidArgument`) are this rank's affair; a rank that does not
/// go on after one says so by ``fail(_:)``.
public protocol Communicator: AnyObject {
    /// The number of this rank, in 0..<`count`.
    var rank: Int { get }
    var count: Int { get }
    /// What errors call this group of ranks, such as "world" or "world.ring".
    var name: String { get }
    /// Seconds that a call waits for another rank.
    var timeLimit: Double { get }
    /// What this rank has sent and received through this communicator.
    var traffic: MessageTraffic { get }

    /// Returns when every rank has called it.
    func barrier() throws(SparseKernelsError)

    /// Gives every rank the bytes that `root` has. They go down a binomial tree: no rank sends them more than ⌈log₂ count⌉ times.
    ///
    /// - Parameters:
    ///   - message: read on `root`, written on other ranks.
    ///   - bytes: a range of the message; of the same length on every rank, or the call fails.
    ///   - root: the rank that sends.
    func broadcast(_ message: MessageBuffer, _ bytes: Range<Int>, from root: Int) throws(SparseKernelsError)

    /// Gives every rank the parts of all, in the order of the ranks. Each rank sends its part to every other one.
    ///
    /// - Parameters:
    ///   - message: this rank's part is in its place, behind those of lower ranks; the others are written.
    ///   - counts: the bytes of each rank's part, the same list on every rank; they may be 0.
    func allGather(_ message: MessageBuffer, counts: [Int]) throws(SparseKernelsError)

    /// Sends a part to every rank and receives one from each, in the order of the ranks and one behind the other.
    ///
    /// - Parameters:
    ///   - sent: the parts for ranks 0, 1, …
    ///   - sentCounts: their bytes, which may be 0.
    ///   - received: where the parts of ranks 0, 1, … go; another buffer than `sent`.
    ///   - receivedCounts: their bytes, as those ranks have them in `sentCounts`, or the call fails.
    func allToAll(
        from sent: MessageBuffer, counts sentCounts: [Int], into received: MessageBuffer, counts receivedCounts: [Int]
    ) throws(SparseKernelsError)

    /// Starts to send bytes, and returns. Messages from one rank to another with the same tag arrive in order.
    /// - Parameter tag: 0…32767.
    func send(_ message: MessageBuffer, _ bytes: Range<Int>, to peer: Int, tag: Int) throws(SparseKernelsError) -> Transfer

    /// Starts to receive bytes, and returns. The message that comes must not be longer: both ranks fail. It may be shorter.
    func receive(
        into message: MessageBuffer, _ bytes: Range<Int>, from peer: Int, tag: Int
    ) throws(SparseKernelsError) -> Transfer

    /// Moves what can be moved, without waiting. Most transports move bytes inside of their calls only, so that a computation that
    /// hides transfers calls this between its parts.
    func progress() throws(SparseKernelsError)

    /// Waits until a transfer has finished. The bytes of a finished one may be used again. Returns at once for one that has been
    /// waited for.
    /// - Throws: `.invalidArgument` for a transfer of another communicator.
    func wait(for transfer: Transfer) throws(SparseKernelsError)

    /// Makes a communicator of the ranks that give the same color, ordered by key and then by rank. Every rank of this one calls it.
    ///
    /// - Parameters:
    ///   - color: 0 or more; nil takes part in none.
    ///   - key: the order in the new one.
    ///   - name: what errors call it, behind the name of this one.
    func split(color: Int?, key: Int, name: String) throws(SparseKernelsError) -> (any Communicator)?

    /// Tells the other ranks of the world that this one failed and takes no further part. Their calls throw what it says.
    func fail(_ error: SparseKernelsError)

    /// Ends this rank's use of the communicator, which fails in later calls. Unfinished transfers are given up, and ranks that still
    /// wait for this one fail.
    func free()
}

/// A transfer that was started.
public struct Transfer: Hashable, Sendable {
    /// The number that the communicator knows it by.
    public let number: Int
    /// The rank at the other side.
    public let peer: Int

    public init(number: Int, peer: Int) { (self.number, self.peer) = (number, peer) }
}

/// Messages of a rank, and the time that it waited for others. The part of an all-to-all that a rank has for itself is none.
public struct MessageTraffic: Hashable, Sendable {
    public var sentBytes = 0
    public var sentMessages = 0
    public var receivedBytes = 0
    public var receivedMessages = 0
    /// Seconds in calls of the communicator, waiting and copying.
    public var seconds = 0.0

    public init() {}

    public static func + (a: Self, b: Self) -> Self {
        var sum = a
        sum.sentBytes += b.sentBytes
        sum.sentMessages += b.sentMessages
        sum.receivedBytes += b.receivedBytes
        sum.receivedMessages += b.receivedMessages
        sum.seconds += b.seconds
        return sum
    }

    public static func - (a: Self, b: Self) -> Self {
        var difference = a
        difference.sentBytes -= b.sentBytes
        difference.sentMessages -= b.sentMessages
        difference.receivedBytes -= b.receivedBytes
        difference.receivedMessages -= b.receivedMessages
        difference.seconds -= b.seconds
        return difference
    }
}
