import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Quantised layers over one input")
struct QuantizedLinearGroupTests {
    private func layer(
        _ format: WeightFormat, _ activation: ActivationFormat, _ n: Int, _ k: Int, seed: UInt64, rank: Int = 0,
        smooth: Tensor<Float>? = nil, bias: Bool = false, epilogue: Epilogue = .none, _ set: InstructionSet
    ) throws -> QuantizedLinear {
        let matrix = try Tensor<Float>.normal([n, k], seed: seed)
        let branch =
            rank == 0
            ? nil
            : try LowRankBranch(
                down: Tensor<Float>.normal([rank, k], seed: seed + 1, scale: 0.1),
                up: Tensor<Float>.normal([n, rank], seed: seed + 2, scale: 0.1))
        return try QuantizedLinear(
            PackedWeight(WeightQuantizer(format)(matrix), instructionSet: set), activation: activation, smooth: smooth,
            lowRank: branch, bias: bias ? Tensor<Float>.normal([n], seed: seed + 3) : nil, epilogue: epilogue)
    }

    @Test("outputs have the bits of the layers one by one", arguments: InstructionSet.available)
    func bits(_ set: InstructionSet) throws {
        let k = 200
        let smooth = try Tensor<Float>([k]) { 0.5 + Float($0 % 7) / 4 }
        let formats: [(WeightFormat, ActivationFormat)] = [
            (.svdQuantInt4, .int4), (.svdQuantInt4, .int8PerGroup), (.svdQuantInt4, .float), (.nvfp4, .fp4),
        ]
        for (format, activation) in formats {
            for factors in [nil, smooth] {
                let layers = try [
                    layer(format, activation, 48, k, seed: 10, rank: 16, smooth: factors, bias: true, set),
                    layer(format, activation, 17, k, seed: 20, smooth: factors, epilogue: .silu, set),
                    layer(format, activation, 100, k, seed: 30, rank: 40, smooth: factors, set),
                ]
                let group = try QuantizedLinearGroup(layers)
                #expect(group.outFeatures == 165)
                for m in [0, 1, 2, 9, 70] {
                    let x = try Tensor<Float16>.normal([m, k], seed: UInt64(m))
                    let y = try group(x)
                    var first = 0
                    for layer in layers {
                        let alone = try layer(x)
                        for row in 0..<m {
                            for column in 0..<layer.outFeatures {
                                #expect(y[row, first + column] == alone[row, column], "\(set), \(activation), \(m) rows")
                            }
                        }
                        first += layer.outFeatures
                    }
                    for threads in [1, 2, 7] {
                        var again = try Tensor<Float>(zeros: [m, 165])
                        try group.run(x, into: &again, on: WorkerPool(threads: threads))
                        #expect(again == y)
                    }
                }
            }
        }
    }

    @Test("layers that quantise their input in another way are errors")
    func errors() throws {
        let set = InstructionSet.portable
        let first = try layer(.svdQuantInt4, .int4, 16, 64, seed: 1, set)
        let smooth = try Tensor<Float>([64]) { _ in 2 }
        expectError(.invalidShape, "layers") { _ = try QuantizedLinearGroup([]) }
        expectError(.invalidShape, "layers[1]") {
            _ = try QuantizedLinearGroup([first, layer(.svdQuantInt4, .int4, 16, 128, seed: 1, set)])
        }
        expectError(.invalidArgument, "layers[1].activation") {
            _ = try QuantizedLinearGroup([first, layer(.svdQuantInt4, .int8PerGroup, 16, 64, seed: 1, set)])
        }
        expectError(.invalidArgument, "layers[1].smooth") {
            _ = try QuantizedLinearGroup([first, layer(.svdQuantInt4, .int4, 16, 64, seed: 1, smooth: smooth, set)])
        }
        let group = try QuantizedLinearGroup([first, first])
        expectError(.invalidShape, "x") { _ = try group(Tensor<Float>(zeros: [2, 63])) }
        expectError(.invalidShape, "y") {
            var y = try Tensor<Float>(zeros: [2, 16])
            try group.run(Tensor<Float>(zeros: [2, 64]), into: &y)
        }
    }
}
