import Foundation
import SparseKernels
import TestSupport
import Testing

/// Files that the reference implementation wrote.
private let foreignFiles = ["goldens", "captures"].flatMap { TestData.externalFiles(in: $0) }

@Suite struct SafetensorsForeignFileTests {
    @Test(
        .enabled(if: !foreignFiles.isEmpty, TestData.absence), arguments: foreignFiles)
    func isReadCompletely(_ path: String) throws {
        let file = try SafetensorsFile(path: path)
        #expect(!file.tensors.isEmpty)
        for entry in file.tensors {
            let bytes = try file.bytes(entry.name)
            #expect(bytes.byteCount == entry.shape.reduce(1, *) * (entry.elementType.byteCount ?? 0))
            switch entry.elementType {
            case .float32: #expect(try file.span(entry.name, as: Float.self).count == entry.count)
            case .bfloat16: #expect(try file.tensor(entry.name, as: BFloat16.self).count == entry.count)
            case .int32: #expect(try file.span(entry.name, as: Int32.self).count == entry.count)
            case .bool: #expect(try file.tensor(entry.name, as: UInt8.self).elements.allSatisfy { $0 <= 1 })
            default: continue
            }
        }
        // Foundation parses the header independently.
        let contents = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
        let length = contents.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
        let header = try #require(
            try JSONSerialization.jsonObject(with: contents[8..<8 + length]) as? [String: [String: Any]])
        #expect((header["__metadata__"] as? [String: String] ?? [:]) == file.metadata)
        let names = header.keys.filter { $0 != "__metadata__" }
        #expect(Set(names) == Set(file.tensors.map(\.name)) && names.count == file.tensors.count)
        for entry in file.tensors {
            let fields = try #require(header[entry.name])
            #expect(fields["dtype"] as? String == entry.elementType.rawValue)
            #expect(fields["shape"] as? [Int] == entry.shape)
            #expect(fields["data_offsets"] as? [Int] == [entry.byteRange.lowerBound, entry.byteRange.upperBound])
        }
    }
}
