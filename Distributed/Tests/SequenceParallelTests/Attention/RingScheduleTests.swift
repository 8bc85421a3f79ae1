import SparseKernelsReference
import Testing

@testable import SequenceParallel

/// What ranks compute and pass on, against visibility token by token.
@Suite("Ring schedules")
struct RingScheduleTests {
    static let masks: [AttentionMask] = [.causal, .full, .causal(window: 7), .full(window: 5), .window(left: nil, right: 3)]

    /// Every visible pair of a group's queries and all keys is in exactly one piece, and no other pair.
    private func expectAllPairs(_ shards: TokenShards, _ grid: RankGrid, _ mask: AttentionMask, sliceRows: Int) {
        let schedules = (0..<grid.ranks).map {
            RingSchedule(shards, grid, rank: $0, mask: mask, sliceRows: sliceRows)
        }
        let tokens = (0..<grid.ring).map { grid.ranks(ofGroup: $0).flatMap { shards.positions(of: $0) } }
        for (rank, schedule) in schedules.enumerated() {
            let group = grid.group(of: rank)
            #expect(schedule.slices.reduce(0) { $0 + $1.rows.count } == tokens[group].count)
            var counts = [Int: Int]()
            var (first, last) = (Set<Int>(), Set<Int>())
            for step in schedule.steps {
                for piece in step.pieces {
                    let slice = schedule.slices[piece.slice]
                    #expect(slice.rows.count <= sliceRows)
                    #expect(piece.isFirst == first.insert(piece.slice).inserted)
                    #expect(!last.contains(piece.slice))
                    if piece.isLast { last.insert(piece.slice) }
                    var pairs = 0
                    for (query, row) in slice.rows.enumerated() {
                        for key in 0..<piece.keys.count {
                            let isSeen =
                                switch piece.form {
                                case .all: true
                                case .causal: key <= query + piece.keys.count - slice.rows.count
                                case .limits(let ranges): ranges[query].contains(key)
                                }
                            if !isSeen { continue }
                            pairs += 1
                            let pair = tokens[group][row] * shards.length + tokens[step.group][piece.keys.lowerBound + key]
                            counts[pair, default: 0] += 1
                        }
                    }
                    #expect(pairs == piece.pairs)
                }
                // What a group passes on is what the next one expects, and keys that are attended are there.
                let number = (group + grid.ring - step.group) % grid.ring
                let next = schedules[(rank + grid.ulysses) % grid.ranks]
                if number + 1 < grid.ring { #expect(step.isPassedOn == next.steps[number + 1].arrives) }
                if number > 0 && (!step.pieces.isEmpty || step.isPassedOn) { #expect(step.arrives) }
            }
            #expect(last == first)
            let n = shards.length
            var expected = 0
            for query in tokens[group] {
                for key in 0..<n where mask.isVisible(query: query, key: key, queryLength: n, keyLength: n) {
                    expected += 1
                    #expect(counts[query * n + key] == 1)
                }
            }
            #expect(counts.count == expected)
            #expect(schedule.visiblePairs == expected)
        }
    }

    @Test("pieces are the visible pairs, each once", arguments: masks.indices)
    func pairs(_ index: Int) throws {
        let mask = Self.masks[index]
        for (ulysses, ring) in [(1, 1), (1, 3), (2, 2), (3, 1), (1, 4)] {
            let grid = try RankGrid(ranks: ulysses * ring, ulysses: ulysses)
            expectAllPairs(try .zigzag(length: 45, ulysses: ulysses, ring: ring), grid, mask, sliceRows: 6)
            expectAllPairs(try .contiguous(length: 31, ranks: grid.ranks), grid, mask, sliceRows: 100)
            for seed in 1...3 as ClosedRange<UInt64> {
                let shards = try TokenShards.random(length: 40, ranks: grid.ranks, pieces: 9, seed: seed)
                expectAllPairs(shards, grid, mask, sliceRows: 5)
            }
        }
    }

    @Test("no tokens, fewer tokens than ranks")
    func few() throws {
        let grid = try RankGrid(ranks: 4, ulysses: 2)
        for length in 0...3 {
            expectAllPairs(try .contiguous(length: length, ranks: 4), grid, .causal, sliceRows: 8)
            expectAllPairs(try .zigzag(length: length, ulysses: 2, ring: 2), grid, .full, sliceRows: 8)
        }
    }

    @Test("a zigzag ring has rectangles but for its diagonals", arguments: [1, 2, 4], [2, 4])
    func rectangles(_ ulysses: Int, _ ring: Int) throws {
        let grid = try RankGrid(ranks: ulysses * ring, ulysses: ulysses)
        let shards = try TokenShards.zigzag(length: 5000, ulysses: ulysses, ring: ring)
        for rank in 0..<grid.ranks {
            let schedule = RingSchedule(shards, grid, rank: rank, mask: .causal, sliceRows: 96)
            for (number, step) in schedule.steps.enumerated() {
                for piece in step.pieces {
                    switch piece.form {
                    case .all: #expect(number > 0 || piece.keys.count == 1 || schedule.slices[piece.slice].rows.count == 1)
                    case .causal: #expect(number == 0)
                    case .limits: Issue.record("rank \(rank), step \(number): ranges of single queries")
                    }
                }
            }
        }
    }

    /// The work of the longest rank over the mean, in visible pairs.
    private func imbalance(_ shards: TokenShards, _ grid: RankGrid, _ mask: AttentionMask = .causal) -> Double {
        let work = (0..<grid.ranks).map {
            RingSchedule(shards, grid, rank: $0, mask: mask, sliceRows: 192).visiblePairs
        }
        return Double(work.max()!) * Double(work.count) / Double(work.reduce(0, +))
    }

    @Test("zigzag ranks have the same work, for ragged lengths, too", arguments: [2, 3, 4, 8, 16])
    func balance(_ ranks: Int) throws {
        for ulysses in 1...ranks where ranks % ulysses == 0 {
            let grid = try RankGrid(ranks: ranks, ulysses: ulysses)
            for length in [4096, 4999] {
                let shards = try TokenShards.zigzag(length: length, ulysses: ulysses, ring: grid.ring)
                #expect(imbalance(shards, grid) <= 1.05, "\(grid), \(length)")
            }
        }
        // Shards in order are what zigzag is for.
        let grid = try RankGrid(ranks: ranks, ulysses: 1)
        let factor = imbalance(try .contiguous(length: 4096, ranks: ranks), grid)
        #expect(abs(factor - (2 - 1 / Double(ranks))) < 0.01)
    }

    @Test("keys that no later group sees are not passed on")
    func traffic() throws {
        let grid = try RankGrid(ranks: 4, ulysses: 1)
        func passed(_ shards: TokenShards, _ mask: AttentionMask) -> [Int] {
            (0..<4).map { rank in
                let schedule = RingSchedule(shards, grid, rank: rank, mask: mask, sliceRows: 8)
                return schedule.steps.count { $0.isPassedOn }
            }
        }
        let order = try TokenShards.contiguous(length: 64, ranks: 4)
        // Causal: those of the groups before it, and its own; nobody is behind the last group.
        #expect(passed(order, .causal) == [1, 2, 3, 0])
        #expect(passed(order, .causal(window: 9)) == [1, 1, 1, 0])
        #expect(passed(order, .full) == [3, 3, 3, 3])
        #expect(passed(try .zigzag(length: 64, ulysses: 1, ring: 4), .causal) == [3, 3, 3, 3])
    }
}
