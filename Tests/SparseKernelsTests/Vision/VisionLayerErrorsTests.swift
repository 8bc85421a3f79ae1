import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Errors of vision layers")
struct VisionLayerErrorsTests {
    let c = VisionLayerConfiguration(width: 24, heads: 2, hidden: 32)

    @Test("extents out of range are named")
    func configuration() throws {
        let weights = try VisionLayerWeights.normal(c, seed: 1)
        for (name, change) in [
            ("width", { $0.width = 0 }), ("heads", { $0.heads = 0 }), ("headDim", { $0.headDim = 257 }),
            ("hidden", { $0.hidden = -1 }), ("heads · headDim", { ($0.heads, $0.headDim) = (1 << 20, 256) }),
        ] as [(String, (inout VisionLayerConfiguration) -> Void)] {
            var other = c
            change(&other)
            expectError(.invalidShape, name) { _ = try VisionLayer(other, weights) }
        }
        var negative = c
        negative.epsilon = -1
        expectError(.invalidArgument, "attentionNorm.epsilon") { _ = try VisionLayer(negative, weights) }
    }

    @Test("tensors of other shapes and numbers that are not finite are named, in every format")
    func weights() throws {
        let good = try VisionLayerWeights.normal(c, seed: 1, hasHeadNorms: true)
        let wrong = VisionLayerWeights.Affine(weight: try Tensor(zeros: [5, 7]), bias: try Tensor(zeros: [5]))
        let paths: [(String, WritableKeyPath<VisionLayerWeights, VisionLayerWeights.Affine>)] = [
            ("attentionNorm", \.attentionNorm), ("queryKeyValue", \.queryKeyValue), ("projection", \.projection),
            ("mlpNorm", \.mlpNorm), ("up", \.up), ("down", \.down),
        ]
        for format in VisionLinearFormat.allCases {
            for (name, path) in paths {
                var bad = good
                bad[keyPath: path] = wrong
                expectError(.invalidShape, name + ".weight", containing: "[5, 7]") {
                    _ = try VisionLayer(c, bad, linear: format)
                }
                bad = good
                bad[keyPath: path].bias = try Tensor(zeros: [1])
                expectError(.invalidShape, name + ".bias", containing: "[1]") { _ = try VisionLayer(c, bad, linear: format) }
                for number in [Float.nan, .infinity] {
                    bad = good
                    bad[keyPath: path].weight[flat: 3] = number
                    expectError(.invalidArgument, name + ".weight", containing: "element 3") {
                        _ = try VisionLayer(c, bad, linear: format)
                    }
                    bad = good
                    bad[keyPath: path].bias?[flat: 2] = number
                    expectError(.invalidArgument, name + ".bias", containing: "element 2") {
                        _ = try VisionLayer(c, bad, linear: format)
                    }
                }
            }
        }
        var bad = good
        bad.keyNorm = wrong
        expectError(.invalidShape, "keyNorm.weight") { _ = try VisionLayer(c, bad) }
        bad = good
        bad.queryNorm = wrong
        expectError(.invalidShape, "queryNorm.weight") { _ = try VisionLayer(c, bad) }
    }

    @Test("rows and prefixes that do not fit are refused, and nothing is written")
    func rows() throws {
        let layer = try VisionLayer(c, .normal(c, seed: 1))
        var (workspace, keys) = (VisionWorkspace(), VisionKeys())
        var x = try Tensor<Float>.normal([6, 24], seed: 1)
        let before = x
        expectError(.invalidShape, "pictures", containing: "0") {
            try layer.run(&x, pictures: 0, workspace: &workspace)
        }
        expectError(.invalidShape, "x", containing: "4 pictures", "6 rows") {
            try layer.run(&x, pictures: 4, workspace: &workspace)
        }
        var narrow = try Tensor<Float>(zeros: [6, 23])
        expectError(.invalidShape, "x", containing: "24", "23") { try layer.run(&narrow, workspace: &workspace) }
        var cube = try Tensor<Float>(zeros: [2, 3, 24])
        expectError(.invalidShape, "x") { try layer.run(&cube, keeping: &keys, workspace: &workspace) }
        #expect(keys.tokens == 0)
        for (heads, dim, pictures) in [(3, 12, 1), (2, 11, 1), (6, 12, 3)] {
            let tensor = try Tensor<Float>(zeros: [heads, 5, dim])
            let prefix = try VisionKeys(keys: tensor, values: tensor, pictures: pictures)
            expectError(.invalidShape, pictures == 3 ? "prefix.pictures" : "prefix.keys") {
                try layer.run(&x, pictures: 2, after: prefix, workspace: &workspace)
            }
        }
        #expect(x.bits == before.bits)
        var y = try Tensor<Float>(zeros: [5, 24])
        expectError(.invalidShape, "y", containing: "[6, 24]", "[5, 24]") {
            try layer.attention.run(x, into: &y, workspace: &workspace)
        }
    }

    @Test("keys of disagreeing extents are refused")
    func keys() throws {
        let tensor = try Tensor<Float>(zeros: [4, 5, 6])
        expectError(.invalidShape, "pictures") { _ = try VisionKeys(keys: tensor, values: tensor, pictures: 0) }
        expectError(.invalidShape, "keys") { _ = try VisionKeys(keys: tensor, values: tensor, pictures: 3) }
        expectError(.invalidShape, "keys") {
            let matrix = try Tensor<Float>(zeros: [4, 5])
            _ = try VisionKeys(keys: matrix, values: matrix)
        }
        expectError(.invalidShape, "values") {
            _ = try VisionKeys(keys: tensor, values: Tensor(zeros: [4, 5, 7]))
        }
    }

    @Test("layers over one input are stacked, and parts of other widths refused")
    func stacking() throws {
        typealias Affine = VisionLayerWeights.Affine
        let a = Affine(weight: try .normal([2, 3], seed: 1))
        let b = Affine(weight: try .normal([4, 3], seed: 2), bias: try .normal([4], seed: 3))
        let both = try Affine.stacking([a, b])
        #expect(both.weight.shape == [6, 3] && both.weight.elements == a.weight.elements + b.weight.elements)
        #expect(both.bias?.elements == [0, 0] + b.bias!.elements)
        #expect(try Affine.stacking([a, a]).bias == nil)
        expectError(.invalidShape, "parts") { _ = try Affine.stacking([]) }
        expectError(.invalidShape, "parts[1].weight") {
            _ = try Affine.stacking([a, Affine(weight: Tensor(zeros: [2, 4]))])
        }
        expectError(.invalidShape, "parts[1].bias") {
            _ = try Affine.stacking([a, Affine(weight: Tensor(zeros: [2, 3]), bias: Tensor(zeros: [3]))])
        }
    }
}
