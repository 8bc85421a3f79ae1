// Shared by file formats that use safetensors: text and numbers in the metadata, and errors that name the file.

extension SafetensorsFile {
    /// The text of an entry of the metadata.
    /// - Throws: `.notFound`.
    package func text(_ key: String) throws(SparseKernelsError) -> String {
        if let text = metadata[key] { return text }
        throw SparseKernelsError(
            .notFound, "\(name), metadata \(quoted(key))", expected: "in the file", actual: "no such entry")
    }

    /// A plain decimal number in the metadata, in the form that `String` writes.
    /// - Throws: `.notFound`, `.malformedFile`.
    package func integer(_ key: String) throws(SparseKernelsError) -> Int {
        let text = try text(key)
        let value = Int(text)
        try requireMetadata(value.map { "\($0)" == text } ?? false, key, expected: "an integer", actual: quoted(text))
        return value!
    }

    /// The elements of a tensor of one axis.
    /// - Throws: `.notFound`, `.invalidElementType`, `.malformedFile`.
    package func vector<Element: TensorElement>(
        _ name: String, as type: Element.Type
    ) throws(SparseKernelsError) -> [Element] {
        let tensor = try tensor(name, as: Element.self)
        try requireTensor(tensor.shape.count == 1, name, expected: "a vector", actual: "\(abbreviated(tensor.shape))")
        return tensor.elements
    }

    /// Throws `.malformedFile` naming an entry of the metadata unless `condition` holds.
    package func requireMetadata(
        _ condition: Bool, _ key: String, expected: @autoclosure () -> String, actual: @autoclosure () -> String
    ) throws(SparseKernelsError) {
        try require(
            condition, .malformedFile, "\(name), metadata \(quoted(key))", expected: expected(), actual: actual())
    }

    /// Throws `.malformedFile` naming a tensor unless `condition` holds.
    package func requireTensor(
        _ condition: Bool, _ tensorName: String, expected: @autoclosure () -> String, actual: @autoclosure () -> String
    ) throws(SparseKernelsError) {
        try require(
            condition, .malformedFile, "\(name), tensor \(quoted(tensorName))", expected: expected(), actual: actual())
    }

    /// Returns the result of `make`, and turns its error into one of the file.
    package func validated<Value>(_ make: () throws(SparseKernelsError) -> Value) throws(SparseKernelsError) -> Value {
        do throws(SparseKernelsError) {
            return try make()
        } catch {
            throw SparseKernelsError(
                .malformedFile, "\(name), \(error.argument)", expected: error.expected, actual: error.actual)
        }
    }
}
