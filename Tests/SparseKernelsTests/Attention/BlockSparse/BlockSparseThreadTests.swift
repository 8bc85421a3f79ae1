import Dispatch
import SparseKernels
import SparseKernelsReference
import Synchronization
import TestSupport
import Testing

/// Block-sparse plans on pools: equal bits for any threads and callers, within the stated scratch, without allocations.
@Suite("Block-sparse threads")
struct BlockSparseThreadTests {
    /// Two packed sequences with a pattern of each kind, and work above the cut-off in some dozens of tasks.
    struct Workload {
        let shape: AttentionShape
        let operands: BlockSparseOperands
        let sequences: [BlockSparseAttention.PackedSequence]

        init(seed: UInt64 = 71) throws {
            shape = try AttentionShape(queryLength: 300, keyLength: 340, queryHeads: 4, kvHeads: 2, headDim: 24, valueDim: 20)
            operands = try BlockSparseOperands(shape, seed: seed)
            let grid = try BlockGrid(queryLength: 200, keyLength: 240, queryBlockSize: 32, keyBlockSize: 16, isCausal: true)
            let mask = try BlockMask.random(grid, density: 0.7, seed: seed)
            let runs = try KeyRuns.random(
                query: BlockPartition(length: 200, blockSize: 64), keyLength: 240, longest: 30, seed: seed)
            sequences = [
                .init(
                    queries: 0..<200, keys: 0..<240,
                    heads: [.blockSparse(mask, head: 0), .runs(runs), .streaming(sink: 4, local: 60), .dense]),
                .init(queries: 200..<300, keys: 240..<340, heads: [.dense]),
            ]
        }

        func plan(_ set: InstructionSet, pvSkipThreshold: Float? = nil) throws -> BlockSparseAttention {
            try BlockSparseAttention(
                shape, sequences: sequences, isCausal: true, pvSkipThreshold: pvSkipThreshold, instructionSet: set)
        }

        func run(_ attention: BlockSparseAttention, on pool: WorkerPool) throws -> AttentionState {
            try attention(query: operands.query, key: operands.key, value: operands.value, on: pool)
        }
    }

    @Test("results have the same bits on 1, 2 and 7 threads", arguments: InstructionSet.available, [nil, Float(1)])
    func sameBitsOnAnyThreads(_ set: InstructionSet, _ pvSkipThreshold: Float?) throws {
        let work = try Workload()
        let attention = try work.plan(set, pvSkipThreshold: pvSkipThreshold)
        #expect(attention.visiblePairs * 44 > WorkerPool.workCutoff)
        let serial = try work.run(attention, on: .serial)
        for threads in [1, 2, 7] {
            let pool = WorkerPool(threads: threads)
            for _ in 0..<5 {
                let state = try work.run(attention, on: pool)
                #expect(state.output.bits == serial.output.bits, "\(set), \(threads) threads")
                #expect(state.logSumExp.bits == serial.logSumExp.bits, "\(set), \(threads) threads")
            }
        }
    }

    @Test("many callers share one plan and one pool", arguments: InstructionSet.available)
    func concurrentCallers(_ set: InstructionSet) throws {
        let works = try (0..<4).map { try Workload(seed: 80 + 10 * UInt64($0)) }
        let plans = try works.map { try $0.plan(set) }
        let expected = try zip(works, plans).map { try $0.run($1, on: .serial).output.bits }
        let pool = WorkerPool(threads: 3)
        let wrong = Atomic<Int>(0)
        DispatchQueue.concurrentPerform(iterations: 24) { index in
            let output = try? works[index % 4].run(plans[index % 4], on: pool).output.bits
            if output != expected[index % 4] { wrong.wrappingAdd(1, ordering: .relaxed) }
        }
        #expect(wrong.load(ordering: .relaxed) == 0, "\(set)")
    }

    @Test("a pool keeps the scratch that the plan states", arguments: InstructionSet.available)
    func scratch(_ set: InstructionSet) throws {
        let work = try Workload()
        let attention = try work.plan(set)
        let pool = WorkerPool(threads: 2)
        _ = try work.run(attention, on: pool)
        #expect(pool.retainedScratchByteCount >= attention.scratchByteCount)
        #expect(pool.retainedScratchByteCount <= 2 * attention.scratchByteCount)
    }

    @Test("scratch is sized for the largest task, wherever it is", arguments: InstructionSet.available)
    func scratchOfTheLargestTask(_ set: InstructionSet) throws {
        func scratch(_ sizes: [Int]) throws -> Int {
            let length = sizes.reduce(0, +)
            let shape = try AttentionShape(queryLength: length, keyLength: length, queryHeads: 1, kvHeads: 1, headDim: 32)
            let blocks = try BlockPartition(sizes: sizes)
            let mask = try BlockMask(grid: BlockGrid(query: blocks, key: blocks, isCausal: false)) { _, _, _ in true }
            return try BlockSparseAttention(shape, mask: mask, instructionSet: set).scratchByteCount
        }
        let largest = try scratch([192])
        #expect(try scratch([8]) < largest)
        for sizes in [[192, 8], [8, 192], [8, 192, 0, 8], [1920]] { #expect(try scratch(sizes) == largest) }
    }

    @Test("scratch is bounded by the widths, not by the lengths", arguments: InstructionSet.available)
    func scratchIsBounded(_ set: InstructionSet) throws {
        let shape = try AttentionShape(
            queryLength: 1 << 17, keyLength: 1 << 17, queryHeads: 1, kvHeads: 1, headDim: AttentionShape.maximumHeadDim)
        let grid = try BlockGrid(shape, blockSize: 1 << 12, isCausal: true)
        let mask = try BlockMask(grid: grid) { _, row, column in row == column || column == 0 }
        let attention = try BlockSparseAttention(shape, mask: mask, instructionSet: set)
        #expect(attention.scratchByteCount < 2 << 20)
        let small = try BlockSparseAttention(
            shape, mask: BlockMask(grid: BlockGrid(shape, blockSize: 16, isCausal: true)) { _, row, column in row == column },
            instructionSet: set)
        #expect(small.scratchByteCount < attention.scratchByteCount)
    }

    #if os(Linux) && canImport(Glibc)
        /// Runs in a process of its own, because counting overwrites the allocation functions of the whole process.
        @Test("nothing is allocated after the first calls")
        func allocations() async {
            await #expect(processExitsWith: .success) {
                let work = try Workload()
                let key = work.operands.key.converted(to: Float16.self)
                var output = try Tensor<BFloat16>(zeros: [4, 300, 20])
                var logSumExp = try Tensor<Float>(zeros: [4, 300])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let attention = try work.plan(set, pvSkipThreshold: 3)
                        AllocationTests.warmUp(pool, scratchByteCount: attention.scratchByteCount)
                        var allocated = 0
                        for call in 0..<12 {
                            // Views are made outside, because they are the caller's.
                            let (q, v) = try (work.operands.query.view(), work.operands.value.view())
                            let k = try key.view()
                            let o = try output.mutableView()
                            let lse = logSumExp.mutableSpan
                            let before = AllocationCounter.count
                            try attention.run(query: q, key: k, value: v, output: o, logSumExp: lse, on: pool)
                            // The first two calls also fill the caches of the Swift runtime.
                            if call >= 2 { allocated += AllocationCounter.count - before }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }
    #endif
}
