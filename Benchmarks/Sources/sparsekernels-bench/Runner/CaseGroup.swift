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
    /// What is timed; nil for a row without a time of its own.
    var body: (() -> Void)?
    /// Without `body`: the time of a round is the sum of those of other variants, by position, times their weights.
    var mixture: [(index: Int, weight: Double)] = []
    /// Timed for the sake of others, and no row.
    var isHidden = false
    /// Checks the result; nil when there is none to check.
    var verify: () throws -> Verification?
    /// Untimed, before each call, which then is not repeated within a sample: what makes calls alike, such as emptying the caches.
    var preparation: (() -> Void)?
    /// Another variant of the group, by position, and what the table calls it.
    var baseline: (index: Int, name: String)?
    /// The roof of this variant, measured in the same rounds, in GFLOP/s.
    var roof: (() -> Double)?
    /// Untimed pause after each call, for libraries whose threads go on spinning for a while.
    var restsAfterwards = false

    // Where the variants of a group differ in more than how they compute. nil: as the group has it.

    var op: String?
    /// Follows the group's name.
    var label: String?
    /// Amounts of a call that become 10⁹ per second of its time, such as operations; nil for those of the group.
    var amounts: [Metric: Double]?
    /// What is known before anything is timed. The baseline of a row without `body` is compared by `quantizationSeconds`.
    var metrics: [Metric: Double] = [:]
    /// What follows from the samples of the group, in which the variants are named by position.
    var sampled: [Metric: (InterleavedSamples) -> Double] = [:]
    /// New tokens of a call: times of the row are those of one of them.
    var tokensPerCall = 1
}

extension [Metric: Double] {
    /// Floating-point operations of a call, and those that the dense operation would need.
    static func operations(_ actual: Double, effective: Double? = nil) -> Self {
        var amounts: Self = [.actualGFLOPS: actual]
        amounts[.effectiveGFLOPS] = effective
        return amounts
    }

    /// For work whose rate would say nothing.
    static let uncounted: Self = [:]
}

/// A case and all the ways to compute it, which are timed in turn, round by round, so that ratios are taken side by side.
struct CaseGroup {
    var op: String
    var name: String
    var amounts: [Metric: Double]
    /// Labels that variants will add to the name, and further operations: known before the group's turn comes.
    var labels: [String] = []
    var otherOps: [String] = []
    /// Rounds to time, for cases of which one takes many seconds; nil: as the run has it.
    var rounds: Int?
    /// Allocates operands and plans; called when the group's turn comes. The closure tells the user what takes long.
    var variants: (_ announce: (String) -> Void) throws -> [Variant]

    /// The names that rows of this group will have.
    var rowNames: [String] { [name] + labels.map { "\(name) \($0)" } }

    /// What `--filter` looks at.
    var cases: [(op: String, name: String)] { ([op] + otherOps).flatMap { op in rowNames.map { (op, $0) } } }
}

struct Section {
    var kind: ReportSection
    var groups: [CaseGroup]
    var baselines: [String]
    /// What rows name in the place of an instruction set.
    var otherISAs: [String] = []
    /// Follows the title.
    var remark = ""
}
