import SparseKernels

/// The cases of one section of the tables. A new family is a type of this kind, in a folder of its subject, and a line in `caseFamilies`.
protocol CaseFamily {
    init(run: RunContext)
    var run: RunContext { get }
    /// What there is to measure. Nothing is allocated yet, so that cases can be listed and left out.
    func section() -> Section
}

/// What every family is told.
struct RunContext {
    /// Families with rows of one set only have those of the first one.
    var instructionSets: [InstructionSet]
    /// Families with rows of one thread count only have those of the last one.
    var pools: [WorkerPool]
    var openBLAS: OpenBLASBaseline
    /// Fewer and shorter cases.
    var isQuick: Bool
    /// Also cases that take many minutes.
    var isLong: Bool
    /// Heads of the synthetic cases of attention; nil for as many as give every length about the same work.
    var heads: Int?
    /// Tokens in the cache of the decoding cases; nil for the usual ones.
    var decodeContexts: [Int]?
    /// Operands that cases have in common.
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

/// Keeps what was made last: cases that follow each other share operands which take gigabytes and minutes.
final class LastMade {
    private var last: (key: AnyHashable, value: Any)?

    /// The value that was made last if it was made for this key; otherwise it is dropped and another one made.
    func value<Value>(for key: some Hashable, make: () throws -> Value) rethrows -> Value {
        if let last, last.key == AnyHashable(key), let value = last.value as? Value { return value }
        last = nil
        let value = try make()
        last = (AnyHashable(key), value)
        return value
    }
}
