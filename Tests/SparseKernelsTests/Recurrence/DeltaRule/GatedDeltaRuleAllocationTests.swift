#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// The gated delta rule allocates nothing on the heap once the pool has its scratch. See `AllocationTests`.
    @Suite("Allocations of the gated delta rule")
    struct GatedDeltaRuleAllocationTests {
        @Test("chunks and steps allocate nothing after the first calls")
        func calls() async {
            await #expect(processExitsWith: .success) {
                let operands = try DeltaRuleCase(keyHeads: 2, valueHeads: 4, keyDim: 20, valueDim: 36, tokens: 90)
                let (prompts, steps) = (
                    try PackedSequences(lengths: [50, 1, 39]), try PackedSequences(stepOf: Array(0..<90))
                )
                let states = try RecurrentStates(slots: 90, shape: operands.shape)
                var y = try Tensor<Float>(zeros: [4, 90, 36])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let rule = try operands.rule(set)
                        AllocationTests.warmUp(pool, scratchByteCount: rule.scratchByteCount)
                        var allocated = 0
                        for call in 0..<12 {
                            // Views are made outside, because they are the caller's.
                            let (q, k) = (try operands.query.view(), try operands.key.view())
                            let (v, g) = (try operands.value.view(), try operands.logDecay.matrixView())
                            let beta = try operands.beta.matrixView()
                            for batch in [prompts, steps] {
                                let output = try y.mutableView()
                                let before = AllocationCounter.count
                                try rule.run(
                                    query: q, key: k, value: v, logDecay: g, beta: beta, into: output, batch: batch,
                                    states: states, on: pool)
                                if call >= 2 { allocated += AllocationCounter.count - before }
                            }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 20 calls")
                    }
                }
            }
        }
    }
#endif
