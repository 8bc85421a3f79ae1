import SparseKernels

/// What bounds a quantised product on the threads of a pool, measured between its rounds.
///
/// A run of few tokens waits for its weights: it is called with empty caches, as in a model that is larger than they are, and its roof is
/// the least of the bandwidth and of the multiply-adds. A run of many tokens has the multiply-adds as its roof.
final class QuantizedRoof {
    /// Up to this many tokens the weights are read from memory faster than they are used.
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

    /// The highest rate that `operations` can have, in 10⁹ per second. With `weightBytes`, all weights are read once after the caches were
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
