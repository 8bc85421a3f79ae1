extension BlockMask {
    /// A picture of one head as an SVG document: kept blocks blue, dropped ones pale, the area without a visible pair grey.
    ///
    /// A block is one unit of the view box. Along each axis tokens have their true proportions: a ragged last block is
    /// narrower, and blocks of variable sizes (whose mean is the unit) show their sizes. Adjacent blocks of a row are one
    /// rectangle. Rectangles of kept blocks are in the group `kept`, those of unreachable ones in the group `unreachable`.
    ///
    /// - Parameter head: the head to draw. A head that the mask does not have is a programming error and traps.
    /// - Complexity: O(rows + kept blocks of the head); about 50 bytes per run of kept blocks.
    public func svg(head: Int = 0) -> String {
        let (x, y) = (Axis(grid.key), Axis(grid.query))
        var kept: [String] = []
        var unreachable: [String] = []
        for row in 0..<grid.blockRows {
            let rows = y.edge(row)..<y.edge(row + 1)
            if rows.isEmpty { continue }
            let reachable = grid.reachableColumns(ofRow: row).upperBound
            let hidden = x.edge(reachable)..<x.length
            if !hidden.isEmpty { unreachable.append(rectangle(hidden, rows)) }
            for run in runs(of: reachableColumns(head: head, row: row)) {
                let columns = x.edge(run.lowerBound)..<x.edge(run.upperBound)
                if !columns.isEmpty { kept.append(rectangle(columns, rows)) }
            }
        }
        let (width, height) = (decimal(x.length), decimal(y.length))
        // The longer side has 512 pixels, and the shorter side at least 16, so that it can be seen.
        let pixelsPerUnit = 512 / Double(max(1, x.length, y.length))
        let pixels = [x, y].map { max(16, Int((Double($0.length) * pixelsPerUnit).rounded())) }
        let name = heads == 1 ? "" : ", head \(head) of \(heads)"
        var lines = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 \(width) \(height)\" width=\"\(pixels[0])\" "
                + "height=\"\(pixels[1])\" preserveAspectRatio=\"none\" shape-rendering=\"crispEdges\" role=\"img\">",
            "<title>\(grid.summary)\(name), density \(rounded(density(head: head)))</title>",
            "<rect width=\"\(width)\" height=\"\(height)\" fill=\"#e3eaf4\"/>",
        ]
        lines += ["<g class=\"kept\" fill=\"#1f5fbf\">"] + kept + ["</g>"]
        if max(grid.blockRows, grid.blockColumns) <= 64 {
            let vertical = (0..<grid.blockColumns).dropFirst().map { "M\(decimal(x.edge($0))) 0V\(height)" }
            let horizontal = (0..<grid.blockRows).dropFirst().map { "M0 \(decimal(y.edge($0)))H\(width)" }
            let path = (vertical + horizontal).joined()
            if !path.isEmpty { lines.append("<path d=\"\(path)\" stroke=\"#fff\" stroke-width=\"0.04\"/>") }
        }
        // Drawn over the lines, so that it looks like one area.
        lines += ["<g class=\"unreachable\" fill=\"#c3c7cd\">"] + unreachable + ["</g>"]
        return (lines + ["</svg>", ""]).joined(separator: "\n")
    }

    /// Merges adjacent columns of a row.
    private func runs(of columns: ArraySlice<Int32>) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        for column in columns.lazy.map({ Int($0) }) {
            if let last = runs.last, last.upperBound == column {
                runs[runs.count - 1] = last.lowerBound..<column + 1
            } else {
                runs.append(column..<column + 1)
            }
        }
        return runs
    }
}

/// The starts of blocks along an axis of the picture, in thousandths of a block. Whole numbers make rectangles meet exactly.
private struct Axis {
    private let partition: BlockPartition
    private let tokensPerUnit: Double

    init(_ partition: BlockPartition) {
        self.partition = partition
        tokensPerUnit =
            partition.blockSize.map { Double($0) } ?? max(1, Double(partition.length)) / Double(max(1, partition.count))
    }

    var length: Int { edge(partition.count) }

    func edge(_ block: Int) -> Int {
        let token = block == partition.count ? partition.length : partition[block].lowerBound
        return Int((Double(token) / tokensPerUnit * 1000).rounded())
    }
}

private func rectangle(_ x: Range<Int>, _ y: Range<Int>) -> String {
    "<rect x=\"\(decimal(x.lowerBound))\" y=\"\(decimal(y.lowerBound))\" width=\"\(decimal(x.count))\" "
        + "height=\"\(decimal(y.count))\"/>"
}

/// Thousandths as a decimal number.
private func decimal(_ thousandths: Int) -> String {
    thousandths % 1000 == 0 ? "\(thousandths / 1000)" : "\(Double(thousandths) / 1000)"
}
