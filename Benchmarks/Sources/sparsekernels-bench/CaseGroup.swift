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
    var operations: Operations?
    var density: Double?
    /// What a selection of blocks or codes for weights are worth, where there are such.
    var quality: Quality?
    /// Bytes of weights and scales that a call reads.
    var weightBytes: Int?
    /// What making the layer took; the baseline of a row without `body` is compared by it.
    var quantizationSeconds: Double?
    /// What a step of decoding reads and keeps.
    var decode: DecodeFigures?
}

/// The columns of decoding.
struct DecodeFigures {
    /// New tokens of a call, one per sequence: times and bytes of the row are those of one of them.
    var tokensPerCall = 1
    /// Bytes of the cache that a call must read.
    var bytesRead: Double?
    /// The dense variant with the cache in the same format, by position.
    var sameFormat: Int?
    /// The variant that chooses pages and tokens, by position, and the part of its time that is in this row's.
    var scoring: (index: Int, part: Double)?
    var bytesPerToken: Double?
    var keptTokens: Double?
    var budgetTokens: Double?
}

/// Floating-point operations that are done, and that the dense operation would need; nil when a rate would say nothing.
struct Operations {
    var actual: Double?
    var effective: Double?

    /// For work that has no floating-point operations to speak of.
    static let uncounted = Operations()
}

/// How much of the exact operator an approximation keeps, on the columns of the table.
struct Quality {
    var recall: Double?
    var oracleDensity: Double?
    var outputError: Double?
}

/// A case and all the ways to compute it, which are timed in turn, round by round, so that ratios are taken side by side.
struct CaseGroup {
    var op: String
    var name: String
    var operations: Operations
    /// Labels that variants will add to the name, and further operations: known before the group's turn comes.
    var labels: [String] = []
    var otherOps: [String] = []
    /// Rounds to time, for cases of which one takes many seconds; nil: as the run has it.
    var rounds: Int?
    /// Allocates operands and plans; called when the group's turn comes. The closure tells the user what takes long.
    var variants: (_ announce: (String) -> Void) throws -> [Variant]

    /// The names that rows of this group will have.
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
    /// Follows the title.
    var remark = ""
}
