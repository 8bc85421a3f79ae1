import SparseKernels
import Testing

/// A grid, described so that its blocks can be computed token by token without the tested code.
struct GridCase: Sendable, CustomTestStringConvertible {
    enum Cut: Sendable {
        case uniform(Int, Int)
        case sizes([Int])

        /// The sizes of the blocks.
        var sizes: [Int] {
            switch self {
            case .sizes(let sizes): return sizes
            case .uniform(let length, let blockSize):
                var sizes: [Int] = []
                var left = length
                while left > 0 {
                    sizes.append(min(left, blockSize))
                    left -= blockSize
                }
                return sizes
            }
        }

        /// The block of every token.
        var blocks: [Int] { sizes.enumerated().flatMap { Array(repeating: $0.offset, count: $0.element) } }

        func partition() throws -> BlockPartition {
            switch self {
            case .uniform(let length, let blockSize): try BlockPartition(length: length, blockSize: blockSize)
            case .sizes(let sizes): try BlockPartition(sizes: sizes)
            }
        }
    }

    var query: Cut
    var key: Cut
    var isCausal: Bool

    init(_ query: Cut, _ key: Cut, isCausal: Bool) {
        self.query = query
        self.key = key
        self.isCausal = isCausal
    }

    func grid() throws -> BlockGrid {
        try BlockGrid(query: query.partition(), key: key.partition(), isCausal: isCausal)
    }

    /// Whether queries and keys have uniform blocks of one size, as in the official kernels.
    var isSquareBlocked: Bool {
        if case .uniform(_, let rowSize) = query, case .uniform(_, let columnSize) = key { return rowSize == columnSize }
        return false
    }

    var testDescription: String { "\(query) × \(key), \(isCausal ? "causal" : "not causal")" }

    /// The visible pairs of every block that pass the filter, counted token by token.
    func pairs(where isListed: (_ position: Int, _ key: Int) -> Bool = { _, _ in true }) -> [[Int]] {
        let (rows, columns) = (query.blocks, key.blocks)
        var pairs = Array(repeating: Array(repeating: 0, count: key.sizes.count), count: query.sizes.count)
        for i in rows.indices {
            let position = i + columns.count - rows.count
            for j in columns.indices where (!isCausal || j <= position) && isListed(position, j) {
                pairs[rows[i]][columns[j]] += 1
            }
        }
        return pairs
    }

    /// Sizes 1, 3, 7; ragged ends; queries shorter than keys; one block; sizes that do not divide each other; empty blocks.
    static let all: [GridCase] = {
        let cuts: [(Cut, Cut)] = [
            (.uniform(1, 1), .uniform(1, 1)), (.uniform(1, 4), .uniform(9, 4)), (.uniform(7, 3), .uniform(7, 3)),
            (.uniform(12, 4), .uniform(12, 4)), (.uniform(13, 4), .uniform(13, 4)), (.uniform(5, 4), .uniform(6, 4)),
            (.uniform(3, 16), .uniform(7, 16)), (.uniform(6, 4), .uniform(19, 4)), (.uniform(17, 8), .uniform(23, 3)),
            (.uniform(20, 3), .uniform(21, 8)), (.uniform(11, 5), .uniform(30, 1)),
            (.sizes([3, 0, 4, 1]), .sizes([0, 2, 5, 0, 0, 4, 0])), (.uniform(9, 4), .sizes([1, 0, 8, 3])),
            (.sizes([0, 6]), .uniform(10, 4)),
        ]
        let long: [(Cut, Cut)] = [(.uniform(13, 4), .uniform(6, 4)), (.sizes([5, 0, 4]), .sizes([0, 1, 1]))]
        return cuts.flatMap { [GridCase($0, $1, isCausal: true), GridCase($0, $1, isCausal: false)] }
            + long.map { GridCase($0, $1, isCausal: false) }
    }()

    static let causal = all.filter(\.isCausal)
}

extension BlockMask {
    /// The listed blocks of a head, reachable or not.
    func kept(head: Int = 0) -> [[Bool]] {
        (0..<grid.blockRows).map { row in (0..<grid.blockColumns).map { self[head, row, $0] } }
    }
}
