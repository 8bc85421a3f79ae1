internal import Foundation

/// The threads that operators run on.
///
/// A pool of *n* threads is the calling thread and *n* − 1 others that sleep between calls. Threads are not pinned. Several
/// threads may call operators on one pool at the same time: each call works on its own tasks, and idle workers help any call
/// that has tasks left. Results never depend on the number of threads, because the data determine how work is cut into tasks.
///
/// `run` methods of operators block the calling thread. From Swift concurrency, call them where blocking is allowed.
///
/// Scratch memory belongs to the pool. Calls allocate and reuse it, until the pool ends or `releaseScratch()` frees it.
public final class WorkerPool: Sendable {
    /// A pool with as many threads as the process may use, or as the variable `SPARSEKERNELS_THREADS` says.
    public static let shared = WorkerPool(threads: defaultThreadCount)
    /// A pool without threads of its own, which runs everything on the caller's thread.
    public static let serial = WorkerPool(threads: 1)

    /// The number of threads that work on one call, including the caller's.
    public let threads: Int
    private let queue: JobQueue

    /// - Parameter threads: at least 1, including the caller's. More threads than cores only help when calls overlap.
    public init(threads: Int) {
        precondition(threads >= 1, "a pool needs at least one thread, got \(threads)")
        self.threads = threads
        queue = JobQueue(workers: threads - 1)
    }

    deinit { queue.stop() }

    /// Frees the scratch memory that no running call uses. Later calls allocate it again.
    public func releaseScratch() { queue.releaseScratch() }

    /// Bytes of scratch that the pool holds for later calls.
    public var retainedScratchByteCount: Int { queue.retainedScratchByteCount }

    /// Performs every task in 0..<taskCount once and returns when all are done. Starting a call allocates nothing.
    ///
    /// Threads draw tasks one by one in ascending order, so the heaviest ones should be first. No other thread is woken when
    /// the estimated work of the call is below `workCutoff`.
    ///
    /// - Parameters:
    ///   - call: the operands that the tasks share.
    ///   - taskCount: the number of tasks, which may be 0.
    ///   - work: the estimated cost of the whole call in multiply-adds, or in bytes for calls that move memory.
    ///   - scratchByteCount: bytes of scratch for every task.
    package func run<Call: PoolCall>(_ call: Call, tasks taskCount: Int, work: Int, scratchByteCount: Int = 0) {
        if taskCount <= 0 { return }
        let helpers = work < Self.workCutoff ? 0 : min(threads, taskCount) - 1
        withUnsafePointer(to: call) { address in
            queue.run(
                Call.self, at: address, tasks: taskCount, helpers: helpers, scratchByteCount: scratchByteCount)
        }
    }

    /// Runs `body` with memory of the pool's scratch, which calls may share: 64-byte aligned, contents undefined.
    package func withWorkspace(byteCount: Int, _ body: (UnsafeMutableRawPointer) -> Void) {
        queue.withScratch(byteCount: byteCount, body)
    }

    /// The multiply-adds below which waking a thread costs more than it saves. A wake-up takes 5–50 µs, in which one core
    /// performs about a million multiply-adds.
    package static let workCutoff = 1 << 20

    private static var defaultThreadCount: Int {
        let environment = ProcessInfo.processInfo.environment["SPARSEKERNELS_THREADS"]
        if let threads = environment.flatMap({ Int($0) }), threads >= 1 { return threads }
        return max(1, ProcessInfo.processInfo.activeProcessorCount)
    }
}
