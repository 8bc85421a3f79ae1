public import SparseKernels
import SparseKernelsModels

/// Which forms of linear layers the files of a folder have, and which folder a form is run with.
public enum LinearChoice {
    /// Whether `sparsekernels quantize` made the weights of a folder. No for a folder that cannot be read, whose error comes when it
    /// is loaded.
    public static func isQuantized(_ folder: String) -> Bool {
        let file = try? SafetensorsFile(path: folder + "/model.safetensors")
        return file?.metadata["format"] == "sparsekernels.svdquant"
    }

    /// What commands use if nothing is said: 8-bit activations for 4-bit weights, 16-bit weights otherwise.
    public static func standard(for folder: String) -> LinearSpec { LinearSpec(isQuantized(folder) ? .w4a8 : .float16) }

    /// The form that is nearest to the weights of the file.
    public static func exact(for folder: String) -> LinearSpec { LinearSpec(isQuantized(folder) ? .w4a16 : .float32) }

    /// Reads a list with commas between. nil in the list stands for the form that suits the file.
    /// - Throws: `.invalidArgument`.
    public static func list(_ text: String?) throws(SparseKernelsError) -> [LinearSpec?] {
        guard let text else { return [nil] }
        var specs: [LinearSpec?] = []
        for name in text.split(separator: ",", omittingEmptySubsequences: false) { specs.append(try LinearSpec(String(name))) }
        return specs
    }

    /// All forms that a model can be run with, exact ones first. Those of a model that is not quantised have branches of rank 32, or
    /// none; w4a4 may be of a quantised folder instead.
    public static func all(for folder: String, quantized: String?) -> [LinearSpec] {
        if isQuantized(folder) { return [.w4a16, .w4a8, .w4a4].map { LinearSpec($0) } }
        return [
            LinearSpec(.float16), LinearSpec(.bfloat16), LinearSpec(.fp8), LinearSpec(.w4a16), LinearSpec(.w4a8),
            LinearSpec(.w4a8, rank: 32),
            LinearSpec(.w4a4, rank: 0), LinearSpec(.w4a4, rank: 32),
        ] + (quantized == nil ? [] : [LinearSpec(.w4a4)])
    }

    /// The folder that a form is run with: w4a4 without a rank needs a quantised one, the model's, another one, or the repository's.
    public static func folder(for spec: LinearSpec, model: String, quantized: String?) -> String {
        spec == LinearSpec(.w4a4) && !isQuantized(model) ? quantized ?? ModelData.code ?? model : model
    }
}
