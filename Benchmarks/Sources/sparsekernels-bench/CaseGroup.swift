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
    var operations: Operations?
    var density: Double?
    /// The accuracy of a selection of blocks or of codes for weights, if there are any.
    var quality: Quality?
    /// The bytes of weights and scales that a call reads.
    var weightBytes: Int?
    /// The time of making the layer. A row without `body` is compared with its baseline by this time.
    var quantizationSeconds: Double?
    /// The figures of a decoding step.
    var decode: DecodeFigures?
}

/// The columns of decoding.
struct DecodeFigures {
    /// New tokens of a call, one per sequence. Times and bytes of the row are for one of them.
    var tokensPerCall = 1
    /// The bytes of the cache that a call must read.
    var bytesRead: Double?
    /// The position of the dense variant with the cache in the same format.
    var sameFormat: Int?
    /// The position of the variant that selects pages and tokens, and the fraction of its time that this row's time includes.
    var scoring: (index: Int, part: Double)?
    var bytesPerToken: Double?
    var keptTokens: Double?
    var budgetTokens: Double?
}

/// The floating-point operations that are done, and those that the dense operation would need; nil without a rate.
struct Operations {
    var actual: Double?
    var effective: Double?

    /// For work that has almost no floating-point operations.
    static let uncounted = Operations()
}

/// The accuracy of an approximation of the exact operator, for the columns of the table.
struct Quality {
    var recall: Double?
    var oracleDensity: Double?
    var outputError: Double?
}

/// A case and all ways to compute it, which are timed in turn, round by round, so that ratios are taken side by side.
struct CaseGroup {
    var op: String
    var name: String
    var operations: Operations
    /// Labels that variants will add to the name, and further operations, which must be known before the group runs.
    var labels: [String] = []
    var otherOps: [String] = []
    /// The number of rounds, for cases that take many seconds; nil means that of the run.
    var rounds: Int?
    /// Allocates operands and plans when the group runs. The closure tells the user what takes long.
    var variants: (_ announce: (String) -> Void) throws -> [Variant]

    /// The names of this group's rows.
    var rowNames: [String] { [name] + labels.map { "\(name) \($0)" } }

    /// Whether the group has a row for `--filter`.
    func matches(_ filter: String?) -> Bool {
        ([op] + otherOps).contains { op in rowNames.contains { sparsekernels_bench.matches(filter, op: op, name: $0) } }
    }
}

struct Section {
    var kind: ReportSection
    var groups: [CaseGroup]
    var baselines: [String]
    /// Text after the title.
    var remark = ""
}
