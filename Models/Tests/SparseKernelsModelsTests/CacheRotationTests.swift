import SparseKernels
import SparseKernelsReference
import Testing

@testable import SparseKernelsModels

@Suite("Rotated keys and values")
struct CacheRotationTests {
    /// Random rows of three tokens, before and after the rotation, and the rotation.
    private static func rotated(keys: Bool, values: Bool) throws -> (before: HeadRows, after: HeadRows, CacheRotation) {
        let configuration = try TinyLanguageModel.load().configuration
        var before = try HeadRows(configuration, capacity: 3)
        before.rows = 3
        before.elements = try Tensor.normal(before.elements.shape, seed: 5)
        let rotation = try CacheRotation(configuration, keys: keys, values: values)
        var after = before
        try rotation.rotate(&after, on: .shared)
        return (before, after, rotation)
    }

    private static func head(_ rows: HeadRows, token: Int, offset: Int, _ head: Int) -> [Double] {
        (0..<rows.headDim).map { Double(rows.elements[flat: token * rows.width + offset + head * rows.headDim + $0]) }
    }

    private static func dot(_ a: [Double], _ b: [Double]) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }

    @Test("keys and queries of a head change, and all their products stay")
    func scores() throws {
        let (before, after, _) = try Self.rotated(keys: true, values: false)
        let group = before.queryHeads / before.kvHeads
        for key in 0..<3 {
            for query in 0..<3 {
                for head in 0..<before.queryHeads {
                    let scores = [before, after].map {
                        Self.dot(
                            Self.head($0, token: query, offset: 0, head),
                            Self.head($0, token: key, offset: $0.keyOffset, head / group))
                    }
                    #expect(abs(scores[0] - scores[1]) < 1e-5)
                }
            }
            for head in 0..<before.kvHeads {
                let keys = [before, after].map { Self.head($0, token: key, offset: $0.keyOffset, head) }
                #expect(zip(keys[0], keys[1]).contains { abs($0 - $1) > 0.1 })
                // The first channel of a rotated head is the mean times the root of the channels.
                let mean = keys[0].reduce(0, +) / Double(before.headDim)
                #expect(abs(keys[1][0] - mean * Double(before.headDim).squareRoot()) < 1e-5)
                let values = [before, after].map { Self.head($0, token: key, offset: $0.valueOffset, head) }
                #expect(values[0] == values[1])
            }
        }
    }

    @Test("values change, and the output that is rotated back is theirs")
    func values() throws {
        let (before, after, rotation) = try Self.rotated(keys: false, values: true)
        #expect(before.elements.elements[..<before.keyOffset] == after.elements.elements[..<before.keyOffset])
        // The output of a head that attends to one token is the value of its group.
        let group = before.queryHeads / before.kvHeads
        func output(_ rows: HeadRows) throws -> Tensor<Float> {
            let elements = (0..<3).flatMap { token in
                (0..<rows.queryHeads).flatMap { Self.head(rows, token: token, offset: rows.valueOffset, $0 / group) }
            }
            return try Tensor([3, rows.queryHeads * rows.headDim], elements.map { Float($0) })
        }
        let expected = try output(before)
        var restored = try output(after)
        #expect(zip(expected.elements, restored.elements).contains { abs($0 - $1) > 0.1 })
        try rotation.restore(&restored, rows: 3, on: .shared)
        for (a, b) in zip(expected.elements, restored.elements) { #expect(abs(a - b) < 1e-5) }
    }
}
