// Pictures of the mask as text.

extension BlockMask: CustomStringConvertible {
    /// A line of numbers and the picture of head 0.
    public var description: String { description() }

    /// A line of numbers and a picture of one head, for a terminal.
    ///
    ///     1 head, 8 × 8 blocks of 64 × 64 tokens, causal, density 0.667
    ///     ██
    ///     ████
    ///     ██████
    ///     ██··████
    ///
    /// `█` is a kept block and `·` a dropped one; blocks without a visible pair are blank. A grid with too many blocks is
    /// reduced: a character then stands for a rectangle of blocks, and `░`, `▒` and `▓` for up to a third, up to two thirds and
    /// more of its reachable blocks. Blocks of variable sizes are drawn equal; ``svg(head:)`` has their true sizes.
    ///
    /// - Parameters:
    ///   - maximumWidth: the most characters per line, at least 1, and also the most lines of the picture.
    ///   - head: the head to draw. A head that the mask does not have is a programming error and traps.
    /// - Complexity: O(rows + kept blocks of the head + characters).
    public func description(maximumWidth: Int = 64, head: Int = 0) -> String {
        let width = max(1, maximumWidth)
        let shown = heads == 1 ? "" : "; head \(head), density \(rounded(density(head: head)))"
        let count = heads == 1 ? "1 head" : "\(heads) heads"
        let summary = "\(count), \(grid.summary), density \(rounded(density))\(shown)"
        return ([summary] + lines(head: head, width: width)).joined(separator: "\n")
    }

    private func lines(head: Int, width: Int) -> [String] {
        if grid.blockRows == 0 || grid.blockColumns == 0 { return [] }
        let columnsPerCell = (grid.blockColumns - 1) / width + 1
        // A character is about twice as tall as wide.
        let rowsPerLine = max(columnsPerCell == 1 ? 1 : 2 * columnsPerCell, (grid.blockRows - 1) / width + 1)
        let charactersPerCell = rowsPerLine == 1 && 2 * grid.blockColumns <= width ? 2 : 1
        let cells = (grid.blockColumns - 1) / columnsPerCell + 1
        return stride(from: 0, to: grid.blockRows, by: rowsPerLine).map { first in
            var kept = [Int](repeating: 0, count: cells)
            var reachable = [Int](repeating: 0, count: cells)
            for row in first..<min(grid.blockRows, first + rowsPerLine) {
                let end = grid.reachableColumns(ofRow: row).upperBound
                for cell in 0..<(end + columnsPerCell - 1) / columnsPerCell {
                    reachable[cell] += min(columnsPerCell, end - cell * columnsPerCell)
                }
                for column in reachableColumns(head: head, row: row) { kept[Int(column) / columnsPerCell] += 1 }
            }
            let visible = reachable.lastIndex { $0 > 0 }.map { $0 + 1 } ?? 0
            return (0..<visible).map { String(repeating: shade(kept[$0], of: reachable[$0]), count: charactersPerCell) }
                .joined()
        }
    }

    private func shade(_ kept: Int, of reachable: Int) -> Character {
        switch kept {
        case reachable: "█"
        case 0: "·"
        case ...(reachable / 3): "░"
        case ...(2 * reachable / 3): "▒"
        default: "▓"
        }
    }
}

/// A density as it is shown to people, with three decimals.
func rounded(_ density: Double) -> Double { (density * 1000).rounded() / 1000 }
