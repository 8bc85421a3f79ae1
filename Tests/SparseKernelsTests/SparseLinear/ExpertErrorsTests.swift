import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Errors of experts")
struct ExpertErrorsTests {
    private func expert(_ width: Int, _ hidden: Int, _ set: InstructionSet = .portable) throws -> GatedExpert {
        try ExpertProblem<Float>(experts: 1, width: width, hidden: hidden, seed: 1).experts(set)[0]
    }

    private func quantized(_ activation: ActivationFormat, _ set: InstructionSet = .portable) throws -> QuantizedExperts {
        try QuantizedExperts(.svdQuantInt4, activation, experts: 1, width: 64, hidden: 64, set)
    }

    @Test("projections that do not fit together")
    func projections() throws {
        func linear(_ n: Int, _ k: Int, _ epilogue: Epilogue = .none) throws -> FloatLinear {
            try FloatLinear(weight: Tensor<Float>(zeros: [n, k]), epilogue: epilogue, instructionSet: .portable)
        }
        expectError(.invalidShape, "up", containing: "[6, 4]", "[5, 4]") {
            _ = try GatedExpert(gate: linear(6, 4), up: linear(5, 4), down: linear(4, 6))
        }
        expectError(.invalidShape, "down", containing: "[4, 6]", "[6, 4]") {
            _ = try GatedExpert(gate: linear(6, 4), up: linear(6, 4), down: linear(6, 4))
        }
        expectError(.invalidArgument, "gate", containing: "silu") {
            _ = try GatedExpert(gate: linear(6, 4, .silu), up: linear(6, 4), down: linear(4, 6))
        }
        expectError(.invalidShape, "weight") {
            _ = try GatedExpert(
                gate: Tensor<Float>(zeros: [4]), up: Tensor<Float>(zeros: [4, 4]), down: Tensor<Float>(zeros: [4, 4]))
        }
        let (int4, int8) = try (quantized(.int4), quantized(.int8PerGroup))
        expectError(.invalidArgument, "up", containing: "int4", "int8PerGroup") {
            _ = try GatedExpert(gate: int4.gate[0], up: int8.up[0], down: int4.down[0])
        }
        let branch = try LowRankBranch(down: Tensor<Float>(zeros: [2, 64]), up: Tensor<Float>(zeros: [64, 2]))
        let ranked = try QuantizedLinear(int4.down[0].weight, activation: .int4, lowRank: branch)
        expectError(.invalidArgument, "down", containing: "rank 2") {
            _ = try GatedExpert(gate: int4.gate[0], up: int4.up[0], down: ranked)
        }
    }

    @Test("experts that do not belong together")
    func experts() throws {
        expectError(.invalidShape, "experts") { _ = try ExpertLayer([]) }
        expectError(.invalidShape, "experts[1]", containing: "4 to 6", "4 to 5") {
            _ = try ExpertLayer([expert(4, 6), expert(4, 5)])
        }
        expectError(.invalidShape, "shared", containing: "4 features", "got 3") {
            _ = try ExpertLayer([expert(4, 6)], shared: [expert(3, 6)])
        }
        expectError(.invalidArgument, "experts[1]", containing: "int4", "int8PerGroup") {
            _ = try ExpertLayer([quantized(.int4).experts[0], quantized(.int8PerGroup).experts[0]])
        }
        expectError(.invalidArgument, "experts[1]", containing: "numbers") {
            _ = try ExpertLayer([expert(64, 64), quantized(.int4).experts[0]])
        }
        if let other = InstructionSet.available.first, other != .portable {
            expectError(.invalidArgument, "experts[1]", containing: "portable") {
                _ = try ExpertLayer([expert(4, 6), expert(4, 6, other)])
            }
            expectError(.invalidArgument, "shared", containing: "portable") {
                _ = try ExpertLayer([expert(4, 6)], shared: [expert(4, 6, other)])
            }
        }
    }

    @Test("operands that disagree with the layer, and nothing is written")
    func operands() throws {
        let layer = try ExpertLayer([expert(4, 6), expert(4, 6)])
        let routing = try ExpertRouting.random(tokens: 3, experts: 2, perToken: 1, seed: 1)
        let x = try Tensor<Float>(zeros: [3, 4])
        var y = try Tensor<Float>.normal([3, 4], seed: 9)
        let before = y
        expectError(.invalidShape, "x", containing: "4 columns") {
            try layer.run(Tensor<Float>(zeros: [3, 5]), routing: routing, into: &y)
        }
        expectError(.invalidShape, "routing", containing: "2 tokens", "got 3") {
            try layer.run(Tensor<Float>(zeros: [2, 4]), routing: routing, into: &y)
        }
        expectError(.invalidShape, "routing", containing: "2 experts", "got 3") {
            let other = try ExpertRouting.random(tokens: 3, experts: 3, perToken: 1, seed: 1)
            try layer.run(x, routing: other, into: &y)
        }
        #expect(y == before)
        expectError(.invalidShape, "y") {
            var short = try Tensor<Float>(zeros: [2, 4])
            try layer.run(x, routing: routing, into: &short)
        }
    }
}
