#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Convolutions, gated norms and casts allocate nothing on the heap once the pool has its scratch. See `AllocationTests`.
    @Suite("Allocations of convolutions, gated norms and casts")
    struct ConvolutionAllocationTests {
        @Test("convolutions, gated norms and casts allocate nothing after the first calls")
        func calls() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float>.normal([900, 160], seed: 1)
                var y = try Tensor<Float>(zeros: [900, 160])
                var codes = try Tensor<E4M3>(zeros: [900, 160])
                let weight = try Tensor<Float>.normal([160], seed: 2)
                let batch = try PackedSequences(lengths: [500, 0, 2, 398])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let convolution = try CausalConvolution(
                            weight: .normal([160, 4], seed: 3), activation: .silu, instructionSet: set)
                        let states = try convolution.makeStates(slots: 4)
                        let norm = try GatedRMSNorm(
                            weight: weight, groups: 4, epsilon: 1e-5, gate: .beforeNorm, instructionSet: set)
                        let conversion = try Float8Conversion(instructionSet: set)
                        AllocationTests.warmUp(pool, scratchByteCount: 1 << 16)
                        var allocated = 0
                        for call in 0..<12 {
                            // Views are made outside, because they are the caller's.
                            let input = try x.matrixView()
                            var before = 0
                            func end() { if call >= 2 { allocated += AllocationCounter.count - before } }
                            do {
                                let output = try y.mutableMatrixView()
                                before = AllocationCounter.count
                                try convolution.run(input, into: output, batch: batch, states: states, on: pool)
                                end()
                            }
                            do {
                                let output = try y.mutableMatrixView()
                                before = AllocationCounter.count
                                try norm.run(input, gate: input, into: output, on: pool)
                                end()
                            }
                            do {
                                let output = try codes.mutableMatrixView()
                                before = AllocationCounter.count
                                try conversion.quantize(input, into: output, on: pool)
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
