/// The tokens that some query rows attend, ascending by position, and their slots in the pool.
struct TokenList {
    /// The form of a list.
    enum Kind {
        /// Two ranges of positions, ascending and disjoint.
        case ranges(Range<Int>, Range<Int>)
        /// A part of a selection's indices, which are pages of the sequence.
        case pages(Range<Int>)
        /// A part of a selection's indices, which are positions.
        case tokens(Range<Int>)
    }

    /// The numbers that lists refer to: the page tables of a batch and the indices of its selection.
    struct Source {
        let tables: UnsafePointer<Int32>
        let indices: UnsafePointer<Int32>
        let pageSize: Int
    }

    let kind: Kind
    /// The index of the sequence's page table in `tables`.
    let table: Int
    /// Tokens of the list.
    let count: Int

    /// Writes the slots of some entries of the list.
    func writeSlots(_ entries: Range<Int>, from source: Source, to slots: UnsafeMutablePointer<Int32>) {
        forEachRun(of: entries, from: source) { position, target in
            let (page, offset) = position.lowerBound.quotientAndRemainder(dividingBy: source.pageSize)
            let slot =
                source.tables[table + page] &* Int32(truncatingIfNeeded: source.pageSize) &+ Int32(truncatingIfNeeded: offset)
            for i in 0..<position.count { slots[target + i] = slot &+ Int32(truncatingIfNeeded: i) }
        }
    }

    /// Writes the positions of some entries of the list.
    func writePositions(_ entries: Range<Int>, from source: Source, to positions: UnsafeMutablePointer<Int32>) {
        forEachRun(of: entries, from: source) { position, target in
            for i in 0..<position.count { positions[target + i] = Int32(truncatingIfNeeded: position.lowerBound + i) }
        }
    }

    /// Calls `body` for runs of entries that are adjacent in a page, with their positions and the first's index in `entries`.
    @inline(__always)
    private func forEachRun(of entries: Range<Int>, from source: Source, _ body: (Range<Int>, Int) -> Void) {
        let size = source.pageSize
        var entry = entries.lowerBound
        while entry < entries.upperBound {
            let position: Int
            var run: Int
            switch kind {
            case .ranges(let first, let second):
                let isFirst = entry < first.count
                position = isFirst ? first.lowerBound + entry : second.lowerBound + entry - first.count
                run = min(size - position % size, (isFirst ? first.count : count) - entry)
            case .pages(let list):
                position = Int(source.indices[list.lowerBound + entry / size]) * size + entry % size
                run = size - entry % size
            case .tokens(let list):
                position = Int(source.indices[list.lowerBound + entry])
                run = 1
            }
            run = min(run, entries.upperBound - entry)
            body(position..<position + run, entry - entries.lowerBound)
            entry += run
        }
    }

    /// The number of tokens of the list before a position.
    func count(before position: Int, from source: Source) -> Int {
        switch kind {
        case .ranges(let first, let second):
            return min(first.count, max(0, position - first.lowerBound))
                + min(second.count, max(0, position - second.lowerBound))
        case .pages(let list):
            let size = source.pageSize
            let whole = prefix(of: list, source) { (Int($0) + 1) * size <= position }
            if whole == list.count { return count }
            let begun = max(0, position - Int(source.indices[list.lowerBound + whole]) * size)
            return min(count, whole * size + begun)
        case .tokens(let list): return prefix(of: list, source) { Int($0) < position }
        }
    }

    /// The number of leading indices that satisfy a condition. No later index may satisfy it.
    private func prefix(of list: Range<Int>, _ source: Source, while holds: (Int32) -> Bool) -> Int {
        var (low, high) = (0, list.count)
        while low < high {
            let middle = (low + high) / 2
            if holds(source.indices[list.lowerBound + middle]) { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
