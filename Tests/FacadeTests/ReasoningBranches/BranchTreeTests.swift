import ReasoningBranches
import SparseKernels
import TestSupport
import Testing

@Suite("Reasoning branches")
struct BranchTreeTests {
    /// A root of 40 tokens in the cache, and three children that fork it.
    private func family(_ fixture: BranchFixture) throws -> (root: BranchTree.Branch, children: [BranchTree.Branch]) {
        let root = try fixture.tree.start(Array(0..<40))
        try fixture.runAll()
        return (root, try fixture.tree.spawn(Array(repeating: .fork(), count: 3), from: root))
    }

    @Test("APR: children with prompts of their own, joined in the order of the spawn after the parent was cut back")
    func spawnAndJoin() throws {
        let fixture = try BranchFixture()
        let tree = fixture.tree
        let root = try tree.start(Array(0..<30))
        try fixture.runAll()
        try tree.append([100, 101], to: root)
        let children = try tree.spawn([.prompt([1, 2]), .prompt([3]), .prompt([4, 5, 6])], from: root)
        // The parent waits, also with its pending tokens. Lengths differ.
        let step = try #require(try tree.step())
        #expect(step.branches == children && step.tokens == [[1, 2], [3], [4, 5, 6]])
        try fixture.run(step)
        // They end in another order than they were spawned.
        for (child, token) in zip(children, [7, 8, 9]) { try tree.append([token], to: child) }
        for child in [children[2], children[0]] { try tree.finish(child) }
        try tree.cancel(children[1])
        #expect(try tree.outcomes(of: root).map(\.newTokens) == [[7], [8], [9]])
        #expect(try tree.outcomes(of: root).map(\.end) == [.finished, .cancelled, .finished])

        try tree.join(root, at: 20) { $0.filter { $0.end == .finished }.flatMap(\.newTokens) }
        #expect(try tree.tokens(of: root) == Array(0..<20) + [7, 9])
        #expect(try tree.step()?.tokens == [[7, 9]])
        try fixture.runAll()
        try fixture.checkContents(of: root, "after the join")
        #expect(tree.branches == [root] && fixture.cache.usedPageCount == 2)
    }

    @Test("forks share pages: each takes its own tokens and one page at most")
    func memory() throws {
        let fixture = try BranchFixture(pages: 200)
        let (_, children) = try family(fixture)
        #expect(fixture.cache.usedPageCount == 3)
        // The last token of 40 is pending again.
        #expect(try tree(fixture, children) == [[39], [39], [39]])
        for _ in 0..<50 {
            while let step = try fixture.tree.step() { try fixture.run(step) }
            for child in children { try fixture.tree.append([1], to: child) }
        }
        try fixture.runAll()
        for child in children {
            let use = try #require(try fixture.tree.pageUse(of: child))
            #expect(use.shared == 2 && use.own <= 50 / 16 + 1 + 1)
        }
    }

    private func tree(_ fixture: BranchFixture, _ branches: [BranchTree.Branch]) throws -> [[Int]]? {
        try fixture.tree.step(branches)?.tokens
    }

    @Test("a fork at any length has the tokens up to there")
    func forkLengths() throws {
        let fixture = try BranchFixture(pages: 300, metadata: PageMetadata(logicalPageSize: 8, format: .float32))
        let root = try fixture.tree.start(Array(0..<40))
        try fixture.runAll()
        let origins = (0...40).map { BranchTree.Origin.fork(at: $0, appending: $0 == 0 ? [99] : []) }
        let children = try fixture.tree.spawn(origins, from: root)
        try fixture.runAll()
        for (length, child) in children.enumerated() {
            #expect(try fixture.tree.tokens(of: child) == (length == 0 ? [99] : Array(0..<length)))
            try fixture.checkContents(of: child, "length \(length)")
        }
        for child in children { try fixture.tree.cancel(child) }
        // With nothing appended the last token runs again.
        try fixture.tree.join(root, at: 16, appending: [])
        #expect(try fixture.tree.step()?.tokens == [[15]])
        #expect(fixture.cache.usedPageCount == 1)
    }

    @Test("beams divide: a fork of a running branch runs beside it, with the same parent")
    func beams() throws {
        let fixture = try BranchFixture()
        let (root, children) = try family(fixture)
        try fixture.runAll()
        try fixture.tree.append([5], to: children[0])
        let twin = try fixture.tree.fork(children[0], at: 40, appending: [6])
        #expect(try fixture.tree.children(of: root) == children + [twin])
        #expect(try fixture.tree.newTokens(of: children[0]) == [5] && fixture.tree.newTokens(of: twin) == [6])
        #expect(try fixture.tree.step()?.tokens == [[5], [6]])
        try fixture.runAll()
        try fixture.tree.promote(twin)
        #expect(try fixture.tree.tokens(of: root) == Array(0..<40) + [6] && fixture.tree.branches == [root])
        try fixture.checkContents(of: root, "promoted")
        #expect(fixture.cache.usedPageCount == 3)
    }

    @Test("random numbers follow from seed and lineage, not from order or batch")
    func randomNumbers() throws {
        let (one, other) = (try BranchFixture(seed: 5), try BranchFixture(seed: 5))
        let (a, b) = (try family(one), try family(other))
        var numbers: [[UInt64]] = []
        for child in a.children { numbers.append(try (0..<4).map { _ in try one.tree.nextRandom(of: child) }) }
        // The other tree draws in turn, and has ended one branch and made more meanwhile.
        try other.tree.cancel(b.children[1])
        _ = try other.tree.start([1, 2, 3])
        var turns: [[UInt64]] = [[], []]
        for _ in 0..<4 {
            for (place, child) in [2, 0].enumerated() { turns[place].append(try other.tree.nextRandom(of: b.children[child])) }
        }
        #expect(turns == [numbers[2], numbers[0]])
        #expect(Set(numbers.joined()).count == 12)
        let seeds = try a.children.map { try one.tree.randomSeed(of: $0) } + [try one.tree.randomSeed(of: a.root)]
        #expect(Set(seeds).count == 4)
        let third = try BranchFixture(seed: 6)
        let c = try family(third)
        #expect(try third.tree.randomSeed(of: c.root) != seeds[3])
    }

    @Test("budgets bound tokens and pages of a branch")
    func budgets() throws {
        let fixture = try BranchFixture()
        let (tree, cache) = (fixture.tree, fixture.cache)
        let root = try tree.start(Array(0..<40))
        try fixture.runAll()
        let few = try tree.spawn([.fork()], from: root, budget: .init(tokens: 2))[0]
        // Two whole pages are shared; one more holds tokens 32..<48.
        let onePage = try tree.spawn([.fork()], from: root, budget: .init(tokens: 100, pages: 1))[0]
        #expect(try tree.remainingTokens(of: few) == 2 && tree.remainingTokens(of: onePage) == 8)
        #expect(try tree.remainingTokens(of: root) == .max)
        try tree.append([1, 2], to: few)
        expectError(.capacityExceeded, "budget", containing: "43", "42") { try tree.append([3], to: few) }
        expectError(.capacityExceeded, "budget") { _ = try tree.fork(few, appending: [3]) }
        try tree.append([Int](repeating: 1, count: 8), to: onePage)
        try fixture.runAll()
        #expect(try tree.pageUse(of: onePage)?.own == 1)
        let before = try fixture.snapshot()
        expectError(.invalidArgument, "budget.pages") {
            try tree.spawn([.fork(), .prompt(Array(0..<17))], from: root, budget: .init(pages: 1))
        }
        expectError(.invalidArgument, "budget", containing: "-1") { try tree.start([1], budget: .init(tokens: -1)) }
        _ = try tree.start([1], budget: .init(tokens: .max, pages: .max))
        try tree.remove(tree.branches.last!)
        #expect(try fixture.snapshot() == before && cache.usedPageCount == 5)
    }

    @Test("a spawn that does not fit changes nothing, wherever it stops")
    func exhausted() throws {
        // 16 pages of 2 layers; metadata, so that forks copy pages.
        for metadata in [nil, PageMetadata(logicalPageSize: 8, format: .float32)] {
            let fixture = try BranchFixture(pages: 8, metadata: metadata)
            let root = try fixture.tree.start(Array(0..<40))
            try fixture.runAll()
            let before = try fixture.snapshot()
            for origins: [BranchTree.Origin] in [
                Array(repeating: .fork(at: 35), count: 6), [.fork(), .prompt(Array(0..<100))],
                [.prompt([1]), .fork(), .prompt(Array(0..<80)), .fork(at: 3, appending: [4])],
            ] {
                expectError(.capacityExceeded, "pageCapacity") { try fixture.tree.spawn(origins, from: root) }
                #expect(try fixture.snapshot() == before)
            }
            expectError(.capacityExceeded, "pageCapacity") { try fixture.tree.start(Array(0..<81)) }
            #expect(try fixture.snapshot() == before)
            // What fits goes on.
            try fixture.tree.spawn(Array(repeating: .fork(), count: 4), from: root)
            try fixture.runAll()
            #expect(fixture.cache.freePageCount == 1)
        }
    }

    @Test("a step that does not fit is refused whole; a smaller one goes on")
    func smallerStep() throws {
        let fixture = try BranchFixture(pages: 3)
        let branches = try (0..<3).map { try fixture.tree.start(Array(0..<($0 + 1))) }
        try fixture.runAll()
        for branch in branches { try fixture.tree.append([Int](repeating: 1, count: 15), to: branch) }
        let before = try fixture.snapshot()
        expectError(.capacityExceeded, "pageCapacity", containing: "a step of 3 branches") { _ = try fixture.tree.step() }
        #expect(try fixture.snapshot() == before)
        #expect(try fixture.tree.step([branches[0]])?.branches == [branches[0]])
        try fixture.tree.cancel(branches[1])
        #expect(try fixture.tree.step()?.branches == [branches[0], branches[2]])
    }

    @Test("a step that failed between layers runs again")
    func failedStep() throws {
        let fixture = try BranchFixture()
        let root = try fixture.tree.start(Array(0..<20))
        try fixture.run(try #require(try fixture.tree.step()), layers: 0..<1)
        #expect(fixture.cache.usedPageCount == 2)
        #expect(try fixture.tree.step()?.tokens == [Array(0..<20)])
        try fixture.runAll()
        try fixture.checkContents(of: root, "after the second run")
    }

    @Test("names, states and orders that are wrong are errors that change nothing")
    func errors() throws {
        let fixture = try BranchFixture()
        let tree = fixture.tree
        let (root, children) = try family(fixture)
        let other = try tree.start([1])
        let before = try fixture.snapshot()
        // Join before the spawn, and before the children have ended.
        expectError(.invalidArgument, "parent", containing: "waits for children", "running") {
            try tree.join(other, at: 0, appending: [1])
        }
        expectError(.invalidArgument, "parent", containing: "children have ended", "branch 1") {
            try tree.join(root, at: 0, appending: [1])
        }
        // A branch that waits.
        expectError(.invalidArgument, "branch", containing: "waiting") { try tree.append([1], to: root) }
        expectError(.invalidArgument, "branch") { try tree.finish(root) }
        expectError(.invalidArgument, "branch") { _ = try tree.fork(root) }
        expectError(.invalidArgument, "branch") { _ = try tree.step([root]) }
        expectError(.invalidArgument, "child") { try tree.promote(other) }
        expectError(.invalidArgument, "child") { try tree.promote(root) }
        expectError(.invalidArgument, "root") { try tree.remove(children[0]) }
        // Lengths and tokens.
        for length in [-1, 41, Int.max, Int.min] {
            expectError(.invalidArgument, "length") { try tree.spawn([.prompt([1]), .fork(at: length)], from: root) }
            expectError(.invalidArgument, "length") { _ = try tree.fork(children[0], at: length) }
        }
        expectError(.invalidArgument, "prompt") { try tree.start([]) }
        expectError(.invalidArgument, "prompt") { try tree.spawn([.prompt([1]), .prompt([])], from: root) }
        expectError(.invalidArgument, "origin") { try tree.spawn([.fork(at: 0)], from: root) }
        #expect(try tree.spawn([], from: other).isEmpty && tree.state(of: other) == .running)
        #expect(try fixture.snapshot() == before)

        for child in children { try tree.finish(child) }
        let ended = try fixture.snapshot()
        #expect(fixture.cache.usedPageCount == 3)
        // Branches that have ended.
        expectError(.invalidArgument, "branch", containing: "finished") { try tree.append([1], to: children[0]) }
        expectError(.invalidArgument, "branch") { try tree.finish(children[0]) }
        expectError(.invalidArgument, "branch") { try tree.cancel(children[0]) }
        expectError(.invalidArgument, "parent") { try tree.spawn([.fork()], from: children[0]) }
        expectError(.invalidArgument, "child") { try tree.promote(children[0]) }
        expectError(.invalidArgument, "length") { try tree.join(root, at: 41, appending: [1]) }
        expectError(.invalidArgument, "length") { try tree.join(root, at: 0, appending: []) }
        #expect(try fixture.snapshot() == ended)

        try tree.join(root, at: 40, appending: [1])
        let joined = try fixture.snapshot()
        expectError(.invalidArgument, "parent") { try tree.join(root, at: 40, appending: [1]) }
        // The children are forgotten.
        expectError(.unknownSequence, "branch") { _ = try tree.tokens(of: children[0]) }
        expectError(.unknownSequence, "branch") { try tree.cancel(children[0]) }
        expectError(.unknownSequence, "branch") { _ = try tree.nextRandom(of: children[0]) }
        #expect(try fixture.snapshot() == joined)
    }

    @Test("cancelling a branch ends all below it, and frees their pages at once")
    func cancelling() throws {
        let fixture = try BranchFixture(pages: 100)
        let (root, children) = try family(fixture)
        let grandchildren = try fixture.tree.spawn([.fork(appending: [1]), .prompt(Array(0..<33))], from: children[1])
        try fixture.runAll()
        #expect(try fixture.tree.tokens(of: grandchildren[0]) == Array(0..<40) + [1])
        try fixture.tree.cancel(children[1])
        #expect(
            try ([children[1]] + grandchildren).map { try fixture.tree.state(of: $0) }
                == Array(repeating: .ended(.cancelled), count: 3))
        // The root's three pages, and a copy of the last one for one of the two other children.
        #expect(fixture.cache.usedPageCount == 5)
        try fixture.tree.remove(root)
        #expect(fixture.cache.usedPageCount == 0 && fixture.tree.branches.isEmpty && fixture.cache.sequences.isEmpty)
    }
}
