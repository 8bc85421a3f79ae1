import SparseKernels

/// The cases of one section of the tables. A new family is a type in the folder of its subject, and a line in `caseFamilies`.
protocol CaseFamily {
    init(run: RunContext)
    var run: RunContext { get }
    /// The cases. Their operands are not allocated yet, so that cases can be listed and filtered.
    func section() -> Section
}

/// The input of every family.
struct RunContext {
    /// Families with rows of one set only use the first one.
    var instructionSets: [InstructionSet]
    /// Families with rows of one thread count only use the last one.
    var pools: [WorkerPool]
    var openBLAS: OpenBLASBaseline
    /// Whether cases are fewer and shorter.
    var isQuick: Bool
    /// Whether to include cases that take many minutes.
    var isLong: Bool
    /// Heads of the synthetic cases of attention; nil for a number that gives every length about the same work.
    var heads: Int?
    /// Tokens in the cache of the decoding cases; nil for the usual numbers.
    var decodeContexts: [Int]?
    /// Operands that cases share.
    let shared = LastMade()
}

extension CaseFamily {
    var instructionSets: [InstructionSet] { run.instructionSets }
    var instructionSet: InstructionSet { run.instructionSets[0] }
    var pools: [WorkerPool] { run.pools }
    var pool: WorkerPool { run.pools.last! }
    var openBLAS: OpenBLASBaseline { run.openBLAS }
    var isQuick: Bool { run.isQuick }
}

/// Keeps the last value that was made: consecutive cases share operands that take gigabytes and minutes.
final class LastMade {
    private var last: (key: AnyHashable, value: Any)?

    /// Returns the last value if it was made for this key; otherwise drops it and makes another one.
    func value<Value>(for key: some Hashable, make: () throws -> Value) rethrows -> Value {
        if let last, last.key == AnyHashable(key), let value = last.value as? Value { return value }
        last = nil
        let value = try make()
        last = (AnyHashable(key), value)
        return value
    }
}
