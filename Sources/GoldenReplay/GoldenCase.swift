internal import Foundation
public import SparseKernels

/// A recorded call of an released implementation: a safetensors file with inputs `in.*`, expected outputs `out.*`, and the
/// operation and its parameters in the metadata.
public struct GoldenCase: Sendable {
    public let file: SafetensorsFile
    /// The operation, such as `blocksparse.attention`.
    public let operation: String
    /// The name of the case, or that of the file when it has none.
    public let name: String

    /// - Throws: `.malformedFile` when the file is not safetensors or names no operation, `.inputOutput` for reading errors.
    public init(path: String) throws(SparseKernelsError) {
        file = try SafetensorsFile(path: path)
        guard let operation = file.metadata["op"] else {
            throw SparseKernelsError(
                .malformedFile, path, expected: "a golden case, with \"op\" in its metadata",
                actual: "metadata \(file.metadata.keys.sorted())")
        }
        self.operation = operation
        name = file.metadata["case"] ?? URL(fileURLWithPath: path).deletingPathExtension().lastPathComponent
    }

    /// The parameters of the call, from the JSON object under `params` in the metadata.
    public func parameters<Parameters: Decodable>(_ type: Parameters.Type) throws(SparseKernelsError) -> Parameters {
        let text = file.metadata["params"] ?? "{}"
        do {
            return try JSONDecoder().decode(type, from: Data(text.utf8))
        } catch {
            throw SparseKernelsError(.malformedFile, "params of \(name)", expected: "\(type)", actual: text)
        }
    }
}

/// The result of one case: the output that is closest to its bound, or exceeds it most.
public struct GoldenResult: Sendable {
    public let name: String
    public let operation: String
    /// The largest deviation, and the bound for that element.
    public let error: Double
    public let bound: Double
    /// The output and the element, with the values.
    public let detail: String

    public var passed: Bool { error <= bound }

    /// One line for people.
    public var line: String {
        func text(_ value: Double) -> String { String(format: "%.2e", value) }
        let verdict = passed ? "PASS" : "FAIL"
        return "\(verdict)  \(name)  \(operation)  error \(text(error)) of \(text(bound))\(passed ? "" : "  \(detail)")"
    }
}

/// Compares outputs with expectations, keeping the worst ratio of error to bound.
public struct GoldenComparison {
    private var error = 0.0
    private var bound = 0.0
    private var ratio = -1.0
    private var detail = ""

    public init() {}

    /// Infinities and NaN must match exactly, and finite values within `bound`.
    public mutating func compare(_ label: @autoclosure () -> String, actual: Double, expected: Double, bound: Double) {
        let same = actual == expected || (actual.isNaN && expected.isNaN)
        let difference = same ? 0 : abs(actual - expected)
        let error = difference.isNaN ? .infinity : difference
        let ratio = error == 0 ? 0 : error / bound
        if ratio > self.ratio {
            (self.error, self.bound, self.ratio) = (error, bound, ratio)
            detail = "\(label()): got \(actual), expected \(expected)"
        }
    }

    public func result(_ golden: GoldenCase) -> GoldenResult {
        GoldenResult(name: golden.name, operation: golden.operation, error: error, bound: bound, detail: detail)
    }
}
