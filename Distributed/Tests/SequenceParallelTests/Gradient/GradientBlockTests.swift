import Testing

@testable import SequenceParallel

@Suite("Blocks of the gradient over ranks")
struct GradientBlockTests {
    static let masks: [AttentionMask] = [
        .full, .causal, .causal(window: 1), .causal(window: 9), .window(left: 5, right: 3), .window(left: nil, right: 4),
        .window(left: 11, right: nil), .full(window: 30),
    ]

    static func shards() throws -> [(TokenShards, ulysses: Int)] {
        let pages = stride(from: 0, to: 50, by: 4).map { $0..<min(50, $0 + 4) }
        return [
            (try .contiguous(length: 37, ranks: 3), 1), (try .zigzag(length: 41, ulysses: 1, ring: 4), 1),
            (try .zigzag(length: 41, ulysses: 3, ring: 2), 3), (try .contiguous(lengths: [0, 9, 1, 20, 0]), 1),
            (
                try TokenShards(
                    length: 50, ranges: (0..<4).map { r in pages.indices.filter { $0 % 4 == r }.map { pages[$0] } }), 2
            ),
            // A group whose first rank has the later tokens.
            (try TokenShards(length: 12, ranges: [[6..<12], [0..<6]]), 2), (try .contiguous(length: 0, ranks: 2), 1),
        ]
    }

    @Test("every pair that a query sees is in one block, once", arguments: masks)
    func pairs(_ mask: AttentionMask) throws {
        for (shards, ulysses) in try Self.shards() {
            let grid = try RankGrid(ranks: shards.ranks, ulysses: ulysses)
            for group in 0..<grid.ring {
                let schedule = GradientSchedule(shards, grid, group: group, mask: mask)
                var seen: [Int: Set<Int>] = [:]
                for step in schedule.steps {
                    let visitor = GroupRows(shards, ranks: grid.ranks(ofGroup: step.visitor))
                    for block in step.blocks {
                        #expect(!block.queries.isEmpty && !block.keys.isEmpty)
                        let position = block.keys.count - block.queries.count
                        for (i, row) in block.queries.enumerated() {
                            for (j, key) in block.keys.enumerated()
                            where j >= i + position - (block.mask.left ?? 1 << 20)
                                && j <= i + position + (block.mask.right ?? 1 << 20)
                            {
                                let (query, token) = (schedule.own.token(ofRow: row), visitor.token(ofRow: key))
                                #expect(seen[query, default: []].insert(token).inserted)
                            }
                        }
                    }
                }
                for row in 0..<schedule.own.count {
                    let query = schedule.own.token(ofRow: row)
                    let (first, end) = (query - (mask.left ?? 1 << 20), query + (mask.right ?? 1 << 20))
                    #expect(seen[query, default: []] == Set(max(0, first)..<max(0, min(shards.length, end + 1))))
                }
            }
        }
    }

    @Test("a zigzag has one block per visitor, and a visitor is sent no further than it is seen")
    func steps() throws {
        let zigzag = try TokenShards.zigzag(length: 96, ulysses: 2, ring: 4)
        for group in 0..<4 {
            let schedule = try GradientSchedule(zigzag, RankGrid(ranks: 8, ulysses: 2), group: group, mask: .causal)
            #expect(schedule.steps.map(\.blocks.count) == [1, 1, 1, 1])
            // Half of the queries, or half of the keys.
            #expect(schedule.steps.dropFirst().map { $0.blocks[0].queries.count * $0.blocks[0].keys.count } == [288, 288, 288])
        }
        let ordered = try TokenShards.contiguous(length: 96, ranks: 4)
        let grid = try RankGrid(ranks: 4, ulysses: 1)
        let last = GradientSchedule(ordered, grid, group: 3, mask: .causal)
        #expect(last.steps.map(\.isPassedOn) == [false, false, false, false] && last.homeSource == nil)
        #expect(last.steps.map(\.goesHome) == [false, true, true, true])
        let first = GradientSchedule(ordered, grid, group: 0, mask: .causal)
        #expect(first.steps.map(\.arrives) == [false, false, false, false] && first.homeSource == 3)
        let window = GradientSchedule(ordered, grid, group: 1, mask: .causal(window: 10))
        #expect(window.steps.map(\.arrives) == [false, true, false, false] && window.homeSource == 2)
    }
}
