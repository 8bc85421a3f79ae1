internal import SparseKernels

/// Adjacent queries of one dilation group along one axis, and the keys that at least one of them sees.
///
/// Numbers count tokens of the group: number i is coordinate i · dilation + group.
struct AxisTile: Sendable, Equatable {
    var group: Int
    var queries: Range<Int>
    var keys: Range<Int>
    /// Whether all the queries see all the keys.
    var isUniform: Bool
}

/// Three-dimensional tiles of queries that share their keys, as far as possible.
///
/// Queries of a tile attend to the union of their windows, with the pairs hidden that are not neighbours. Larger tiles read each
/// key less often and compute more pairs in vain; their size is chosen by that cost. Tables are kept for each axis alone, so a
/// tiling takes O(sum of the axes) memory for any window and stride.
struct NeighborhoodTiling: Sendable {
    /// Three axes; axes of length 1 come first where there are fewer.
    let axes: [NeighborhoodAxis]
    /// Tiles along each axis.
    let tiles: [[AxisTile]]
    /// Queries of the largest tile.
    let maximumRows: Int

    var count: Int { tiles.reduce(1) { $0 * $1.count } }

    /// The tile of a number, one per axis.
    subscript(index: Int) -> (AxisTile, AxisTile, AxisTile) {
        let (rest, last) = index.quotientAndRemainder(dividingBy: tiles[2].count)
        return (tiles[0][rest / tiles[1].count], tiles[1][rest % tiles[1].count], tiles[2][last])
    }

    /// The most queries of a tile whose queries have different windows: as many as the attention kernel takes at once.
    static let maximumMixedRows = AttentionStep.maximumRows

    /// - Parameter uniformRows: the most queries of a tile of equal windows.
    init(_ neighborhood: Neighborhood, uniformRows: Int) throws(SparseKernelsError) {
        let single = try NeighborhoodAxis(length: 1, window: 1)
        axes = Array(repeating: single, count: 3 - neighborhood.axes.count) + neighborhood.axes
        let candidates = axes.map { axis in
            Self.lengths(axis, limit: max(uniformRows, Self.maximumMixedRows)).map { Candidate(axis, tileLength: $0) }
        }
        var best = (cost: Double.infinity, choice: candidates.map { $0[0] })
        for first in candidates[0] {
            for second in candidates[1] where first.length * second.length <= uniformRows {
                for third in candidates[2] {
                    let choice = [first, second, third]
                    let rows = first.length * second.length * third.length
                    let isUniform = choice.allSatisfy(\.isUniform)
                    if rows > (isUniform ? uniformRows : Self.maximumMixedRows) { continue }
                    // Vectors take 16 rows. Copying a key costs about as much as 24 rows' products with it, and hiding pairs
                    // about a quarter of their products.
                    let vectors = Double((rows + 15) / 16 * 16) * (isUniform ? 1 : 1.25) + 24
                    let cost = choice.reduce(vectors) { $0 * Double($1.keys) }
                    if cost < best.cost { best = (cost, choice) }
                }
            }
        }
        let axes = axes
        tiles = best.choice.indices.map { Self.tiles(axes[$0], length: best.choice[$0].length) }
        maximumRows = best.choice.reduce(1) { $0 * $1.length }
    }

    /// Tiles of one length along an axis, summed up.
    private struct Candidate {
        let length: Int
        /// Keys of all tiles.
        let keys: Int
        let isUniform: Bool

        init(_ axis: NeighborhoodAxis, tileLength: Int) {
            let tiles = NeighborhoodTiling.tiles(axis, length: tileLength)
            length = tileLength
            keys = tiles.reduce(0) { $0 + $1.keys.count }
            isUniform = tiles.allSatisfy(\.isUniform)
        }
    }

    /// Lengths worth trying: some multiples of the stride, powers of two and their halves, and the whole axis.
    private static func lengths(_ axis: NeighborhoodAxis, limit: Int) -> [Int] {
        let longest = axis.length(ofGroup: 0)
        let factors = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
        let lengths = Set(factors + factors.filter { $0 <= limit }.map { $0 * axis.stride } + [longest])
        return lengths.filter { $0 <= min(longest, limit) }.sorted()
    }

    static func tiles(_ axis: NeighborhoodAxis, length: Int) -> [AxisTile] {
        var tiles: [AxisTile] = []
        for group in 0..<axis.dilation {
            let count = axis.length(ofGroup: group)
            for first in stride(from: 0, to: count, by: length) {
                let queries = first..<min(count, first + length)
                // Both ends of windows ascend with the query.
                let (start, end) = (axis.window(of: first, in: count), axis.window(of: queries.upperBound - 1, in: count))
                tiles.append(
                    AxisTile(
                        group: group, queries: queries, keys: start.lowerBound..<end.upperBound, isUniform: start == end))
            }
        }
        return tiles
    }
}
