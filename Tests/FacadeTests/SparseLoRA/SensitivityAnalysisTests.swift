import SparseLoRA
import TestSupport
import Testing

@Suite("SparseLoRA: sensitivity analysis")
struct SensitivityAnalysisTests {
    static let cost = SensitivityAnalysis.Cost(mlp: 300, attention: 100)

    /// Layer l has a feed-forward part that costs slope(l)·sparsity, and attention ten times that.
    static func curves(_ analysis: SensitivityAnalysis, _ slope: (Int) -> Double) -> SensitivityAnalysis.Curves {
        analysis.measure(denseLoss: 2) { layer, part, sparsity in
            2 + slope(layer) * sparsity * (part == .attention ? 10 : 1)
        }
    }

    @Test("layers that tolerate more become sparse first, and only as far as the budget asks")
    func order() throws {
        let analysis = try SensitivityAnalysis(costs: Array(repeating: Self.cost, count: 4), sparsities: [0.5, 0.9])
        // Deep layers tolerate more.
        let curves = Self.curves(analysis) { 1 / Double($0 + 1) }
        let all = try analysis.proposal(curves, budget: 1)
        #expect(all.layers == Array(repeating: .init(), count: 4))
        let one = try analysis.proposal(curves, budget: 0.91)
        #expect(one.layers == [.init(), .init(), .init(), .init(mlp: 0.5)])
        let half = try analysis.proposal(curves, budget: 0.5)
        #expect(half.layers == [.init(), .init(mlp: 0.9), .init(mlp: 0.9), .init(mlp: 0.9)])
        #expect(try analysis.remainingShare(of: half) <= 0.5)
        let least = try analysis.proposal(curves, budget: 0.1)
        #expect(least.layers == Array(repeating: .init(mlp: 0.9, attention: 0.9), count: 4))
        try least.validate(layerCount: 4)
    }

    @Test("a smaller budget never gives a smaller loss")
    func monotone() throws {
        let analysis = try SensitivityAnalysis(
            costs: Array(repeating: Self.cost, count: 6), sparsities: [0.25, 0.5, 0.75, 0.9, 0.97])
        let curves = Self.curves(analysis) { [0.3, 0.1, 0.7, 0.2, 0.2, 0.05][$0] }
        func loss(_ c: SparseLoRAConfiguration) -> Double {
            c.layers.enumerated().reduce(0) { sum, item in
                let (layer, slope) = (item.element, [0.3, 0.1, 0.7, 0.2, 0.2, 0.05][item.offset])
                return sum + slope * ((layer.mlp ?? 0) + 10 * (layer.attention ?? 0))
            }
        }
        var previous = 0.0
        for percent in stride(from: 100, through: 3, by: -1) {
            let proposal = try analysis.proposal(curves, budget: Double(percent) / 100)
            #expect(try analysis.remainingShare(of: proposal) <= Double(percent) / 100 + 1e-9)
            #expect(loss(proposal) >= previous)
            previous = loss(proposal)
            #expect(try analysis.proposal(curves, budget: Double(percent) / 100) == proposal)
        }
    }

    @Test("a bump in a curve is passed over")
    func bump() throws {
        let analysis = try SensitivityAnalysis(costs: [.init(mlp: 100, attention: 0)], sparsities: [0.5, 0.9])
        let curves = SensitivityAnalysis.Curves(denseLoss: 1, losses: [[[5, 1.1], []]])
        #expect(try analysis.proposal(curves, budget: 0.6).layers == [.init(mlp: 0.9)])
    }

    @Test("equal parts are taken in the order of the layers")
    func ties() throws {
        let analysis = try SensitivityAnalysis(
            costs: Array(repeating: .init(mlp: 100, attention: 100), count: 2), sparsities: [0.5])
        let curves = analysis.measure(denseLoss: 1) { _, _, _ in 1 }
        #expect(try analysis.proposal(curves, budget: 0.9).layers == [.init(mlp: 0.5), .init()])
        #expect(try analysis.proposal(curves, budget: 0.75).layers == [.init(mlp: 0.5, attention: 0.5), .init()])
    }

    @Test("what the closure throws comes out")
    func failure() throws {
        struct Stop: Error {}
        let analysis = try SensitivityAnalysis(costs: [Self.cost], sparsities: [0.5])
        #expect(throws: Stop.self) {
            _ = try analysis.measure(denseLoss: 1) { _, _, _ throws(Stop) in throw Stop() }
        }
        #expect(
            try SensitivityAnalysis(costs: [], sparsities: []).proposal(.init(denseLoss: 1, losses: []), budget: 0.5).layers
                .isEmpty)
    }

    @Test("numbers out of their domains are errors that name them")
    func errors() throws {
        expectError(.invalidArgument, "sparsities[1]", containing: "0.5") {
            _ = try SensitivityAnalysis(costs: [], sparsities: [0.5, 0.5])
        }
        expectError(.invalidArgument, "sparsities[0]", containing: "1.0") {
            _ = try SensitivityAnalysis(costs: [], sparsities: [1])
        }
        expectError(.invalidArgument, "costs[1].attention", containing: "nan") {
            _ = try SensitivityAnalysis(costs: [Self.cost, .init(mlp: 1, attention: .nan)], sparsities: [])
        }
        let analysis = try SensitivityAnalysis(costs: [Self.cost], sparsities: [0.5, 0.9])
        let curves = Self.curves(analysis) { _ in 1 }
        expectError(.invalidArgument, "budget", containing: "0.05") { _ = try analysis.proposal(curves, budget: 0.05) }
        var bad = curves
        bad.losses[0][1][1] = .nan
        expectError(.invalidArgument, "losses[0].attention[1]") { _ = try analysis.proposal(bad, budget: 0.5) }
        bad.losses[0][1].removeLast()
        expectError(.invalidShape, "losses[0].attention", containing: "2", "1") { _ = try analysis.proposal(bad, budget: 0.5) }
        expectError(.invalidShape, "losses", containing: "1 layers", "0") {
            _ = try analysis.proposal(.init(denseLoss: 1, losses: []), budget: 0.5)
        }
    }
}
