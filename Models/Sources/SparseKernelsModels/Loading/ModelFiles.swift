import Foundation
import SVDQuant
package import SparseKernels

/// The tensors of a model's folder: one `model.safetensors`, or the parts that `model.safetensors.index.json` names.
package struct ModelFiles: Sendable {
    /// The path of the file or of the index, for messages.
    package let name: String
    private let files: [SafetensorsFile]
    /// The position in `files` of each tensor's file; nil for a single file.
    private let fileOfTensor: [String: Int]?
    /// What is added to the weights as they are read.
    var adapter: ModelAdapter?

    /// Opens the file, or all parts, and checks that every tensor of the index is there.
    ///
    /// - Throws: `.inputOutput` for a file or part that cannot be read, naming it; `.malformedFile` for one that is damaged or cut
    ///   off, an index that names a tensor twice, and an index that names a tensor which its part lacks.
    package init(folder: String) throws(SparseKernelsError) {
        let (single, index) = (folder + "/model.safetensors", folder + "/model.safetensors.index.json")
        if !FileManager.default.fileExists(atPath: single), FileManager.default.fileExists(atPath: index) {
            try self.init(index: SafetensorsIndex(path: index), folder: folder)
        } else {
            self.init(file: try SafetensorsFile(path: single))
        }
    }

    private init(file: SafetensorsFile) {
        name = file.name
        files = [file]
        fileOfTensor = nil
    }

    private init(index: SafetensorsIndex, folder: String) throws(SparseKernelsError) {
        name = index.name
        var files: [SafetensorsFile] = []
        for part in index.files {
            let path = folder + "/" + part
            guard FileManager.default.fileExists(atPath: path) else {
                let count = index.fileOfTensor.values.count { $0 == part }
                throw SparseKernelsError(
                    .inputOutput, path, expected: "there: \(index.name) says that it has \(count) tensors",
                    actual: "no such file")
            }
            files.append(try SafetensorsFile(path: path))
        }
        let positions = Dictionary(uniqueKeysWithValues: zip(index.files, files.indices))
        // In order, so that the first of several faults is always the same.
        for (tensor, part) in index.fileOfTensor.sorted(by: { $0.key < $1.key }) where files[positions[part]!][tensor] == nil {
            throw SparseKernelsError(
                .malformedFile, "\(index.name), tensor \"\(tensor)\"",
                expected: "a tensor of \(part), which has \(Self.count(files[positions[part]!]))",
                actual: "one that it lacks")
        }
        self.files = files
        fileOfTensor = index.fileOfTensor.mapValues { positions[$0]! }
    }

    private static func count(_ file: SafetensorsFile) -> String {
        file.tensors.count == 1 ? "1 tensor" : "\(file.tensors.count) tensors"
    }

    /// Whether `sparsekernels quantize` made the files.
    package var isQuantized: Bool { files.contains { $0.metadata["format"] == "sparsekernels.svdquant" } }

    /// Whether a tensor exists.
    package func has(_ tensor: String) -> Bool { find(tensor) != nil }

    private func find(_ tensor: String) -> SafetensorsFile? {
        guard let fileOfTensor else { return files[0][tensor] == nil ? nil : files[0] }
        return fileOfTensor[tensor].map { files[$0] }
    }

    /// The file that has a tensor.
    /// - Throws: `.notFound`.
    func file(with tensor: String) throws(SparseKernelsError) -> SafetensorsFile {
        if let file = find(tensor) { return file }
        if fileOfTensor == nil { _ = try files[0].entry(named: tensor) }
        throw SparseKernelsError(
            .notFound, "\(name), tensor \"\(tensor)\"", expected: "in one of the \(files.count) files of the index",
            actual: "no tensor of that name")
    }

    /// The file that has a quantised layer.
    /// - Throws: `.notFound`, naming the tensor of the codes.
    func file(withLayer layer: String) throws(SparseKernelsError) -> SafetensorsFile { try file(with: layer + ".codes") }

    /// Whether a layer of a quantised file has codes; others have weights.
    func isQuantized(layer: String) -> Bool { has(layer + ".codes") }

    /// A floating-point tensor of the shape that the configuration gives it.
    /// - Throws: `.notFound`, `.invalidElementType`, and `.invalidShape` naming file and tensor.
    package func tensor(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        try file(with: name).checkedTensor(name, shape)
    }

    /// The table of an embedding, in the type of the file, and its bytes.
    func embedding(
        _ name: String, _ shape: [Int], scale: Float
    ) throws(SparseKernelsError) -> (embedding: TokenEmbedding, byteCount: Int) {
        let count = shape.reduce(1, *)
        switch try file(with: name)[name]?.elementType {
        case .float16: return (try TokenEmbedding(table: single(name, shape, as: Float16.self), scale: scale), 2 * count)
        case .bfloat16: return (try TokenEmbedding(table: single(name, shape, as: BFloat16.self), scale: scale), 2 * count)
        default: return (try TokenEmbedding(table: single(name, shape, as: Float.self), scale: scale), 4 * count)
        }
    }

    /// Tensors of equal inner extents, one above the other, in an element type. Values of other types are rounded to it.
    func stacked<Element: AttentionElement>(
        _ tensors: [(name: String, shape: [Int])], as type: Element.Type = Element.self
    ) throws(SparseKernelsError) -> Tensor<Element> {
        if tensors.count == 1 { return try single(tensors[0].name, tensors[0].shape) }
        var elements: [Element] = []
        elements.reserveCapacity(tensors.reduce(0) { $0 + $1.shape.reduce(1, *) })
        for (name, shape) in tensors { elements += try single(name, shape, as: Element.self).elements }
        return try Tensor([tensors.reduce(0) { $0 + $1.shape[0] }] + tensors[0].shape.dropFirst(), elements)
    }

    private func single<Element: AttentionElement>(
        _ name: String, _ shape: [Int], as type: Element.Type = Element.self
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let file = try file(with: name)
        if let adapter, name.hasSuffix(".weight"), let factors = adapter[String(name.dropLast(".weight".count))] {
            return try adapter.adding(factors, to: file.checkedTensor(name, shape)).converted()
        }
        if file[name]?.elementType == Element.elementType, file[name]?.shape == shape { return try file.tensor(name) }
        let wide = try file.checkedTensor(name, shape)
        return wide.converted()
    }
}
