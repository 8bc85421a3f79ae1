internal import Foundation
internal import SparseKernels

/// `quantization_config` in the metadata of a merged checkpoint, which states the formats of the tensors.
///
///     {"method": "svdquant", "weight": {"dtype": "int4", "group_size": 64, …}, "activation": {"dtype": "int4", …}}
enum NunchakuConfiguration {
    static let key = "quantization_config"

    private struct Object: Decodable {
        struct Part: Decodable {
            var dtype: String?
            var groupSize: Int?

            enum CodingKeys: String, CodingKey {
                case dtype
                case groupSize = "group_size"
            }
        }

        var method: String?
        var weight: Part?
        var activation: Part?
    }

    /// Throws unless the metadata state this precision or none.
    ///
    /// A file of the other precision would otherwise run with meaningless results.
    static func check(_ file: SafetensorsFile, is precision: NunchakuPrecision) throws(SparseKernelsError) {
        guard let text = file.metadata[key] else { return }
        let configuration: Object
        do {
            configuration = try JSONDecoder().decode(Object.self, from: Data(text.utf8))
        } catch {
            throw SparseKernelsError(
                .malformedFile, "\(file.name), metadata \(quoted(key))", expected: "a JSON object as nunchaku writes it",
                actual: quoted(text))
        }
        try file.requireMetadata(
            configuration.method ?? "svdquant" == "svdquant", key, expected: "method \"svdquant\"",
            actual: quoted(configuration.method ?? ""))
        for (name, part) in [("weight", configuration.weight), ("activation", configuration.activation)] {
            try file.requireMetadata(
                part?.dtype ?? precision.dtype == precision.dtype, key,
                expected: "\(name) dtype \"\(precision.dtype)\", which is what the tensors hold",
                actual: quoted(part?.dtype ?? ""))
            try file.requireMetadata(
                part?.groupSize ?? precision.groupSize == precision.groupSize, key,
                expected: "\(name) group_size \(precision.groupSize), which is what the tensors have",
                actual: "\(part?.groupSize ?? 0)")
        }
    }

    /// The text for a file of that precision, as written by `nunchaku.merge_safetensors`.
    static func text(_ precision: NunchakuPrecision) -> String {
        let (weight, activation) =
            precision == .int4 ? ("null", "null") : (#"[null, "fp8_e4m3_nan"]"#, #""fp8_e4m3_nan""#)
        func part(_ scales: String) -> String {
            #"{"dtype": "\#(precision.dtype)", "scale_dtype": \#(scales), "group_size": \#(precision.groupSize)}"#
        }
        return #"{"method": "svdquant", "weight": \#(part(weight)), "activation": \#(part(activation))}"#
    }
}
