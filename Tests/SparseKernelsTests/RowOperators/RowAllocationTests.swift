#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Row operators allocate nothing on the heap once the pool has its scratch. See `AllocationTests`.
    @Suite("Allocations of row operators")
    struct RowAllocationTests {
        @Test("row operators allocate nothing after the first calls")
        func rows() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float16>.normal([300, 160], seed: 1)
                var (y, residual) = (try Tensor<Float>(zeros: [300, 160]), try Tensor<Float>(zeros: [300, 160]))
                var heads = try Tensor<Float>.normal([8, 300, 20], seed: 2)
                let tokens = (0..<300).map { $0 }
                let logits = try Tensor<Float>.normal([3, 40_000], seed: 3)
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let norm = try RMSNorm(channels: 160, epsilon: 1e-6, instructionSet: set)
                        let layerNorm = try LayerNorm(channels: 20, instructionSet: set)
                        let table = try RotaryEmbedding(headDim: 20, instructionSet: set).table(positions: tokens)
                        let gelu = try GatedActivation(.gelu, instructionSet: set)
                        let embedding = try TokenEmbedding(table: x, instructionSet: set)
                        let statistics = try LogitStatistics(vocabulary: 40_000, topK: 40, instructionSet: set)
                        var summary = try statistics.makeSummary(rows: 3)
                        AllocationTests.warmUp(pool, scratchByteCount: statistics.scratchByteCount)
                        var allocated = 0
                        for call in 0..<12 {
                            // Views are made outside, because they are the caller's.
                            let (input, rows) = (try x.matrixView(), try logits.matrixView())
                            var before = 0
                            func end() { if call >= 2 { allocated += AllocationCounter.count - before } }
                            do {
                                let sums = try residual.mutableMatrixView()
                                let output = try y.mutableMatrixView()
                                before = AllocationCounter.count
                                try norm.run(adding: input, to: sums, into: output, on: pool)
                                end()
                            }
                            do {
                                let output = try y.mutableMatrixView()
                                before = AllocationCounter.count
                                try gelu.run(gate: input, up: input, into: output, on: pool)
                                end()
                            }
                            do {
                                let output = try y.mutableMatrixView()
                                before = AllocationCounter.count
                                try embedding.run(tokens: tokens, into: output, on: pool)
                                end()
                            }
                            do {
                                let view = try heads.mutableView()
                                before = AllocationCounter.count
                                try layerNorm.normalize(view, on: pool)
                                end()
                            }
                            do {
                                let view = try heads.mutableView()
                                before = AllocationCounter.count
                                try table.rotate(view, on: pool)
                                end()
                            }
                            before = AllocationCounter.count
                            try statistics.run(rows, into: &summary, on: pool)
                            end()
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }
    }
#endif
