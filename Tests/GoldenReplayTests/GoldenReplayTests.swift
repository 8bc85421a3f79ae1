import Foundation
import GoldenReplay
import SparseKernels
import TestSupport
import Testing

/// The recorded cases that ship with the package, and all of them where external data are.
enum Goldens {
    static let shipped = TestData.path("Tests/Goldens")

    /// The full set, as far as its operations can be replayed.
    static let external = TestData.externalFiles(in: "goldens").filter { path in
        (try? GoldenCase(path: path).operation).map(GoldenReplay.operations.contains) ?? false
    }

    static func files(_ folder: String) -> [String] { (try? GoldenReplay.files(in: [folder])) ?? [] }
}

@Suite("Golden replay")
struct GoldenReplayTests {
    @Test("agrees with the cases in the repository", arguments: Goldens.files(Goldens.shipped), InstructionSet.available)
    func shipped(_ path: String, _ set: InstructionSet) throws {
        let result = try GoldenReplay.run(path: path, instructionSet: set)
        #expect(result.passed, "\(set): \(result.line)")
    }

    @Test("the repository has cases for every operation")
    func coverage() throws {
        let operations = Set(try Goldens.files(Goldens.shipped).map { try GoldenCase(path: $0).operation })
        #expect(operations == Set(GoldenReplay.operations))
    }

    @Test(
        "agrees with the full set of cases",
        .enabled(if: !Goldens.external.isEmpty, TestData.absence),
        arguments: Goldens.external)
    func external(_ path: String) throws {
        let result = try GoldenReplay.run(path: path, instructionSet: InstructionSet.selected())
        #expect(result.passed, "\(result.line)")
    }

    @Test("an unknown operation is an error that names what is known")
    func unknownOperation() throws {
        var writer = SafetensorsWriter(metadata: ["op": "nonsense.operation"])
        try writer.add("in.x", Tensor<Float>([1], [1]))
        let path = NSTemporaryDirectory() + "golden-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try writer.write(to: path)
        let error = #expect(throws: SparseKernelsError.self) {
            try GoldenReplay.run(path: path, instructionSet: .portable)
        }
        #expect(error?.code == .notFound)
        #expect(error?.description.contains("nonsense.operation") == true)
        #expect(error?.description.contains("blocksparse.attention") == true)
    }

    @Test("a wrong result is a failure")
    func failure() throws {
        let path = try #require(Goldens.files(Goldens.shipped).first { $0.contains("causal_tiny") })
        let file = try SafetensorsFile(path: path)
        var writer = SafetensorsWriter(metadata: file.metadata)
        for entry in file.tensors where entry.name != "out.o" {
            try writer.add(entry.name, elementType: entry.elementType, shape: entry.shape, bytes: file.bytes(entry.name))
        }
        var output = try file.tensor("out.o", as: Float.self)
        output[flat: 7] += 1e-4
        try writer.add("out.o", output)
        let copy = NSTemporaryDirectory() + "golden-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: copy) }
        try writer.write(to: copy)
        let result = try GoldenReplay.run(path: copy, instructionSet: .portable)
        #expect(!result.passed && result.line.hasPrefix("FAIL") && result.line.contains("out.o[7]"))
    }
}
