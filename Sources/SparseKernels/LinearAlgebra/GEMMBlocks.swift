internal import KernelInterface

/// The cut of a product into tasks: blocks of C of equal size.
///
/// The sum of an element does not depend on its block, so blocks may depend on the number of threads.
struct GEMMBlocks {
    let rows: Int
    let columns: Int
    let rowBlocks: Int
    let columnBlocks: Int

    var count: Int { rowBlocks * columnBlocks }

    /// Cuts a product of few rows into blocks of columns, each with all rows and whole lines and groups of rows of B. There is
    /// one block per thread, or two where they read more than 4 MiB each. If B is not transposed, its rows are read in
    /// stretches as wide as a block, and memory delivers longer stretches faster.
    init(rows: Int, columns: Int, depth: Int, transposesB: Bool, threads: Int) {
        let unit = 48
        let parts = threads == 1 ? 1 : columns * depth / threads > 1 << 20 ? 2 * threads : threads
        let shortest = transposesB ? unit : min(512, columns / threads)
        let limit = transposesB ? columns : GEMMScratch.rowSums / rows / unit * unit
        self.init(
            m: rows, n: columns, rows: rows,
            columns: min(limit, max(GEMMScratch.block(columns, into: parts, unit: unit), shortest / unit * unit)))
    }

    private init(m: Int, n: Int, rows: Int, columns: Int) {
        self.rows = rows
        self.columns = columns
        rowBlocks = (m + rows - 1) / rows
        columnBlocks = (n + columns - 1) / columns
    }

    /// Chooses the blocks that `threads` threads finish first, by an estimate in cycles per step of the depth. A block
    /// multiplies rows · columns elements, and packs rows + columns elements at about a cycle each. At the end the other
    /// threads wait for half a task on average, or for the rest of a round with fewer tasks than threads.
    ///
    /// - Complexity: tasks · log(tasks) for up to four tasks per thread, a few microseconds for 16 threads.
    init(m: Int, n: Int, threads: Int, kernels: any KernelTable.Type) {
        self.init(
            m: m, n: n, threads: threads, sizes: kernels.sizes,
            rowLimit: kernels.sizes.laneCount >= 16 ? GEMMScratch.wideRowBlock : GEMMScratch.rowBlock,
            columnLimit: GEMMScratch.taskColumns)
    }

    /// The same with at most `rowLimit` rows, in whole tiles, and about `columnLimit` columns.
    init(m: Int, n: Int, threads: Int, sizes: TileSizes, rowLimit: Int, columnLimit: Int) {
        func block(_ rowBlocks: Int, _ columnBlocks: Int) -> GEMMBlocks {
            GEMMBlocks(
                m: m, n: n, rows: GEMMScratch.block(m, into: rowBlocks, unit: sizes.tileRows),
                columns: GEMMScratch.block(n, into: columnBlocks, unit: sizes.panelWidth))
        }
        let columnLimit = columnLimit / sizes.panelWidth * sizes.panelWidth
        let fewestRows = (m + rowLimit - 1) / rowLimit
        let fewestColumns = (n + columnLimit - 1) / columnLimit
        var best = block(fewestRows, fewestColumns)
        var least = Double.infinity
        let fewest = fewestRows * fewestColumns
        let most = threads == 1 ? fewest : 4 * max(threads, fewest)
        var rowBlocks = fewestRows
        while rowBlocks * fewestColumns <= most && (rowBlocks - 1) * sizes.tileRows < m {
            var columnBlocks = fewestColumns
            while rowBlocks * columnBlocks <= most && (columnBlocks - 1) * sizes.panelWidth < n {
                let candidate = block(rowBlocks, columnBlocks)
                let cost = candidate.cost(threads: threads, multiplyAdds: 2 * sizes.laneCount)
                if cost < least { (best, least) = (candidate, cost) }
                columnBlocks += 1
            }
            rowBlocks += 1
        }
        self = best
    }

    private func cost(threads: Int, multiplyAdds: Int) -> Double {
        let task = Double(rows * columns) / Double(multiplyAdds) + Double(rows + columns)
        if threads == 1 { return Double(count) * task }
        let rounds = Double((count + threads - 1) / threads)
        return max(rounds, Double(count) / Double(threads) + 0.5) * task
    }
}
