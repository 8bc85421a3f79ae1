internal import Foundation
internal import SVDQuant
public import SparseKernels
internal import Terminal

/// The contents of a safetensors file for people: a line per tensor, and one per layer in SVDQuant form.
///
/// It reads names, shapes and metadata, but no tensor, so it is fast for files of any size.
public struct ModelListing: Sendable {
    private let file: SafetensorsFile
    private let showsMetadata: Bool
    private let nameLimit: Int

    /// The most characters of a name or a shape in a table. Longer ones are shown without their middle.
    private static let cellLimit = 64

    /// - Parameters:
    ///   - file: the open file.
    ///   - showsMetadata: whether to list the metadata too.
    ///   - showsFullNames: whether to show names in full, however wide the tables become.
    public init(_ file: SafetensorsFile, showsMetadata: Bool = false, showsFullNames: Bool = false) {
        self.file = file
        self.showsMetadata = showsMetadata
        nameLimit = showsFullNames ? .max : Self.cellLimit
    }

    public var lines: [String] {
        let bytes = file.tensors.reduce(0) { $0 + $1.byteRange.count }
        var lines = ["\(printable(file.name)): \(file.tensors.count) tensors, \(bytes) bytes"]
        if showsMetadata {
            lines += file.metadata.sorted { $0.key < $1.key }.map { "  \(printable($0.key)) = \(printable($0.value))" }
        }
        var partsOfLayers: Set<String> = []
        var rows: [[String]] = []
        // A file of another format has no such layers.
        for layer in ((try? SVDQuantLinear.layers(in: file)) ?? []).sorted(by: isBefore) {
            let parts = parts(of: layer)
            partsOfLayers.formUnion(parts.map(\.name))
            rows.append(row(of: layer, parts))
        }
        lines += table(["Layer", "N × K", "Weights", "Activations", "Rank", "Also", "Bytes", "B/weight", "Error %"], rows)
        let others = file.tensors.filter { !partsOfLayers.contains($0.name) }.sorted { isBefore($0.name, $1.name) }
        lines += table(
            ["Tensor", "Type", "Shape", "Bytes"],
            others.map { [printable($0.name), $0.elementType.rawValue, shapeText($0.shape), "\($0.byteRange.count)"] })
        return lines
    }

    private func text(_ key: String, of layer: String) -> String {
        printable(file.metadata[layer.isEmpty ? key : "\(layer).\(key)"] ?? "?")
    }

    private func parts(of layer: String) -> [SafetensorsEntry] {
        text("tensors", of: layer).split(separator: " ").compactMap { file[layer.isEmpty ? String($0) : "\(layer).\($0)"] }
    }

    private func row(of layer: String, _ parts: [SafetensorsEntry]) -> [String] {
        let (rows, columns) = (text("outFeatures", of: layer), text("inFeatures", of: layer))
        let bytes = parts.reduce(0) { $0 + $1.byteRange.count }
        let bias = parts.first { $0.name.hasSuffix("bias") }?.byteRange.count ?? 0
        let perWeight = Double(rows).flatMap { rows in Double(columns).map { Double(bytes - bias) / (rows * $0) } }
        let extras = ["smooth", "bias"].filter { extra in parts.contains { $0.name.hasSuffix(extra) } }
        return [
            printable(layer), "\(rows) × \(columns)", "\(text("code", of: layer)) group \(text("groupSize", of: layer))",
            text("activation", of: layer), text("rank", of: layer), extras.joined(separator: ", "), "\(bytes)",
            perWeight.map { String(format: "%.3f", $0) } ?? "?",
            Format.percent(Double(text(ModelQuantizer.outputErrorKey, of: layer))),
        ]
    }

    /// A table with columns as wide as their widest cell, after an empty line and a header. Nothing if there are no rows.
    private func table(_ header: [String], _ rows: [[String]]) -> [String] {
        if rows.isEmpty { return [] }
        let names = NameColumn(rows.map { $0[0] }, limit: nameLimit)
        let rows = rows.map { row in
            // The other cells come from the file too. None is that long in a regular file.
            [names.text(row[0])] + row.dropFirst().map { NameColumn([$0], limit: Self.cellLimit).text($0) }
        }
        let table = TextTable(
            header.indices.map { column in
                .init(header[column], width: rows.map { $0[column].count }.max()!, alignment: .left)
            })
        return [""] + ([header] + rows).map { table.line($0).trimmingCharacters(in: .whitespaces) }
    }
}

/// The order of names for people: layers.2 before layers.10.
func isBefore(_ a: String, _ b: String) -> Bool { a.compare(b, options: .numeric) == .orderedAscending }

/// "1 layer", "2 layers".
func counted(_ count: Int, _ noun: String) -> String { "\(count) \(noun)\(count == 1 ? "" : "s")" }

/// The shown form of a shape, which is short for any rank.
func shapeText(_ shape: [Int]) -> String {
    shape.count <= 8 ? "\(shape)" : "[\(shape.prefix(8).map(String.init).joined(separator: ", ")), … \(shape.count) in all]"
}

/// Text from a file without control characters, for a terminal.
func printable(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
        result += scalar == "\"" || scalar == "\\" ? String(scalar) : scalar.escaped(asASCII: false)
    }
    return result
}
