import BenchmarkReport
import SparseKernels

/// What a result was checked with before it was timed.
struct Verification {
    /// Largest deviation relative to its bound, as the deviation and the bound at that element.
    var error: Double
    var bound: Double
    var passed: Bool { error <= bound }

    /// Nothing compared yet.
    static let none = Verification(error: 0, bound: 0)

    /// Keeps whichever deviation is closer to its bound, or further beyond it.
    mutating func add(error: Double, bound: Double) {
        let error = error.isNaN ? .infinity : error
        let isWorse = bound == 0 ? error > 0 : self.bound == 0 || error / bound > self.error / self.bound
        if isWorse { (self.error, self.bound) = (error, bound) }
    }
}

/// One row of a table: a way to compute the case.
struct Variant {
    var isa: String
    var threads: Int
    var body: () -> Void
    /// Checks the result; nil when there is none to check.
    var verify: () throws -> Verification?
    /// Another variant of the group, by position, and what the table calls it.
    var baseline: (index: Int, name: String)?
    /// The roof of this variant, measured in the same rounds, in GFLOP/s.
    var roof: (() -> Double)?
    /// Untimed pause after each call, for libraries whose threads go on spinning for a while.
    var restsAfterwards = false
}

/// A case and all the ways to compute it, which are timed in turn, round by round, so that ratios are taken side by side.
struct CaseGroup {
    var op: String
    var name: String
    /// Floating-point operations that are done, and that the dense operation would need.
    var actualFLOP: Double
    var effectiveFLOP: Double
    var density: Double?
    /// Allocates operands and plans; called when the group's turn comes.
    var variants: () throws -> [Variant]
}

struct Section {
    var title: String
    var groups: [CaseGroup]
    var columns: Set<TextTable.Column>
    var baselines: [String]
}
