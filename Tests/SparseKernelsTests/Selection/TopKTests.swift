import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Selection: top-k")
struct TopKTests {
    /// A stable sort by the order in the guide: NaN first, then larger scores, then lower indices.
    static func sorted(_ scores: [Float], _ count: Int) -> [Int] {
        func rank(_ x: Float) -> Double { x.isNaN ? .infinity : x == .infinity ? 1e300 : x == -.infinity ? -1e300 : Double(x) }
        let order = scores.indices.sorted { (rank(scores[$0]), -$0) > (rank(scores[$1]), -$1) }
        return order.prefix(count).sorted()
    }

    static func expectSorted(_ scores: [Float], _ label: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
        for count in Set([0, 1, 2, 3, scores.count / 3, scores.count - 1, scores.count, scores.count + 5]) where count >= 0 {
            let actual = try TopK.select(scores: scores.span, count: count)
            #expect(actual == sorted(scores, count), "\(label), \(count) of \(scores.count)", sourceLocation: sourceLocation)
        }
    }

    @Test("equals a full sort", arguments: [1, 2, 3, 7, 64, 1000, 8192])
    func fullSort(_ count: Int) throws {
        var generator = SplitMix64(seed: UInt64(count))
        let normal = (0..<count).map { _ in generator.normal() }
        try Self.expectSorted(normal, "normal")
        try Self.expectSorted(normal.map { $0 * 1e-3 + 1000 }, "one exponent")
        try Self.expectSorted(normal.map { $0 * $0 * $0 * 1e30 }, "many exponents")
        try Self.expectSorted(
            (0..<count).map { _ in Float(bitPattern: UInt32(truncatingIfNeeded: generator.next())) }, "any bits")
        try Self.expectSorted((0..<count).map { Float($0) }, "ascending")
        try Self.expectSorted((0..<count).map { Float(-$0) }, "descending")
    }

    @Test("equal scores are taken by lower index")
    func ties() throws {
        let scores: [Float] = [1, 3, 2, 3, 0, 3, 2]
        #expect(try TopK.select(scores: scores.span, count: 2) == [1, 3])
        #expect(try TopK.select(scores: scores.span, count: 4) == [1, 2, 3, 5])
        #expect(try TopK.select(scores: [Float](repeating: -2, count: 6).span, count: 4) == [0, 1, 2, 3])
        #expect(try TopK.select(scores: [-0.0, 0, -0.0, 0].span, count: 2) == [0, 1])
        var generator = SplitMix64(seed: 9)
        try Self.expectSorted((0..<5000).map { _ in Float(Int(generator.normal())) }, "few values")
    }

    @Test("NaN ranks first, then infinity, and minus infinity last")
    func nonFinite() throws {
        let scores: [Float] = [5, -.infinity, .nan, .infinity, -.nan, 7]
        #expect(try TopK.select(scores: scores.span, count: 1) == [2])
        #expect(try TopK.select(scores: scores.span, count: 2) == [2, 4])
        #expect(try TopK.select(scores: scores.span, count: 3) == [2, 3, 4])
        #expect(try TopK.select(scores: scores.span, count: 5) == [0, 2, 3, 4, 5])
        #expect(try TopK.select(scores: [-.infinity, -.infinity, -.infinity].span, count: 2) == [0, 1])
    }

    @Test("what is excluded is never taken, whatever its score, and passes without repeats are a full sort in parts")
    func exclusion() throws {
        let scores: [Float] = [5, .nan, 3, 3, 9, 3, .infinity]
        let excluded = [false, true, false, false, true, false, true]
        #expect(try TopK.select(scores: scores.span, count: 0, excluding: excluded.span) == [])
        #expect(try TopK.select(scores: scores.span, count: 1, excluding: excluded.span) == [0])
        #expect(try TopK.select(scores: scores.span, count: 3, excluding: excluded.span) == [0, 2, 3])
        #expect(try TopK.select(scores: scores.span, count: 4, excluding: excluded.span) == [0, 2, 3, 5])
        #expect(try TopK.select(scores: scores.span, count: 9, excluding: excluded.span) == [0, 2, 3, 5])
        let all = [Bool](repeating: true, count: 7)
        #expect(try TopK.select(scores: scores.span, count: 2, excluding: all.span) == [])
        var generator = SplitMix64(seed: 31)
        // Few values, so that passes end among equal scores.
        let many = (0..<3000).map { _ in Float(Int(generator.normal() * 4)) }
        var taken = [Bool](repeating: false, count: many.count)
        for pass in 0..<11 {
            let picked = try TopK.select(scores: many.span, count: 277, excluding: taken.span)
            for index in picked {
                #expect(!taken[index], "\(index) again in pass \(pass)")
                taken[index] = true
            }
            let expected = Self.sorted(many, 277 * (pass + 1))
            #expect(taken.indices.filter { taken[$0] } == expected, "after pass \(pass)")
        }
        #expect(taken.allSatisfy { $0 })
    }

    @Test("flags of another number and negative counts are refused")
    func exclusionErrors() throws {
        let (scores, flags): ([Float], [Bool]) = ([1, 2, 3], [false, true])
        expectError(.invalidShape, "excluded", containing: "3", "2") {
            _ = try TopK.select(scores: scores.span, count: 1, excluding: flags.span)
        }
        expectError(.invalidArgument, "count", containing: "-1") {
            _ = try TopK.select(scores: scores.span, count: -1, excluding: [false, true, true].span)
        }
    }

    @Test("neighbouring numbers are told apart, and the ends of the range")
    func neighbours() throws {
        let scores: [Float] = [1, Float(1).nextUp, Float(1).nextDown, .greatestFiniteMagnitude, -.greatestFiniteMagnitude]
        try Self.expectSorted(scores, "neighbours")
        try Self.expectSorted([.leastNonzeroMagnitude, 0, -.leastNonzeroMagnitude, -0.0], "subnormal")
    }

    @Test("no scores, and bad counts")
    func edges() throws {
        #expect(try TopK.select(scores: [Float]().span, count: 3) == [])
        let error = #expect(throws: SparseKernelsError.self) { try TopK.select(scores: [Float(1)].span, count: -1) }
        #expect(error?.code == .invalidArgument && error?.argument == "count")
    }
}
