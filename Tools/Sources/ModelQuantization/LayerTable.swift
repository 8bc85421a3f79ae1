internal import Foundation
internal import Terminal

/// The table for people: a line per layer, with widths that depend on the names that will appear. Long names are shown without
/// their middle; the report for programs has the whole names.
public struct LayerTable: Sendable {
    private let names: NameColumn
    private let table: TextTable

    /// The most characters of a name, which makes a line of 120.
    private static let nameLimit = 34

    public init(layers: [ModelPlan.Layer]) {
        names = NameColumn(layers.map { printable($0.name) }, limit: Self.nameLimit)
        table = TextTable([.init("Layer", width: names.width, alignment: .left)] + Self.columns)
    }

    /// The shown form of a layer's name.
    public func name(_ layer: String) -> String { names.text(printable(layer)) }

    private static let columns: [TextTable.Column] = [
        .init("N × K", width: 13), .init("Rank"), .init("Act.", width: 5), .init("Size", "B/weight"), .init("α", width: 4),
        .init("β", width: 4), .init("RTN", "error %"), .init("Smooth", "error %"), .init("SVDQuant", "error %"),
        .init("Time", "s", width: 6),
    ]

    /// The names, the units and a rule.
    public var header: [String] { table.header }

    /// The line of a layer. If the layer is from an earlier run, its time is in parentheses.
    public func line(_ report: LayerReport, isReused: Bool) -> String {
        let seconds = String(format: "%.1f", report.seconds)
        return table.line(
            [
                name(report.layer), "\(report.outFeatures) × \(report.inFeatures)", "\(report.rank)", report.activation,
                String(format: "%.3f", report.bytesPerWeight), exponent(report.alpha), exponent(report.beta),
                Format.percent(report.roundedError), Format.percent(report.smoothedError), Format.percent(report.outputError),
                isReused ? "(\(seconds))" : seconds,
            ])
    }

    /// The averages of the errors, in which every layer counts the same.
    public func summary(_ reports: [LayerReport]) -> String {
        func mean(_ values: [Double]) -> Double? { values.isEmpty ? nil : values.reduce(0, +) / Double(values.count) }
        let weights = reports.reduce(0) { $0 + $1.outFeatures * $1.inFeatures }
        let bytes = reports.reduce(0) { $0 + $1.bytesPerWeight * Double($1.outFeatures * $1.inFeatures) }
        return table.line(
            [
                "all \(reports.count)", "", "", "", String(format: "%.3f", bytes / Double(max(1, weights))), "", "",
                Format.percent(mean(reports.map(\.roundedError))), Format.percent(mean(reports.compactMap(\.smoothedError))),
                Format.percent(mean(reports.map(\.outputError))),
                String(format: "%.1f", reports.reduce(0) { $0 + $1.seconds }),
            ])
    }

    /// A line about the layers whose output is mostly wrong; nil if there are none.
    public func warning(_ reports: [LayerReport]) -> String? {
        let useless = reports.filter(\.isUseless)
        if useless.isEmpty { return nil }
        let names = useless.prefix(8).map { "\(name($0.layer)) (\(Format.percent($0.outputError)) %)" }
        return
            "\(useless.count) of \(reports.count) layers ended with an error above \(Int(100 * LayerReport.errorLimit)) % of "
            + "their output; --exclude leaves a layer as it is: "
            + names.joined(separator: ", ") + (useless.count > names.count ? ", …" : "")
    }

    private func exponent(_ value: Double?) -> String { value.map { String(format: "%.2f", $0) } ?? "" }
}
