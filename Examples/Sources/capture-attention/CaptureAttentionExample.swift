import Foundation
import SparseKernels

/// Attention of tensors in a safetensors file, which are read in place. The result goes to another file.
///
///     swift run --package-path Examples -c release capture-attention \
///         Benchmarks/Data/lm-layer3-8192.safetensors attention.safetensors
///
/// The file has tensors `query`, `key` and `value`, `[heads, tokens, headDim]`, of one element type: F32, F16 or BF16.
/// `softmaxScale` and `causal` in its metadata are optional.
@main
struct CaptureAttentionExample {
    static func main() {
        guard CommandLine.arguments.count == 3 else {
            print("usage: capture-attention CAPTURE.safetensors OUTPUT.safetensors")
            exit(2)
        }
        do {
            try attend(CommandLine.arguments[1], into: CommandLine.arguments[2])
        } catch {
            // The error names the argument, file or tensor, and the expected and actual values.
            print(error)
            exit(1)
        }
    }

    static func attend(_ path: String, into outputPath: String) throws(SparseKernelsError) {
        let file = try SafetensorsFile(path: path)
        let type = try file.entry(named: "query").elementType
        let state =
            switch type {
            case .float16: try attend(file, as: Float16.self)
            case .bfloat16: try attend(file, as: BFloat16.self)
            default: try attend(file, as: Float.self)
            }
        var writer = SafetensorsWriter(metadata: ["source": path, "layout": "[heads, tokens, headDim]", "lse": "natural log"])
        try writer.add("output", state.output)
        try writer.add("logSumExp", state.logSumExp)
        try writer.write(to: outputPath)
        print("\(outputPath): output \(state.output.shape), logSumExp \(state.logSumExp.shape)")
    }

    /// Views use the file's memory, so nothing is converted or copied first. The compiler checks that `file` outlives them.
    static func attend<Element: AttentionElement>(
        _ file: SafetensorsFile, as type: Element.Type
    ) throws(SparseKernelsError) -> AttentionState {
        let query = try file.tensorView("query", as: Element.self)
        let key = try file.tensorView("key", as: Element.self)
        let value = try file.tensorView("value", as: Element.self)
        let shape = try AttentionShape(query: query, key: key, value: value)
        let modifiers = ScoreModifiers(softmaxScale: file.metadata["softmaxScale"].flatMap { Float($0) })
        let mask: AttentionMask = file.metadata["causal"] == "true" ? .causal : .full

        var output = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength, shape.valueDim])
        var logSumExp = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength])
        try DenseAttention(shape, mask: mask, modifiers: modifiers).run(
            query: query, key: key, value: value, output: output.mutableView(), logSumExp: logSumExp.mutableSpan)
        return try AttentionState(output: output, logSumExp: logSumExp)
    }
}
