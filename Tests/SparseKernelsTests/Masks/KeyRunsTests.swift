import SparseKernels
import TestSupport
import Testing

@Suite("Key runs")
struct KeyRunsTests {
    /// Two blocks of queries over 20 keys.
    private func make(
        keyLength: Int = 20, runOffsets: [Int] = [0, 2, 3], runs: [Range<Int>] = [2..<5, 5..<9, 0..<20],
        keyOffsets: [Int] = [0, 3, 3], keys: [Int32] = [0, 1, 19]
    ) throws -> KeyRuns {
        try KeyRuns(
            query: BlockPartition(length: 7, blockSize: 4), keyLength: keyLength, runOffsets: runOffsets, runs: runs,
            keyOffsets: keyOffsets, keys: keys)
    }

    @Test("runs and keys are found by block")
    func blocks() throws {
        let runs = try make()
        #expect(Array(runs.runs(block: 0)) == [2..<5, 5..<9] && Array(runs.runs(block: 1)) == [0..<20])
        #expect(Array(runs.keys(block: 0)) == [0, 1, 19] && runs.keys(block: 1).isEmpty)
        let empty = try make(runOffsets: [0, 0, 0], runs: [], keyOffsets: [0, 0, 0], keys: [])
        #expect(empty.runs(block: 1).isEmpty && empty.keys(block: 0).isEmpty)
    }

    @Test("offsets that do not cover the elements in order are refused")
    func offsets() {
        expectError(.invalidShape, "keyLength", containing: "-1") { _ = try make(keyLength: -1) }
        expectError(.invalidShape, "runOffsets", containing: "3", "2") { _ = try make(runOffsets: [0, 3]) }
        expectError(.invalidShape, "keyOffsets") { _ = try make(keyOffsets: []) }
        expectError(.invalidArgument, "runOffsets") { _ = try make(runOffsets: [1, 2, 3]) }
        expectError(.invalidArgument, "runOffsets") { _ = try make(runOffsets: [0, 2, 2]) }
        expectError(.invalidArgument, "keyOffsets[2]") { _ = try make(keyOffsets: [0, 4, 3]) }
        expectError(.invalidArgument, "keyOffsets[1]") { _ = try make(keyOffsets: [0, -1, 3]) }
    }

    @Test("runs that are empty, overlap, or leave the keys are refused")
    func runs() {
        for (index, run) in [2..<2, 4..<5, 19..<21, -1..<3].enumerated() {
            // The second run of block 0 must start at 5 or later, and the first one at 0 or later.
            let runs = index == 3 ? [run, 5..<9, 0..<20] : [2..<5, run, 0..<20]
            expectError(.invalidArgument, index == 3 ? "runs[0]" : "runs[1]") {
                _ = try make(runs: runs, keyOffsets: [0, 0, 0], keys: [])
            }
        }
        // Every block has an order of its own.
        #expect(throws: Never.self) { try make(runs: [2..<5, 5..<9, 0..<1]) }
    }

    @Test(
        "keys out of order, out of range, or inside a run are refused",
        arguments: [
            [1, 0, 19], [1, 1, 19], [-1, 0, 1], [0, 1, 20], [0, 1, 2], [0, 1, 4], [0, 1, 5], [0, 1, 8],
        ])
    func keys(_ keys: [Int]) {
        let wrong = keys == [1, 0, 19] || keys == [1, 1, 19] ? 1 : keys[0] < 0 ? 0 : 2
        expectError(.invalidArgument, "keys[\(wrong)]", containing: "\(keys[wrong])") {
            _ = try make(keys: keys.map { Int32($0) })
        }
    }
}
