#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Operators on cells and means of tokens allocate nothing on the heap. See `AllocationTests`.
    @Suite("Allocations of operators on tokens' cells")
    struct TokenCellAllocationTests {
        @Test("space-to-channel, its norm and means allocate nothing after the first calls")
        func cells() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float>.normal([20 * 35, 48], seed: 1)
                let reshape = try SpaceToChannel(grid: GridSize(rows: 5, columns: 7), factor: 2, channels: 48)
                var y = try Tensor<Float>(zeros: [20 * 12, 192])
                var pooled = try Tensor<Float>(zeros: [5 * 36, 48])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let norm = try SpaceToChannelNorm(reshape, instructionSet: set)
                        let pooling = try TemporalPooling(
                            frames: 20, grid: reshape.grid, pool: PoolingWindow(frames: 4), tokensAfter: 1, instructionSet: set)
                        AllocationTests.warmUp(pool, scratchByteCount: 64)
                        var allocated = 0
                        for call in 0..<12 {
                            let input = try x.matrixView()
                            var before = 0
                            func end() { if call >= 2 { allocated += AllocationCounter.count - before } }
                            do {
                                let output = try y.mutableMatrixView()
                                before = AllocationCounter.count
                                try norm.run(input, into: output, on: pool)
                                end()
                            }
                            do {
                                let output = try y.mutableMatrixView()
                                before = AllocationCounter.count
                                try reshape.run(input, into: output, on: pool)
                                end()
                            }
                            do {
                                let output = try pooled.mutableMatrixView()
                                before = AllocationCounter.count
                                try pooling.run(input, into: output, on: pool)
                                end()
                            }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }
    }
#endif
