import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Bands with global tokens, exact to the token.
@Suite("Attention bands")
struct AttentionBandTests {
    static let bands: [AttentionBand] = [
        AttentionBand(left: 0, right: 0), AttentionBand(left: 3, right: 20), AttentionBand(left: 60, right: 60),
        AttentionBand(left: 500, right: 0), AttentionBand(left: .max, right: .max),
        AttentionBand(left: 10, right: 10, globalKeys: [0..<17]), AttentionBand(left: 10, right: 10, globalKeys: [180..<200]),
        AttentionBand(left: 9, right: 30, globalKeys: [50..<51, 0..<5, 100..<140], globalQueries: [60..<93, 199..<200]),
        AttentionBand(left: 0, right: 0, globalQueries: [0..<200]), AttentionBand(left: 0, right: 0, globalKeys: [0..<200]),
    ]

    @Test("agree with the oracle on every instruction set", arguments: bands)
    func oracle(_ band: AttentionBand) throws {
        let shape = try AttentionShape(queryLength: 200, keyLength: 200, queryHeads: 2, kvHeads: 1, headDim: 16, valueDim: 12)
        try expectMatches(shape, [.band(band)], isCausal: false, "\(band)")
        try expectMatches(shape, [.band(band), .dense], isCausal: true, "causal \(band)")
        let window = AttentionWindow(left: 33, right: 12)
        try expectMatches(shape, [.band(band)], isCausal: false, window: window, "window \(band)")
    }

    @Test("work with queries at the end of longer keys, and with more tokens than one task has")
    func lengths() throws {
        let band = AttentionBand(left: 40, right: 15, globalKeys: [0..<9, 420..<430], globalQueries: [3..<8])
        for (queries, keys) in [(1, 430), (210, 430), (430, 430)] {
            let shape = try AttentionShape(queryLength: queries, keyLength: keys, queryHeads: 1, kvHeads: 1, headDim: 8)
            let fitting = AttentionBand(
                left: band.left, right: band.right, globalKeys: band.globalKeys,
                globalQueries: queries > 8 ? band.globalQueries : [])
            try expectMatches(shape, [.band(fitting)], isCausal: false, "\(queries) × \(keys)")
        }
    }

    @Test("ranges are joined, and empty ones left out")
    func ranges() {
        let band = AttentionBand(left: 1, right: 1, globalKeys: [9..<12, 3..<5, 5..<7, 20..<20, 10..<15], globalQueries: [])
        #expect(band.globalKeys == [3..<7, 9..<15])
        #expect(band == AttentionBand(left: 1, right: 1, globalKeys: [3..<7, 9..<15]))
    }

    @Test("sides and ranges out of range are errors that name them")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 20, keyLength: 30, queryHeads: 1, kvHeads: 1, headDim: 4)
        func plan(_ band: AttentionBand) throws { _ = try BlockSparseAttention(shape, heads: [.band(band)], isCausal: false) }
        expectError(.invalidArgument, "heads[0].band.left", containing: "-1") { try plan(AttentionBand(left: -1, right: 0)) }
        expectError(.invalidArgument, "heads[0].band.right") { try plan(AttentionBand(left: 0, right: -3)) }
        expectError(.invalidShape, "heads[0].band.globalKeys", containing: "0..<30") {
            try plan(AttentionBand(left: 0, right: 0, globalKeys: [25..<31]))
        }
        expectError(.invalidShape, "heads[0].band.globalQueries") {
            try plan(AttentionBand(left: 0, right: 0, globalQueries: [19..<21]))
        }
        expectError(.invalidShape, "heads[0].band.globalKeys") {
            try plan(AttentionBand(left: 0, right: 0, globalKeys: [-1..<2]))
        }
    }
}
