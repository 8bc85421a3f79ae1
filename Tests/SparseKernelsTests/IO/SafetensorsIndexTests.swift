import Foundation
import SparseKernels
import Testing

@Suite("Indices of models in parts")
struct SafetensorsIndexTests {
    private func read(_ text: String) throws -> SafetensorsIndex {
        try SafetensorsIndex(bytes: Array(text.utf8), named: "index")
    }

    @Test("the file of every tensor; other keys are passed over")
    func reading() throws {
        let index = try read(
            """
             {"metadata": {"total_size": 3e9, "x": [1, {"weight_map": null}]},
              "weight_map": {"b": "two.safetensors", "a\\u0020c": "one.safetensors", "c": "two.safetensors"}} 
            """)
        #expect(index.files == ["one.safetensors", "two.safetensors"] && index.name == "index")
        #expect(index.fileOfTensor == ["b": "two.safetensors", "a c": "one.safetensors", "c": "two.safetensors"])
        let path = NSTemporaryDirectory() + "index-\(UUID().uuidString).json"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try Data(#"{"weight_map": {}}"#.utf8).write(to: URL(fileURLWithPath: path))
        #expect(try SafetensorsIndex(path: path).files.isEmpty)
    }

    @Test(
        "what is no index is told with its place",
        arguments: [
            ("", "`{`", "the end of the text"), ("[]", "`{`", "`[`"), ("{}", "weight_map", "none"),
            (#"{"weight_map": []}"#, "`{` at the start of weight_map", "`[`"),
            (#"{"weight_map": {"a": 1}}"#, "the name of a file", "`1`"),
            (#"{"weight_map": {"a": "x", "a": "y"}}"#, "listed once", "a second entry of that name"),
            (#"{"weight_map": {}, "weight_map": {}}"#, "one key \"weight_map\"", "a second one"),
            (#"{"weight_map": {"a": "../x"}}"#, "in the folder of the index", "../x"),
            (#"{"weight_map": {"a": "/x"}}"#, "in the folder of the index", "/x"),
            (#"{"weight_map": {"a": ""}}"#, "in the folder of the index", "\"\""),
            (#"{"weight_map": {"a": ".."}}"#, "in the folder of the index", ".."),
            (#"{"weight_map": {"a": "x"}"#, "`}`", "the end of the text"),
            (#"{"weight_map": {"a": "x"}} 1"#, "nothing but white space", "`1`"),
            (#"{"metadata": tru, "weight_map": {}}"#, "a JSON value", "`t`"),
        ])
    func damage(_ text: String, _ expected: String, _ actual: String) {
        let error = #expect(throws: SparseKernelsError.self) { try read(text) }
        #expect(error?.code == .malformedFile && error?.argument.hasPrefix("index") == true)
        #expect(error!.expected.contains(expected) && error!.actual.contains(actual), "\(error!)")
    }

    @Test("a file that is not there")
    func missing() {
        let error = #expect(throws: SparseKernelsError.self) { try SafetensorsIndex(path: "/nowhere/index.json") }
        #expect(error?.code == .inputOutput && error?.argument == "/nowhere/index.json")
    }
}
