#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Layers with picked channels allocate nothing on the heap once the pool has its scratch. See `AllocationTests`.
    @Suite("Allocations of sparse linear layers")
    struct SparseLinearAllocationTests {
        @Test("sparse layers and column moves allocate nothing after the first calls")
        func calls() async {
            await #expect(processExitsWith: .success) {
                let (channels, depth) = (320, 256)
                let weight = try Tensor<BFloat16>.normal([channels, depth], seed: 1)
                let codes = try WeightQuantizer(.svdQuantInt4)(.normal([channels, depth], seed: 2))
                let subset = try ChannelSubset((0..<Int32(channels)).filter { $0 % 3 != 1 }, of: channels)
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let layer = try SparseLinear(weight: weight, picking: .outputs, instructionSet: set)
                        let moves = try ColumnMoves(instructionSet: set)
                        let quantized = try SparseQuantizedLinear(
                            QuantizedLinear(PackedWeight(codes, instructionSet: set), activation: .int8PerToken),
                            picking: .inputs)
                        let groups = try quantized.channels(ofBlocks: ChannelSubset([0, 2], of: quantized.blocks))
                        AllocationTests.warmUp(
                            pool, scratchByteCount: max(layer.scratchByteCount, quantized.layer.scratchByteCount, 1 << 22),
                            workspaces: 2)
                        for rows in [2, 40] {
                            let x = try Tensor<Float>.normal([rows, depth], seed: 3)
                            let part = try Tensor<Float>.normal([rows, groups.count], seed: 4)
                            var y = try Tensor<Float>(zeros: [rows, subset.count])
                            var dx = try Tensor<Float>(zeros: [rows, depth])
                            var wide = try Tensor<Float>(zeros: [rows, channels])
                            var allocated = 0
                            for call in 0..<8 {
                                // Views are made outside, because they are the caller's.
                                let (input, some) = (try x.matrixView(), try part.matrixView())
                                var before = 0
                                func end() { if call >= 2 { allocated += AllocationCounter.count - before } }
                                do {
                                    let output = try y.mutableMatrixView()
                                    before = AllocationCounter.count
                                    try layer.run(x: input, channels: subset, y: output, on: pool)
                                    end()
                                }
                                do {
                                    let gradient = try y.matrixView()
                                    let output = try dx.mutableMatrixView()
                                    before = AllocationCounter.count
                                    try layer.inputGradient(
                                        gradient, channels: subset, into: output, accumulates: true, on: pool)
                                    end()
                                }
                                do {
                                    let compact = try y.matrixView()
                                    let output = try wide.mutableMatrixView()
                                    before = AllocationCounter.count
                                    try moves.scatter(compact, subset, into: output, on: pool)
                                    end()
                                }
                                do {
                                    let output = try wide.mutableMatrixView()
                                    before = AllocationCounter.count
                                    try quantized.run(x: some, channels: groups, y: output, on: pool)
                                    end()
                                }
                            }
                            #expect(
                                allocated == 0, "\(set), \(threads) threads, \(rows) rows: \(allocated) allocations in 6 calls")
                        }
                    }
                }
            }
        }
    }
#endif
