internal import KernelInterface

/// Memory that the threads of a pool read in order, repeatedly, to measure the bandwidth roof between the runs of a benchmark
/// that it bounds. If the memory is larger than the caches, reading it also empties them of other data.
public final class RoofMemory {
    /// The number of bytes that one pass of all threads reads.
    public let byteCount: Int
    private let pool: WorkerPool
    private let call: Call

    /// - Parameters:
    ///   - instructionSet: the level of the loads.
    ///   - bytesPerThread: the part of each thread, rounded down to whole steps of the kernel.
    ///   - pool: the threads.
    public init(instructionSet: InstructionSet, bytesPerThread: Int = 256 << 20, on pool: WorkerPool) {
        let kernels = instructionSet.kernels
        let step = 3 * kernels.sizes.panelWidth
        let count = max(step, bytesPerThread / 4 / step * step)
        let memory = UnsafeMutablePointer<Float>.allocate(capacity: count * pool.threads)
        // Writing gives every page its own memory; untouched pages could share one.
        memory.initialize(repeating: 1, count: count * pool.threads)
        byteCount = count * pool.threads * MemoryLayout<Float>.stride
        call = Call(kernels: kernels, memory: memory, count: count)
        self.pool = pool
    }

    deinit { call.memory.deallocate() }

    /// Reads all memory once.
    public func readAll() { pool.run(call, tasks: pool.threads, work: .max) }

    private struct Call: PoolCall {
        let kernels: any KernelTable.Type
        let memory: UnsafeMutablePointer<Float>
        let count: Int

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            MachineRoofs.blackHole(kernels.readAll(memory + task * count, count: count))
        }
    }
}
