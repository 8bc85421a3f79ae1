import Foundation
import SVDQuant
internal import SparseKernels

/// The tensors of a model's folder: one `model.safetensors`, or the shards that `model.safetensors.index.json` names.
struct ModelFiles {
    /// The path of the file or of the index, for messages.
    let name: String
    let files: [SafetensorsFile]

    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read.
    init(folder: String) throws(SparseKernelsError) {
        name = folder + "/model.safetensors"
        files = [try SafetensorsFile(path: name)]
    }

    /// Whether `sparsekernels quantize` made the files.
    var isQuantized: Bool { files.contains { $0.metadata["format"] == "sparsekernels.svdquant" } }

    /// Whether a tensor exists.
    func has(_ tensor: String) -> Bool { files.contains { $0[tensor] != nil } }

    /// The file that has a tensor; the first one, whose error names it, when none has.
    func file(with tensor: String) -> SafetensorsFile { files.first { $0[tensor] != nil } ?? files[0] }

    /// The file that has a quantised layer.
    func file(withLayer layer: String) throws(SparseKernelsError) -> SafetensorsFile { file(with: layer + ".codes") }

    /// A floating-point tensor of the shape that the configuration gives it.
    /// - Throws: `.notFound`, `.invalidElementType`, and `.invalidShape` naming file and tensor.
    func tensor(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        try file(with: name).checkedTensor(name, shape)
    }

    /// Tensors of equal inner extents, one above the other, in an element type.
    func stacked<Element: AttentionElement>(
        _ tensors: [(name: String, shape: [Int])], as type: Element.Type = Element.self
    ) throws(SparseKernelsError) -> Tensor<Element> {
        var elements: [Element] = []
        for (name, shape) in tensors {
            let file = file(with: name)
            if file[name]?.elementType == Element.elementType, file[name]?.shape == shape {
                elements += try file.tensor(name, as: Element.self).elements
            } else {
                elements += try file.checkedTensor(name, shape).converted(to: Element.self).elements
            }
        }
        return try Tensor([tensors.reduce(0) { $0 + $1.shape[0] }] + tensors[0].shape.dropFirst(), elements)
    }
}
