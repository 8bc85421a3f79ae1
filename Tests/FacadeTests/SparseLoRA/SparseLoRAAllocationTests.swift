#if os(Linux) && canImport(Glibc)
    import SparseKernelsReference
    import SparseKernelsTraining
    import SparseLoRA
    import TestSupport
    import Testing

    @Suite("Allocations of SparseLoRA layers")
    struct SparseLoRAAllocationTests {
        @Test("passes allocate nothing once tapes, workspace and pool have grown")
        func layers() async {
            await #expect(processExitsWith: .success) {
                let p = try SparseLoRAProblem(width: 64, channels: 160, batch: 2, length: 20, dense: 5..<12, kept: 40)
                let layer = try SparseMLP(gate: p.gate, up: p.up, down: p.down)
                let projection = try SparseProjection(weight: p.down, picking: .inputs, loraRank: 4)
                let factors = try SparseLoRAProblem.factors(160, 64, rank: 4, seed: 3)
                let wide = try Tensor<Float>.normal([p.rows, 160], seed: 5)
                var gradients = factors
                var y = try Tensor<Float>(zeros: [p.rows, 64])
                var dx = try Tensor<Float>(zeros: [p.rows, 64])
                var dWide = try Tensor<Float>(zeros: [p.rows, 160])
                var (tape, other, workspace) = (SparseMLP.Tape(), SparseProjection.Tape(), SparseLoRAWorkspace())
                #expect(AllocationCounter.install() > 0)
                var allocated = 0
                for call in 0..<8 {
                    // Views are made outside, because they are the caller's.
                    let x = try p.x.matrixView()
                    let dy = try p.dy.matrixView()
                    let input = try wide.matrixView()
                    let before = AllocationCounter.count
                    try layer.run(
                        x: x, split: p.split, channels: p.kept, tape: &tape, workspace: &workspace,
                        y: MutableMatrixView(y.mutableSpan, rows: p.rows, columns: 64), on: .serial)
                    try layer.gradient(
                        dy, tape: tape, workspace: &workspace,
                        dx: MutableMatrixView(dx.mutableSpan, rows: p.rows, columns: 64), on: .serial)
                    try projection.run(
                        x: input, split: p.split, channels: p.kept, lora: factors, tape: &other, workspace: &workspace,
                        y: MutableMatrixView(y.mutableSpan, rows: p.rows, columns: 64), on: .serial)
                    try projection.gradient(
                        dy, x: input, lora: factors, aGradient: &gradients.a, bGradient: &gradients.b, tape: other,
                        workspace: &workspace, dx: MutableMatrixView(dWide.mutableSpan, rows: p.rows, columns: 160), on: .serial
                    )
                    // The first two calls also fill the caches of the Swift runtime.
                    if call >= 2 { allocated += AllocationCounter.count - before }
                }
                #expect(allocated == 0)
            }
        }
    }
#endif
