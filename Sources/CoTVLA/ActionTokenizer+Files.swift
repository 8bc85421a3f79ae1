internal import Foundation
public import SparseKernels

/// The JSON form is an object, whose limits are read back with the same bits:
///
///     {"format": "sparsekernels.cotvla", "bins": 256, "low": [-0.9, …], "high": [0.9, …], "tokens": [31744, …]}
extension ActionTokenizer {
    static let format = "sparsekernels.cotvla"

    private struct File: Codable {
        var format: String
        var bins: Int
        var low: [Double]
        var high: [Double]
        var tokens: [Int32]
    }

    /// The JSON form.
    public var json: String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        // Finite numbers and plain strings always encode.
        let data = try! encoder.encode(
            File(format: Self.format, bins: bins.count, low: bins.low, high: bins.high, tokens: vocabulary))
        return String(decoding: data, as: UTF8.self)
    }

    /// Reads the JSON form.
    /// - Throws: `.malformedFile`.
    public init(json: String) throws(SparseKernelsError) { try self.init(Data(json.utf8), named: "json") }

    /// Reads a file in the JSON form.
    /// - Throws: `.inputOutput` when the file cannot be read, `.malformedFile` for what it holds.
    public init(path: String) throws(SparseKernelsError) {
        let data: Data
        do {
            data = try Data(contentsOf: URL(fileURLWithPath: path))
        } catch {
            throw SparseKernelsError(.inputOutput, path, expected: "readable", actual: error.localizedDescription)
        }
        try self.init(data, named: path)
    }

    /// Writes the JSON form.
    /// - Throws: `.inputOutput`.
    public func write(to path: String) throws(SparseKernelsError) {
        do {
            try Data((json + "\n").utf8).write(to: URL(fileURLWithPath: path), options: .atomic)
        } catch {
            throw SparseKernelsError(.inputOutput, path, expected: "writable", actual: error.localizedDescription)
        }
    }

    private init(_ data: Data, named name: String) throws(SparseKernelsError) {
        let file: File
        do {
            file = try JSONDecoder().decode(File.self, from: data)
        } catch {
            throw SparseKernelsError(
                .malformedFile, name, expected: "an object with format, bins, low, high and tokens", actual: "\(error)")
        }
        try require(
            file.format == Self.format, .malformedFile, "\(name), format", expected: Self.format, actual: file.format)
        do throws(SparseKernelsError) {
            try self.init(ActionBins(low: file.low, high: file.high, count: file.bins), vocabulary: file.tokens)
        } catch {
            throw SparseKernelsError(
                .malformedFile, "\(name), \(error.argument)", expected: error.expected, actual: error.actual)
        }
    }
}
