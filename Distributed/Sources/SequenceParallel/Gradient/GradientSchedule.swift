/// What a rank computes in the backward pass of a ring, and what it passes on.
///
/// In step s, group g has the keys and values of group g − s (modulo the groups), as in the forward pass. Their gradients begin at home, in
/// step 0, and follow them one step behind: each group adds its part, and the last one that sees any of the keys sends them home. Groups
/// behind that one get neither.
struct GradientSchedule {
    struct Step {
        /// The visiting group.
        let visitor: Int
        let blocks: [GradientBlock]
        /// Whether the visitor's rows and gradients come from the group before this one.
        let arrives: Bool
        /// Whether they go to the group behind this one.
        let isPassedOn: Bool
        /// Whether the gradients go home from here.
        let goesHome: Bool
    }

    let own: GroupRows
    /// The rows of each group.
    let counts: [Int]
    let steps: [Step]
    /// The group that sends the gradients of the own keys and values home; nil when no other group sees them.
    let homeSource: Int?

    init(_ shards: TokenShards, _ grid: RankGrid, group: Int, mask: AttentionMask) {
        let groups = (0..<grid.ring).map { GroupRows(shards, ranks: grid.ranks(ofGroup: $0)) }
        let reach = GradientBlock.Reach(mask, length: shards.length)
        let ring = grid.ring

        /// The steps that the rows of a visitor take: to the last group that sees any of them.
        func lastStep(_ visitor: Int) -> Int {
            var step = ring - 1
            while step > 0, !GradientBlock.sees(queries: groups[(visitor + step) % ring], keys: groups[visitor], reach) {
                step -= 1
            }
            return step
        }
        var steps: [Step] = []
        for step in 0..<ring {
            let visitor = (group + ring - step) % ring
            let last = lastStep(visitor)
            steps.append(
                Step(
                    visitor: visitor,
                    blocks: step > last
                        ? [] : GradientBlock.blocks(queries: groups[group], keys: groups[visitor], isSame: step == 0, reach),
                    arrives: step > 0 && step <= last, isPassedOn: step < last, goesHome: step > 0 && step == last))
        }
        self.steps = steps
        let last = lastStep(group)
        homeSource = last == 0 ? nil : (group + last) % ring
        own = groups[group]
        counts = groups.map(\.count)
    }

    /// The most rows of a group.
    var largestCount: Int { counts.max() ?? 0 }

    /// Whether the first block of all is the first of all queries, whose gradients it then writes.
    var beginsWithAllQueries: Bool { steps.first?.blocks.first?.queries == 0..<own.count }

    /// The most queries, and the most keys, of a block.
    var largestBlock: (queries: Int, keys: Int) {
        var largest = (queries: 0, keys: 0)
        for step in steps {
            for block in step.blocks {
                largest = (max(largest.queries, block.queries.count), max(largest.keys, block.keys.count))
            }
        }
        return largest
    }

    /// Bytes that go to the next group and home: the visitors' rows, and their gradients.
    func sentBytes(rowByteCount: Int) -> Int {
        steps.reduce(0) { sum, step in
            let rows = counts[step.visitor] * ((step.isPassedOn ? 2 : 0) + (step.goesHome ? 1 : 0))
            return sum + rows * rowByteCount
        }
    }
}
