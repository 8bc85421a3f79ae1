import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Layers of vision transformers")
struct VisionLayerTests {
    typealias Configuration = VisionLayerConfiguration

    /// Heads of a whole vector, of 72 channels as in SigLIP's largest model, and of fewer channels together than the width.
    static let configurations = [
        Configuration(width: 48, heads: 3, hidden: 96, activation: .gelu),
        Configuration(width: 144, heads: 2, hidden: 200, activation: .geluTanh),
        Configuration(width: 40, heads: 2, headDim: 7, hidden: 51, epsilon: 1e-5, activation: .quickGELU),
    ]

    /// Compares a row range of a result with what the oracle says, and returns the largest share of the bound.
    static func expect(_ y: Tensor<Float>, firstRow: Int, matches expected: BoundedMatrix, _ label: String) {
        var worst = 0.0
        for index in expected.values.indices {
            let actual = Double(y[flat: firstRow * expected.columns + index])
            worst = max(worst, abs(actual - expected.values[index]) / (expected.errors[index] + 1e-30))
            if actual.isNaN { worst = .infinity }
        }
        #expect(worst <= 1, "\(label): \(worst) of the bound")
    }

    static func rows(_ x: Tensor<Float>, _ range: Range<Int>) throws -> Tensor<Float> {
        let columns = x.shape[1]
        return try Tensor([range.count, columns]) { x[flat: range.lowerBound * columns + $0] }
    }

    @Test("agree with the oracle within the bound, and so do kept keys", arguments: InstructionSet.available)
    func agree(_ set: InstructionSet) throws {
        for (index, c) in Self.configurations.enumerated() {
            for (pictures, tokens) in [(1, 1), (3, 5), (1, 33)] {
                let label = "\(set), \(c.activation), \(pictures) × \(tokens)"
                let weights = try VisionLayerWeights.normal(c, seed: UInt64(index), hasHeadNorms: index == 1)
                let x = try Tensor<Float>.normal([pictures * tokens, c.width], seed: 7)
                let layer = try VisionLayer(c, weights, instructionSet: set)
                let oracle = ReferenceVisionLayer(c, weights)
                var (y, keys, workspace) = (x, VisionKeys(), VisionWorkspace())
                try layer.run(&y, pictures: pictures, keeping: &keys, workspace: &workspace)
                var plain = x
                try layer.run(&plain, pictures: pictures, workspace: &workspace)
                #expect(plain.bits == y.bits, "\(label): the bits of a pass that keeps its keys")
                #expect(keys.tokens == tokens && keys.pictures == pictures)
                for picture in 0..<pictures {
                    let range = picture * tokens..<(picture + 1) * tokens
                    let expected = oracle(BoundedMatrix(try Self.rows(x, range)))
                    Self.expect(y, firstRow: range.lowerBound, matches: expected.output, label)
                    for head in 0..<c.heads {
                        let row = (picture * c.heads + head) * tokens
                        let flat = (
                            try Tensor<Float>([pictures * c.heads * tokens, c.headDim], keys.keys.elements),
                            try Tensor<Float>([pictures * c.heads * tokens, c.headDim], keys.values.elements)
                        )
                        Self.expect(flat.0, firstRow: row, matches: expected.keys.keys[head], label + ", keys")
                        Self.expect(flat.1, firstRow: row, matches: expected.keys.values[head], label + ", values")
                    }
                }
            }
        }
    }

    @Test("tokens after a prefix agree with the oracle, shared or one per picture", arguments: InstructionSet.available)
    func prefix(_ set: InstructionSet) throws {
        for (index, c) in Self.configurations.enumerated() {
            let weights = try VisionLayerWeights.normal(c, seed: UInt64(9 + index), hasHeadNorms: index == 2)
            let layer = try VisionLayer(c, weights, instructionSet: set)
            let oracle = ReferenceVisionLayer(c, weights)
            for (pictures, prefixes) in [(1, 1), (2, 1), (2, 2)] {
                let label = "\(set), \(c.activation), \(pictures) pictures after \(prefixes)"
                let low = try Tensor<Float>.normal([prefixes * 20, c.width], seed: 3)
                let high = try Tensor<Float>.normal([pictures * 9, c.width], seed: 4)
                var (keys, workspace) = (VisionKeys(), VisionWorkspace())
                var (lowOutput, y) = (low, high)
                try layer.run(&lowOutput, pictures: prefixes, keeping: &keys, workspace: &workspace)
                let before = keys
                try layer.run(&y, pictures: pictures, after: keys, workspace: &workspace)
                #expect(keys.keys.bits == before.keys.bits && keys.values.bits == before.values.bits, "the prefix is read only")
                for picture in 0..<pictures {
                    let start = prefixes == 1 ? 0 : picture * 20
                    let lowKeys = oracle(BoundedMatrix(try Self.rows(low, start..<start + 20))).keys
                    let expected = oracle(
                        BoundedMatrix(try Self.rows(high, picture * 9..<(picture + 1) * 9)), after: lowKeys)
                    Self.expect(y, firstRow: picture * 9, matches: expected.output, label)
                }
            }
        }
    }

    @Test("an empty prefix changes nothing, and a prefix counts as more tokens", arguments: InstructionSet.available)
    func parts(_ set: InstructionSet) throws {
        let c = Self.configurations[1]
        let layer = try VisionLayer(c, .normal(c, seed: 1), instructionSet: set)
        var workspace = VisionWorkspace()
        let x = try Tensor<Float>.normal([30, c.width], seed: 2)
        var (whole, keys) = (x, VisionKeys())
        try layer.run(&whole, workspace: &workspace)
        let none = try VisionKeys(
            keys: Tensor(zeros: [c.heads, 0, c.headDim]), values: Tensor(zeros: [c.heads, 0, c.headDim]))
        var after = x
        try layer.run(&after, after: none, workspace: &workspace)
        let scale = whole.elements.map(abs).max()!
        #expect(zip(after.elements, whole.elements).allSatisfy { abs($0 - $1) <= 1e-5 * scale })
        // Tokens 20…29 after the keys of tokens 0…19 see what they see among all 30.
        var head = try Self.rows(x, 0..<20)
        try layer.run(&head, keeping: &keys, workspace: &workspace)
        var tail = try Self.rows(x, 20..<30)
        try layer.run(&tail, after: keys, workspace: &workspace)
        for index in 0..<tail.count {
            #expect(abs(tail[flat: index] - whole[flat: 20 * c.width + index]) <= 1e-5 * scale)
        }
    }

    @Test("the bits do not depend on threads, other pictures or the workspace", arguments: InstructionSet.available)
    func independence(_ set: InstructionSet) throws {
        let c = Self.configurations[1]
        for format in VisionLinearFormat.allCases {
            let layer = try VisionLayer(c, .normal(c, seed: 5, hasHeadNorms: true), linear: format, instructionSet: set)
            let x = try Tensor<Float>.normal([3 * 21, c.width], seed: 6)
            var (expected, workspace) = (x, VisionWorkspace())
            try layer.run(&expected, pictures: 3, workspace: &workspace, on: .serial)
            for threads in [2, 7] {
                var again = x
                try layer.run(&again, pictures: 3, workspace: &workspace, on: WorkerPool(threads: threads))
                #expect(again.bits == expected.bits, "\(set), \(format), \(threads) threads")
            }
            for picture in 0..<3 {
                var (alone, fresh) = (try Self.rows(x, picture * 21..<(picture + 1) * 21), VisionWorkspace())
                try layer.run(&alone, workspace: &fresh)
                let start = picture * 21 * c.width
                #expect(alone.bits == Array(expected.bits[start..<start + 21 * c.width]), "\(set), \(format), alone")
            }
        }
    }

    @Test("many pictures go in groups with the bits of one", arguments: InstructionSet.available)
    func groups(_ set: InstructionSet) throws {
        let c = Configuration(width: 8, heads: 1, hidden: 8)
        let layer = try VisionLayer(c, .normal(c, seed: 5), instructionSet: set)
        // A group of 64 pictures, and a second one of 6.
        let (pictures, count) = (70, 64 * 8)
        let x = try Tensor<Float>.normal([pictures * 64, 8], seed: 6)
        var (all, keys, workspace) = (x, VisionKeys(), VisionWorkspace())
        try layer.run(&all, pictures: pictures, keeping: &keys, workspace: &workspace)
        var after = x
        try layer.run(&after, pictures: pictures, after: keys, workspace: &workspace)
        for picture in [0, 63, 64, 69] {
            let part = picture * count..<(picture + 1) * count
            var (own, alone) = (VisionKeys(), try Self.rows(x, picture * 64..<(picture + 1) * 64))
            var second = alone
            try layer.run(&alone, keeping: &own, workspace: &workspace)
            #expect(alone.bits == Array(all.bits[part]))
            #expect(own.values.bits == Array(keys.values.bits[part]))
            try layer.run(&second, after: own, workspace: &workspace)
            #expect(second.bits == Array(after.bits[part]))
        }
    }

    @Test("formats keep what their bits allow", arguments: InstructionSet.available)
    func formats(_ set: InstructionSet) throws {
        // Rows of 8 bits are filled up to 128 channels.
        let c = Configuration(width: 128, heads: 2, hidden: 256)
        let weights = try VisionLayerWeights.normal(c, seed: 8)
        let x = try Tensor<Float>.normal([2 * 30, c.width], seed: 9)
        var workspace = VisionWorkspace()
        func output(_ format: VisionLinearFormat) throws -> (update: [Float], bytes: Int) {
            let layer = try VisionLayer(c, weights, linear: format, instructionSet: set)
            #expect(layer.linear == format && layer.instructionSet == set)
            var y = x
            try layer.run(&y, pictures: 2, workspace: &workspace)
            return ((0..<y.count).map { y[flat: $0] - x[flat: $0] }, layer.byteCount)
        }
        let exact = try output(.float32)
        let norm = exact.update.reduce(0) { $0 + $1 * $1 }.squareRoot()
        // A weight of 16 bits is off by half a step, one of 8 bits and its activation by 1/254 of the largest of a row.
        for (format, bound, share) in [
            (VisionLinearFormat.float16, Float(5e-4), 0.51), (.bfloat16, 4e-3, 0.51), (.w8a8, 2e-2, 0.35),
        ] {
            let rounded = try output(format)
            let error = zip(rounded.update, exact.update).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }.squareRoot()
            #expect(error > 0 && error <= bound * norm, "\(set), \(format): \(error / norm)")
            #expect(Double(rounded.bytes) <= share * Double(exact.bytes))
        }
    }

    @Test("NaN and infinities stay in their picture", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let c = Self.configurations[0]
        for format in VisionLinearFormat.allCases {
            let layer = try VisionLayer(c, .normal(c, seed: 2), linear: format, instructionSet: set)
            let x = try Tensor<Float>.normal([3 * 6, c.width], seed: 3)
            var (clean, workspace) = (x, VisionWorkspace())
            try layer.run(&clean, pictures: 3, workspace: &workspace)
            for bad in [Float.nan, .infinity, -.infinity] {
                var y = x
                y[8, 5] = bad
                try layer.run(&y, pictures: 3, workspace: &workspace)
                let picture = 6 * c.width..<12 * c.width
                #expect(y.elements[picture].allSatisfy { $0.isNaN }, "all tokens of a picture see each other")
                #expect(Array(y.bits[..<picture.lowerBound]) == Array(clean.bits[..<picture.lowerBound]))
                #expect(Array(y.bits[picture.upperBound...]) == Array(clean.bits[picture.upperBound...]))
            }
        }
    }

    @Test("no rows are no work")
    func empty() throws {
        let c = Self.configurations[0]
        let layer = try VisionLayer(c, .normal(c, seed: 2))
        var (x, keys, workspace) = (try Tensor<Float>(zeros: [0, c.width]), VisionKeys(), VisionWorkspace())
        try layer.run(&x, pictures: 2, keeping: &keys, workspace: &workspace)
        #expect(keys.tokens == 0 && keys.byteCount == 0 && x.count == 0)
        try layer.run(&x, pictures: 2, after: keys, workspace: &workspace)
        var y = x
        try layer.attention.run(x, into: &y, workspace: &workspace)
    }
}
