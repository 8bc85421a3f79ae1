internal import KernelInterface

/// What this machine can do at best, measured: the denominators of every "percent of roof".
public enum MachineRoofs {
    /// Single-precision multiply-adds out of registers, in GFLOP/s (two per multiply-add), with every thread of the pool busy.
    /// Measures for `duration` and takes the best.
    public static func multiplyAdd(
        instructionSet: InstructionSet, on pool: WorkerPool, duration: Duration = .milliseconds(200)
    ) -> Double {
        let kernels = instructionSet.kernels
        let perIteration = 3 * kernels.tileRows * kernels.laneCount * 2
        var call = ChainCall(kernels: kernels, iterations: 1 << 22)
        return best(over: duration) {
            withUnsafePointer(to: &call) { call in
                pool.run(tasks: pool.threads, work: .max, scratchByteCount: 0, context: call) { context, _, _ in
                    let call = context.assumingMemoryBound(to: ChainCall.self)
                    blackHole(call.pointee.kernels.multiplyAddChains(call.pointee.iterations, 0.5))
                }
            }
            return Double(call.iterations) * Double(perIteration * pool.threads)
        }
    }

    /// Multiply-adds of 8-bit codes out of registers, in 10⁹ per second, with every thread of the pool busy: what quantised products would
    /// reach if nothing else had to be done. Measures for `duration` and takes the best.
    public static func integerMultiplyAdd(
        instructionSet: InstructionSet, on pool: WorkerPool, duration: Duration = .milliseconds(200)
    ) -> Double {
        let kernels = instructionSet.kernels
        let perIteration = 3 * kernels.tileRows * 4 * kernels.laneCount
        let call = ChainCall(kernels: kernels, iterations: 1 << 22)
        return best(over: duration) {
            withUnsafePointer(to: call) { call in
                pool.run(tasks: pool.threads, work: .max, scratchByteCount: 0, context: call) { context, _, _ in
                    let call = context.assumingMemoryBound(to: ChainCall.self)
                    blackHole(Float(call.pointee.kernels.codeProductChains(call.pointee.iterations)))
                }
            }
            return Double(call.iterations) * Double(perIteration * pool.threads)
        }
    }

    /// Memory read in order, in GB/s (10⁹ bytes), with every thread of the pool reading its own part.
    /// `bytesPerThread` is 256 MiB by default, far beyond any cache; choose less to measure a cache.
    public static func read(
        instructionSet: InstructionSet, on pool: WorkerPool, bytesPerThread: Int = 256 << 20,
        duration: Duration = .milliseconds(200)
    ) -> Double {
        let memory = RoofMemory(instructionSet: instructionSet, bytesPerThread: bytesPerThread, on: pool)
        return best(over: duration) {
            memory.readAll()
            return Double(memory.byteCount)
        }
    }

    /// Runs the register tile of the matrix product on the calling thread until `flop` operations are done: one packed tile of the
    /// given depth over and over, with its loads and stores and without packing.
    public static func multiplyTile(instructionSet: InstructionSet, depth: Int, flop: Double) {
        let kernels = instructionSet.kernels
        let (rows, columns) = (kernels.tileRows, kernels.panelWidth)
        let count = rows * depth + columns * depth + rows * columns
        // The panel comes first: its rows are then aligned to whole vectors.
        let panel = UnsafeMutableRawPointer.allocate(byteCount: count * 4, alignment: 64)
            .bindMemory(to: Float.self, capacity: count)
        panel.initialize(repeating: 0.001, count: count)
        defer { panel.deallocate() }
        let strip = panel + columns * depth
        kernels.multiplyTile(strip, panel, strip + rows * depth, depth, Int(flop) / (2 * rows * columns * depth))
    }

    private struct ChainCall {
        let kernels: KernelTable
        let iterations: Int
    }

    /// The highest rate, in 10⁹ per second, of repeated calls to `work`, which returns how much it did.
    private static func best(over duration: Duration, _ work: () -> Double) -> Double {
        let clock = ContinuousClock()
        let start = clock.now
        var best = 0.0
        repeat {
            let before = clock.now
            let amount = work()
            let seconds = before.duration(to: clock.now) / .seconds(1)
            best = max(best, amount / seconds / 1e9)
        } while start.duration(to: clock.now) < duration
        return best
    }

    @inline(never)
    static func blackHole(_ value: Float) { _ = value }
}
