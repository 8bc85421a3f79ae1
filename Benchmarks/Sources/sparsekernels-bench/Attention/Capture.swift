import Foundation
import SparseKernels

/// Q, K and V from a model: tensors `query`, `key` and `value`, `[heads, tokens, headDim]`, and the scale and kind of attention
/// in the metadata.
struct Capture {
    let name: String
    let file: SafetensorsFile
    let shape: AttentionShape
    let isCausal: Bool
    let modifiers: ScoreModifiers

    init(path: String) throws {
        file = try SafetensorsFile(path: path)
        name = URL(fileURLWithPath: path).deletingPathExtension().lastPathComponent
        let (query, key, value) = try (file.entry(named: "query"), file.entry(named: "key"), file.entry(named: "value"))
        for entry in [query, key, value] where entry.shape.count != 3 {
            throw SparseKernelsError(
                .invalidShape, "\(entry.name) of \(name)", expected: "[heads, tokens, headDim]", actual: "\(entry.shape)")
        }
        shape = try AttentionShape(
            queryLength: query.shape[1], keyLength: key.shape[1], queryHeads: query.shape[0], kvHeads: key.shape[0],
            headDim: query.shape[2], valueDim: value.shape[2])
        isCausal = file.metadata["causal"] == "true"
        let scale = file.metadata["softmaxScale"].flatMap { Float($0) }
        modifiers = ScoreModifiers(softmaxScale: scale)
    }
}
