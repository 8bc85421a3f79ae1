internal import SparseKernels

extension GoldenCase {
    /// Throws unless a recorded tensor has the shape that the parameters imply.
    func check(_ name: String, _ actual: [Int], _ expected: [Int]) throws(SparseKernelsError) {
        if actual != expected {
            throw SparseKernelsError(.invalidShape, "\(name) of \(self.name)", expected: "\(expected)", actual: "\(actual)")
        }
    }
}

extension BlockMask {
    /// Calls `body(head, row, column, mask, recorded)` for every block, with 1 for kept blocks.
    fileprivate func forEachBlock(
        with recorded: Tensor<UInt8>, _ body: (_ head: Int, _ row: Int, _ column: Int, UInt8, UInt8) -> Void
    ) {
        for index in 0..<heads * grid.blockRows * grid.blockColumns {
            let (row, column) = (index / grid.blockColumns, index % grid.blockColumns)
            let (head, blockRow) = (row / grid.blockRows, row % grid.blockRows)
            body(head, blockRow, column, self[head, blockRow, column] ? 1 : 0, recorded[flat: index] == 0 ? 0 : 1)
        }
    }

    /// The number of blocks in which this mask and a recorded one, `[heads, blockRows, blockColumns]`, differ.
    func differences(from recorded: Tensor<UInt8>) -> Int {
        var count = 0
        forEachBlock(with: recorded) { if $3 != $4 { count += 1 } }
        return count
    }
}

extension GoldenComparison {
    /// Compares a mask with a recorded one block by block, except blocks (head, row, column) that may be either.
    mutating func compare(
        _ name: String, _ mask: BlockMask, with recorded: Tensor<UInt8>,
        except isFree: (Int, Int, Int) -> Bool = { _, _, _ in false }
    ) {
        mask.forEachBlock(with: recorded) { head, row, column, actual, expected in
            if isFree(head, row, column) { return }
            compare(
                "\(name)[\(head), \(row), \(column)]", actual: Double(actual), expected: Double(expected), bound: 0)
        }
    }
}
