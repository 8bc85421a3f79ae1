public import Foundation
public import SparseKernels

/// A JSON file of rows that grows while they are measured, so that an interrupted run has lost one row.
public struct RowFile<Row: Codable>: Sendable where Row: Sendable {
    public let path: String
    public private(set) var rows: [Row]

    /// - Parameter continues: whether rows of an existing file are kept; otherwise it is replaced when the first row comes.
    /// - Throws: `.inputOutput` and `.malformedFile` for a file to be continued that is none.
    public init(path: String, continues: Bool) throws(SparseKernelsError) {
        self.path = path
        rows = []
        guard continues, FileManager.default.fileExists(atPath: path) else { return }
        do { rows = try JSONDecoder().decode([Row].self, from: Data(contentsOf: URL(fileURLWithPath: path))) } catch {
            throw SparseKernelsError(
                .malformedFile, path, expected: "rows that this command wrote", actual: "something else, or a damaged file")
        }
    }

    /// Adds a row and writes the file anew, in one step.
    /// - Throws: `.inputOutput`.
    public mutating func append(_ row: Row) throws(SparseKernelsError) {
        rows.append(row)
        do { try Self.encode(rows).write(to: URL(fileURLWithPath: path), options: .atomic) } catch {
            throw SparseKernelsError(
                .inputOutput, path, expected: "a file that can be written", actual: error.localizedDescription)
        }
    }

    /// The JSON text of something, for files and standard output.
    public static func encode(_ value: some Encodable) throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(value) + Data("\n".utf8)
    }
}
