internal import SparseKernels

/// How many blocks a head keeps of those that a plan may leave out. Text rows and columns, and the last row and column, are
/// kept in any case and every row keeps its heaviest free block.
public enum PAROBlockBudget: Hashable, Sendable {
    /// This fraction of the free blocks, 0…1, rounded up: the heaviest ones over all rows together.
    case density(Double)
    /// The fewest blocks that hold this fraction of the head's attention, 0…1, together with the blocks kept in any case.
    case mass(Double)

    func validate(named name: String) throws(SparseKernelsError) {
        switch self {
        case .density(let value), .mass(let value):
            try require(value >= 0 && value <= 1, .invalidArgument, name, expected: "from 0 to 1", actual: "\(value)")
        }
    }

    /// Whether each free block is kept, row by row, for masses of all blocks of a head.
    ///
    /// The order is heaviest first, and equal ones by row, then column.
    func kept(_ masses: [Double], blocks: PAROBlocks) -> [Bool] {
        let (free, columns) = (blocks.free, blocks.grid.blockColumns)
        var kept = [Bool](repeating: false, count: free.count * free.count)
        if free.isEmpty { return kept }
        func mass(_ index: Int) -> Double {
            masses[(free.lowerBound + index / free.count) * columns + free.lowerBound + index % free.count]
        }
        for row in 0..<free.count {
            let entries = row * free.count..<(row + 1) * free.count
            kept[entries.reduce(entries.lowerBound) { mass($1) > mass($0) ? $1 : $0 }] = true
        }
        let order = (0..<kept.count).sorted { (mass($0), $1) > (mass($1), $0) }
        switch self {
        case .density(let density):
            let count = min(kept.count, Int((density * Double(kept.count)).rounded(.up)))
            for index in order.prefix(count) { kept[index] = true }
        case .mass(let fraction):
            let total = masses.reduce(0, +)
            var sum = total - kept.indices.reduce(0) { $0 + mass($1) }
            for index in order {
                if sum >= fraction * total { break }
                kept[index] = true
                sum += mass(index)
            }
        }
        return kept
    }
}
