import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Every builder compared with its definition, block by block or token by token.
@Suite("Builders of block masks")
struct BlockMaskBuilderTests {
    /// Expects the mask to list exactly the blocks with a visible pair of the pattern.
    private func expect(
        _ mask: BlockMask, covers grid: GridCase, _ label: String = "", sourceLocation: SourceLocation = #_sourceLocation,
        where isListed: (_ position: Int, _ key: Int) -> Bool
    ) {
        let expected = grid.pairs(where: isListed).map { $0.map { $0 > 0 } }
        #expect(mask.heads == 1, sourceLocation: sourceLocation)
        #expect(mask.kept() == expected, "\(label)", sourceLocation: sourceLocation)
        #expect(mask.columnIndices.count == mask.nonzeroBlocks(), "\(label)", sourceLocation: sourceLocation)
    }

    // MARK: - Whole blocks

    @Test("full keeps every reachable block and every visible pair", arguments: GridCase.all)
    func full(_ grid: GridCase) throws {
        let mask = try BlockMask.full(grid.grid())
        #expect(mask.density == 1 && mask.nonzeroBlocks() == mask.grid.reachableBlocks)
        #expect(mask.visiblePairs == grid.pairs().joined().reduce(0, +))
    }

    @Test("booleans go in and come out, less the unreachable ones", arguments: GridCase.all)
    func booleans(_ grid: GridCase) throws {
        let blocks = try grid.grid()
        let entries = try Tensor<UInt8>([3, blocks.blockRows, blocks.blockColumns]) { UInt8($0 * 7 % 5 % 3) }
        let mask = try BlockMask(grid: blocks, booleans: entries)
        let written = try mask.booleans()
        #expect(mask.heads == 3 && written.shape == entries.shape)
        for head in 0..<3 {
            for row in 0..<blocks.blockRows {
                for column in 0..<blocks.blockColumns {
                    let index = (head * blocks.blockRows + row) * blocks.blockColumns + column
                    let isKept = blocks.reachableColumns(ofRow: row).contains(column) && entries[flat: index] != 0
                    #expect(mask[head, row, column] == isKept && written[flat: index] == (isKept ? 1 : 0))
                }
            }
        }
        #expect(try BlockMask(grid: blocks, booleans: written) == mask)
        // The same without the axis of heads.
        let flat = try Tensor<UInt8>([blocks.blockRows, blocks.blockColumns]) { entries[flat: $0] }
        #expect(try BlockMask(grid: blocks, booleans: flat) == mask.head(0))
    }

    @Test("streaming lists the blocks of the official iterator", arguments: GridCase.causal.filter(\.isSquareBlocked))
    func causalStreaming(_ grid: GridCase) throws {
        guard case .uniform(let queryLength, let blockSize) = grid.query, case .uniform(let keyLength, _) = grid.key else {
            return
        }
        let pairs = grid.pairs()
        for (sink, local) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 3), (9, 1), (0, .max), (.max, .max)] {
            let mask = try BlockMask.streaming(grid.grid(), sinkBlocks: sink, localBlocks: local)
            for row in pairs.indices {
                // fwdStreaming: start = ⌈max(Lk − Lq, 0) / 128⌉ + 1 + row. The list is all blocks before start when sink and
                // local meet, else start − 1, …, start − local, sink − 1, …, 0. The kernel visits those with a visible pair.
                let start = (keyLength - queryLength + blockSize - 1) / blockSize + 1 + row
                let isKept = (0..<pairs[row].count).map { column in
                    pairs[row][column] > 0 && column < start && (column < sink || start - column <= local)
                }
                #expect(mask.kept()[row] == isKept, "sink \(sink), local \(local), row \(row)")
            }
        }
    }

    @Test("streaming counts from where the diagonal ends in a full row", arguments: GridCase.causal)
    func causalStreamingOfAnySizes(_ grid: GridCase) throws {
        let (queries, keys) = (grid.query.sizes, grid.key.sizes)
        let offset = keys.reduce(0, +) - queries.reduce(0, +)
        let pairs = grid.pairs()
        for (sink, local) in [(0, 1), (1, 1), (1, 3), (2, 2)] {
            let mask = try BlockMask.streaming(grid.grid(), sinkBlocks: sink, localBlocks: local)
            var queryEnd = 0
            for row in queries.indices {
                queryEnd += queries[row]
                let reachable = pairs[row].lastIndex { $0 > 0 } ?? -1
                // The position after the row's last one, if the row were full.
                var end = offset + queryEnd
                if case .uniform(_, let rowSize) = grid.query { end = offset + (row + 1) * rowSize }
                let last: Int
                switch grid.key {
                case .uniform(_, let columnSize): last = (end - 1) / columnSize
                case .sizes: last = grid.key.blocks[min(end, grid.key.blocks.count) - 1]
                }
                let isKept = keys.indices.map { $0 <= reachable && ($0 < sink || ($0 <= last && $0 > last - local)) }
                #expect(mask.kept()[row] == isKept, "sink \(sink), local \(local), row \(row)")
            }
        }
    }

    @Test("streaming that is not causal keeps the last blocks of the sequence", arguments: GridCase.all.filter { !$0.isCausal })
    func fullStreaming(_ grid: GridCase) throws {
        let columns = grid.key.sizes.count
        for (sink, local) in [(0, 0), (0, 1), (1, 1), (2, 3), (.max, 0), (0, .max)] {
            let mask = try BlockMask.streaming(grid.grid(), sinkBlocks: sink, localBlocks: local)
            for (row, size) in grid.query.sizes.enumerated() {
                let isKept = (0..<columns).map { size > 0 && ($0 < sink || columns - $0 <= local) }
                #expect(mask.kept()[row] == isKept, "sink \(sink), local \(local), row \(row)")
            }
        }
    }

    @Test("dilated keeps every nth block from the diagonal", arguments: GridCase.all)
    func dilated(_ grid: GridCase) throws {
        let onDiagonal = grid.pairs { $0 == $1 }
        let pairs = grid.pairs()
        for (local, dilation) in [(1, 1), (2, 1), (3, 2), (2, 3), (.max, 2), (2, .max)] {
            let mask = try BlockMask.dilated(grid.grid(), localBlocks: local, dilation: dilation)
            for row in pairs.indices {
                let diagonal = onDiagonal[row].indices.filter { onDiagonal[row][$0] > 0 }
                let isKept = pairs[row].indices.map { column in
                    guard let first = diagonal.first, let last = diagonal.last else { return false }
                    let distance = max(first - column, column - last, 0)
                    return distance % dilation == 0 && distance / dilation < local && !(grid.isCausal && column > last)
                }
                #expect(mask.kept()[row] == isKept, "local \(local), dilation \(dilation), row \(row)")
            }
        }
    }

    // MARK: - Tokens

    @Test("causal covers the pairs up to the diagonal", arguments: GridCase.all)
    func causal(_ grid: GridCase) throws {
        expect(try .causal(grid.grid()), covers: grid) { $1 <= $0 }
    }

    @Test("a sliding window covers the pairs closer than its tokens", arguments: GridCase.all)
    func slidingWindow(_ grid: GridCase) throws {
        for tokens in [1, 2, 3, 4, 5, 8, 13, 1000, .max] {
            expect(try .slidingWindow(grid.grid(), tokens: tokens), covers: grid, "\(tokens) tokens") {
                abs($0 - $1) < tokens
            }
        }
    }

    @Test("an A-shape covers its sink and its window", arguments: GridCase.causal)
    func aShape(_ grid: GridCase) throws {
        for (sink, local) in [(0, 1), (1, 1), (3, 2), (5, 4), (4, 9), (100, 1), (0, 100), (.max, .max)] {
            let mask = try BlockMask.aShape(grid.grid(), sinkTokens: sink, localTokens: local)
            expect(mask, covers: grid, "sink \(sink), local \(local)") { $1 < sink || $0 - $1 < local }
        }
    }

    @Test("vertical-slash covers the listed keys and distances", arguments: GridCase.all)
    func verticalSlash(_ grid: GridCase) throws {
        let keyLength = grid.key.blocks.count
        let nearest = grid.isCausal ? 0 : 1 - grid.query.blocks.count
        var generator = SplitMix64(seed: 11)
        for count in [0, 1, 2, 5] {
            // Unordered, and some of them repeated.
            let columns = (0..<count).map { _ in Int.random(in: 0..<keyLength, using: &generator) }
            let distances = (0..<count).map { _ in Int.random(in: nearest..<keyLength, using: &generator) }
            for (columns, distances) in [(columns, distances), ([], distances), (columns, [])] {
                let mask = try BlockMask.verticalSlash(grid.grid(), columns: columns, distances: distances)
                expect(mask, covers: grid, "\(columns), \(distances)") { columns.contains($1) || distances.contains($0 - $1) }
            }
        }
    }

    // MARK: - Errors

    @Test("options outside their domain are refused")
    func errors() throws {
        let causal = try BlockGrid(queryLength: 8, keyLength: 20, queryBlockSize: 4, keyBlockSize: 4, isCausal: true)
        let open = try BlockGrid(queryLength: 8, keyLength: 20, queryBlockSize: 4, keyBlockSize: 4, isCausal: false)
        for shape in [[2, 4], [5, 2], [2], [0, 2, 5], [1, 1, 2, 5], [2, 5, 1], []] {
            expectError(.invalidShape, shape == [0, 2, 5] ? "heads" : "booleans") {
                _ = try BlockMask(grid: causal, booleans: Tensor(zeros: shape))
            }
        }
        for count in [-1, Int.min] {
            expectError(.invalidArgument, "sinkBlocks") {
                _ = try BlockMask.streaming(causal, sinkBlocks: count, localBlocks: 1)
            }
            expectError(.invalidArgument, "localBlocks") {
                _ = try BlockMask.streaming(open, sinkBlocks: 1, localBlocks: count)
            }
            expectError(.invalidArgument, "sinkTokens") { _ = try BlockMask.aShape(causal, sinkTokens: count, localTokens: 1) }
        }
        for count in [0, -1, Int.min] {
            expectError(.invalidArgument, "localBlocks") { _ = try BlockMask.dilated(open, localBlocks: count, dilation: 1) }
            expectError(.invalidArgument, "dilation") { _ = try BlockMask.dilated(open, localBlocks: 1, dilation: count) }
            expectError(.invalidArgument, "tokens") { _ = try BlockMask.slidingWindow(causal, tokens: count) }
            expectError(.invalidArgument, "localTokens") { _ = try BlockMask.aShape(causal, sinkTokens: 1, localTokens: count) }
        }
        expectError(.invalidArgument, "grid") { _ = try BlockMask.aShape(open, sinkTokens: 1, localTokens: 1) }
        for (column, distance) in [(-1, -1), (20, 20), (.min, .min), (.max, .max)] {
            expectError(.invalidArgument, "columns[1]", containing: "\(column)") {
                _ = try BlockMask.verticalSlash(causal, columns: [0, column], distances: [])
            }
            expectError(.invalidArgument, "distances[1]", containing: "\(distance)", "0..<20") {
                _ = try BlockMask.verticalSlash(causal, columns: [], distances: [0, distance])
            }
        }
        // Query 0 is at position 12, seven before the last key.
        #expect(try BlockMask.verticalSlash(open, columns: [], distances: [-7]).nonzeroBlocks() == 1)
        expectError(.invalidArgument, "distances[0]", containing: "-7..<20") {
            _ = try BlockMask.verticalSlash(open, columns: [], distances: [-8])
        }
    }
}
