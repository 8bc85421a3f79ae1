#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import SparseKernelsTraining
    import TestSupport
    import Testing

    @Suite("Allocations of the gradient of attention")
    struct AttentionGradientAllocationTests {
        @Test("the backward pass allocates nothing after the first calls")
        func allocations() async {
            // A process of its own, because counting overwrites the allocation functions of the whole process.
            await #expect(processExitsWith: .success) {
                // Groups cut in heads, and keys cut in strips.
                let shape = try AttentionShape(
                    queryLength: 200, keyLength: 520, queryHeads: 4, kvHeads: 2, headDim: 24, valueDim: 20)
                let scene = try AttentionGradientScene(shape, mask: .causal)
                let state = try scene.forward()
                var (dq, dk, dv) = (scene.query, scene.key, scene.value)
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let plan = try scene.plan(set)
                        // How many threads a call finds differs from call to call, so that scratch may grow in one of the first.
                        var least = Int.max
                        for _ in 0..<12 {
                            let (q, k, v) = try (scene.query.view(), scene.key.view(), scene.value.view())
                            let (o, g) = try (state.output.view(), scene.outputGradient.view())
                            let lse = state.logSumExp.span
                            let queryGradient = try dq.mutableView()
                            let keyGradient = try dk.mutableView()
                            let valueGradient = try dv.mutableView()
                            let before = AllocationCounter.count
                            try plan.run(
                                query: q, key: k, value: v, output: o, logSumExp: lse, outputGradient: g,
                                queryGradient: queryGradient, keyGradient: keyGradient, valueGradient: valueGradient, on: pool)
                            least = min(least, AllocationCounter.count - before)
                        }
                        #expect(least == 0, "\(set), \(threads) threads: \(least) allocations in every call")
                    }
                }
            }
        }
    }
#endif
