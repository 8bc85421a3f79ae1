package import SparseKernels
package import Testing

/// Expects an error with this code and argument, whose description contains these texts.
package func expectError(
    _ code: SparseKernelsError.Code, _ argument: String, containing texts: String...,
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) {
    expectError(code, argument, containing: texts, sourceLocation: sourceLocation, body)
}

/// The same for helpers with a list of texts.
package func expectError(
    _ code: SparseKernelsError.Code, _ argument: String, containing texts: [String],
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) {
    let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) { try body() }
    guard let error else { return }
    #expect(error.code == code && error.argument == argument, "\(error)", sourceLocation: sourceLocation)
    for text in texts { #expect(error.description.contains(text), sourceLocation: sourceLocation) }
}

/// Expects an error with this code, whose description contains these texts. Use it when the argument is a path.
package func expectError(
    _ code: SparseKernelsError.Code, describing texts: String..., sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () throws -> Void
) {
    let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) { try body() }
    guard let error else { return }
    #expect(error.code == code, "\(error)", sourceLocation: sourceLocation)
    for text in texts { #expect(error.description.contains(text), "\(error)", sourceLocation: sourceLocation) }
}
