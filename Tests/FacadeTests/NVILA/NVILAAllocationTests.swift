#if os(Linux) && canImport(Glibc)
    import NVILA
    import SparseKernelsReference
    import TestSupport
    import Testing

    @Suite("Allocations of NVILA")
    struct NVILAAllocationTests {
        @Test("projecting, merging and pooling allocate nothing once workspace and pool have grown")
        func calls() async {
            await #expect(processExitsWith: .success) {
                let grid = GridSize(side: 4)
                let tiles = try DynamicS2(tileSize: 8, scales: [8, 16], maximumTiles: 4)
                let merge = try DynamicS2Merge(tiles, images: [GridSize(side: 2), nil], tokens: grid)
                let features = try Tensor<Float>.normal([merge.tileCount * 16, 12], seed: 1)
                var boards = try Tensor<Float>(zeros: [merge.boardCount * 16, 24])
                let projectors = try NVILADownsampling.allCases.map { kind in
                    try NVILAProjector(
                        NVILAProjectorTests.weights(kind, channels: 24, hidden: 20), kind, grid: grid,
                        format: kind == .twoByTwo ? .w8a8 : .float16)
                }
                var outputs = try projectors.map {
                    try Tensor<Float>(zeros: [merge.boardCount * $0.reshape.cells.count, 20])
                }
                var workspaces = try projectors.map { try $0.makeWorkspace() }
                let encoder = try NVILAVideoEncoder(
                    frames: merge.boardCount, grid: grid, channels: 24,
                    pools: [PoolingWindow(frames: 1), PoolingWindow(frames: 5)],
                    end: .init(zeros: [1, 24]), separator: .init(zeros: [2, 24]))
                var tokens = try Tensor<Float>(zeros: [encoder.tokenCount, 24])
                #expect(AllocationCounter.install() > 0)
                var allocated = 0
                for call in 0..<12 {
                    var before = 0
                    // The first calls also fill the caches of the Swift runtime, and take scratch.
                    func end() { if call >= 4 { allocated += AllocationCounter.count - before } }
                    do {
                        let input = try features.matrixView()
                        let output = try boards.mutableMatrixView()
                        before = AllocationCounter.count
                        try merge.run(input, into: output, on: .serial)
                        end()
                    }
                    for index in 0..<2 {
                        let allocations = try NVILAAllocationTests.project(
                            boards, projectors[index], &outputs[index], &workspaces[index])
                        if call >= 4 { allocated += allocations }
                    }
                    do {
                        let input = try boards.matrixView()
                        let output = try tokens.mutableMatrixView()
                        before = AllocationCounter.count
                        try encoder.run(input, into: output, on: .serial)
                        end()
                    }
                }
                #expect(allocated == 0, "\(allocated) allocations in 8 calls")
            }
        }

        /// Views are made outside of what is counted, because they are the caller's.
        static func project(
            _ x: Tensor<Float>, _ projector: NVILAProjector, _ y: inout Tensor<Float>,
            _ workspace: inout NVILAProjectorWorkspace
        ) throws -> Int {
            let input = try x.matrixView()
            let output = try y.mutableMatrixView()
            let before = AllocationCounter.count
            try projector.run(input, into: output, workspace: &workspace, on: .serial)
            return AllocationCounter.count - before
        }
    }
#endif
