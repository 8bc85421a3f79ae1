import SparseKernels

/// A place in a `tokenizer.json`, whose values are read by key, with errors that name the place.
struct TokenizerPart {
    /// The file and the keys that lead here, as in "tokenizer.json, model.merges".
    let place: String
    let value: JSONTree

    func failure(expected: String, actual: String? = nil) -> SparseKernelsError {
        SparseKernelsError(.malformedFile, place, expected: expected, actual: actual ?? value.kind)
    }

    /// The value of a key; nil when it is absent or `null`.
    /// - Throws: `.malformedFile` when this is no object, or has the key twice.
    func part(_ key: String) throws(SparseKernelsError) -> TokenizerPart? {
        guard case .object(let members) = value else { throw failure(expected: "an object") }
        let matches = members.filter { $0.key.elementsEqual(key.utf8) }
        guard matches.count < 2 else { throw failure(expected: "with one key \"\(key)\"", actual: "\(matches.count) of them") }
        guard let match = matches.first else { return nil }
        if case .null = match.value { return nil }
        return TokenizerPart(place: place + (place.hasSuffix(".json") ? ", " : ".") + key, value: match.value)
    }

    func required(_ key: String) throws(SparseKernelsError) -> TokenizerPart {
        guard let part = try part(key) else { throw failure(expected: "with a key \"\(key)\"", actual: "without it") }
        return part
    }

    func bytes() throws(SparseKernelsError) -> [UInt8] {
        guard case .text(let bytes) = value else { throw failure(expected: "a text") }
        return bytes
    }

    func text() throws(SparseKernelsError) -> String { String(decoding: try bytes(), as: UTF8.self) }

    func text(_ key: String) throws(SparseKernelsError) -> String { try required(key).text() }

    func flag(_ key: String, default standard: Bool) throws(SparseKernelsError) -> Bool {
        guard let part = try part(key) else { return standard }
        guard case .flag(let flag) = part.value else { throw part.failure(expected: "true or false") }
        return flag
    }

    /// A whole number from 0 to 2³⁰.
    func integer() throws(SparseKernelsError) -> Int {
        guard case .number(let number) = value, let integer = Int(exactly: number), (0...1 << 30).contains(integer) else {
            throw failure(expected: "a whole number from 0 to \(1 << 30)")
        }
        return integer
    }

    func elements() throws(SparseKernelsError) -> [TokenizerPart] {
        guard case .array(let elements) = value else { throw failure(expected: "an array") }
        return elements.enumerated().map { TokenizerPart(place: "\(place)[\($0)]", value: $1) }
    }

    /// This component, or those of a `Sequence`, which may contain others.
    func components(_ key: String) throws(SparseKernelsError) -> [TokenizerPart] {
        guard try text("type") == "Sequence" else { return [self] }
        var result: [TokenizerPart] = []
        for element in try required(key).elements() { result += try element.components(key) }
        return result
    }

    /// A component that is not known.
    func unknown(_ kind: String, _ known: String) throws(SparseKernelsError) -> SparseKernelsError {
        failure(expected: "a \(kind) that is known: \(known)", actual: "\"\(try text("type"))\"")
    }
}
