import SparseKernels

extension BranchTree {
    /// The pages of a branch beside those of the others, for pictures and reports.
    public struct PageRow: Hashable, Sendable {
        public let branch: Branch
        /// The row of the branch's parent; nil for a root, and when the parent is not among the rows.
        public let parent: Int?
        /// The number of branches above.
        public let depth: Int
        public let state: State
        public let tokens: Int
        /// The page of each stretch of tokens.
        public let pages: [Int32]
        /// For each page, the first row that has it: its own number where no row before does.
        public let firstRows: [Int]
        /// For each page, the number of rows that have it.
        public let holders: [Int]
    }

    /// The page tables of all branches that have not ended, each behind its parent, children in the order in which they were spawned.
    ///
    /// - Complexity: O(branches · pages).
    public func pageRows() -> [PageRow] {
        var order: [(branch: Branch, parent: Int?, depth: Int)] = []
        var rest = nodes.filter { $0.value.parent == nil }.keys.sorted(by: >).map { (branch: $0, parent: Int?.none, depth: 0) }
        while let next = rest.popLast() {
            let node = nodes[next.branch]!
            var parent = next.parent
            if node.sequence != nil {
                parent = order.count
                order.append(next)
            }
            rest += node.children.reversed().map { ($0, parent, next.depth + 1) }
        }
        let tables = order.map { (try? cache.pageTable(of: nodes[$0.branch]!.sequence!)) ?? [] }
        var (firstRows, holders): ([Int32: Int], [Int32: Int]) = ([:], [:])
        for (row, table) in tables.enumerated() {
            for page in Set(table) {
                holders[page, default: 0] += 1
                if firstRows[page] == nil { firstRows[page] = row }
            }
        }
        return zip(order, tables).map { place, table in
            let node = nodes[place.branch]!
            return PageRow(
                branch: place.branch, parent: place.parent, depth: place.depth, state: node.state, tokens: node.tokens.count,
                pages: table, firstRows: table.map { firstRows[$0]! }, holders: table.map { holders[$0]! })
        }
    }
}
