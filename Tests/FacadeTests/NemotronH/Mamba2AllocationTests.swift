#if os(Linux) && canImport(Glibc)
    import NemotronH
    import TestSupport
    import Testing

    @Suite("Allocations of a Mamba-2 mixer")
    struct Mamba2AllocationTests {
        @Test("prompts and steps allocate nothing once workspace and pool have grown")
        func mixer() async {
            await #expect(processExitsWith: .success) {
                let item = try Mamba2Case.standard()
                let c = item.configuration
                let mixer = try Mamba2Mixer(item.tensors, c)
                let states = try Mamba2States(slots: 3, c)
                let projected = try item.projected(40, seed: 1)
                var output = try Tensor<Float>(zeros: [40, c.innerWidth])
                let batches = [
                    try PackedSequences(lengths: [30, 10], slots: [0, 2]), try PackedSequences(stepOf: [1, 0, 2]),
                ]
                var workspace = Mamba2Workspace()
                #expect(AllocationCounter.install() > 0)
                var allocated = 0
                for call in 0..<8 {
                    for batch in batches {
                        let rows = batch.tokenCount
                        // Views are made outside, because they are the caller's.
                        let x = try MatrixView(projected.span, rows: rows, columns: c.projectedWidth)
                        let y = try MutableMatrixView(output.mutableSpan, rows: rows, columns: c.innerWidth)
                        let before = AllocationCounter.count
                        try mixer.run(
                            projected: x, into: y, batch: batch, states: states, workspace: &workspace, on: .serial)
                        // The first two calls also fill the caches of the Swift runtime.
                        if call >= 2 { allocated += AllocationCounter.count - before }
                    }
                }
                #expect(allocated == 0)
            }
        }
    }
#endif
