public import Foundation

/// The complete result of a run: the machine, its roofs, and the rows.
public struct Report: Codable, Sendable, Equatable {
    public var machine: Machine
    public var roofs: Roofs
    public var rows: [BenchmarkRow]

    public init(machine: Machine, roofs: Roofs = [:], rows: [BenchmarkRow] = []) {
        self.machine = machine
        self.roofs = roofs
        self.rows = rows
    }

    /// The report as indented JSON with sorted keys, so that any text tool can compare two reports.
    public func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(self) + Data("\n".utf8)
    }

    /// Writes the report. An interrupted run leaves the previous file unchanged.
    ///
    /// Anything other than a plain file (a pipe, `/dev/stdout`) is written to, not replaced.
    public func write(to path: String) throws {
        let manager = FileManager.default
        let type = try? manager.attributesOfItem(atPath: path)[.type] as? FileAttributeType
        let isReplaceable = type == nil || type == .typeRegular
        try json().write(to: URL(fileURLWithPath: path), options: isReplaceable ? .atomic : [])
    }

    public init(contentsOf path: String) throws {
        self = try JSONDecoder().decode(Self.self, from: Data(contentsOf: URL(fileURLWithPath: path)))
    }
}

// MARK: - Roofs

/// The name of a limit that the benchmark measures on this machine: quantity, unit and number of cores.
public struct Roof: RawRepresentable, Hashable, Sendable {
    public let rawValue: String

    public init(rawValue: String) {
        self.rawValue = rawValue
    }

    public static let fmaOneCore = Roof(rawValue: "fma_gflops_1")
    public static let fmaAllCores = Roof(rawValue: "fma_gflops_all")
    public static let int8DotOneCore = Roof(rawValue: "int8_dot_gops_1")
    public static let int8DotAllCores = Roof(rawValue: "int8_dot_gops_all")
    public static let readOneCore = Roof(rawValue: "read_gbs_1")
    public static let readAllCores = Roof(rawValue: "read_gbs_all")
}

/// Measured roofs by name. Like any other number, a roof that is not finite is left out of the JSON.
public struct Roofs: Codable, Sendable, Equatable, ExpressibleByDictionaryLiteral {
    private var values: [String: Double]

    public init(dictionaryLiteral elements: (Roof, Double)...) {
        values = Dictionary(elements.map { ($0.rawValue, $1) }, uniquingKeysWith: { $1 })
    }

    public subscript(roof: Roof) -> Double? {
        get { values[roof.rawValue] }
        set { values[roof.rawValue] = newValue }
    }

    /// The roofs in alphabetical order of their names.
    public var all: [(roof: Roof, value: Double)] {
        values.sorted { $0.key < $1.key }.map { (Roof(rawValue: $0.key), $0.value) }
    }

    public init(from decoder: any Decoder) throws {
        values = try decoder.singleValueContainer().decode([String: Double].self)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(values.filter { $0.value.isFinite })
    }
}
