import Foundation
import GoldenReplay
import SequenceParallel
import SequenceParallelReplay
import Testing

/// The recorded cases of LongVILA that ship with the package, and all of them where external data are.
private enum LongVILACases {
    static let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()
    static let shipped = files(package.path + "/Tests/Goldens")
    static let external: [String] = {
        let data =
            ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"]
            ?? package.deletingLastPathComponent().deletingLastPathComponent().path + "/shared"
        return files(data + "/goldens/longvila")
    }()

    private static func files(_ folder: String) -> [String] { (try? GoldenReplay.files(in: [folder])) ?? [] }
}

@Suite("Replay of LongVILA")
struct SequenceParallelReplayTests {
    @Test("agrees with the cases in the repository", arguments: LongVILACases.shipped, InstructionSet.available)
    func shipped(_ path: String, _ set: InstructionSet) throws {
        let result = try SequenceParallelReplay.run(path: path, instructionSet: set)
        #expect(result.passed, "\(set): \(result.line)")
    }

    @Test("the repository has cases for every operation")
    func coverage() throws {
        let operations = Set(try LongVILACases.shipped.map { try GoldenCase(path: $0).operation })
        #expect(operations == Set(SequenceParallelReplay.operations))
    }

    @Test(
        "agrees with the full set of cases", .enabled(if: !LongVILACases.external.isEmpty, "no external data"),
        arguments: LongVILACases.external)
    func external(_ path: String) throws {
        let result = try SequenceParallelReplay.run(path: path, instructionSet: InstructionSet.selected())
        #expect(result.passed, "\(result.line)")
    }

    @Test("an unknown operation is an error that names what is known")
    func unknownOperation() throws {
        var writer = SafetensorsWriter(metadata: ["op": "longvila.nonsense"])
        try writer.add("in.x", Tensor<Float>([1], [1]))
        let path = NSTemporaryDirectory() + "longvila-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try writer.write(to: path)
        let error = #expect(throws: SparseKernelsError.self) {
            try SequenceParallelReplay.run(path: path, instructionSet: .portable)
        }
        #expect(error?.code == .notFound && error?.expected.contains("longvila.reshard") == true)
    }

    @Test("a wrong map is a failure, and parameters out of range are errors")
    func failures() throws {
        let path = try #require(LongVILACases.shipped.first { $0.contains("reshard") })
        let file = try SafetensorsFile(path: path)
        func replay(_ parameters: String?, changing name: String?) throws -> GoldenResult {
            var metadata = file.metadata
            if let parameters { metadata["params"] = parameters }
            var writer = SafetensorsWriter(metadata: metadata)
            for entry in file.tensors {
                var values = try file.tensor(entry.name, as: Int32.self)
                if entry.name == name { values[flat: 1] += 1 }
                try writer.add(entry.name, values)
            }
            let copy = NSTemporaryDirectory() + "longvila-\(UUID().uuidString).safetensors"
            defer { try? FileManager.default.removeItem(atPath: copy) }
            try writer.write(to: copy)
            return try SequenceParallelReplay.run(path: copy, instructionSet: .portable)
        }
        #expect(try replay(nil, changing: nil).passed)
        let wrong = try replay(nil, changing: "out.ring_varlen.tokens_rank2")
        #expect(!wrong.passed && wrong.detail.contains("ring_varlen, sample 0, rank 2"))
        for parameters in [
            #"{"batch": 2, "ranks": 4000000000, "totals": [16, 12], "variants": {}}"#,
            #"{"batch": 2, "ranks": 4, "totals": [16, 13], "variants": {}}"#,
            #"{"batch": 2, "ranks": 4, "totals": [16, 12], "variants": {"x": {"every_token_once": [], "ring_degree": 4}}}"#,
            "{}",
        ] {
            #expect(throws: SparseKernelsError.self) { try replay(parameters, changing: nil) }
        }
    }
}
