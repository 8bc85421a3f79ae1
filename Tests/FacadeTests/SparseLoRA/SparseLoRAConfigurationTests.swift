import Foundation
import SparseLoRA
import TestSupport
import Testing

@Suite("SparseLoRA: configuration")
struct SparseLoRAConfigurationTests {
    @Test("recipes have the layers of the paper's table")
    func recipes() throws {
        let c = SparseLoRAConfiguration.llama3Math10K
        #expect(c.layers.count == 32)
        #expect(c.layers.indices.filter { c.layers[$0].mlp == 0.99 } == Array(3...30))
        #expect(c.layers.indices.filter { c.layers[$0].attention == 0.75 } == Array(14...19) + Array(21...23) + Array(25...29))
        #expect(c.layers[2] == .init() && c.layers[31] == .init())
        let glue = SparseLoRAConfiguration.llama3GLUE
        #expect(!glue.outputTokensAreDense && glue.layers[31].mlp == 0.5 && glue.layers[30].attention == nil)
        #expect(SparseLoRAConfiguration.largeLlama2CSR170K.layers.count == 40)
        #expect(SparseLoRAConfiguration.largeLlama2CSR170K.start == 0.1)
        #expect(SparseLoRAConfiguration.recipes.count == 10)
        for (name, recipe) in SparseLoRAConfiguration.recipes {
            try recipe.validate(layerCount: name.contains("13b") ? 40 : 32)
            #expect(recipe.estimatorRank == 8 && recipe.mode == .intended)
        }
    }

    @Test("bounds up to 1 are fractions of the steps, others are steps")
    func steps() {
        var c = SparseLoRAConfiguration(layers: [])
        #expect((0..<100).filter { c.isSparse(step: $0, of: 100) } == Array(5..<100))
        c.start = 0
        c.end = 0.5
        #expect((0..<9).filter { c.isSparse(step: $0, of: 9) } == [0, 1, 2, 3, 4])
        c.start = 3
        c.end = 7
        #expect((0..<9).filter { c.isSparse(step: $0, of: 9) } == [3, 4, 5, 6])
        c.start = 1
        #expect((0..<9).allSatisfy { !c.isSparse(step: $0, of: 9) })
    }

    @Test("files are read as they were written")
    func files() throws {
        let folder = try TemporaryDirectory()
        var c = SparseLoRAConfiguration.llama3GLUE
        c.mode = .released
        c.averagesSequences = false
        c.estimatorRank = 16
        c.start = 12
        try c.write(to: folder.path + "/sparselora.json")
        #expect(try SparseLoRAConfiguration(path: folder.path + "/sparselora.json") == c)
        #expect(try SparseLoRAConfiguration(json: c.json()) == c)
        let embedded = try JSONDecoder().decode([SparseLoRAConfiguration].self, from: JSONEncoder().encode([c]))
        #expect(embedded == [c])
        expectError(.inputOutput, folder.path + "/none.json") {
            _ = try SparseLoRAConfiguration(path: folder.path + "/none.json")
        }
    }

    @Test("released forms are read")
    func released() throws {
        let older = try SparseLoRAConfiguration(
            json: """
                {"start_step": 0.05, "mode": "svd_16", "skip_output_tokens": true, "ffn_sparsity": "ffn=0.99x1",
                 "sparsity": {"layers.0.mlp": 0, "layers.0.self_attn": 0.75, "layers.1.mlp": 0.99, "layers.1.self_attn": 0}}
                """)
        #expect(older.layers == [.init(attention: 0.75), .init(mlp: 0.99)])
        #expect(older.estimatorRank == 16 && older.start == 0.05 && older.mode == .intended)
        let text = """
            {"base_model": "x", "predictor_rank": 4, "modes": {
              "o1": {"layer_sparsity": {"model.layers.2.mlp": 0.5}}, "o2": {"layer_sparsity": {"model.layers.2.mlp": 0.9}}}}
            """
        let chosen = try SparseLoRAConfiguration(json: text, variant: "o2")
        #expect(chosen.layers == [.init(), .init(), .init(mlp: 0.9)])
        #expect(chosen.estimatorRank == 4 && chosen.start == 0)
        expectError(.notFound, "json, variant", containing: "o1, o2", "o3") {
            _ = try SparseLoRAConfiguration(json: text, variant: "o3")
        }
    }

    @Test(
        "text of another form is an error",
        arguments: [
            ("", "json"), ("[]", "json"), ("{}", "sparsity"), (#"{"layer_sparsity": {"layers.x.mlp": 0.5}}"#, "layers.x.mlp"),
            (#"{"layer_sparsity": {"layers.1.mlp": 1}}"#, "[0, 1)"), (#"{"layer_sparsity": {"layers.1.mlp": -0.1}}"#, "-0.1"),
            (#"{"layer_sparsity": {"layers.99999999.mlp": 0.5}}"#, "99999999"),
            (#"{"layer_sparsity": {"layers.1.mlp": 0.5, "model.layers.1.mlp": 0.4}}"#, "two"),
            (#"{"layer_sparsity": {}, "mode": "oracle"}"#, "oracle"), (#"{"layer_sparsity": {}, "start_step": -1}"#, "start"),
            (#"{"layer_sparsity": {}, "predictor_rank": 0}"#, "estimatorRank"),
            (#"{"layer_sparsity": {"layers.1.mlp": "much"}}"#, "layers.1.mlp"),
        ])
    func malformed(_ text: String, _ part: String) {
        expectError(.malformedFile, describing: part) { _ = try SparseLoRAConfiguration(json: text) }
    }

    @Test("numbers out of their domains are errors that name them")
    func errors() {
        var c = SparseLoRAConfiguration.llama3CSR170K
        expectError(.invalidArgument, "layers", containing: "33", "32") { try c.validate(layerCount: 33) }
        c.layers[5].attention = 1
        expectError(.invalidArgument, "layers[5].attention", containing: "1.0") { try c.validate() }
        c.layers[5].attention = .nan
        expectError(.invalidArgument, "layers[5].attention") { _ = try c.json() }
        c.layers[5].attention = nil
        c.end = .infinity
        expectError(.invalidArgument, "end") { try c.validate() }
    }
}

@Suite("SparseLoRA: token split")
struct TokenSplitTests {
    @Test("bounds hold for the whole batch")
    func bounds() throws {
        let split = try TokenSplit(labels: [[-100, -100, 7, 8, -100], [-100, 5, 6, -100, -100]])
        #expect(split.dense == 1..<4 && split.length == 5 && split.batch == 2)
        #expect(split.rows == 10 && split.denseRows == 6 && split.sparseRows == 4)
        #expect((0..<5).filter(split.isDense) == [1, 2, 3])
    }

    @Test("a sample of context only has some dense tokens, a batch of it none")
    func context() throws {
        let none = Array(repeating: -100, count: 4)
        #expect(try TokenSplit(labels: [none, [-100, 1, -100, -100]]).dense == 1..<2)
        #expect(try TokenSplit(labels: [none, none]).dense.isEmpty)
        #expect(try TokenSplit(labels: [[0, 1], [2, 0]], ignored: 0).dense == 0..<2)
        #expect(try TokenSplit(labels: [[-100, 1, -100]], padsLeft: true).dense == 1..<3)
        #expect(try TokenSplit(labels: [none], padsLeft: true).dense.isEmpty)
        #expect(try TokenSplit(labels: []).rows == 0)
        #expect(try TokenSplit(labels: [[], []]).rows == 0)
    }

    @Test("samples of different lengths and positions outside are errors")
    func errors() {
        expectError(.invalidShape, "labels[1]", containing: "2", "3") { _ = try TokenSplit(labels: [[1, 2], [1, 2, 3]]) }
        expectError(.invalidArgument, "dense", containing: "0..<4", "1..<5") {
            _ = try TokenSplit(dense: 1..<5, length: 4, batch: 1)
        }
        expectError(.invalidShape, "batch") { _ = try TokenSplit(dense: 0..<0, length: 4, batch: -1) }
    }
}
