internal import Foundation
public import SparseKernels

/// The result of one layer, which is a row of the table.
public struct LayerReport: Codable, Hashable, Sendable {
    public var layer: String
    public var outFeatures: Int
    public var inFeatures: Int
    /// The rank of the low-rank branch; 0 means that there is none.
    public var rank: Int
    public var activation: String
    /// Bytes of all tensors of the layer except the bias, per element of the weight.
    public var bytesPerWeight: Double
    /// The exponents of the smoothing factors, |x|^α / |w|^β; nil means no smoothing.
    public var alpha: Double?
    public var beta: Double?
    /// The number of calibration tokens for the errors. The layer was not fitted to them if there were four or more.
    public var tokens: Int
    /// ‖ŷ − y‖ / ‖y‖ (Frobenius) over these tokens, with quantised activations and a weight that is only rounded.
    public var roundedError: Double
    /// The same error with a weight that is rounded after smoothing with the layer's factors; nil without smoothing.
    public var smoothedError: Double?
    /// The same error of the layer as written.
    public var outputError: Double
    /// The time of quantising, on the machine and in the run that did it.
    public var seconds: Double

    /// The output error above which a layer is useless, because half of its output is wrong.
    public static let errorLimit = 0.5
    /// Whether the error is above the limit, or not a number.
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

    /// Writes JSON in one step.
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

// JSON has no infinity and no NaN, but an error may be either. A layer with such an error is still a row of the table.
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
