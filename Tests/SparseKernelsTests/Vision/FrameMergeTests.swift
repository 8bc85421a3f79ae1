import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Merging of neighbouring frames")
struct FrameMergeTests {
    /// Text, frames that lost some tokens, and text.
    static let places: [Int32] = [-1, 0, 1, 2, 0, 2, -1, 1, 2, 0, 1, 2, 5, -2]

    static func row<Element: AttentionElement>(_ x: Tensor<Element>, _ row: Int) -> [Double] {
        let channels = x.shape[1]
        return (0..<channels).map { Double(x[flat: row * channels + $0].floatValue) }
    }

    static func check<Element: AttentionElement>(_: Element.Type, channels: Int) throws {
        let chains = try FrameChains(places: places)
        let x = try Tensor<Element>.normal([places.count, channels], seed: 1)
        for set in InstructionSet.available {
            let similarities = try FrameMerge(channels: channels, instructionSet: set).similarities(x, chains)
            for token in places.indices {
                let place = places[token]
                let before = (0..<token).last { places[$0] == place }
                guard place >= 0, let before else {
                    #expect(similarities[flat: token] == FrameChains.noSimilarity, "\(set), token \(token)")
                    continue
                }
                let oracle = ReferenceCosine(row(x, token), row(x, before))
                let error = abs(Double(similarities[flat: token]) - oracle.value)
                #expect(error <= oracle.bound, "\(set), \(channels) channels, token \(token): \(error) > \(oracle.bound)")
            }
        }
    }

    @Test("similarities agree with the oracle", arguments: [1, 3, 7, 16, 63, 65, 300, 1100])
    func similarities(_ channels: Int) throws {
        try Self.check(Float.self, channels: channels)
        try Self.check(Float16.self, channels: channels)
        try Self.check(BFloat16.self, channels: channels)
    }

    @Test("equal, opposite, zero and huge rows")
    func meaning() throws {
        let chains = try FrameChains(frames: 6, places: 1)
        let rows: [[Float]] = [[1, 2], [2, 4], [-1, -2], [0, 0], [1e18, 1e18], [1e18, 1e18]]
        let x = try Tensor([6, 2], rows.flatMap { $0 })
        for set in InstructionSet.available {
            let similarities = try FrameMerge(channels: 2, instructionSet: set).similarities(x, chains).elements
            #expect(similarities[0] == -2)
            for (value, expected) in zip(similarities[1...], [1, -1, 0, 0, 1] as [Float]) {
                #expect(abs(value - expected) < 1e-6)
            }
        }
    }

    @Test("chains are the tokens of a place in their order")
    func chains() throws {
        let chains = try FrameChains(places: Self.places)
        #expect(chains.count == 4 && chains.frameTokenCount == 11 && chains.tokenCount == 14)
        #expect((0..<4).map { Array(chains[$0]) } == [[1, 4, 9], [2, 7, 10], [3, 5, 8, 11], [12]])
        let whole = try FrameChains(frames: 3, places: 2)
        #expect((0..<2).map { Array(whole[$0]) } == [[0, 2, 4], [1, 3, 5]])
        #expect(try FrameChains(places: []).count == 0)
        #expect(try FrameChains(frames: 0, places: 9).tokenCount == 0)
        let similarities = try Tensor<Float>(
            [14], [-2, -2, -2, -2, 0.6, 0.59, -2, 0.9, .nan, 0.9, -0.5, 0.7, -2, -2])
        #expect(try chains.tokens(withSimilarity: 0.6, of: similarities) == [4, 7, 9, 11])
        #expect(try chains.tokens(withSimilarity: -1, of: similarities) == [4, 5, 7, 9, 10, 11])
        expectError(.invalidArgument, "similarities[8]") { _ = try chains.mostSimilarTokens(1, of: similarities) }
        let ranked = try Tensor<Float>([14], similarities.elements.map { $0.isNaN ? 0.1 : $0 })
        #expect(try chains.mostSimilarTokens(1, of: ranked) == [7])
        #expect(try chains.mostSimilarTokens(3, of: ranked) == [7, 9, 11])
        #expect(try chains.mostSimilarTokens(14, of: ranked) == [4, 5, 7, 8, 9, 10, 11])
        #expect(try chains.mostSimilarTokens(0, of: ranked) == [])
    }

    @Test("a run becomes the mean of its tokens", arguments: InstructionSet.available, [1, 5, 33, 200])
    func means(_ set: InstructionSet, _ channels: Int) throws {
        let chains = try FrameChains(places: Self.places)
        let x = try Tensor<Float>.normal([14, channels], seed: 2)
        var merged = x
        // Runs 1, 4, 9 and 5, 8; token 10 alone follows 7.
        let compaction = try FrameMerge(channels: channels, instructionSet: set)(&merged, chains, merging: [4, 8, 9, 10])
        #expect(compaction.kept == [0, 1, 2, 3, 5, 6, 7, 11, 12, 13])
        for (target, run) in [(1, [1, 4, 9]), (5, [5, 8]), (7, [7, 10])] {
            for channel in 0..<channels {
                let mean = run.reduce(0.0) { $0 + Double(x[$1, channel]) } / Double(run.count)
                let size = run.reduce(0.0) { $0 + abs(Double(x[$1, channel])) }
                #expect(abs(Double(merged[target, channel]) - mean) <= 3 * 0x1p-24 * size)
            }
        }
        for row in 0..<14 where ![1, 5, 7].contains(row) {
            #expect((0..<channels).allSatisfy { merged[row, $0] == x[row, $0] })
        }
    }

    @Test("threads change no bit, and a NaN stays with its token", arguments: InstructionSet.available)
    func bits(_ set: InstructionSet) throws {
        let chains = try FrameChains(frames: 20, places: 49)
        var x = try Tensor<Float>.normal([980, 260], seed: 3)
        let merge = try FrameMerge(channels: 260, instructionSet: set)
        let merged = (49..<980).filter { $0 % 5 < 3 }
        let expected = try merge.similarities(x, chains, on: .serial)
        var serial = x
        _ = try merge(&serial, chains, merging: merged, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            #expect(try merge.similarities(x, chains, on: pool).bits == expected.bits)
            var other = x
            _ = try merge(&other, chains, merging: merged, on: pool)
            #expect(other.bits == serial.bits)
        }
        x[100, 7] = .nan
        let similarities = try merge.similarities(x, chains)
        let (bits, expectedBits) = (similarities.bits, expected.bits)
        for token in 0..<980 {
            #expect(
                token == 100 || token == 149
                    ? similarities[flat: token].isNaN
                    : bits[token] == expectedBits[token])
        }
        #expect(try !chains.tokens(withSimilarity: -1, of: similarities).contains(149))
    }

    @Test("bad input is a typed error")
    func errors() throws {
        expectError(.invalidShape, "channels") { _ = try FrameMerge(channels: 0) }
        expectError(.invalidArgument, "places") { _ = try FrameChains(places: [1 << 24]) }
        expectError(.invalidShape, "frames") { _ = try FrameChains(frames: -1, places: 2) }
        expectError(.invalidShape, "frames") { _ = try FrameChains(frames: .max, places: 2) }
        let chains = try FrameChains(places: Self.places)
        let merge = try FrameMerge(channels: 4)
        var x = try Tensor<Float>(zeros: [14, 4])
        expectError(.invalidShape, "x", containing: "14 × 4") {
            _ = try merge.similarities(Tensor<Float>(zeros: [13, 4]), chains)
        }
        for list in [[14], [-1], [4, 4], [9, 4]] {
            expectError(.invalidArgument, "merged[\(list.count - 1)]") { _ = try merge(&x, chains, merging: list) }
        }
        // The first of a chain, and text.
        for token in [1, 12, 6] { expectError(.invalidArgument, "merged") { _ = try merge(&x, chains, merging: [token]) } }
        expectError(.invalidShape, "similarities") { _ = try chains.mostSimilarTokens(1, of: Tensor(zeros: [3])) }
        expectError(.invalidArgument, "count") { _ = try chains.mostSimilarTokens(-1, of: Tensor(zeros: [14])) }
        let short = try Tensor<Float>(zeros: [14, 4])
        var span = try Tensor<Float>(zeros: [3])
        expectError(.invalidShape, "similarities", containing: "14", "3") {
            try merge.run(short.matrixView(), chains, into: span.mutableSpan)
        }
    }
}
