import SparseKernels

/// Empties the processor's caches before a call, as a model that is larger than they are does between two uses of a layer, and measures
/// the memory bandwidth on the way.
final class ColdCaches {
    /// 64 MiB a thread: beyond the last-level caches that these kernels meet, and read in a few milliseconds.
    private lazy var memory = RoofMemory(instructionSet: set, bytesPerThread: 64 << 20, on: pool)
    private let set: InstructionSet
    private let pool: WorkerPool
    /// Of the last `empty()`.
    private(set) var bytesPerSecond = 0.0

    init(_ set: InstructionSet, _ pool: WorkerPool) {
        self.set = set
        self.pool = pool
    }

    /// Reads through memory that is larger than the caches, and notes how fast that went.
    func empty() {
        let clock = ContinuousClock()
        let start = clock.now
        memory.readAll()
        bytesPerSecond = Double(memory.byteCount) / ((clock.now - start) / .seconds(1))
    }

    /// The highest rate that `operations` can have when they read so many bytes, in 10⁹ per second.
    func rate(operations: Double, bytes: Double) -> Double { operations / (bytes / bytesPerSecond) / 1e9 }
}
