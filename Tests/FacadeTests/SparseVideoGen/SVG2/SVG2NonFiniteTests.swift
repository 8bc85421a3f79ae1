import SparseKernelsReference
import SparseVideoGen
import TestSupport
import Testing

/// NaN, infinities and huge numbers in the operands of SVG2.
@Suite("SVG2 and values that are not finite")
struct SVG2NonFiniteTests {
    typealias Operands = SVGAttentionTests.Operands

    /// Video tokens, prompt and padding of geometries with text first: 9 text tokens, of which 4 are the prompt.
    private static let tokens = [9, 40, 41, 88, 2, 6]

    private static func spoiled(_ tensor: Tensor<Float>, by element: Float, _ tokens: [Int]) -> Tensor<Float> {
        var result = tensor
        for (index, token) in tokens.enumerated() { result[1, token, index % 3] = element }
        return result
    }

    @Test("rows that see finite tokens only are exact, and k-means ends", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let operands = try Operands(SVG2AttentionTests.geometries()[1], kvHeads: 2)
        for element in [Float.nan, .infinity, -.infinity] {
            for seed in 0..<3 as Range<UInt64> {
                var configuration = SVG2AttentionTests.configuration
                // Draws of so many tokens hit those that are not finite.
                (configuration.seed, configuration.queryClusters, configuration.keyClusters) = (seed, 40, 50)
                configuration.initialization = seed == 1 ? .plusPlus : .uniform
                let svg2 = try SVG2Attention(
                    operands.shape, geometry: operands.geometry, configuration, instructionSet: set)
                for side in 0..<3 {
                    let query = side == 0 ? Self.spoiled(operands.query, by: element, Self.tokens) : operands.query
                    let key = side == 1 ? Self.spoiled(operands.key, by: element, Self.tokens) : operands.key
                    let value = side == 2 ? Self.spoiled(operands.value, by: element, Self.tokens) : operands.value
                    let label = "\(set) \(element) in \(side), seed \(seed)"
                    let result = try svg2(query: query, key: key, value: value)
                    let oracle = SVG2Oracle(
                        operands, Float.self, selected: result.selected, query: query, key: key, value: value)
                    try oracle.expectSelection(mass: 0.8, minimumKeyRatio: 0.1, label)
                    let others = try oracle.expectOutput(result.state.output, label)
                    // Only head 1 was spoiled; its padding and prompt see such tokens of their own.
                    #expect(others.allSatisfy { $0.head == 1 }, "\(label)")
                    for (head, token) in others where side == 2 {
                        let isFinite = (0..<3).allSatisfy { result.state.output[head, token, $0].isFinite }
                        #expect(!isFinite, "\(label): token \(token)")
                    }
                    let clusters = side == 0 ? result.selected.query : result.selected.key
                    if side < 2 {
                        for token in Self.tokens where operands.geometry.video.contains(token) {
                            #expect(clusters.labels[1, token - 9] == 0 && clusters.distances[1, token - 9] == .infinity)
                        }
                    }
                }
            }
        }
    }

    @Test("a video without a finite token is attended like any other")
    func nothingFinite() throws {
        for geometry in try SVG2AttentionTests.geometries() {
            let operands = try Operands(geometry, kvHeads: 2)
            for element in [Float.nan, .infinity] {
                let all = try Tensor<Float>(operands.key.shape) { _ in element }
                let svg2 = try SVG2Attention(operands.shape, geometry: geometry, SVG2AttentionTests.configuration)
                var state = SVG2State()
                var output = try Tensor<Float>(zeros: [2, geometry.tokens, 13])
                for _ in 0..<2 {
                    let selected = try svg2.run(
                        query: all, key: all, value: operands.value, into: &output, state: &state)
                    #expect(selected.query.labels.elements.allSatisfy { $0 == 0 })
                    #expect(output.elements.allSatisfy { !$0.isFinite })
                }
                // The next step has other tokens, and finds its way from any centroids.
                let next = try svg2.run(
                    query: operands.query, key: operands.key, value: operands.value, into: &output, state: &state)
                try SVG2Oracle(operands, Float.self, selected: next).expectOutput(output, "\(element) before")
            }
        }
    }

    @Test("tokens whose squared norms overflow are in cluster 0, and the others are exact")
    func huge() throws {
        let operands = try Operands(SVG2AttentionTests.geometries()[0], kvHeads: 2)
        var key = operands.key
        for channel in 0..<16 { key[0, 30, channel] = channel % 2 == 0 ? 1e20 : -1e20 }
        let svg2 = try SVG2Attention(
            operands.shape, geometry: operands.geometry, SVG2AttentionTests.configuration)
        let result = try svg2(query: operands.query, key: key, value: operands.value)
        #expect(result.selected.key.labels[0, 30] == 0)
        #expect(result.selected.key.centroids.elements.allSatisfy { abs($0) < 100 || !$0.isFinite || abs($0) == 1e20 })
        let oracle = SVG2Oracle(operands, Float.self, selected: result.selected, key: key)
        for head in 0..<2 {
            for token in 0..<operands.shape.queryLength {
                #expect(result.state.output[head, token, 0].isFinite)
                if head == 1 || !oracle.isVisible(head: head, query: token, key: 30) {
                    let row = try ReferenceAttention(operands.shape).row(
                        head: head, token: token, query: operands.query, key: key, value: operands.value,
                        hides: { !oracle.isVisible(head: head, query: token, key: $0) })
                    let bound = AttentionErrorBound(row, headDim: 16).output
                    for (channel, expected) in row.output.enumerated() {
                        #expect(abs(Double(result.state.output[head, token, channel]) - expected) <= bound)
                    }
                }
            }
        }
    }
}
