internal import KernelInterface

/// Memory that the threads of a pool read in order, over and over: the bandwidth roof for rounds that lie between those of what it
/// bounds. What lay in the caches before is gone afterwards, when the memory is larger than they are.
public final class RoofMemory {
    /// Bytes that one pass reads, all threads together.
    public let byteCount: Int
    private let pool: WorkerPool
    private let call: Call

    /// - Parameters:
    ///   - instructionSet: whose loads read.
    ///   - bytesPerThread: the part of one thread, rounded down to whole steps of the kernel.
    ///   - pool: the threads.
    public init(instructionSet: InstructionSet, bytesPerThread: Int = 256 << 20, on pool: WorkerPool) {
        let kernels = instructionSet.kernels
        let step = 3 * kernels.sizes.panelWidth
        let count = max(step, bytesPerThread / 4 / step * step)
        let memory = UnsafeMutablePointer<Float>.allocate(capacity: count * pool.threads)
        // Written once, so that every page is a page of its own.
        memory.initialize(repeating: 1, count: count * pool.threads)
        byteCount = count * pool.threads * MemoryLayout<Float>.stride
        call = Call(kernels: kernels, memory: memory, count: count)
        self.pool = pool
    }

    deinit { call.memory.deallocate() }

    /// Reads everything once.
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
