import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Columns between wide and compact matrices.
@Suite("Column moves")
struct ColumnMovesTests {
    @Test("columns go where the subset says, on any number of threads", arguments: InstructionSet.available)
    func moves(_ set: InstructionSet) throws {
        let moves = try ColumnMoves(instructionSet: set)
        for (rows, width) in [(0, 5), (1, 1), (3, 40), (700, 97)] {
            for step in [1, 2, 5, 1000] {
                let list = (0..<Int32(width)).filter { Int($0) % step == 1 % step }
                let subset = try ChannelSubset(list, of: width)
                let wide = try Tensor<Float>.normal([rows, width], seed: 3)
                let compact = try Tensor<Float>.normal([rows, list.count], seed: 4)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    var gathered = try Tensor<Float>([rows, list.count]) { _ in .nan }
                    try moves.gather(wide.matrixView(), subset, into: gathered.mutableMatrixView(), on: pool)
                    var scattered = try Tensor<Float>([rows, width]) { _ in .nan }
                    try moves.scatter(compact.matrixView(), subset, into: scattered.mutableMatrixView(), on: pool)
                    var merged = wide
                    try moves.scatter(
                        compact.matrixView(), subset, into: merged.mutableMatrixView(), keepsOthers: true, on: pool)
                    let isRight = (0..<rows).allSatisfy { row in
                        var (zeros, others) = ([Float](repeating: 0, count: width), [Float](repeating: 0, count: width))
                        for column in 0..<width { others[column] = wide[flat: row * width + column] }
                        for (t, channel) in list.enumerated() {
                            if gathered[flat: row * list.count + t] != others[Int(channel)] { return false }
                        }
                        for (t, channel) in list.enumerated() {
                            zeros[Int(channel)] = compact[flat: row * list.count + t]
                            others[Int(channel)] = compact[flat: row * list.count + t]
                        }
                        return (0..<width).allSatisfy {
                            scattered[flat: row * width + $0] == zeros[$0] && merged[flat: row * width + $0] == others[$0]
                        }
                    }
                    #expect(isRight, "\(set), \(rows) × \(width), every \(step)")
                }
            }
        }
    }

    @Test("operands that disagree with the subset are refused")
    func errors() throws {
        let moves = try ColumnMoves()
        let subset = try ChannelSubset([0, 2], of: 3)
        let wide = try Tensor<Float>(zeros: [4, 3])
        var wrong = try Tensor<Float>([4, 3]) { _ in 7 }
        expectError(.invalidShape, "y", containing: ["4 × 2", "4 × 3"]) {
            try moves.gather(wide.matrixView(), subset, into: wrong.mutableMatrixView())
        }
        expectError(.invalidShape, "x", containing: ["2 columns", "got 3"]) {
            try moves.scatter(wide.matrixView(), subset, into: wrong.mutableMatrixView())
        }
        #expect(wrong.elements == Array(repeating: 7, count: 12))
    }
}
