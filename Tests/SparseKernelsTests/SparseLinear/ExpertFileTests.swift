import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Experts of checkpoints")
struct ExpertFileTests {
    /// A file with two experts, and a shared one when asked for.
    private func file(_ names: ExpertNames, prefix: String, shared: Bool) throws -> (SafetensorsFile, ExpertProblem<BFloat16>) {
        let problem = try ExpertProblem<BFloat16>(experts: 3, width: 6, hidden: 5, seed: 1)
        let parts = names == .mixtral ? ["w1", "w3", "w2"] : ["gate_proj", "up_proj", "down_proj"]
        var writer = SafetensorsWriter(metadata: [:])
        for expert in 0..<(shared ? 3 : 2) {
            let name = expert == 2 ? "shared_experts" : "experts.\(expert)"
            try writer.add("\(prefix).\(name).\(parts[0]).weight", problem.gate[expert])
            // One tensor of another type: every projection keeps its own.
            try writer.add("\(prefix).\(name).\(parts[1]).weight", problem.up[expert].converted(to: Float.self))
            try writer.add("\(prefix).\(name).\(parts[2]).weight", problem.down[expert])
        }
        return (try SafetensorsFile(bytes: writer.encoded()), problem)
    }

    @Test("names of Mixtral, and of Qwen and DeepSeek", arguments: ExpertNames.allCases, [false, true])
    func names(_ names: ExpertNames, _ hasShared: Bool) throws {
        let prefix = "model.layers.7.mlp"
        let (file, problem) = try file(names, prefix: prefix, shared: hasShared)
        let layer = try ExpertLayer(file: file, prefix: prefix, experts: 2, names: names)
        #expect(layer.experts.count == 2 && layer.sharedExperts.count == (hasShared ? 1 : 0))
        let experts = try problem.experts(nil)
        let expected = try ExpertLayer(Array(experts[..<2]), shared: hasShared ? [experts[2]] : [])
        let x = try Tensor<Float>.normal([4, 6], seed: 5)
        let routing = try ExpertRouting.random(tokens: 4, experts: 2, perToken: 1, seed: 2)
        #expect(try layer(x, routing: routing) == expected(x, routing: routing))
        expectError(.notFound, describing: "experts.2.\(names == .mixtral ? "w1" : "gate_proj").weight") {
            _ = try ExpertLayer(file: file, prefix: prefix, experts: 3, names: names)
        }
        expectError(.invalidArgument, "experts") {
            _ = try ExpertLayer(file: file, prefix: prefix, experts: 0, names: names)
        }
    }

    @Test("a tensor of integers is an error that names it")
    func types() throws {
        var writer = SafetensorsWriter(metadata: [:])
        try writer.add("e.w1.weight", Tensor<Int32>(zeros: [2, 2]))
        let file = try SafetensorsFile(bytes: writer.encoded())
        expectError(.invalidElementType, describing: "e.w1.weight", "I32") {
            _ = try GatedExpert(file: file, prefix: "e", names: .mixtral)
        }
    }
}
