#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Routing and layers of experts allocate nothing on the heap once pool and routing have their memory. See `AllocationTests`.
    @Suite("Allocations of experts")
    struct ExpertAllocationTests {
        @Test("a step of router and layer allocates nothing after the first calls")
        func step() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float16>.normal([9, 128], seed: 1)
                let logits = try Tensor<Float>.normal([9, 6], seed: 2)
                var y = try Tensor<Float>(zeros: [9, 128])
                var layers: [(ExpertRouter, ExpertLayer)] = []
                for set in InstructionSet.available {
                    let router = try ExpertRouter(
                        experts: 6, expertsPerToken: 2, scores: .sigmoid, correctionBias: Tensor(zeros: [6]),
                        groups: ExpertGroups(count: 3, kept: 2), instructionSet: set)
                    let numbers = try ExpertProblem<Float16>(experts: 6, width: 128, hidden: 192, seed: 3)
                    let codes = try QuantizedExperts(
                        WeightFormat(.uint4, groupSize: 128), .int8PerToken, experts: 6, width: 128, hidden: 192, set)
                    layers.append((router, try ExpertLayer(numbers.experts(set), shared: [numbers.experts(set)[0]])))
                    layers.append((router, try ExpertLayer(codes.experts)))
                }
                var routing = try ExpertRouting(experts: 6, expertsPerToken: 2)
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for (router, layer) in layers {
                        AllocationTests.warmUp(
                            pool,
                            scratchByteCount: max(
                                router.scratchByteCount, layer.scratchByteCount,
                                layer.workspaceByteCount(tokens: 9, expertsPerToken: 2)),
                            workspaces: 1)
                        var allocated = 0
                        for call in 0..<12 {
                            let (scores, input) = try (logits.matrixView(), x.matrixView())
                            let output = try y.mutableMatrixView()
                            let before = AllocationCounter.count
                            try router.run(scores, into: &routing, on: pool)
                            try layer.run(x: input, routing: routing, y: output, on: pool)
                            if call >= 2 { allocated += AllocationCounter.count - before }
                        }
                        #expect(allocated == 0, "\(layer.instructionSet), \(threads) threads: \(allocated) allocations")
                    }
                }
            }
        }
    }
#endif
