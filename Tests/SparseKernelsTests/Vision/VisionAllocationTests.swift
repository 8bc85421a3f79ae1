#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Vision layers allocate nothing once the workspace and the pool have their memory. See `AllocationTests`.
    @Suite("Allocations of vision layers")
    struct VisionAllocationTests {
        @Test("vision layers allocate nothing after the first calls")
        func layers() async {
            await #expect(processExitsWith: .success) {
                let c = VisionLayerConfiguration(width: 160, heads: 4, hidden: 320, activation: .gelu)
                let weights = try VisionLayerWeights.normal(c, seed: 1, hasHeadNorms: true)
                var x = try Tensor<Float>.normal([2 * 100, 160], seed: 1)
                var high = try Tensor<Float>.normal([2 * 60, 160], seed: 2)
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        for format in [VisionLinearFormat.float32, .w8a8] {
                            let layer = try VisionLayer(c, weights, linear: format, instructionSet: set)
                            var (keys, low) = (VisionKeys(), VisionWorkspace())
                            var workspace = VisionWorkspace()
                            AllocationTests.warmUp(
                                pool, scratchByteCount: try layer.attention.scratchByteCount(tokens: 100, prefix: 100),
                                workspaces: 1)
                            var allocated = 0
                            for call in 0..<8 {
                                let before = AllocationCounter.count
                                try layer.run(&x, pictures: 2, keeping: &keys, workspace: &low, on: pool)
                                try layer.run(&x, pictures: 2, workspace: &low, on: pool)
                                try layer.run(&high, pictures: 2, after: keys, workspace: &workspace, on: pool)
                                if call >= 3 { allocated += AllocationCounter.count - before }
                            }
                            #expect(allocated == 0, "\(set), \(format), \(threads) threads: \(allocated) in 5 calls")
                        }
                    }
                }
            }
        }
    }
#endif
