internal import Foundation
public import SparseKernels

/// The thresholds of a model's layers, and what they were calibrated for.
///
/// ```swift
/// let thresholds = try CATSThresholds(histograms, sparsity: 0.5)      // a histogram per layer
/// try thresholds.write(to: "cats.json")
/// let layer = try CATSLayer(gate: g, up: u, down: d, threshold: thresholds.values[3])
/// ```
///
/// The JSON form is an object, whose thresholds are read back with the same bits:
///
///     {"format": "sparsekernels.cats", "function": "silu", "sparsity": 0.5, "thresholds": [0.0631, 0.0582, …]}
///
/// The safetensors form has a tensor `thresholds`, `F32` `[layers]`, and the other entries as metadata.
public struct CATSThresholds: Hashable, Sendable {
    /// A threshold per layer, finite and 0 or more.
    public let values: [Float]
    /// The part of the entries that is dropped, on the calibration's text.
    public let sparsity: Double
    /// The activation function, whose results meet the thresholds.
    public let function: GatedActivation.Function

    static let format = "sparsekernels.cats"

    /// - Throws: `.invalidArgument` naming a threshold that is negative or not finite, and for a sparsity outside of [0, 1).
    public init(
        _ values: [Float], sparsity: Double, function: GatedActivation.Function = .silu
    ) throws(SparseKernelsError) {
        for (layer, value) in values.enumerated() { try requireThreshold(value, named: "thresholds[\(layer)]") }
        try requireSparsity(sparsity)
        self.values = values
        self.sparsity = sparsity
        self.function = function
    }

    /// The thresholds at which every layer drops a part of its entries.
    /// - Throws: the errors of `ActivationHistogram.threshold`.
    public init(
        _ histograms: [ActivationHistogram], sparsity: Double, function: GatedActivation.Function = .silu
    ) throws(SparseKernelsError) {
        var values: [Float] = []
        for histogram in histograms { values.append(try histogram.threshold(sparsity: sparsity)) }
        try self.init(values, sparsity: sparsity, function: function)
    }

    // MARK: - JSON

    private struct File: Codable {
        var format: String
        var function: String
        var sparsity: Double
        var thresholds: [Float]
    }

    /// The JSON form.
    public var json: String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        // Finite numbers and plain strings always encode.
        let data = try! encoder.encode(
            File(format: Self.format, function: function.rawValue, sparsity: sparsity, thresholds: values))
        return String(decoding: data, as: UTF8.self)
    }

    /// Reads the JSON form.
    /// - Throws: `.malformedFile`.
    public init(json: String) throws(SparseKernelsError) { try self.init(Data(json.utf8), named: "json") }

    /// Reads a file: safetensors if its name ends so, JSON otherwise.
    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile`, `.notFound` and `.invalidElementType` for what it holds.
    public init(path: String) throws(SparseKernelsError) {
        if path.hasSuffix(".safetensors") {
            try self.init(file: SafetensorsFile(path: path))
            return
        }
        let data: Data
        do {
            data = try Data(contentsOf: URL(fileURLWithPath: path))
        } catch {
            throw SparseKernelsError(.inputOutput, path, expected: "readable", actual: error.localizedDescription)
        }
        try self.init(data, named: path)
    }

    private init(_ data: Data, named name: String) throws(SparseKernelsError) {
        let file: File
        do {
            file = try JSONDecoder().decode(File.self, from: data)
        } catch {
            throw SparseKernelsError(
                .malformedFile, name, expected: "an object with format, function, sparsity and thresholds", actual: "\(error)")
        }
        try require(
            file.format == Self.format, .malformedFile, "\(name), format", expected: Self.format, actual: file.format)
        guard let function = GatedActivation.Function(rawValue: file.function) else {
            throw SparseKernelsError(
                .malformedFile, "\(name), function", expected: "an activation function", actual: file.function)
        }
        do throws(SparseKernelsError) {
            try self.init(file.thresholds, sparsity: file.sparsity, function: function)
        } catch {
            throw SparseKernelsError(
                .malformedFile, "\(name), \(error.argument)", expected: error.expected, actual: error.actual)
        }
    }

    /// Writes the JSON form, or that of safetensors to a path that ends so.
    /// - Throws: `.inputOutput`.
    public func write(to path: String) throws(SparseKernelsError) {
        if path.hasSuffix(".safetensors") {
            var writer = SafetensorsWriter()
            try add(to: &writer)
            return try writer.write(to: path)
        }
        do {
            try Data((json + "\n").utf8).write(to: URL(fileURLWithPath: path), options: .atomic)
        } catch {
            throw SparseKernelsError(.inputOutput, path, expected: "writable", actual: error.localizedDescription)
        }
    }

    // MARK: - Safetensors

    /// Adds the thresholds to a file.
    /// - Throws: `.invalidArgument` for a writer that has a tensor of this name.
    public func add(to writer: inout SafetensorsWriter) throws(SparseKernelsError) {
        try writer.add("thresholds", Tensor([values.count], values))
        writer.metadata["format"] = Self.format
        writer.metadata["function"] = function.rawValue
        writer.metadata["sparsity"] = "\(sparsity)"
    }

    /// Reads the safetensors form.
    /// - Throws: `.notFound`, `.invalidElementType`, `.malformedFile`.
    public init(file: SafetensorsFile) throws(SparseKernelsError) {
        let format = try file.text("format")
        try file.requireMetadata(format == Self.format, "format", expected: Self.format, actual: format)
        let name = try file.text("function")
        let function = GatedActivation.Function(rawValue: name)
        try file.requireMetadata(function != nil, "function", expected: "an activation function", actual: name)
        let text = try file.text("sparsity")
        let sparsity = Double(text)
        try file.requireMetadata(sparsity != nil, "sparsity", expected: "a number", actual: text)
        let values = try file.vector("thresholds", as: Float.self)
        self = try file.validated { () throws(SparseKernelsError) in
            try CATSThresholds(values, sparsity: sparsity!, function: function!)
        }
    }
}

/// Throws `.invalidArgument` unless a threshold is finite and 0 or more.
func requireThreshold(_ value: Float, named name: @autoclosure () -> String) throws(SparseKernelsError) {
    try require(
        value >= 0 && value.isFinite, .invalidArgument, name(), expected: "finite, 0 or more", actual: "\(value)")
}
