internal import KernelInterface

/// The best measured rates of this machine, the denominators of every "percent of roof".
public enum MachineRoofs {
    /// Measures single-precision multiply-adds on registers, in GFLOP/s (two per multiply-add), with every thread of the pool
    /// busy. Returns the best rate within `duration`.
    public static func multiplyAdd(
        instructionSet: InstructionSet, on pool: WorkerPool, duration: Duration = .milliseconds(200)
    ) -> Double {
        let kernels = instructionSet.kernels
        let perIteration = 3 * kernels.sizes.tileRows * kernels.sizes.laneCount * 2
        let call = ChainCall(kernels: kernels, iterations: 1 << 22, multipliesCodes: false)
        return best(over: duration) {
            pool.run(call, tasks: pool.threads, work: .max)
            return Double(call.iterations) * Double(perIteration * pool.threads)
        }
    }

    /// Measures multiply-adds of 8-bit codes on registers, in 10⁹ per second, with every thread of the pool busy. Quantised
    /// products would reach this rate if nothing else had to be done. Returns the best rate within `duration`.
    public static func integerMultiplyAdd(
        instructionSet: InstructionSet, on pool: WorkerPool, duration: Duration = .milliseconds(200)
    ) -> Double {
        let kernels = instructionSet.kernels
        let perIteration = 3 * kernels.sizes.tileRows * 4 * kernels.sizes.laneCount
        let call = ChainCall(kernels: kernels, iterations: 1 << 22, multipliesCodes: true)
        return best(over: duration) {
            pool.run(call, tasks: pool.threads, work: .max)
            return Double(call.iterations) * Double(perIteration * pool.threads)
        }
    }

    /// Measures exponentials of floats in the nearest cache, in 10⁹ per second, with every thread of the pool busy. Returns the best rate
    /// within `duration`.
    public static func exponential(
        instructionSet: InstructionSet, on pool: WorkerPool, duration: Duration = .milliseconds(200)
    ) -> Double {
        let call = ExponentialCall(kernels: instructionSet.kernels, rounds: 1 << 14)
        return best(over: duration) {
            pool.run(call, tasks: pool.threads, work: .max, scratchByteCount: 8 * ExponentialCall.count)
            return Double(call.rounds) * Double(ExponentialCall.count * pool.threads)
        }
    }

    private struct ExponentialCall: PoolCall {
        /// 8 KiB of arguments and results.
        static let count = 1024
        let kernels: any KernelTable.Type
        let rounds: Int

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let source = scratch.assumingMemoryBound(to: Float.self)
            for index in 0..<Self.count { source[index] = -Float(index) / 64 }
            kernels.exponentials(source, into: source + Self.count, count: Self.count, rounds: rounds)
            blackHole(source[Self.count])
        }
    }

    /// Measures reading memory in order, in GB/s (10⁹ bytes), with every thread of the pool reading its own part.
    /// `bytesPerThread` is 256 MiB by default, far more than any cache; choose less to measure a cache.
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

    /// Runs the register tile of the matrix product on the calling thread for `flop` operations. It repeats one packed tile of
    /// the given depth, with loads and stores but without packing.
    public static func multiplyTile(instructionSet: InstructionSet, depth: Int, flop: Double) {
        let kernels = instructionSet.kernels
        let (rows, columns) = (kernels.sizes.tileRows, kernels.sizes.panelWidth)
        let count = rows * depth + columns * depth + rows * columns
        // The panel comes first, so that its rows are aligned to whole vectors.
        let panel = UnsafeMutableRawPointer.allocate(byteCount: count * 4, alignment: 64)
            .bindMemory(to: Float.self, capacity: count)
        panel.initialize(repeating: 0.001, count: count)
        defer { panel.deallocate() }
        let strip = panel + columns * depth
        kernels.multiplyTile(
            strip: strip, panel: panel, c: strip + rows * depth, depth: depth,
            iterations: Int(flop) / (2 * rows * columns * depth))
    }

    private struct ChainCall: PoolCall {
        let kernels: any KernelTable.Type
        let iterations: Int
        let multipliesCodes: Bool

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            blackHole(
                multipliesCodes
                    ? Float(kernels.codeProductChains(iterations: iterations))
                    : kernels.multiplyAddChains(iterations: iterations, seed: 0.5))
        }
    }

    /// The highest rate, in 10⁹ per second, of repeated calls to `work`, which returns the amount of its work.
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
