import Foundation
import SparseKernels
import Testing

@Suite("Coding of block masks")
struct BlockMaskCodableTests {
    private func roundTrip<Value: Codable & Equatable>(_ value: Value) throws -> Value {
        try JSONDecoder().decode(Value.self, from: JSONEncoder().encode(value))
    }

    @Test("masks, grids and partitions come back from JSON", arguments: GridCase.all)
    func roundTrips(_ grid: GridCase) throws {
        let mask = try BlockMaskTests.listed(grid.grid())
        let read = try roundTrip(mask)
        #expect(read == mask)
        #expect(read.grid.query.blockSize == mask.grid.query.blockSize && read.grid.key.blockSize == mask.grid.key.blockSize)
        #expect(try roundTrip(mask.grid) == mask.grid)
        #expect(try roundTrip([mask.grid.query, mask.grid.key]) == [mask.grid.query, mask.grid.key])
    }

    @Test("the JSON has the documented keys")
    func keys() throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        let grid = try BlockGrid(
            query: BlockPartition(length: 7, blockSize: 4), key: BlockPartition(sizes: [3, 0, 6]), isCausal: true)
        let mask = try BlockMask.slidingWindow(grid, tokens: 2)
        #expect(
            String(decoding: try encoder.encode(mask), as: UTF8.self)
                == #"{"columnIndices":[0,2,2],"grid":{"isCausal":true,"key":{"sizes":[3,0,6]},"#
                + #""query":{"blockSize":4,"length":7}},"heads":1,"rowOffsets":[0,2,3]}"#)
    }

    static let grid = #""grid": {"query": {"length": 8, "blockSize": 4}, "key": {"sizes": [8, 0]}, "isCausal": false}"#

    /// Documents, and text that the error's message must contain, or nil for errors of the coder.
    static let hostile: [(String, String?)] = [
        (#"{\#(grid), "heads": 1, "rowOffsets": [0, 1, 2]}"#, nil),
        (#"{\#(grid), "heads": "1", "rowOffsets": [0, 0, 0], "columnIndices": []}"#, nil),
        (#"{\#(grid), "heads": 1, "rowOffsets": [0, 1, 2], "columnIndices": [0, 4294967296]}"#, nil),
        (#"{\#(grid), "heads": 1, "rowOffsets": [0, 1, 1e30], "columnIndices": [0, 1]}"#, nil),
        (#"{\#(grid), "heads": 1, "rowOffsets": [0, 1, 2], "columnIndices": [0, 2]}"#, "columnIndices[1]"),
        (#"{\#(grid), "heads": 1, "rowOffsets": [0, 1, 2], "columnIndices": [0, -1]}"#, "columnIndices[1]"),
        (#"{\#(grid), "heads": 1, "rowOffsets": [0, 5, 2], "columnIndices": [0, 1]}"#, "rowOffsets[1]"),
        (#"{\#(grid), "heads": 1, "rowOffsets": [0, -5, 2], "columnIndices": [0, 1]}"#, "rowOffsets[1]"),
        (#"{\#(grid), "heads": 1, "rowOffsets": [], "columnIndices": []}"#, "rowOffsets"),
        (#"{\#(grid), "heads": 0, "rowOffsets": [0], "columnIndices": []}"#, "heads"),
        (#"{\#(grid), "heads": 9223372036854775807, "rowOffsets": [0], "columnIndices": []}"#, "heads"),
        (#"{\#(grid), "heads": -9223372036854775808, "rowOffsets": [0], "columnIndices": []}"#, "heads"),
    ]

    private func expectRefused<Value: Decodable>(
        _ type: Value.Type, _ json: String, _ fragment: String?, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let error = #expect(throws: DecodingError.self, "\(json)", sourceLocation: sourceLocation) {
            try JSONDecoder().decode(type, from: Data(json.utf8))
        }
        guard let error, let fragment else { return }
        guard case .dataCorrupted(let context) = error else {
            Issue.record("\(error)", sourceLocation: sourceLocation)
            return
        }
        #expect(context.debugDescription.contains(fragment), "\(context)", sourceLocation: sourceLocation)
    }

    @Test("hostile masks are errors", arguments: hostile)
    func masks(_ document: (String, String?)) { expectRefused(BlockMask.self, document.0, document.1) }

    @Test(
        "hostile partitions are errors",
        arguments: [
            (#"{}"#, nil), (#"{"length": 8}"#, nil), (#"{"length": 8.5, "blockSize": 4}"#, nil), (#"{"sizes": 8}"#, nil),
            (#"[]"#, nil), (#"{"length": -1, "blockSize": 4}"#, "length"), (#"{"length": 4, "blockSize": 0}"#, "blockSize"),
            (#"{"length": -8, "blockSize": -4}"#, "length"), (#"{"length": 9223372036854775807, "blockSize": 1}"#, "length"),
            (#"{"length": 1, "blockSize": 9223372036854775807}"#, "blockSize"),
            (#"{"sizes": [3, -1]}"#, "sizes[1]"),
            (#"{"sizes": [9223372036854775807, 9223372036854775807]}"#, "sizes"),
            (#"{"sizes": [4, 4], "blockSize": 4}"#, "blockSize"), (#"{"sizes": [4, 4], "length": 8}"#, "length"),
        ] as [(String, String?)])
    func partitions(_ document: (String, String?)) { expectRefused(BlockPartition.self, document.0, document.1) }

    @Test("hostile grids are errors")
    func grids() {
        let (short, long) = (#"{"length": 4, "blockSize": 4}"#, #"{"length": 8, "blockSize": 4}"#)
        expectRefused(BlockGrid.self, #"{"query": \#(long), "key": \#(short)}"#, nil)
        expectRefused(BlockGrid.self, #"{"query": \#(long), "key": \#(short), "isCausal": 1}"#, nil)
        let huge = #"{"length": 1152921504606846975, "blockSize": 1}"#
        expectRefused(BlockGrid.self, #"{"query": \#(short), "key": \#(huge), "isCausal": false}"#, "2³¹")
        expectRefused(BlockGrid.self, #"{"query": \#(huge), "key": \#(long), "isCausal": false}"#, "2⁶⁰")
    }

    @Test("the error of a decoded mask says where it was and what it was")
    func errorContext() throws {
        let json = #"[{\#(Self.grid), "heads": 1, "rowOffsets": [0, 0, 1], "columnIndices": [7]}]"#
        let error = #expect(throws: DecodingError.self) { try JSONDecoder().decode([BlockMask].self, from: Data(json.utf8)) }
        guard case .dataCorrupted(let context) = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(context.codingPath.map(\.intValue) == [0])
        #expect((context.underlyingError as? SparseKernelsError)?.code == .invalidArgument)
    }
}
