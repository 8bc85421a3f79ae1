public import SparseKernels
public import SparseKernelsModels

/// Which forms of linear layers the files of a folder have, and which folder a form is run with.
public enum LinearChoice {
    /// Whether `sparsekernels quantize` made the weights of a folder. No for a folder that cannot be read, whose error comes when it
    /// is loaded.
    public static func isQuantized(_ folder: String) -> Bool {
        let file = try? SafetensorsFile(path: folder + "/model.safetensors")
        return file?.metadata["format"] == "sparsekernels.svdquant"
    }

    /// What commands use if nothing is said: 8-bit activations for 4-bit weights, 16-bit weights otherwise.
    public static func standard(for folder: String) -> LinearFormat { isQuantized(folder) ? .w4a8 : .float16 }

    /// The form that is nearest to the weights of the file.
    public static func exact(for folder: String) -> LinearFormat { isQuantized(folder) ? .w4a16 : .float32 }

    /// Reads a list with commas between. nil in the list stands for the form that suits the file.
    /// - Throws: `.invalidArgument`.
    public static func list(_ text: String?) throws(SparseKernelsError) -> [LinearFormat?] {
        guard let text else { return [nil] }
        var formats: [LinearFormat?] = []
        for name in text.split(separator: ",", omittingEmptySubsequences: false) {
            guard let format = LinearFormat(rawValue: String(name)) else {
                throw SparseKernelsError(
                    .invalidArgument, "linear layers",
                    expected: "of \(LinearFormat.allCases.map(\.rawValue).joined(separator: ", "))", actual: "\"\(name)\"")
            }
            formats.append(format)
        }
        return formats
    }

    /// All forms that a model can be run with, exact ones first. w4a4 needs a quantised folder: the model's, another one, or the
    /// repository's.
    public static func all(for folder: String, quantized: String?) -> [LinearFormat] {
        if isQuantized(folder) { return [.w4a16, .w4a8, .w4a4] }
        return [.float16, .bfloat16, .w4a16, .w4a8] + (quantized == nil ? [] : [.w4a4])
    }

    /// The folder that a form is run with.
    public static func folder(for format: LinearFormat, model: String, quantized: String?) -> String {
        format == .w4a4 && !isQuantized(model) ? quantized ?? ModelData.code ?? model : model
    }
}
