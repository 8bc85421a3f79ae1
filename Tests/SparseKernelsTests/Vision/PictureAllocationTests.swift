#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Operators on pictures allocate nothing on the heap, on any thread, once the pool has its scratch.
    @Suite("Allocations of pictures")
    struct PictureAllocationTests {
        /// Calls `body` twelve times and expects no allocation after the first two.
        static func expectNone(_ label: String, _ body: () throws -> Void) rethrows {
            var allocated = 0
            for call in 0..<12 {
                let before = AllocationCounter.count
                try body()
                // The first two calls also fill the caches of the Swift runtime.
                if call >= 2 { allocated += AllocationCounter.count - before }
            }
            #expect(allocated == 0, "\(label): \(allocated) allocations in 10 calls")
        }

        @Test("resizing, pooling, patches and convolutions allocate nothing after the first calls")
        func pictures() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float>.normal([3, 90, 120], seed: 1)
                var y = try Tensor<Float>(zeros: [3, 42, 300])
                let features = try Tensor<Float>.normal([40, 30, 37], seed: 2)
                var convolved = features
                var pooled = try Tensor<Float>(zeros: [20, 15, 37])
                let weight = try Tensor<Float>.normal([50, 3, 14, 14], seed: 3)
                let patches: [Int32] = [3, 0, 40, 5]
                var all = try Tensor<Float>(zeros: [48, 50])
                var some = try Tensor<Float>(zeros: [4, 50])
                let bytes = try Tensor<UInt8>([3, 90, 120]) { UInt8(truncatingIfNeeded: $0) }
                let scale = PatchEmbedding.ByteScale(scale: [1, 1, 1], offset: [0, 0, 0])
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let resize = try ImageResize(
                            GridSize(rows: 90, columns: 120), to: GridSize(rows: 42, columns: 300), filter: .bicubic,
                            instructionSet: set)
                        let pooling = try AdaptivePooling(
                            GridSize(rows: 40, columns: 30), to: GridSize(rows: 20, columns: 15), .maximum, instructionSet: set)
                        let convolution = try DepthwiseConvolution(
                            weight: .normal([37, 1, 7, 7], seed: 4), instructionSet: set)
                        let embedding = try PatchEmbedding(weight: weight, instructionSet: set, on: pool)
                        AllocationTests.warmUp(
                            pool,
                            scratchByteCount: [
                                resize.scratchByteCount, pooling.scratchByteCount, convolution.scratchByteCount,
                                embedding.scratchByteCount,
                            ].max()!)
                        let label = "\(set), \(threads) threads"
                        try Self.expectNone("\(label), resize") { try resize.run(x, into: &y, on: pool) }
                        try Self.expectNone("\(label), pooling") {
                            try pooling.run(features, into: &pooled, layout: .interleaved, on: pool)
                        }
                        try Self.expectNone("\(label), convolution") {
                            try convolution.run(features, into: &convolved, on: pool)
                        }
                        let (picture, photo) = try (x.pictureView(), bytes.pictureView())
                        try Self.expectNone("\(label), patches") {
                            try embedding.run(picture, into: all.mutableMatrixView(), on: pool)
                            try embedding.run(picture, patches: patches, into: some.mutableMatrixView(), on: pool)
                            try embedding.run(
                                photo, bytes: scale, patches: patches, into: some.mutableMatrixView(), on: pool)
                        }
                    }
                }
            }
        }
    }
#endif
