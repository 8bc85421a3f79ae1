#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import Synchronization
    import TestSupport
    import Testing

    /// `run` allocates nothing on the heap, on any thread, once the pool has its scratch.
    ///
    /// Each test runs in a process of its own, because counting overwrites the allocation functions of the whole process.
    @Suite("Allocations")
    struct AllocationTests {
        /// Makes all threads of a pool take scratch of this size at the same time, so that none grows later.
        /// - Parameter workspaces: the pieces of that size which calls hold beside the scratch of their threads.
        static func warmUp(_ pool: WorkerPool, scratchByteCount: Int, workspaces: Int = 0) {
            if workspaces > 0 {
                pool.withWorkspace(byteCount: scratchByteCount) { _ in
                    warmUp(pool, scratchByteCount: scratchByteCount, workspaces: workspaces - 1)
                }
                return
            }
            let arrived = Meeting(threads: pool.threads)
            withExtendedLifetime(arrived) {
                pool.run(
                    MeetingCall(meeting: arrived, allocates: false), tasks: pool.threads, work: .max,
                    scratchByteCount: scratchByteCount)
            }
        }

        /// A barrier, at which threads wait for each other.
        final class Meeting: Sendable {
            let threads: Int
            let arrived = Atomic<Int>(0)
            init(threads: Int) { self.threads = threads }

            func join() {
                arrived.wrappingAdd(1, ordering: .sequentiallyConsistent)
                let limit = ContinuousClock.now + .seconds(20)
                while arrived.load(ordering: .sequentiallyConsistent) < threads && ContinuousClock.now < limit {}
            }
        }

        /// Tasks that meet at a barrier, and then allocate when asked to.
        struct MeetingCall: PoolCall {
            let meeting: Meeting
            let allocates: Bool

            func perform(task: Int, scratch: UnsafeMutableRawPointer) {
                meeting.join()
                if allocates { AllocationTests.allocate(alignment: 8).deallocate() }
            }
        }

        // Not inlined, so that the optimiser cannot remove the allocation.

        @inline(never) static func allocate(alignment: Int) -> UnsafeMutableRawPointer {
            .allocate(byteCount: 100, alignment: alignment)
        }

        @inline(never) static func makeMeeting() -> Meeting { Meeting(threads: 1) }

        @inline(never) static func makeArray() -> [Int] { (0..<100).map { $0 } }

        @Test("the counter sees allocations of Swift, of C and of other threads")
        func counterCounts() async {
            await #expect(processExitsWith: .success) {
                #expect(AllocationCounter.install() > 0)
                func counted(_ body: () -> Void) -> Int {
                    let before = AllocationCounter.count
                    body()
                    return AllocationCounter.count - before
                }
                #expect(counted {} == 0)
                #expect(counted { AllocationTests.allocate(alignment: 8).deallocate() } >= 1)
                // This is how scratch and tensors are allocated.
                #expect(counted { AllocationTests.allocate(alignment: 64).deallocate() } >= 1)
                #expect(counted { _ = AllocationTests.makeMeeting() } >= 1)
                #expect(counted { _ = AllocationTests.makeArray() } >= 1)

                let pool = WorkerPool(threads: 3)
                AllocationTests.warmUp(pool, scratchByteCount: 64)
                let meeting = Meeting(threads: 3)
                let onThreads = counted {
                    pool.run(MeetingCall(meeting: meeting, allocates: true), tasks: 3, work: .max, scratchByteCount: 64)
                }
                withExtendedLifetime(meeting) { #expect(onThreads >= 3) }
            }
        }

        @Test("attention allocates nothing after the first calls")
        func attention() async {
            await #expect(processExitsWith: .success) {
                let shape = try AttentionShape(
                    queryLength: 200, keyLength: 160, queryHeads: 4, kvHeads: 2, headDim: 24, valueDim: 20)
                let query = try Tensor<Float>.normal([4, 200, 24], seed: 1)
                let key = try Tensor<Float16>.normal([2, 160, 24], seed: 2)
                let value = try Tensor<Float>.normal([2, 160, 20], seed: 3)
                let bias = try Tensor<Float>.normal([1, 200, 160], seed: 4)
                var output = try Tensor<BFloat16>(zeros: [4, 200, 20])
                var logSumExp = try Tensor<Float>(zeros: [4, 200])
                let modifiers = ScoreModifiers(logitsSoftCap: 5, aliBiSlopes: [1, 2, 3, 4])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let attention = try DenseAttention(shape, mask: .causal, modifiers: modifiers, instructionSet: set)
                        AllocationTests.warmUp(pool, scratchByteCount: attention.scratchByteCount)
                        var allocated = 0
                        for call in 0..<12 {
                            // Views are made outside, because they are the caller's.
                            let (q, k, v, b) = try (query.view(), key.view(), value.view(), bias.view())
                            let o = try output.mutableView()
                            let lse = logSumExp.mutableSpan
                            let before = AllocationCounter.count
                            try attention.run(query: q, key: k, value: v, bias: b, output: o, logSumExp: lse, on: pool)
                            // The first two calls also fill the caches of the Swift runtime.
                            if call >= 2 { allocated += AllocationCounter.count - before }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }

        @Test("attention of a block allocates nothing after the first calls, with limits, heads stacked and keys cut")
        func blocks() async {
            await #expect(processExitsWith: .success) {
                let shape = try AttentionShape(
                    queryLength: 9, keyLength: 4200, queryHeads: 4, kvHeads: 1, headDim: 24, valueDim: 20)
                let query = try Tensor<Float>.normal([4, 9, 24], seed: 1)
                let key = try Tensor<Float16>.normal([1, 4200, 24], seed: 2)
                let value = try Tensor<Float>.normal([1, 4200, 20], seed: 3)
                var output = try Tensor<Float>(zeros: [4, 9, 20])
                let limits = try KeyLimits(shape, fullWithin: [4190..<4200])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let plans = try [
                            DenseAttention(shape, limits: limits, instructionSet: set),
                            DenseAttention(shape, mask: .causal, instructionSet: set),
                        ]
                        for attention in plans {
                            AllocationTests.warmUp(pool, scratchByteCount: attention.scratchByteCount)
                            var allocated = 0
                            for call in 0..<12 {
                                let (q, k, v) = try (query.view(), key.view(), value.view())
                                let o = try output.mutableView()
                                let before = AllocationCounter.count
                                try attention.run(query: q, key: k, value: v, output: o, on: pool)
                                if call >= 2 { allocated += AllocationCounter.count - before }
                            }
                            #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                        }
                    }
                }
            }
        }

        @Test("the matrix product allocates nothing after the first calls")
        func matrixProduct() async {
            await #expect(processExitsWith: .success) {
                #expect(AllocationCounter.install() > 0)
                // The first case has several tasks. The second has few rows, for which there are other kernels.
                for (m, n, k) in [(400, 800, 20), (2, 800, 700)] {
                    for transposesB in [false, true] { try AllocationTests.multiply(m, n, k, transposesB: transposesB) }
                }
            }
        }

        private static func multiply(_ m: Int, _ n: Int, _ k: Int, transposesB: Bool) throws {
            let a = try Tensor<Float>.normal([m, k], seed: 1)
            let b = try Tensor<Float>.normal(transposesB ? [n, k] : [k, n], seed: 2)
            var c = try Tensor<Float>(zeros: [m, n])
            for threads in [1, 3] {
                let pool = WorkerPool(threads: threads)
                for set in InstructionSet.available {
                    let gemm = try GEMM(m: m, n: n, k: k, transposesB: transposesB, instructionSet: set)
                    warmUp(pool, scratchByteCount: gemm.scratchByteCount)
                    var allocated = 0
                    for call in 0..<12 {
                        let (left, right) = try (a.matrixView(), b.matrixView())
                        let target = try c.mutableMatrixView()
                        let before = AllocationCounter.count
                        try gemm.run(a: left, b: right, c: target, on: pool)
                        if call >= 2 { allocated += AllocationCounter.count - before }
                    }
                    #expect(allocated == 0, "\(set), m \(m), \(threads) threads: \(allocated) allocations in 10 calls")
                }
            }
        }
    }
#endif
