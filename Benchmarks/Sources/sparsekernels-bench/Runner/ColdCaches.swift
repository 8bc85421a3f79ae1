import SparseKernels

/// Empties the processor's caches before a call, as a model that is larger than the caches does between two uses of a layer,
/// and measures the memory bandwidth at the same time.
final class ColdCaches {
    /// 64 MiB per thread: more than the last-level caches on which these kernels run, and read in a few milliseconds.
    private lazy var memory = RoofMemory(instructionSet: set, bytesPerThread: 64 << 20, on: pool)
    private let set: InstructionSet
    private let pool: WorkerPool
    /// The bandwidth of the last `empty()`.
    private(set) var bytesPerSecond = 0.0

    init(_ set: InstructionSet, _ pool: WorkerPool) {
        self.set = set
        self.pool = pool
    }

    /// Reads memory that is larger than the caches, and records the bandwidth.
    func empty() {
        let clock = ContinuousClock()
        let start = clock.now
        memory.readAll()
        bytesPerSecond = Double(memory.byteCount) / ((clock.now - start) / .seconds(1))
    }

    /// The highest rate of `operations` that read so many bytes, in 10⁹ per second.
    func rate(operations: Double, bytes: Double) -> Double { operations / (bytes / bytesPerSecond) / 1e9 }
}
