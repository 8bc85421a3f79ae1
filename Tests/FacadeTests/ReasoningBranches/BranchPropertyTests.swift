import ReasoningBranches
import SparseKernels
import TestSupport
import Testing

/// Thousands of operations in any order, against page tables that are counted by hand.
@Suite("Reasoning branches: random operations")
struct BranchPropertyTests {
    private struct Driver {
        let fixture: BranchFixture
        var plain = PlainPages()
        var random: SplitMix64
        var refused = 0

        var tree: BranchTree { fixture.tree }

        mutating func below(_ count: Int) -> Int { Int(random.next() % UInt64(max(1, count))) }
        mutating func tokens(_ most: Int) -> [Int] { (0..<below(most + 1)).map { _ in below(3) } }

        func all(_ matches: (BranchTree.State) -> Bool) throws -> [BranchTree.Branch] {
            try tree.branches.filter { matches(try tree.state(of: $0)) }
        }

        mutating func pick(_ branches: [BranchTree.Branch]) -> BranchTree.Branch? {
            branches.isEmpty ? nil : branches[below(branches.count)]
        }

        mutating func noteEnded() throws {
            for branch in Array(plain.tables.keys) where !tree.branches.contains(branch) { plain.free(branch) }
            for branch in tree.branches where try tree.sequence(of: branch) == nil { plain.free(branch) }
        }

        mutating func operate() throws {
            let running = try all { $0 == .running }
            let waiting = try all { $0 == .waiting }
            switch below(16) {
            case 0, 1:
                if tree.branches.count < 24 { plain.make(try tree.start([below(3)] + tokens(40))) }
            case 2, 3, 4:
                guard let parent = pick(running + waiting), tree.branches.count < 24 else { return }
                try spawn(from: parent)
            case 5:
                guard let branch = pick(running), tree.branches.count < 24 else { return }
                let length = below(try tree.tokens(of: branch).count + 1)
                let copy = try tree.fork(branch, at: length, appending: tokens(3))
                plain.make(copy, from: branch, at: min(length, plain.lengths[branch]!))
            case 6...9:
                if let branch = pick(running) { try tree.append(tokens(below(4) == 0 ? 40 : 3), to: branch) }
            case 10, 11, 12:
                try step(below(3) == 0 ? running.filter { _ in below(2) == 0 } : nil)
            case 13:
                if let branch = pick(running) {
                    if below(2) == 0 { try tree.finish(branch) } else { try tree.cancel(branch) }
                }
            case 14:
                guard let parent = pick(waiting) else { return }
                // A join of children that run is an error that changes nothing; then they end.
                let children = try tree.children(of: parent)
                let length = below(try tree.tokens(of: parent).count + 1)
                let more = [below(3)] + tokens(20)
                if try children.contains(where: { try tree.sequence(of: $0) != nil }) {
                    expectError(.invalidArgument, "parent") { try tree.join(parent, at: length, appending: more) }
                    for child in children where try tree.sequence(of: child) != nil { try tree.cancel(child) }
                    try noteEnded()
                }
                try tree.join(parent, at: length, appending: more)
                plain.truncate(parent, to: min(length, plain.lengths[parent]!))
            default:
                if below(3) == 0, let root = pick(try tree.branches.filter { try tree.parent(of: $0) == nil }) {
                    try tree.remove(root)
                } else if let child = pick(try running.filter { try tree.parent(of: $0) != nil }) {
                    let parent = try tree.parent(of: child)!
                    try tree.promote(child)
                    plain.free(parent)
                    plain.rename(child, to: parent)
                }
            }
        }

        mutating func spawn(from parent: BranchTree.Branch) throws {
            let count = try tree.tokens(of: parent).count
            let origins = (0...below(4)).map { _ -> BranchTree.Origin in
                switch below(3) {
                case 0: .prompt([below(3)] + tokens(20))
                case 1: .fork(at: 1 + below(count), appending: tokens(3))
                default: .fork()
                }
            }
            let children = try tree.spawn(origins, from: parent)
            for (child, origin) in zip(children, origins) {
                switch origin {
                case .prompt: plain.make(child)
                case .fork(let at, let more):
                    let length = min(at ?? count, plain.lengths[parent]!)
                    plain.make(child, from: parent, at: min(length, (at ?? count) + more.count - 1))
                }
            }
        }

        mutating func step(_ branches: [BranchTree.Branch]?) throws {
            guard let step = try tree.step(branches) else { return }
            let before = fixture.cache.freePageCount
            let needed = try fixture.cache.pagesNeeded(toAppend: step.tokens.map(\.count), to: step.sequences)
            try fixture.run(step)
            #expect(before - fixture.cache.freePageCount == needed)
            for (branch, tokens) in zip(step.branches, step.tokens) { plain.append(tokens.count, to: branch) }
        }

        func check(_ label: String) throws {
            #expect(fixture.cache.usedPageCount == plain.used, "\(label)")
            #expect(fixture.cache.freePageCount == fixture.cache.configuration.pageCapacity - plain.used, "\(label)")
            #expect(fixture.cache.sequences.count == plain.tables.count, "\(label)")
            for branch in tree.branches {
                let use = try tree.pageUse(of: branch)
                let expected = plain.use(branch)
                #expect(use?.total ?? 0 == expected.total && use?.shared ?? 0 == expected.shared, "\(label), \(branch)")
            }
        }
    }

    @Test("pages are exact after every operation", arguments: [1, 2, 3] as [UInt64])
    func exactPages(_ seed: UInt64) throws {
        var driver = Driver(fixture: try BranchFixture(pages: 12), random: SplitMix64(seed: seed))
        for round in 0..<2000 {
            let before = try driver.fixture.snapshot()
            let cancelled = driver.plain
            do {
                try driver.operate()
            } catch let error as SparseKernelsError {
                #expect(error.code == .capacityExceeded, "round \(round): \(error)")
                // A join may have cancelled children first.
                if driver.plain.tables.count == cancelled.tables.count {
                    #expect(try driver.fixture.snapshot() == before, "round \(round): \(error)")
                }
                driver.refused += 1
            }
            try driver.noteEnded()
            try driver.check("round \(round)")
            if round % 20 == 0 {
                for branch in driver.tree.branches { try driver.fixture.checkContents(of: branch, "round \(round)") }
            }
        }
        #expect(driver.refused > 20, "\(driver.refused) calls refused")
        for root in try driver.tree.branches.filter({ try driver.tree.parent(of: $0) == nil }) { try driver.tree.remove(root) }
        #expect(driver.fixture.cache.usedPageCount == 0 && driver.fixture.cache.sequences.isEmpty)
        #expect(driver.tree.branches.isEmpty)
    }

    /// With an index, pages depend on what is remembered. What must hold: contents, sequences of branches and lists and no
    /// others, and nothing left at the end.
    @Test(
        "reused prefixes hold the right tokens, and nothing leaks",
        arguments: [nil, PageMetadata(logicalPageSize: 8, format: .float32)])
    func indexed(_ metadata: PageMetadata?) throws {
        let fixture = try BranchFixture(pages: 30, metadata: metadata, indexed: true)
        let (tree, index, cache) = (fixture.tree, fixture.index!, fixture.cache)
        var random = SplitMix64(seed: 7)
        func below(_ count: Int) -> Int { Int(random.next() % UInt64(count)) }
        var (refused, reused) = (0, 0)
        for round in 0..<1500 {
            do {
                let running = try tree.branches.filter { try tree.state(of: $0) == .running }
                switch below(6) {
                case 0, 1:
                    let prompt = (0...below(50)).map { $0 < 20 ? $0 : below(2) }
                    if running.count < 6 {
                        let known = index.matchLength(prompt.dropLast())
                        let branch = try tree.start(prompt)
                        let length = try cache.length(of: tree.sequence(of: branch)!)
                        #expect(metadata == nil ? length == known : length <= known)
                        reused += length
                    }
                case 2:
                    if let branch = running.first { try tree.append((0...below(20)).map { _ in below(2) }, to: branch) }
                case 3, 4: if let step = try tree.step() { try fixture.run(step) }
                default: if let branch = running.last { try tree.finish(branch, remembers: below(3) > 0) }
                }
            } catch let error as SparseKernelsError {
                #expect(error.code == .capacityExceeded, "\(error)")
                refused += 1
                for root in try tree.branches.filter({ try tree.state(of: $0) != .running }) { try tree.remove(root) }
                if let branch = tree.branches.first { try tree.remove(branch) }
            }
            let live = try tree.branches.compactMap { try tree.sequence(of: $0) }
            #expect(Set(cache.sequences) == Set(live + index.sequences), "round \(round)")
            #expect(index.sequences.count == index.listCount)
            if round % 10 == 0 { for branch in tree.branches { try fixture.checkContents(of: branch, "round \(round)") } }
        }
        #expect(reused > 1000 && refused > 0, "\(reused) tokens reused, \(refused) calls refused")
        for root in tree.branches { try tree.remove(root) }
        let (used, lists) = (cache.usedPageCount, index.listCount)
        #expect(used > 0 && lists > 0)
        #expect(index.evict(untilFree: 30) == used)
        #expect(cache.usedPageCount == 0 && cache.sequences.isEmpty && index.tokenCount == 0 && index.listCount == 0)
    }
}
