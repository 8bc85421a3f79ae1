import PolarSparsity
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Polar Sparsity: routers and layers")
struct PolarSparsityTests {
    // MARK: - Heads

    @Test("scores are products of the router, and the strongest heads are selected")
    func headRouter() throws {
        let weight = try Tensor<Float>.normal([5, 12], seed: 1)
        let bias = try Tensor<Float>.normal([5], seed: 2)
        let x = try Tensor<Float>.normal([3, 12], seed: 3)
        for set in InstructionSet.available {
            let router = try HeadRouter(weight: weight, bias: bias, instructionSet: set)
            let selection = try router.select(x, count: 2)
            let scores = try router(x)
            for token in 0..<3 {
                let exact = (0..<5).map { head in
                    (0..<12).reduce(Double(bias[flat: head])) {
                        $0 + Double(x[flat: token * 12 + $1]) * Double(weight[flat: head * 12 + $1])
                    }
                }
                for head in 0..<5 { #expect(abs(Double(scores[token, head]) - exact[head]) < 1e-5, "\(set)") }
                let order = (0..<5).sorted { exact[$0] > exact[$1] }
                #expect(selection.list(sequence: token).map { Int($0) } == order.prefix(2).sorted())
            }
        }
    }

    @Test("a step attends with the selected heads alone, and with all in the first layer")
    func decode() throws {
        let configuration = try KVCacheConfiguration(
            layers: 2, kvHeads: 4, headDim: 16, pageSize: 16, pageCapacity: 40, format: .float16)
        let cache = try PagedKVCache(configuration)
        let sequences = [cache.makeSequence(), cache.makeSequence()]
        for (index, sequence) in sequences.enumerated() {
            for layer in 0..<2 {
                let key = try Tensor<Float>.normal([4, 70 + 30 * index, 16], seed: UInt64(10 * index + layer))
                try cache.append(key: key.view(), value: key.view(), to: sequence, layer: layer)
            }
        }
        let attention = try PagedAttention(queryHeads: 8, configuration: configuration)
        let router = try HeadRouter(weight: .normal([4, 24], seed: 5))
        let polar = try PolarDecode(attention: attention, routers: [router, router], counts: [4, 2])
        let query = try Tensor<Float>.normal([8, 2, 16], seed: 6)
        let hidden = try Tensor<Float>.normal([2, 24], seed: 7)
        var output = try Tensor<Float>(zeros: [8, 2, 16])
        for layer in 0..<2 {
            try polar.run(
                query: query, hidden: hidden, cache: cache, sequences: sequences, layer: layer, into: &output)
            let dense = try attention(query: query, cache: cache, sequences: sequences, layer: layer)
            let selection = try polar.select(hidden: hidden, layer: layer)
            #expect((selection == nil) == (layer == 0))
            for head in 0..<8 {
                for token in 0..<2 {
                    let isSelected = selection.map { $0.list(sequence: token).contains(Int32(head / 2)) } ?? true
                    for channel in 0..<16 {
                        #expect(
                            output[head, token, channel] == (isSelected ? dense.output[head, token, channel] : 0))
                    }
                }
            }
        }
        expectError(.invalidShape, "routers", containing: "2", "1") {
            _ = try PolarDecode(attention: attention, routers: [router], counts: [1])
        }
        expectError(.invalidShape, "counts", containing: "2", "1") {
            _ = try PolarDecode(attention: attention, routers: [router, nil], counts: [1])
        }
        let other = try HeadRouter(weight: .normal([3, 24], seed: 5))
        expectError(.invalidShape, "routers[1]", containing: "kvHeads (4)", "3") {
            _ = try PolarDecode(attention: attention, routers: [router, other], counts: [1, 1])
        }
        expectError(.invalidArgument, "counts[0]", containing: "0 to 4", "5") {
            _ = try PolarDecode(attention: attention, routers: [router, nil], counts: [5, 1])
        }
        expectError(.invalidArgument, "layer", containing: "2") {
            _ = try polar.select(hidden: hidden, layer: 2)
        }
        expectError(.invalidShape, "hidden", containing: "2", "1") {
            try polar.run(
                query: query, hidden: MatrixView(hidden.span, rows: 1, columns: 24), cache: cache, sequences: sequences,
                layer: 1, into: &output)
        }
    }

    // MARK: - Channels

    @Test("tokens of a batch select the union of what each of them selects")
    func neuronRouter() throws {
        let (down, up) = try (Tensor<Float>.normal([3, 10], seed: 1), Tensor<Float>.normal([20, 3], seed: 2))
        let router = try NeuronRouter(down: down, up: up)
        let x = try Tensor<Float>.normal([4, 10], seed: 3)
        let scores = try router(x)
        var (strongest, above): (Set<Int>, Set<Int>) = ([], [])
        for token in 0..<4 {
            let row = (0..<20).map { scores[token, $0] }
            strongest.formUnion((0..<20).sorted { row[$0] > row[$1] }.prefix(5))
            above.formUnion((0..<20).filter { row[$0] > 1 })
        }
        #expect(try router.select(x, .strongest(5)).indices.map { Int($0) } == strongest.sorted())
        #expect(try router.select(x, .above(1)).indices.map { Int($0) } == above.sorted())
        #expect(try router.select(x, .strongest(20)).isAll)
        #expect(try router.select(Tensor(zeros: [0, 10]), .strongest(5)).count == 0)
    }

    @Test("an MLP of the active channels is the whole one, with and without a gate", arguments: InstructionSet.available)
    func exactChannels(_ set: InstructionSet) throws {
        let (up, down) = try (Tensor<Float16>.normal([90, 24], seed: 1), Tensor<Float16>.normal([24, 90], seed: 2))
        let gate = try Tensor<Float16>.normal([90, 24], seed: 3)
        let (upBias, downBias) = try (Tensor<Float>.normal([90], seed: 4), Tensor<Float>.normal([24], seed: 5))
        let x = try Tensor<Float>.normal([3, 24], seed: 6)
        for hasGate in [false, true] {
            let mlp =
                hasGate
                ? try PolarMLP(gate: gate, up: up, down: down, downBias: downBias, function: .relu, instructionSet: set)
                : try PolarMLP(up: up, down: down, upBias: upBias, downBias: downBias, instructionSet: set)
            var workspace = PolarMLP.Workspace()
            let hidden = try mlp.hidden(of: x, workspace: &workspace)
            let active = (0..<90).filter { channel in (0..<3).contains { hidden[$0, channel] != 0 } }
            #expect(active.count < 90)
            let neurons = try ChannelSubset(active.map { Int32($0) }, of: 90)
            var (whole, sparse) = (try Tensor<Float>(zeros: [3, 24]), try Tensor<Float>(zeros: [3, 24]))
            try mlp.run(x, into: &whole, workspace: &workspace)
            try mlp.run(x, neurons: neurons, into: &sparse, workspace: &workspace)
            for token in 0..<3 {
                for feature in 0..<24 {
                    var (exact, magnitude) = (Double(downBias[flat: feature]), 0.0)
                    for channel in 0..<90 {
                        let term = Double(hidden[token, channel]) * Double(down[feature, channel].floatValue)
                        exact += term
                        magnitude += abs(term)
                    }
                    let bound = ReferenceMatrixProduct.errorBound(magnitude: magnitude + abs(exact), depth: 91)
                    #expect(abs(Double(whole[token, feature]) - exact) <= bound, "\(set), gate \(hasGate)")
                    #expect(abs(Double(sparse[token, feature]) - exact) <= bound, "\(set), gate \(hasGate)")
                }
            }
        }
    }

    // MARK: - Files and errors

    @Test("routers come back from files with the same bits")
    func files() throws {
        let heads = try HeadRouter(weight: .normal([4, 8], seed: 1), bias: .normal([4], seed: 2))
        let neurons = try NeuronRouter(down: .normal([2, 8], seed: 3), up: .normal([6, 2], seed: 4))
        var writer = SafetensorsWriter()
        try heads.add(to: &writer, prefix: "layers.0.heads")
        try neurons.add(to: &writer, prefix: "layers.0.neurons")
        let file = try SafetensorsFile(bytes: writer.encoded())
        let (a, b) = (
            try HeadRouter(file: file, prefix: "layers.0.heads"), try NeuronRouter(file: file, prefix: "layers.0.neurons")
        )
        #expect(a.weight == heads.weight && a.bias == heads.bias && b.down == neurons.down && b.up == neurons.up)
        expectError(.notFound, describing: "layers.1") { _ = try HeadRouter(file: file, prefix: "layers.1.heads") }
        var damaged = SafetensorsWriter()
        try damaged.add("r.weight", Tensor<Float>([1, 2], [1, .nan]))
        let broken = try SafetensorsFile(bytes: damaged.encoded())
        expectError(.malformedFile, describing: "weight", "nan") { _ = try HeadRouter(file: broken, prefix: "r") }
    }

    @Test("errors name the operand, with both numbers")
    func errors() throws {
        let nan = try Tensor<Float>([1, 2], [1, .nan])
        expectError(.invalidArgument, "weight", containing: "nan") { _ = try HeadRouter(weight: nan) }
        expectError(.invalidArgument, "down", containing: "nan") {
            _ = try NeuronRouter(down: nan, up: Tensor(zeros: [3, 1]))
        }
        expectError(.invalidShape, "up", containing: "2", "[3, 1]") {
            _ = try NeuronRouter(down: Tensor(zeros: [2, 4]), up: Tensor(zeros: [3, 1]))
        }
        let router = try HeadRouter(weight: .normal([4, 8], seed: 1))
        let x = try Tensor<Float>.normal([2, 8], seed: 2)
        expectError(.invalidArgument, "count", containing: "0 to 4", "5") {
            _ = try router.select(x, count: 5)
        }
        let bad = try Tensor([1, 8]) { $0 == 3 ? Float.nan : 1 }
        expectError(.invalidArgument, "scores[0, 0]", containing: "nan") { _ = try router.select(bad, count: 1) }
        let neurons = try NeuronRouter(down: .normal([2, 8], seed: 3), up: .normal([6, 2], seed: 4))
        expectError(.invalidArgument, "rule", containing: "6", "7") { _ = try neurons.select(x, .strongest(7)) }
        expectError(.invalidArgument, "rule", containing: "nan") { _ = try neurons.select(x, .above(.nan)) }
        expectError(.invalidArgument, "scores[0, 0]") { _ = try neurons.select(bad, .above(0)) }
        let mlp = try PolarMLP(up: Tensor<Float>.normal([6, 8], seed: 1), down: .normal([8, 6], seed: 2))
        var workspace = PolarMLP.Workspace()
        var y = try Tensor<Float>(zeros: [2, 8])
        expectError(.invalidShape, "neurons", containing: "6", "5") {
            try mlp.run(
                x, neurons: ChannelSubset(all: 5), into: &y, workspace: &workspace)
        }
        expectError(.invalidArgument, "upBias") {
            _ = try PolarMLP(
                gate: Tensor<Float>(zeros: [6, 8]), up: Tensor(zeros: [6, 8]), down: Tensor(zeros: [8, 6]),
                upBias: Tensor(zeros: [6]))
        }
    }
}
