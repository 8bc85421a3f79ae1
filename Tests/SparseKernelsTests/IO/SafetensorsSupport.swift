import Foundation
import SparseKernels
import Testing

/// A file of the header's length, the given header text, and as many bytes of data.
func fileBytes(_ header: String, data: Int = 0) -> [UInt8] { fileBytes(Array(header.utf8), data: data) }

func fileBytes(_ header: [UInt8], data: Int = 0) -> [UInt8] {
    let length = (0..<8).map { UInt8(truncatingIfNeeded: header.count >> (8 * $0)) }
    return length + header + [UInt8](repeating: 0, count: data)
}

/// Expects the reader to reject the bytes with a message that contains `fragments`.
func expectMalformed(
    _ bytes: [UInt8], _ fragments: String..., sourceLocation: SourceLocation = #_sourceLocation
) {
    let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) {
        _ = try SafetensorsFile(bytes: bytes, named: "hostile.safetensors")
    }
    guard let error else { return }
    #expect(error.code == .malformedFile, "\(error)", sourceLocation: sourceLocation)
    #expect(error.argument.contains("hostile.safetensors"), sourceLocation: sourceLocation)
    #expect(error.description.utf8.count < 1000, sourceLocation: sourceLocation)
    for fragment in fragments {
        #expect(error.description.contains(fragment), "\(error)", sourceLocation: sourceLocation)
    }
}
