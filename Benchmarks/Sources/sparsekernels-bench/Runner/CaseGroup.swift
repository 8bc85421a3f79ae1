import BenchmarkReport
import SparseKernels

/// The result of the check of a variant before it is timed.
struct Verification {
    /// The largest deviation relative to its bound, as the deviation and the bound at that element.
    var error: Double
    var bound: Double
    var passed: Bool { error <= bound }

    /// The result before anything is compared.
    static let none = Verification(error: 0, bound: 0)

    /// Keeps the deviation that is closest to its bound, or furthest beyond it.
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
    /// The timed closure; nil for a row without a time of its own.
    var body: (() -> Void)?
    /// Without `body`: the variants, by position, whose weighted times add up to the time of a round.
    var mixture: [(index: Int, weight: Double)] = []
    /// Whether the variant is timed only as a part of other rows, and has no row itself.
    var isHidden = false
    /// Checks the result; nil when there is none to check.
    var verify: () throws -> Verification?
    /// An untimed closure before each call, such as emptying the caches, which makes calls alike. Calls are then not batched.
    var preparation: (() -> Void)?
    /// The position of the baseline in the group, and its name in the table.
    var baseline: (index: Int, name: String)?
    /// The roof of this variant, measured in the same rounds, in GFLOP/s.
    var roof: (() -> Double)?
    /// Whether to pause, untimed, after each call, for libraries whose threads continue to spin for a while.
    var restsAfterwards = false

    // The following differ when the variants of a group differ in more than the computation. Nil means the group's value.

    var op: String?
    /// The label after the group's name.
    var label: String?
    /// Amounts per call whose rates the row shows in 10⁹ per second, such as operations; nil for those of the group.
    var amounts: [Metric: Double]?
    /// Metrics that are known before timing. The baseline of a row without `body` is compared by `quantizationSeconds`.
    var metrics: [Metric: Double] = [:]
    /// Metrics that follow from the samples of the group, in which the variants are named by position.
    var sampled: [Metric: (InterleavedSamples) -> Double] = [:]
    /// New tokens per call. The times of the row are per token.
    var tokensPerCall = 1
}

extension [Metric: Double] {
    /// Floating-point operations of a call, and those that the dense operation would need.
    static func operations(_ actual: Double, effective: Double? = nil) -> Self {
        var amounts: Self = [.actualGFLOPS: actual]
        amounts[.effectiveGFLOPS] = effective
        return amounts
    }

    /// For work without a meaningful rate.
    static let uncounted: Self = [:]
}

/// A case and all ways to compute it, which are timed in turn, round by round, so that ratios are taken side by side.
struct CaseGroup {
    var op: String
    var name: String
    var amounts: [Metric: Double]
    /// Labels that variants will add to the name, and further operations, which must be known before the group runs.
    var labels: [String] = []
    var otherOps: [String] = []
    /// The number of rounds, for cases that take many seconds; nil means that of the run.
    var rounds: Int?
    /// Allocates operands and plans when the group runs. The closure announces slow steps to the user.
    var variants: (_ announce: (String) -> Void) throws -> [Variant]

    /// The names of this group's rows.
    var rowNames: [String] { [name] + labels.map { "\(name) \($0)" } }

    /// The names that `--filter` searches.
    var cases: [(op: String, name: String)] { ([op] + otherOps).flatMap { op in rowNames.map { (op, $0) } } }
}

struct Section {
    var kind: ReportSection
    var groups: [CaseGroup]
    var baselines: [String]
    /// The names that rows show instead of an instruction set.
    var otherISAs: [String] = []
    /// Text after the title.
    var remark = ""
}
