import Foundation
import SparseKernels
import SparseKernelsReference
import Synchronization
import TestSupport
import Testing

/// Thread pools: equal bits on any number of threads, concurrent calls, scratch, and shutdown.
@Suite("Threads")
struct WorkerPoolTests {
    /// Work above the cut-off in 8 tasks, so that threads are woken.
    struct Workload {
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(seed: UInt64 = 71) throws {
            shape = try AttentionShape(queryLength: 200, keyLength: 160, queryHeads: 4, kvHeads: 2, headDim: 24, valueDim: 20)
            query = try .normal([4, 200, 24], seed: seed)
            key = try .normal([2, 160, 24], seed: seed + 1)
            value = try .normal([2, 160, 20], seed: seed + 2)
        }

        func run(_ attention: DenseAttention, on pool: WorkerPool) throws -> AttentionState {
            try attention(query: query, key: key, value: value, on: pool)
        }
    }

    @Test(
        "results have the same bits on 1, 2 and 7 threads", arguments: InstructionSet.available,
        [AttentionMask.full, .causal, .causal(window: 33)])
    func sameBitsOnAnyThreads(_ set: InstructionSet, _ mask: AttentionMask) throws {
        let work = try Workload()
        #expect(4 * 200 * 160 * 44 > WorkerPool.workCutoff)
        let attention = try DenseAttention(work.shape, mask: mask, instructionSet: set)
        let serial = try work.run(attention, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            for _ in 0..<5 {
                let state = try work.run(attention, on: pool)
                #expect(state.output.bits == serial.output.bits, "\(set), \(threads) threads")
                #expect(state.logSumExp.bits == serial.logSumExp.bits, "\(set), \(threads) threads")
            }
        }
    }

    @Test("many callers share one pool", arguments: InstructionSet.available)
    func concurrentCallers(_ set: InstructionSet) throws {
        let works = try (0..<4).map { try Workload(seed: 80 + 10 * UInt64($0)) }
        let attention = try DenseAttention(works[0].shape, mask: .causal, instructionSet: set)
        let expected = try works.map { try $0.run(attention, on: .serial).output.bits }
        let pool = WorkerPool(threads: 3)
        let wrong = Atomic<Int>(0)
        DispatchQueue.concurrentPerform(iterations: 24) { index in
            let output = try? works[index % 4].run(attention, on: pool).output.bits
            if output != expected[index % 4] { wrong.wrappingAdd(1, ordering: .relaxed) }
        }
        #expect(wrong.load(ordering: .relaxed) == 0, "\(set)")
    }

    @Test("one pool serves operators of different scratch in turn", arguments: InstructionSet.available)
    func poolReuse(_ set: InstructionSet) throws {
        let work = try Workload()
        let attention = try DenseAttention(work.shape, instructionSet: set)
        let gemm = try GEMM(m: 130, n: 100, k: 90, instructionSet: set)
        let (a, b) = try (Tensor<Float>.normal([130, 90], seed: 1), Tensor<Float>.normal([90, 100], seed: 2))
        func product(on pool: WorkerPool) throws -> [UInt32] {
            var c = try Tensor<Float>(zeros: [130, 100])
            try gemm.run(a: a.matrixView(), b: b.matrixView(), c: c.mutableMatrixView(), on: pool)
            return c.bits
        }
        let (state, c) = try (work.run(attention, on: .serial), product(on: .serial))
        let pool = WorkerPool(threads: 2)
        for _ in 0..<4 {
            #expect(try work.run(attention, on: pool).output.bits == state.output.bits, "\(set)")
            #expect(try product(on: pool) == c, "\(set)")
        }
    }

    // MARK: - Scratch

    @Test("a thread needs less than 2 MiB of scratch", arguments: InstructionSet.available)
    func scratchIsBounded(_ set: InstructionSet) throws {
        let shape = try AttentionShape(
            queryLength: 1 << 20, keyLength: 1 << 20, queryHeads: 1, kvHeads: 1, headDim: AttentionShape.maximumHeadDim)
        let attention = try DenseAttention(shape, mask: .causal, instructionSet: set)
        #expect(attention.scratchByteCount < 2 << 20)
        #expect(try GEMM(m: 5000, n: 5000, k: 5000, instructionSet: set).scratchByteCount < 2 << 20)
    }

    @Test("a pool keeps scratch for its threads until it is told to give it back", arguments: InstructionSet.available)
    func releaseScratch(_ set: InstructionSet) throws {
        let work = try Workload()
        let attention = try DenseAttention(work.shape, instructionSet: set)
        let pool = WorkerPool(threads: 3)
        #expect(pool.retainedScratchByteCount == 0)
        let first = try work.run(attention, on: pool)
        let kept = pool.retainedScratchByteCount
        #expect(kept >= attention.scratchByteCount)
        #expect(kept <= 3 * attention.scratchByteCount)
        for _ in 0..<10 { _ = try work.run(attention, on: pool) }
        #expect(pool.retainedScratchByteCount <= 3 * attention.scratchByteCount)
        pool.releaseScratch()
        #expect(pool.retainedScratchByteCount == 0)
        #expect(try work.run(attention, on: pool).output.bits == first.output.bits)
    }

    // MARK: - The pool alone

    /// The tasks that a `WorkerPool.run` performed.
    private final class Record: Sendable {
        let counts: [Atomic<Int>.Box]
        let arrived = Atomic<Int>(0)
        let threadIDs = Mutex<Set<Int>>([])
        init(tasks: Int) { counts = (0..<tasks).map { _ in Atomic<Int>.Box() } }
    }

    private struct RecordingCall: PoolCall {
        let body: (Int, UnsafeMutableRawPointer) -> Void

        func perform(task: Int, scratch: UnsafeMutableRawPointer) { body(task, scratch) }
    }

    @Test("every task runs once", arguments: [0, 1, 2, 5, 1000], [1, 2, 7])
    func everyTaskRunsOnce(_ tasks: Int, _ threads: Int) {
        let pool = WorkerPool(threads: threads)
        let record = Record(tasks: tasks)
        for _ in 0..<3 {
            pool.run(
                RecordingCall { task, _ in
                    record.counts[task].value.wrappingAdd(1, ordering: .relaxed)
                },
                tasks: tasks, work: .max)
        }
        #expect(record.counts.allSatisfy { $0.value.load(ordering: .relaxed) == 3 })
    }

    @Test("scratch is as large as asked for, aligned, and one thread's own")
    func scratchIsPrivate() {
        let pool = WorkerPool(threads: 4)
        let record = Record(tasks: 1)
        pool.run(
            RecordingCall { task, scratch in
                let words = scratch.bindMemory(to: Int.self, capacity: 512)
                for i in 0..<512 { words[i] = task }
                let isIntact = (0..<512).allSatisfy { words[$0] == task } && UInt(bitPattern: scratch) % 64 == 0
                if isIntact { record.counts[0].value.wrappingAdd(1, ordering: .relaxed) }
            },
            tasks: 200, work: .max, scratchByteCount: 4096)
        #expect(record.counts[0].value.load(ordering: .relaxed) == 200)
    }

    @Test("all threads of a pool work on one call")
    func threadsRun() {
        let pool = WorkerPool(threads: 3)
        let record = Record(tasks: 0)
        // Each task waits until all three have begun, which a single thread could never do. The limit only ends a failing test.
        pool.run(
            RecordingCall { _, _ in
                record.arrived.wrappingAdd(1, ordering: .sequentiallyConsistent)
                let limit = ContinuousClock.now + .seconds(20)
                while record.arrived.load(ordering: .sequentiallyConsistent) < 3 && ContinuousClock.now < limit {
                    sched_yield()
                }
                record.threadIDs.withLock { _ = $0.insert(Int(bitPattern: UInt(pthread_self()))) }
            },
            tasks: 3, work: .max)
        #expect(record.threadIDs.withLock { $0.count } == 3)
    }

    @Test("small calls stay on the caller")
    func smallCallsWakeNobody() {
        let pool = WorkerPool(threads: 3)
        let record = Record(tasks: 0)
        pool.run(
            RecordingCall { _, _ in
                record.threadIDs.withLock { _ = $0.insert(Int(bitPattern: UInt(pthread_self()))) }
            },
            tasks: 50, work: WorkerPool.workCutoff - 1)
        #expect(record.threadIDs.withLock { $0 } == [Int(bitPattern: UInt(pthread_self()))])
    }

    #if os(Linux)
        /// The kernel's number of the calling thread, under which /proc lists it. The link reads "process/task/thread".
        private static func kernelThreadID() -> Int {
            let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/thread-self")
            return link.flatMap { Int($0.split(separator: "/").last ?? "") } ?? -1
        }

        @Test("a pool that ends also ends its threads")
        func poolJoinsItsThreads() {
            let record = Record(tasks: 0)
            do {
                let pool = WorkerPool(threads: 3)
                pool.run(
                    RecordingCall { _, _ in
                        record.arrived.wrappingAdd(1, ordering: .sequentiallyConsistent)
                        let limit = ContinuousClock.now + .seconds(20)
                        while record.arrived.load(ordering: .sequentiallyConsistent) < 3 && ContinuousClock.now < limit {
                            sched_yield()
                        }
                        record.threadIDs.withLock { _ = $0.insert(WorkerPoolTests.kernelThreadID()) }
                    },
                    tasks: 3, work: .max)
            }
            let workers = record.threadIDs.withLock { $0 }.subtracting([WorkerPoolTests.kernelThreadID()])
            #expect(workers.count == 2)
            // The kernel removes a thread from its list a moment after pthread_join returns.
            let limit = ContinuousClock.now + .seconds(10)
            func isAlive(_ thread: Int) -> Bool { FileManager.default.fileExists(atPath: "/proc/self/task/\(thread)") }
            while workers.contains(where: isAlive) && ContinuousClock.now < limit { usleep(1000) }
            #expect(!workers.contains(where: isAlive))
        }
    #endif

    @Test("the ranges of a pass cover every item once, and are the same on any pool", arguments: [0, 1, 7, 1000, 100_003])
    func ranges(count: Int) {
        var seen: [Set<Range<Int>>] = []
        for threads in [1, 2, 7] {
            let ranges = Mutex<[Range<Int>]>([])
            WorkerPool(threads: threads).forEachRange(of: count, workPerItem: 100) { range in
                ranges.withLock { $0.append(range) }
            }
            let ordered = ranges.withLock { $0.sorted { $0.lowerBound < $1.lowerBound } }
            #expect(ordered.flatMap { $0 } == Array(0..<count))
            seen.append(Set(ordered))
        }
        #expect(seen[0] == seen[1] && seen[0] == seen[2])
    }

    @Test("a pool of no threads is a programming error")
    func emptyPoolTraps() async {
        await #expect(processExitsWith: .failure) { _ = WorkerPool(threads: 0) }
    }

    @Test("SPARSEKERNELS_THREADS sizes the shared pool")
    func sharedPoolSize() async {
        await #expect(processExitsWith: .success) {
            setenv("SPARSEKERNELS_THREADS", "5", 1)
            #expect(WorkerPool.shared.threads == 5)
        }
        await #expect(processExitsWith: .success) {
            setenv("SPARSEKERNELS_THREADS", "none", 1)
            #expect(WorkerPool.shared.threads == max(1, ProcessInfo.processInfo.activeProcessorCount))
        }
    }
}

extension Atomic<Int> {
    /// An atomic value that an array can store.
    final class Box: Sendable {
        let value = Atomic<Int>(0)
    }
}
