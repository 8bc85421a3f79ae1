internal import Synchronization

#if canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#elseif canImport(Darwin)
    internal import Darwin
#endif

/// The state that the workers of a pool share: the calls in progress, and scratch and call records for reuse.
///
/// One mutex guards everything except the task counter of a job, from which threads draw without it, and the count of open
/// places, which waiting workers watch without it. Steady-state calls allocate nothing: records and scratch come from free
/// lists whose arrays have their capacity from the start.
final class JobQueue: @unchecked Sendable {
    // @unchecked is correct because all stored variables are read and written with `mutex` held; `mutex` and the conditions are
    // constant, and `openPlaces` is atomic.

    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let workAvailable = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let jobFinished = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var openJobs: [Job] = []
    private var idleJobs: [Job] = []
    private var idleScratch: [Scratch] = []
    /// The number of places left in all open calls. Waiting workers read it without the mutex.
    private let openPlaces = Atomic<Int>(0)
    private var isStopping = false
    private var handles: [pthread_t] = []

    init(workers: Int) {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(workAvailable, nil)
        pthread_cond_init(jobFinished, nil)
        openJobs.reserveCapacity(64)
        idleJobs.reserveCapacity(64)
        idleScratch.reserveCapacity(64 + workers)
        for _ in 0..<workers { startWorker() }
    }

    deinit {
        for scratch in idleScratch { scratch.pointer.deallocate() }
        pthread_cond_destroy(jobFinished)
        pthread_cond_destroy(workAvailable)
        pthread_mutex_destroy(mutex)
        jobFinished.deallocate()
        workAvailable.deallocate()
        mutex.deallocate()
    }

    /// Ends the workers. No call may be running or start afterwards.
    func stop() {
        pthread_mutex_lock(mutex)
        isStopping = true
        pthread_cond_broadcast(workAvailable)
        pthread_mutex_unlock(mutex)
        for handle in handles { pthread_join(handle, nil) }
    }

    // MARK: - Calls

    /// One call of an operator and its progress.
    private final class Job {
        var call: any PoolCall.Type = NoCall.self
        var address = UnsafeRawPointer(bitPattern: 1)!
        var taskCount = 0
        var scratchByteCount = 0
        /// The number of workers that may still join.
        var openPlaces = 0
        /// The number of workers that draw tasks, without the caller's thread.
        var helpers = 0
        let nextTask = Atomic<Int>(0)
    }

    /// The call of a record that was never used.
    private struct NoCall: PoolCall {
        func perform(task: Int, scratch: UnsafeMutableRawPointer) {}
    }

    func run(
        _ call: any PoolCall.Type, at address: UnsafeRawPointer, tasks taskCount: Int, helpers: Int, scratchByteCount: Int
    ) {
        pthread_mutex_lock(mutex)
        let job = idleJobs.popLast() ?? Job()
        var scratch = takeScratch(scratchByteCount)
        job.call = call
        job.address = address
        job.taskCount = taskCount
        job.scratchByteCount = scratchByteCount
        job.openPlaces = helpers
        job.nextTask.store(0, ordering: .relaxed)
        if helpers > 0 {
            openJobs.append(job)
            openPlaces.add(helpers, ordering: .relaxed)
        }
        pthread_mutex_unlock(mutex)
        for _ in 0..<helpers { pthread_cond_signal(workAvailable) }

        scratch.grow(to: scratchByteCount)
        draw(from: job, scratch: scratch.pointer)

        pthread_mutex_lock(mutex)
        if let index = indexOfOpenJob(where: { $0 === job }) {
            openJobs.remove(at: index)
            openPlaces.subtract(job.openPlaces, ordering: .relaxed)
        }
        // Memory that helpers wrote becomes visible here, because they lock the mutex after their last task.
        while job.helpers > 0 { pthread_cond_wait(jobFinished, mutex) }
        idleScratch.append(scratch)
        idleJobs.append(job)
        pthread_mutex_unlock(mutex)
    }

    /// Runs tasks until none is left.
    private func draw(from job: Job, scratch: UnsafeMutableRawPointer) {
        while true {
            let task = job.nextTask.wrappingAdd(1, ordering: .relaxed).oldValue
            if task >= job.taskCount { return }
            job.call.perform(at: job.address, task: task, scratch: scratch)
        }
    }

    private func startWorker() {
        let queue = Unmanaged.passRetained(self)
        #if canImport(Darwin)
            var handle: pthread_t?
        #else
            var handle = pthread_t()
        #endif
        let status = pthread_create(
            &handle, nil,
            { argument in
                #if canImport(Darwin)
                    Unmanaged<JobQueue>.fromOpaque(argument).takeRetainedValue().serve()
                #else
                    Unmanaged<JobQueue>.fromOpaque(argument!).takeRetainedValue().serve()
                #endif
                return nil
            }, queue.toOpaque())
        // Without this thread the pool still completes all tasks, because threads draw tasks and are not assigned any.
        if status != 0 { return queue.release() }
        #if canImport(Darwin)
            if let handle { handles.append(handle) }
        #else
            handles.append(handle)
        #endif
    }

    /// Runs a worker, which joins any call that has places left, helps until its tasks are gone, and sleeps.
    private func serve() {
        pthread_mutex_lock(mutex)
        var hasWorked = false
        while true {
            guard let job = indexOfOpenJob(where: { $0.openPlaces > 0 }).map({ openJobs[$0] }) else {
                if isStopping { break }
                if hasWorked {
                    // The next call of a model usually follows within microseconds.
                    hasWorked = false
                    pthread_mutex_unlock(mutex)
                    waitBriefly()
                    pthread_mutex_lock(mutex)
                } else {
                    pthread_cond_wait(workAvailable, mutex)
                }
                continue
            }
            hasWorked = true
            job.openPlaces -= 1
            openPlaces.subtract(1, ordering: .relaxed)
            job.helpers += 1
            var scratch = takeScratch(job.scratchByteCount)
            pthread_mutex_unlock(mutex)
            scratch.grow(to: job.scratchByteCount)
            draw(from: job, scratch: scratch.pointer)
            pthread_mutex_lock(mutex)
            idleScratch.append(scratch)
            job.helpers -= 1
            if job.helpers == 0 { pthread_cond_broadcast(jobFinished) }
        }
        pthread_mutex_unlock(mutex)
    }

    /// Watches for a call for 100 µs without sleeping. Waking a sleeping thread takes 5–50 µs on a quiet machine, and
    /// milliseconds on a virtual one whose idle processors were given to other guests.
    private func waitBriefly() {
        let clock = ContinuousClock()
        let start = clock.now
        repeat {
            for _ in 0..<64 where openPlaces.load(ordering: .relaxed) > 0 { return }
        } while start.duration(to: clock.now) < .microseconds(100)
    }

    /// The position of the oldest open call that matches. In debug builds, `firstIndex` is not specialised and would allocate.
    private func indexOfOpenJob(where matches: (Job) -> Bool) -> Int? {
        for index in 0..<openJobs.count where matches(openJobs[index]) { return index }
        return nil
    }

    // MARK: - Scratch

    /// Memory for one thread of one call.
    private struct Scratch {
        var pointer: UnsafeMutableRawPointer
        var byteCount: Int

        /// The contents are lost, but they are undefined at the start of a task anyway.
        mutating func grow(to needed: Int) {
            if needed <= byteCount { return }
            pointer.deallocate()
            pointer = .allocate(byteCount: needed, alignment: 64)
            byteCount = needed
        }
    }

    /// Runs `body` with scratch of the queue.
    func withScratch<Result>(byteCount: Int, _ body: (UnsafeMutableRawPointer) -> Result) -> Result {
        pthread_mutex_lock(mutex)
        var scratch = takeScratch(byteCount)
        pthread_mutex_unlock(mutex)
        scratch.grow(to: byteCount)
        let result = body(scratch.pointer)
        pthread_mutex_lock(mutex)
        idleScratch.append(scratch)
        pthread_mutex_unlock(mutex)
        return result
    }

    /// Takes the smallest free piece that is large enough, or else the largest one, which then grows. The mutex must be held.
    private func takeScratch(_ needed: Int) -> Scratch {
        var best: Int?
        for index in idleScratch.indices {
            guard let current = best else {
                best = index
                continue
            }
            let (a, b) = (idleScratch[index].byteCount, idleScratch[current].byteCount)
            if b >= needed ? (a >= needed && a < b) : a > b { best = index }
        }
        if let best { return idleScratch.remove(at: best) }
        return Scratch(pointer: .allocate(byteCount: 64, alignment: 64), byteCount: 64)
    }

    func releaseScratch() {
        pthread_mutex_lock(mutex)
        for scratch in idleScratch { scratch.pointer.deallocate() }
        idleScratch.removeAll(keepingCapacity: true)
        pthread_mutex_unlock(mutex)
    }

    var retainedScratchByteCount: Int {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return idleScratch.reduce(0) { $0 + $1.byteCount }
    }
}
