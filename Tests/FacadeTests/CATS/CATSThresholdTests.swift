import CATS
import Foundation
import SparseKernelsReference
import TestSupport
import Testing

@Suite("CATS: thresholds")
struct CATSThresholdTests {
    private func counted(_ x: Tensor<Float>) throws -> ActivationHistogram {
        var histogram = ActivationHistogram()
        try histogram.add(x)
        return histogram
    }

    @Test("thresholds are the quantiles of a full sort, up to a bin")
    func quantiles() throws {
        let x = try Tensor<Float>.normal([61, 33], seed: 1)
        let sorted = x.elements.map(\.magnitude).sorted()
        let histogram = try counted(x)
        #expect(histogram.count == sorted.count)
        for sparsity in [0.01, 0.3, 0.5, 0.7, 0.9, 0.999] {
            let threshold = try histogram.threshold(sparsity: sparsity)
            let wanted = Int((sparsity * Double(sorted.count)).rounded(.up))
            #expect(threshold >= sorted[wanted - 1] && threshold < sorted[wanted - 1] * (1 + 1 / 127))
            let dropped = Double(sorted.count { $0 <= threshold }) / Double(sorted.count)
            #expect(dropped >= sparsity)
            #expect(try histogram.sparsity(threshold: threshold) == dropped)
        }
        #expect(try histogram.threshold(sparsity: 0) == 0)
        #expect(try histogram.sparsity(threshold: .infinity) == 1)
    }

    @Test("parts, merged in any order, are the whole")
    func merging() throws {
        let parts = try (0..<4).map { try Tensor<Float>.normal([7, 9], seed: $0, scale: Float($0 + 1)) }
        var (forward, backward) = (ActivationHistogram(), ActivationHistogram())
        for part in parts { try forward.add(part) }
        for part in parts.reversed() { backward.merge(try counted(part)) }
        #expect(forward == backward && forward.count == 4 * 63)
    }

    @Test("every magnitude has a bin: zeros, the smallest and the largest")
    func extremes() throws {
        let x = try Tensor<Float>(
            [1, 6], [0, -0, .leastNonzeroMagnitude, -.greatestFiniteMagnitude, .greatestFiniteMagnitude, 1])
        let histogram = try counted(x)
        #expect(try histogram.threshold(sparsity: 0.5) < 1e-38)
        #expect(try histogram.threshold(sparsity: 0.9) == .greatestFiniteMagnitude)
    }

    @Test("files have the same bits", arguments: ["cats.json", "cats.safetensors"])
    func files(_ name: String) throws {
        let folder = try TemporaryDirectory()
        let path = folder.path + "/" + name
        let thresholds = try CATSThresholds(
            [0, 0.1, .leastNonzeroMagnitude, 1 / 3, 1e30], sparsity: 0.7, function: .geluTanh)
        try thresholds.write(to: path)
        #expect(try CATSThresholds(path: path) == thresholds)
        #expect(try CATSThresholds(json: thresholds.json) == thresholds)
    }

    @Test("damaged files are typed errors")
    func damage() throws {
        let good = try CATSThresholds([0.5], sparsity: 0.5).json
        for (from, to) in [
            ("sparsekernels.cats", "other"), ("silu", "tanh"), ("[0.5]", "[-1]"), ("\"sparsity\":0.5", "\"sparsity\":1"),
            ("[0.5]", "0.5"), ("{", "["),
        ] {
            expectError(.malformedFile, describing: "json") {
                _ = try CATSThresholds(json: good.replacingOccurrences(of: from, with: to))
            }
        }
        expectError(.inputOutput, describing: "/nowhere") { _ = try CATSThresholds(path: "/nowhere/cats.json") }
        var writer = SafetensorsWriter()
        try CATSThresholds([0.5, 1], sparsity: 0.5).add(to: &writer)
        for (key, value) in [("sparsity", "nan"), ("sparsity", "x"), ("function", "x"), ("format", "x")] {
            var damaged = writer
            damaged.metadata[key] = value
            let file = try SafetensorsFile(bytes: damaged.encoded())
            expectError(.malformedFile, describing: "bytes") { _ = try CATSThresholds(file: file) }
        }
    }

    @Test("errors name what is out of range")
    func errors() throws {
        for sparsity in [-0.1, 1, .nan, 2] {
            expectError(.invalidArgument, "sparsity", containing: "\(sparsity)") {
                _ = try counted(Tensor([1, 1], [1])).threshold(sparsity: sparsity)
            }
            expectError(.invalidArgument, "sparsity") { _ = try CATSThresholds([1], sparsity: sparsity) }
        }
        for threshold: Float in [.nan, -1, .infinity] {
            expectError(.invalidArgument, "thresholds[1]", containing: "\(threshold)") {
                _ = try CATSThresholds([0, threshold], sparsity: 0.5)
            }
        }
        expectError(.invalidArgument, "histogram") { _ = try ActivationHistogram().threshold(sparsity: 0.5) }
        var histogram = ActivationHistogram()
        expectError(.invalidArgument, "activations", containing: "token 1, channel 0") {
            try histogram.add(Tensor([2, 2], [1, 2, .nan, 3]))
        }
        #expect(histogram.count == 0)
    }
}
