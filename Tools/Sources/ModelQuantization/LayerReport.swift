internal import Foundation
public import SparseKernels

/// What became of one layer: a row of the table.
public struct LayerReport: Codable, Hashable, Sendable {
    public var layer: String
    public var outFeatures: Int
    public var inFeatures: Int
    /// Rank of the low-rank branch; 0: none.
    public var rank: Int
    public var activation: String
    /// Bytes of all tensors of the layer but the bias, per element of the weight.
    public var bytesPerWeight: Double
    /// Exponents of the smoothing factors, |x|^α / |w|^β; nil: no smoothing.
    public var alpha: Double?
    public var beta: Double?
    /// Calibration tokens that the errors below were measured on. The layer was not fitted to them, unless there were fewer than four.
    public var tokens: Int
    /// ‖ŷ − y‖ / ‖y‖ (Frobenius) over these tokens, quantised activations included, of a layer whose weight was only rounded…
    public var roundedError: Double
    /// …rounded after smoothing with the same factors; nil without smoothing…
    public var smoothedError: Double?
    /// …and as it was written.
    public var outputError: Double
    /// What quantising took, on the machine and in the run that did it.
    public var seconds: Double

    /// An output error from which on a layer is of no use: half of the output is something else.
    public static let errorLimit = 0.5
    /// Whether the error is above the limit, or no number.
    public var isUseless: Bool { !(outputError <= Self.errorLimit) }
}

/// The table of a run as a file.
public struct QuantizationReport: Codable, Hashable, Sendable {
    public var model: String
    public var output: String
    public var options: QuantizationOptions
    public var calibration: String
    public var layers: [LayerReport]

    public init(_ quantizer: ModelQuantizer, layers: [LayerReport]) {
        model = quantizer.model.name
        output = quantizer.output
        options = quantizer.options
        calibration = quantizer.calibration.summary
        self.layers = layers
    }

    /// Writes JSON, in one step.
    /// - Throws: `.inputOutput`.
    public func write(to path: String) throws(SparseKernelsError) {
        let encoder = JSONEncoder.reports
        encoder.outputFormatting.insert(.prettyPrinted)
        do { try encoder.encode(self).write(to: URL(fileURLWithPath: path), options: .atomic) } catch {
            throw SparseKernelsError(
                .inputOutput, path, expected: "a file that can be written", actual: error.localizedDescription)
        }
    }
}

// JSON has no infinity and no NaN, and an error may be either. A layer with such an error is still a row of the table.
extension JSONEncoder {
    static var reports: JSONEncoder {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.nonConformingFloatEncodingStrategy = .convertToString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        return encoder
    }
}

extension JSONDecoder {
    static var reports: JSONDecoder {
        let decoder = JSONDecoder()
        decoder.nonConformingFloatDecodingStrategy = .convertFromString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        return decoder
    }
}
