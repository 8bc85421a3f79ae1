import SparseKernels

/// The roof of a quantised product on the threads of a pool, measured between its rounds.
///
/// A run of few tokens waits for its weights: it is called with empty caches, as in a model that is larger than the caches, and
/// its roof is the minimum of those of the bandwidth and of the multiply-adds. For many tokens it is that of the multiply-adds.
final class QuantizedRoof {
    /// Up to this many tokens a product waits for its weights from memory.
    static let fewTokens = 8

    private let set: InstructionSet
    private let pool: WorkerPool
    private let caches: ColdCaches

    init(_ set: InstructionSet, _ pool: WorkerPool) {
        self.set = set
        self.pool = pool
        caches = ColdCaches(set, pool)
    }

    func emptyCaches() { caches.empty() }

    /// The highest rate of `operations`, in 10⁹ per second. With `weightBytes`, all weights are read once after the caches were
    /// emptied.
    func rate(operations: Double, weightBytes: Int?, isInteger: Bool) -> Double {
        let arithmetic =
            isInteger
            ? 2 * MachineRoofs.integerMultiplyAdd(instructionSet: set, on: pool, duration: .zero)
            : MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero)
        guard let weightBytes else { return arithmetic }
        return min(arithmetic, caches.rate(operations: operations, bytes: Double(weightBytes)))
    }
}
