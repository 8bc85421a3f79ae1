import NemotronH
import TestSupport
import Testing

@Suite("Patterns of hybrid layers")
struct HybridPatternTests {
    @Test("the letters of Nemotron-H 8B are 24 layers of Mamba-2, 24 MLPs and 4 of attention")
    func published() throws {
        let pattern = HybridPattern.nemotronH8B
        #expect(pattern.layers.count == 52)
        #expect(pattern.count(of: .mamba2) == 24 && pattern.count(of: .mlp) == 24 && pattern.count(of: .attention) == 4)
        #expect(pattern.layers.indices.filter { pattern.layers[$0] == .attention } == [7, 18, 29, 40])
        #expect(pattern.layers.indices.filter { pattern.layers[$0] == .attention }.map(pattern.ordinal) == [0, 1, 2, 3])
        #expect(try HybridPattern(pattern.description) == pattern)
    }

    @Test("layers of a kind are counted from 0 on, also in patterns that do not alternate")
    func ordinals() throws {
        let pattern = try HybridPattern("MM---*M*")
        #expect(pattern.layers == [.mamba2, .mamba2, .mlp, .mlp, .mlp, .attention, .mamba2, .attention])
        #expect((0..<8).map(pattern.ordinal) == [0, 1, 0, 1, 2, 0, 2, 1])
        #expect(pattern.description == "MM---*M*" && HybridPattern(pattern.layers) == pattern)
        #expect(try HybridPattern("").layers.isEmpty)
    }

    @Test("a letter that stands for nothing is named with its place, and one of experts as what it is")
    func refusals() {
        expectError(.invalidArgument, "pattern[3]", containing: "mixture of experts", "\"M\" (Mamba-2)") {
            _ = try HybridPattern("M-*E")
        }
        expectError(.invalidArgument, "pattern[1]", containing: "got \"m\"") { _ = try HybridPattern("Mm") }
        expectError(.invalidArgument, "pattern[0]", containing: #"got "\n""#) { _ = try HybridPattern("\nM") }
        expectError(.invalidArgument, "pattern[0]", containing: "got \"\u{1F40D}\"") { _ = try HybridPattern("\u{1F40D}") }
    }

    @Test("the first and the last layers stay in 16 bits")
    func wideLayers() {
        let rule = BFloat16Layers()
        #expect((0..<118).filter { rule.contains($0, of: 118) } == [0, 1, 2, 3, 114, 115, 116, 117])
        #expect((0..<5).allSatisfy { rule.contains($0, of: 5) })
        #expect(!(0..<5).contains { BFloat16Layers(first: 0, last: -3).contains($0, of: 5) })
        #expect((0..<4).filter { BFloat16Layers(first: 1, last: 0).contains($0, of: 4) } == [0])
    }

    @Test("sizes are those of Nemotron-H 8B, and the width is that of the heads")
    func sizes() throws {
        let c = try Mamba2Configuration(heads: 128, headDim: 64, groups: 8, stateSize: 128)
        #expect(c.innerWidth == 8192 && c.convolvedWidth == 10240 && c.projectedWidth == 18560)
        #expect(c.gateColumns == 0..<8192 && c.convolvedColumns == 8192..<18432 && c.timeStepColumns == 18432..<18560)
        #expect(
            c.stateShapes() == [
                RecurrentStateShape(heads: 1, rows: 3, columns: 10240), RecurrentStateShape(heads: 128, rows: 128, columns: 64),
            ])
        let states = try Mamba2States(slots: 2, c)
        #expect(states.recurrence.bytesPerSlot == 4 << 20 && states.byteCount == 2 * states.bytesPerSlot)
        #expect(states.bytesPerSlot == 4 * (1 << 20) + 4 * 3 * 10240)
    }

    @Test("numbers that no layer has are named")
    func badConfigurations() {
        expectError(.invalidShape, "groups", containing: "a divisor of heads (6)", "got 4") {
            _ = try Mamba2Configuration(heads: 6, headDim: 8, groups: 4, stateSize: 8)
        }
        for (name, heads, headDim, stateSize, width) in [
            ("heads", 0, 8, 8, 4), ("headDim", 2, 257, 8, 4), ("stateSize", 2, 8, 0, 4), ("convolutionWidth", 2, 8, 8, 5),
            ("convolutionWidth", 2, 8, 8, 1),
        ] {
            expectError(.invalidShape, name) {
                _ = try Mamba2Configuration(
                    heads: heads, headDim: headDim, groups: 1, stateSize: stateSize, convolutionWidth: width)
            }
        }
        expectError(.invalidArgument, "timeStepLimits") {
            _ = try Mamba2Configuration(heads: 2, headDim: 8, groups: 1, stateSize: 8, timeStepLimits: -1...1)
        }
        expectError(.invalidArgument, "epsilon") {
            _ = try Mamba2Configuration(heads: 2, headDim: 8, groups: 1, stateSize: 8, epsilon: .nan)
        }
    }
}
