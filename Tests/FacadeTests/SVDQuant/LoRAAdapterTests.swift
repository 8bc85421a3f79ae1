import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

@Suite("LoRA adapters on SVDQuant layers")
struct LoRAAdapterTests {
    private typealias Support = SVDQuantSupport

    private static func adapter(
        _ outFeatures: Int, _ inFeatures: Int, rank: Int, alpha: Float? = nil, seed: UInt64 = 20, hasBias: Bool = false
    ) throws -> LoRAAdapter {
        try LoRAAdapter(
            down: .normal([rank, inFeatures], seed: seed), up: .normal([outFeatures, rank], seed: seed + 1), alpha: alpha,
            bias: hasBias ? .normal([outFeatures], seed: seed + 2) : nil)
    }

    /// strength · scale · (up · down · x + bias), in `Double`, and the sum of magnitudes.
    private static func delta(_ adapter: LoRAAdapter, _ x: [Float], strength: Double = 1) -> [(Double, Double)] {
        let factor = strength * Double(adapter.scale)
        let hidden = (0..<adapter.rank).map { i in
            x.indices.reduce(into: (0.0, 0.0)) { sum, k in
                let term = Double(x[k]) * Double(adapter.factors.down[flat: i * x.count + k])
                sum = (sum.0 + term, sum.1 + abs(term))
            }
        }
        return (0..<adapter.outFeatures).map { n in
            let bias = Double(adapter.bias?[flat: n] ?? 0)
            let sum = hidden.enumerated().reduce((bias, abs(bias))) {
                let up = Double(adapter.factors.up[flat: n * adapter.rank + $1.offset])
                return ($0.0 + up * $1.element.0, $0.1 + abs(up) * $1.element.1)
            }
            return (factor * sum.0, abs(factor) * sum.1)
        }
    }

    @Test("adding adapters adds their products to the output", arguments: InstructionSet.available, [0, 5])
    func adding(_ set: InstructionSet, _ rank: Int) throws {
        let (outFeatures, inFeatures) = (19, 70)
        let parts = try Support.layer(outFeatures, inFeatures, activation: .float, instructionSet: set)
        let layer =
            rank > 0
            ? parts
            : try SVDQuantLinear(weight: parts.weight, smooth: parts.smooth, activation: .float, instructionSet: set)
        let first = try Self.adapter(outFeatures, inFeatures, rank: 3, alpha: 6)
        let second = try Self.adapter(outFeatures, inFeatures, rank: 4, alpha: 1, seed: 30, hasBias: true)
        let both = try layer.adding([(first, 0.5), (second, -2)])
        #expect(both.rank == rank + 7 && both.weight.codes == layer.weight.codes && first.scale == 2 && second.scale == 0.25)
        let chained = try layer.adding(first, strength: 0.5).adding(second, strength: -2)
        #expect(Support.areIdentical(both, chained))
        #expect(Support.areIdentical(try layer.adding([]), layer) && layer.rank == rank)

        let x = try Tensor<Float>.normal([1, inFeatures], seed: 8)
        let (before, after) = (Support.outputs(of: layer, x.elements), try both(x))
        let deltas = (Self.delta(first, x.elements, strength: 0.5), Self.delta(second, x.elements, strength: -2))
        for n in 0..<outFeatures {
            let expected = before[n].value + deltas.0[n].0 + deltas.1[n].0
            let magnitude = before[n].magnitude + deltas.0[n].1 + deltas.1[n].1
            // The bound of the layer itself, and one rounding of each scaled factor.
            let bound = Double(inFeatures + both.rank + 5) * 0x1p-24 * magnitude
            #expect(abs(Double(after[flat: n]) - expected) <= bound)
        }
    }

    @Test("joined projections share a factor, or stay apart")
    func fused() throws {
        let x = try Tensor<Float>.normal([1, 12], seed: 8)
        let query = try Self.adapter(5, 12, rank: 2, alpha: 1)
        let value = try LoRAAdapter(down: query.factors.down, up: .normal([3, 2], seed: 40), bias: .normal([3], seed: 41))
        let other = try Self.adapter(3, 12, rank: 3, seed: 50)
        for (last, rank) in [(value, 2), (other, 5)] {
            let joined = try LoRAAdapter.fused([(query, 5), (nil, 4), (last, 3)])
            #expect(joined.rank == rank && joined.outFeatures == 12 && joined.scale == 1)
            let expected =
                Self.delta(query, x.elements) + [(Double, Double)](repeating: (0, 0), count: 4) + Self.delta(last, x.elements)
            for (actual, expected) in zip(Self.delta(joined, x.elements), expected) {
                #expect(abs(actual.0 - expected.0) <= 0x1p-23 * expected.1)
            }
        }
        expectError(.invalidArgument, "projections") { _ = try LoRAAdapter.fused([(nil, 3)]) }
        expectError(.invalidArgument, "projections") { _ = try LoRAAdapter.fused([]) }
        expectError(.invalidShape, "projections[1]") { _ = try LoRAAdapter.fused([(query, 5), (value, 4)]) }
        expectError(.invalidShape, "projections[0]") { _ = try LoRAAdapter.fused([(nil, 0), (value, 3)]) }
        expectError(.invalidShape, "projections[1]") {
            _ = try LoRAAdapter.fused([(query, 5), (Self.adapter(3, 13, rank: 2), 3)])
        }
    }

    @Test("a layer split by columns splits its adapter")
    func inputs() throws {
        let adapter = try Self.adapter(5, 12, rank: 3, alpha: 2, hasBias: true)
        let x = try Tensor<Float>.normal([1, 12], seed: 8).elements
        let (left, right) = (try adapter.inputs(0..<7), try adapter.inputs(7..<12))
        #expect(right.bias == nil && left.scale == adapter.scale)
        let sums = zip(Self.delta(left, Array(x[..<7])), Self.delta(right, Array(x[7...])))
        for (sum, expected) in zip(sums, Self.delta(adapter, x)) {
            #expect(abs(sum.0.0 + sum.1.0 - expected.0) <= 0x1p-40 * expected.1)
        }
        for range in [0..<0, -1..<3, 4..<13] {
            expectError(.invalidArgument, "range") { _ = try adapter.inputs(range) }
        }
    }

    // MARK: - Files

    private static func file(_ tensors: [(String, [Int])]) throws -> SafetensorsFile {
        var writer = SafetensorsWriter()
        for (index, (name, shape)) in tensors.enumerated() {
            try writer.add(name, Tensor<Float>.normal(shape, seed: UInt64(index)).converted(to: BFloat16.self))
        }
        return try SafetensorsFile(bytes: writer.encoded(), named: "f")
    }

    @Test(
        "files of PEFT, kohya-ss and diffusers",
        arguments: [
            ("lora_A.weight", "lora_B.weight"), ("lora_A.default.weight", "lora_B.default.weight"),
            ("lora_down.weight", "lora_up.weight"), ("lora.down.weight", "lora.up.weight"),
        ])
    func files(_ names: (down: String, up: String)) throws {
        let file = try Self.file([("a.q.\(names.down)", [4, 12]), ("a.q.\(names.up)", [6, 4]), ("a.q.alpha", [])])
        #expect(LoRAAdapter.layers(in: file) == ["a.q"])
        let adapter = try LoRAAdapter(file: file, layer: "a.q", alpha: 100)
        #expect(adapter.factors.down == (try file.floatTensor("a.q.\(names.down)")) && adapter.inFeatures == 12)
        #expect(adapter.scale == (try file.floatTensor("a.q.alpha")[flat: 0] / 4))
        let plain = try Self.file([("a.q.\(names.down)", [4, 12]), ("a.q.\(names.up)", [6, 4])])
        #expect(try LoRAAdapter(file: plain, layer: "a.q", alpha: 100).scale == 25)
        #expect(try LoRAAdapter(file: plain, layer: "a.q").scale == 1)
    }

    @Test("files that do not fit are errors that name the tensor")
    func badFiles() throws {
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, _ tensors: [(String, [Int])],
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, "f, \(argument)", sourceLocation: sourceLocation) {
                _ = try LoRAAdapter(file: Self.file(tensors), layer: "q")
            }
        }
        expect(.notFound, "layer \"q\"", [])
        expect(.notFound, "layer \"q\"", [("k.lora_A.weight", [2, 4])])
        expect(.notFound, "tensor \"q.lora_B.weight\"", [("q.lora_A.weight", [2, 4])])
        expect(.notFound, "tensor \"q.lora_down.weight\"", [("q.lora_up.weight", [2, 4])])
        expect(
            .malformedFile, "tensor \"q.lora_A.weight\"",
            [("q.lora_A.weight", [2, 4]), ("q.lora_B.weight", [3, 2]), ("q.lora_down.weight", [2, 4])])
        for shape in [[2], [0, 4], [2, 0], [2, 4, 3, 3], [2, 4, 1, 3], [2, 4, 1, 1, 1, 1], [8193, 1]] {
            expect(.malformedFile, "tensor \"q.lora_A.weight\"", [("q.lora_A.weight", shape), ("q.lora_B.weight", [3, 2])])
        }
        for shape in [[2], [3, 4], [0, 2]] {
            expect(.malformedFile, "tensor \"q.lora_B.weight\"", [("q.lora_A.weight", [2, 4]), ("q.lora_B.weight", shape)])
        }
        let factors = [("q.lora_A.weight", [2, 4]), ("q.lora_B.weight", [3, 2])]
        expect(.malformedFile, "tensor \"q.alpha\"", factors + [("q.alpha", [2])])
        expect(.malformedFile, "tensor \"q.lora_B.bias\"", factors + [("q.lora_B.bias", [2])])
        var writer = SafetensorsWriter()
        try writer.add("q.lora_A.weight", Tensor<Float>([2, 4]) { $0 == 3 ? .nan : 1 })
        try writer.add("q.lora_B.weight", Tensor<Float>(zeros: [3, 2]))
        let file = try SafetensorsFile(bytes: writer.encoded(), named: "f")
        expectError(.malformedFile, "f, tensor \"q.lora_A.weight\"") { _ = try LoRAAdapter(file: file, layer: "q") }
    }

    @Test("adapters of other layers and bad strengths are errors that name them")
    func badInput() throws {
        let layer = try Support.layer(6, 64)
        let good = try Self.adapter(6, 64, rank: 2)
        for adapter in [try Self.adapter(5, 64, rank: 2), try Self.adapter(6, 63, rank: 2)] {
            expectError(.invalidShape, "adapters[1]") { _ = try layer.adding([(good, 1), (adapter, 1)]) }
        }
        expectError(.invalidArgument, "adapters[0].strength") { _ = try layer.adding(good, strength: .nan) }
        let wide = try Self.adapter(6, 64, rank: 8188)
        expectError(.invalidShape, "adapters") { _ = try layer.adding(wide) }
        expectError(.invalidShape, "up") { _ = try LoRAAdapter(down: Tensor(zeros: [2, 4]), up: Tensor(zeros: [3, 3])) }
        expectError(.invalidArgument, "alpha") {
            _ = try LoRAAdapter(down: Tensor(zeros: [2, 4]), up: Tensor(zeros: [3, 2]), alpha: .infinity)
        }
        expectError(.invalidShape, "bias") {
            _ = try LoRAAdapter(down: Tensor(zeros: [2, 4]), up: Tensor(zeros: [3, 2]), bias: Tensor(zeros: [2]))
        }
    }
}
