internal import Foundation

/// The threads that operators run on.
///
/// A pool of *n* threads is the calling thread and *n* − 1 others that sleep between calls. Nothing is pinned. Several threads
/// may call operators on one pool at the same time: each call works on its own tasks, and idle workers help whichever call has
/// tasks left. Results never depend on the number of threads, because work is cut by the data and not by the pool.
///
/// `run` methods of operators block the calling thread; from Swift concurrency, call them where blocking is allowed.
///
/// Scratch memory belongs to the pool: the first calls allocate it, later calls reuse it, and it goes with the pool or with
/// `releaseScratch()`.
public final class WorkerPool: Sendable {
    /// One pool with as many threads as the process may use, or as many as the variable `SPARSEKERNELS_THREADS` says.
    public static let shared = WorkerPool(threads: defaultThreadCount)
    /// A pool without threads of its own: everything runs on the caller.
    public static let serial = WorkerPool(threads: 1)

    /// Threads that work on one call, the caller's included.
    public let threads: Int
    private let queue: JobQueue

    /// - Parameter threads: at least 1; the caller's thread counts. More threads than cores only helps when callers overlap.
    public init(threads: Int) {
        precondition(threads >= 1, "a pool needs at least one thread, got \(threads)")
        self.threads = threads
        queue = JobQueue(workers: threads - 1)
    }

    deinit { queue.stop() }

    /// Gives back the scratch memory that no running call uses. Later calls allocate it again.
    public func releaseScratch() { queue.releaseScratch() }

    /// Bytes of scratch that the pool holds for later calls.
    public var retainedScratchByteCount: Int { queue.retainedScratchByteCount }

    /// Performs every task in 0..<taskCount once and returns when all are done. Starting a call allocates nothing.
    ///
    /// Tasks are handed out one by one in ascending order to whichever thread is free, so order them heaviest first. No other
    /// thread is woken when the whole call is estimated below `workCutoff`.
    ///
    /// - Parameters:
    ///   - call: the operands that the tasks share.
    ///   - taskCount: the number of tasks; none is fine.
    ///   - work: estimated cost of the whole call in multiply-adds, or in bytes for calls that move memory.
    ///   - scratchByteCount: bytes of scratch that every task gets.
    package func run<Call: PoolCall>(_ call: Call, tasks taskCount: Int, work: Int, scratchByteCount: Int = 0) {
        if taskCount <= 0 { return }
        let helpers = work < Self.workCutoff ? 0 : min(threads, taskCount) - 1
        withUnsafePointer(to: call) { address in
            queue.run(
                Call.self, at: address, tasks: taskCount, helpers: helpers, scratchByteCount: scratchByteCount)
        }
    }

    /// Runs `body` with memory that the calls it makes on this pool can share: 64-byte aligned, contents undefined, kept by the pool for
    /// later calls as scratch is.
    package func withWorkspace(byteCount: Int, _ body: (UnsafeMutableRawPointer) -> Void) {
        queue.withScratch(byteCount: byteCount, body)
    }

    /// Multiply-adds below which waking a thread costs more than it saves: a wake-up takes 5–50 µs, in which one core does
    /// about a million multiply-adds.
    package static let workCutoff = 1 << 20

    private static var defaultThreadCount: Int {
        let environment = ProcessInfo.processInfo.environment["SPARSEKERNELS_THREADS"]
        if let threads = environment.flatMap({ Int($0) }), threads >= 1 { return threads }
        return max(1, ProcessInfo.processInfo.activeProcessorCount)
    }
}
