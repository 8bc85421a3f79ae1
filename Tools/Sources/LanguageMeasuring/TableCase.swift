import Terminal

/// A row of the tables before it is measured.
public struct TableCase: Hashable, Sendable {
    public enum Kind: String, Hashable, Sendable, CaseIterable { case methods, formats }

    public let kind: Kind
    public let context: Int
    public let method: MethodSpec
    public let linear: LinearSpec
    public let cache: CacheSpec

    /// The methods that are compared if nothing is said.
    public static let methods = [
        "xattention:0.9", "xattention:0.95:8", "minference:12.5%:25%", "sparge:0.5", "streaming:128:1024",
        "dense+streaming:128:1024", "dense+quest:20%", "dense+twilight:25%:0.95", "dense+lserve:20%",
        "xattention:0.95:8+twilight:25%:0.95",
    ].joined(separator: ",")
    public static let caches = "float16,int8,int4,int4r"

    /// The cases of both tables. Dense attention is the first of each context, and float16 caches of the second table.
    public static func all(
        only kind: Kind?, contexts: [Int], methods: [MethodSpec], linear: LinearSpec, linears: [LinearSpec],
        caches: [CacheSpec], formatContext: Int
    ) -> [TableCase] {
        var cases: [TableCase] = []
        let dense = try! MethodSpec("dense")
        if kind != .formats {
            for context in contexts {
                for method in [dense] + methods.filter({ !$0.isDense }) {
                    cases.append(TableCase(kind: .methods, context: context, method: method, linear: linear, cache: .float16))
                }
            }
        }
        if kind != .methods {
            // All caches with the first linear layers, then the others with the first cache.
            for (index, linear) in linears.enumerated() {
                for cache in index == 0 ? caches : Array(caches.prefix(1)) {
                    cases.append(TableCase(kind: .formats, context: formatContext, method: dense, linear: linear, cache: cache))
                }
            }
        }
        return cases
    }

    /// The row, not measured.
    public func row(_ plan: MeasurementPlan) -> LanguageRow {
        LanguageRow(
            method: method.description, linear: linear.description, cache: cache.description, context: context, plan: plan)
    }

    /// Proportional to the time that it takes, about: linear layers and attention take the same time at 8K.
    public func work(_ plan: MeasurementPlan) -> Double {
        Double(plan.windows + plan.trials) * Double(context) * (1 + Double(context) / 8192)
    }

    public var title: String {
        kind == .methods ? "\(context) tokens, \(method)" : "\(linear), \(cache)"
    }
}

/// Makes the lines of both tables, one row at a time.
public struct TablePrinter: Sendable {
    private let methodTable: TextTable
    private let formatTable: TextTable
    private var kind: TableCase.Kind?
    /// The rows that others are compared with.
    private var dense: [Int: LanguageRow] = [:]
    private var first: LanguageRow?

    public init(cases: [TableCase]) {
        let methods = cases.filter { $0.kind == .methods }.map(\.method.description.count).max() ?? 0
        let caches = cases.filter { $0.kind == .formats }.map(\.cache.description.count).max() ?? 0
        methodTable = LanguageRow.methodTable(nameWidth: methods)
        formatTable = LanguageRow.formatTable(cacheWidth: caches)
    }

    /// The lines of a row, after a header where a table begins.
    public mutating func add(_ row: LanguageRow, of item: TableCase) -> [String] {
        var lines: [String] = []
        if kind != item.kind {
            lines = (kind == nil ? [] : [""]) + (item.kind == .methods ? methodTable : formatTable).header
            kind = item.kind
        }
        switch item.kind {
        case .methods:
            lines.append(row.methodLine(in: methodTable, dense: dense[item.context]))
            if item.method.isDense { dense[item.context] = row }
        case .formats:
            lines.append(row.formatLine(in: formatTable, first: first))
            if first == nil { first = row }
        }
        return lines
    }
}
