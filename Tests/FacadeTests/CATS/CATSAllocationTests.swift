#if os(Linux) && canImport(Glibc)
    import CATS
    import TestSupport
    import Testing

    @Suite("Allocations of a CATS layer")
    struct CATSAllocationTests {
        @Test("steps whose channels differ allocate nothing once workspace and pool have grown")
        func steps() async {
            await #expect(processExitsWith: .success) {
                let item = try CATSCase<Float16>(width: 64, inner: 160)
                let layer = try item.layer(0.3)
                let x = try item.input(16)
                var y = try Tensor<Float>(zeros: [16, 64])
                var workspace = CATSWorkspace()
                #expect(AllocationCounter.install() > 0)
                var allocated = 0
                for call in 0..<12 {
                    for rows in [16, 1, 4] {
                        // Views are made outside, because they are the caller's.
                        let first = call % 4
                        let input = try MatrixView(
                            x.span.extracting((rows == 16 ? 0 : first * 64)...), rows: rows, columns: 64)
                        let output = try MutableMatrixView(y.mutableSpan, rows: rows, columns: 64)
                        let before = AllocationCounter.count
                        try layer.run(input, into: output, workspace: &workspace, on: .serial)
                        // The first calls also fill the caches of the Swift runtime, and take scratch.
                        if call >= 4 { allocated += AllocationCounter.count - before }
                    }
                }
                #expect(allocated == 0)
            }
        }
    }
#endif
