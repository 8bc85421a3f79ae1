internal import KernelInterface

/// The tasks of a sparse plan: which rows of which head attend to which keys.
///
/// All patterns, block sizes and packed sequences become this list, so `run` doesn't look at masks again.
struct AttentionSchedule: Sendable {
    /// One call of the kernel.
    struct Task: Sendable {
        var head: Int
        /// Rows of the query operand.
        var firstQuery: Int
        var rows: Int
        /// The index of the sequence's key 0 in the key operand; ranges and limits count from there.
        var firstKey: Int
        /// Key position of the task's first row.
        var position: Int
        var ranges: Range<Int>
        var gathered: Range<Int>
        var visibleFrom = AttentionSchedule.unlimited.from
        var visibleTo = AttentionSchedule.unlimited.to
        var globalFrom = AttentionSchedule.unlimited.from
        var globalTo = AttentionSchedule.unlimited.to
        /// Score entries that the limits leave.
        var visiblePairs = 0
    }

    static let unlimited = (from: -(1 << 60), to: 1 << 60)

    private(set) var tasks: [Task] = []
    private(set) var ranges: [KeyRange] = []
    private(set) var gatheredKeys: [Int32] = []
    private(set) var visiblePairs = 0
    /// Rows of the largest task, for which scratch is sized.
    private(set) var maximumRows = 1

    /// The position of a sequence in the operands.
    struct Sequence {
        var queries: Range<Int>
        var keys: Range<Int>
        /// Query i, counted from 0 in the sequence, sees keys j with i + from ≤ j < i + to, whatever its pattern.
        let limits: (from: Int, to: Int)
        var queryOffset: Int { keys.count - queries.count }

        init(queries: Range<Int>, keys: Range<Int>, isCausal: Bool, window: AttentionWindow) {
            self.queries = queries
            self.keys = keys
            limits = window.limits(queryLength: queries.count, keyLength: keys.count, isCausal: isCausal)
        }

        /// Score entries that the limits leave to a head.
        var reachablePairs: Int {
            let (rows, columns) = (queries.count, keys.count)
            return pairsBelowDiagonal(rows: rows, columns: columns, offset: limits.to)
                - pairsBelowDiagonal(rows: rows, columns: columns, offset: limits.from)
        }

        /// Keys that every query of a block may see.
        func keysSeenByAll(_ block: Range<Int>) -> Range<Int> {
            let first = max(0, block.upperBound - 1 + limits.from)
            return first..<max(first, min(keys.count, block.lowerBound + limits.to))
        }

        func keysSeenByAny(_ block: Range<Int>) -> Range<Int> {
            let first = max(0, block.lowerBound + limits.from)
            return first..<max(first, min(keys.count, block.upperBound - 1 + limits.to))
        }
    }

    /// The number of rows per task: at most what scratch holds, and a multiple of the panel width except at the end of a block.
    struct TaskRows {
        var limit = AttentionScratch.maximumQueryRows
        var panelWidth: Int

        /// Cuts a block of queries into equal tasks.
        func cut(_ block: Range<Int>, _ body: (Range<Int>) -> Void) {
            let pieces = (block.count + limit - 1) / limit
            if pieces == 0 { return }
            let even = (block.count + pieces - 1) / pieces
            let size = min(limit, (even + panelWidth - 1) / panelWidth * panelWidth)
            for first in stride(from: block.lowerBound, to: block.upperBound, by: size) {
                body(first..<min(block.upperBound, first + size))
            }
        }
    }

    /// Adds the tasks of adjacent heads of one sequence that share a pattern. They share one list of keys.
    mutating func append(
        _ pattern: HeadPattern, heads: Range<Int>, sequence: Sequence, denseRows: TaskRows, blockRows: TaskRows
    ) {
        let first = tasks.count
        append(pattern, head: heads.lowerBound, sequence: sequence, denseRows: denseRows, blockRows: blockRows)
        let listed = first..<tasks.count
        for head in heads.dropFirst() {
            for index in listed {
                var task = tasks[index]
                task.head = head
                add(task)
            }
        }
    }

    private mutating func append(
        _ pattern: HeadPattern, head: Int, sequence: Sequence, denseRows: TaskRows, blockRows: TaskRows
    ) {
        switch pattern {
        case .dense:
            append(
                [KeyRange(begin: 0, end: sequence.keys.count)], head: head, sequence: sequence,
                block: 0..<sequence.queries.count, rows: denseRows)
        case .streaming(let sink, let local):
            let sink = min(sink, sequence.keys.count)
            // A larger number of local keys hides nothing either; clamping it avoids overflow.
            let local = min(local, sequence.keys.count)
            append(
                [KeyRange(begin: 0, end: sink, isGlobal: true), KeyRange(begin: sink, end: sequence.keys.count)], head: head,
                sequence: sequence, block: 0..<sequence.queries.count, rows: denseRows,
                local: (from: 1 - local, to: Self.unlimited.to))
        case .band(let band):
            append(band, head: head, sequence: sequence, rows: denseRows)
        case .blockSparse(let mask, let maskHead):
            var ranges: [KeyRange] = []
            for row in 0..<mask.grid.blockRows {
                mask.keyRanges(head: maskHead, row: row, into: &ranges)
                append(ranges, head: head, sequence: sequence, block: mask.grid.query[row], rows: blockRows)
            }
        case .runs(let runs):
            var ranges: [KeyRange] = []
            for block in 0..<runs.query.count {
                let queries = runs.query[block]
                if queries.isEmpty { continue }
                let keys = runs.keyRanges(block: block, gathering: sequence.keysSeenByAll(queries), into: &ranges)
                append(ranges, keys: keys, head: head, sequence: sequence, block: queries, rows: blockRows)
            }
        }
    }

    private mutating func add(_ task: Task) {
        tasks.append(task)
        visiblePairs += task.visiblePairs
        maximumRows = max(maximumRows, task.rows)
    }

    /// Adds the tasks of a band. Each has the keys that its rows together see.
    private mutating func append(_ band: AttentionBand, head: Int, sequence: Sequence, rows: TaskRows) {
        let (queries, keys) = (0..<sequence.queries.count, 0..<sequence.keys.count)
        let reach = queries.count + keys.count
        let (left, right) = (min(band.left, reach), min(band.right, reach))
        let global = band.globalKeys.map { KeyRange(begin: $0.lowerBound, end: $0.upperBound, isGlobal: true) }
        for segment in AttentionBand.parts(of: queries, outside: band.globalQueries) {
            var blocks: [Range<Int>] = []
            rows.cut(segment) { blocks.append($0) }
            for block in blocks {
                let first = block.lowerBound + sequence.queryOffset - left
                let last = block.upperBound + sequence.queryOffset + right
                let near = (max(0, first)..<max(0, first, last)).clamped(to: keys)
                let local = AttentionBand.parts(of: near, outside: band.globalKeys)
                    .map { KeyRange(begin: $0.lowerBound, end: $0.upperBound) }
                append(
                    (global + local).sorted { $0.begin < $1.begin }, head: head, sequence: sequence, block: block, rows: rows,
                    local: (from: -left, to: right + 1))
            }
        }
        for segment in band.globalQueries {
            append([KeyRange(begin: 0, end: keys.count)], head: head, sequence: sequence, block: segment, rows: rows)
        }
    }

    /// Adds the tasks of a block of queries that share a list of keys.
    /// - Parameter local: query i sees keys j of ranges that are not global only if from ≤ j − p < to at its position p.
    private mutating func append(
        _ keyRanges: [KeyRange], keys: ArraySlice<Int32> = [], head: Int, sequence: Sequence, block: Range<Int>,
        rows: TaskRows, local: (from: Int, to: Int) = unlimited
    ) {
        if block.isEmpty { return }
        let (rangeStart, keyStart) = (ranges.count, gatheredKeys.count)
        let reachable = sequence.keysSeenByAny(block)
        for range in keyRanges {
            // Ranges that no query of the block sees are dropped. The others keep their ends, so that a limit changes no step
            // before it.
            if range.begin < range.end && range.begin < reachable.upperBound && range.end > reachable.lowerBound {
                ranges.append(range)
            }
        }
        gatheredKeys += keys
        let listed = rangeStart..<ranges.count
        let gathered = keyStart..<gatheredKeys.count
        rows.cut(block) { queries in
            let position = queries.lowerBound + sequence.queryOffset
            var task = Task(
                head: head, firstQuery: sequence.queries.lowerBound + queries.lowerBound, rows: queries.count,
                firstKey: sequence.keys.lowerBound, position: position, ranges: listed, gathered: gathered)
            let (from, to) = (queries.lowerBound + sequence.limits.from, queries.lowerBound + sequence.limits.to)
            // Unlimited sides stay at ∓2⁶⁰, because moving them could bring them within reach.
            task.globalFrom = max(from, Self.unlimited.from)
            task.globalTo = min(to, Self.unlimited.to)
            task.visibleFrom = local.from == Self.unlimited.from ? task.globalFrom : max(task.globalFrom, position + local.from)
            task.visibleTo = local.to == Self.unlimited.to ? task.globalTo : min(task.globalTo, position + local.to)
            for range in ranges[listed] {
                let keys = range.end - range.begin
                let from = range.isGlobal ? task.globalFrom : task.visibleFrom
                let to = range.isGlobal ? task.globalTo : task.visibleTo
                let seen = pairsBelowDiagonal(rows: task.rows, columns: keys, offset: to - range.begin)
                let before = pairsBelowDiagonal(rows: task.rows, columns: keys, offset: from - range.begin)
                task.visiblePairs += max(0, seen - before)
            }
            task.visiblePairs += task.rows * keys.count
            add(task)
        }
    }

    /// Orders the tasks for the pool, heaviest first, by classes of equal powers of two.
    ///
    /// Inside a class neighbours stay adjacent, so that they find their keys in the cache, and the order runs backwards through
    /// the queries, because later causal tasks are heavier.
    mutating func order() {
        // A counting sort by class costs less than the kernel's work on a single row.
        var counts = [Int](repeating: 0, count: 65)
        for task in tasks { counts[task.weightClass + 1] += 1 }
        for index in 1...64 { counts[index] += counts[index - 1] }
        var ordered = tasks
        for task in tasks {
            ordered[tasks.count - 1 - counts[task.weightClass]] = task
            counts[task.weightClass] += 1
        }
        tasks = ordered
    }
}

extension AttentionSchedule.Task {
    /// Position of the highest bit of the work, 0…63.
    fileprivate var weightClass: Int { 63 - max(1, visiblePairs).leadingZeroBitCount }
}

/// Pairs (i, j) with i < `rows`, j < `columns` and j < i + `offset`.
package func pairsBelowDiagonal(rows: Int, columns: Int, offset: Int) -> Int {
    if rows == 0 || offset + rows - 1 <= 0 { return 0 }
    // Rows from `first` to `full` see one key more each; rows from `full` on see every column.
    let full = min(rows, max(0, columns - offset))
    let first = min(full, max(0, 1 - offset))
    return (first + offset + full - 1 + offset) * (full - first) / 2 + (rows - full) * columns
}

extension BlockMask {
    /// The kept keys of a row as ranges. Adjacent blocks are merged and unreachable ones left out.
    func keyRanges(head: Int, row: Int, into ranges: inout [KeyRange]) {
        ranges.removeAll(keepingCapacity: true)
        for column in reachableColumns(head: head, row: row) {
            let keys = grid.key[Int(column)]
            if keys.isEmpty { continue }
            if let last = ranges.last, last.end == keys.lowerBound {
                ranges[ranges.count - 1].end = keys.upperBound
            } else {
                ranges.append(KeyRange(begin: keys.lowerBound, end: keys.upperBound))
            }
        }
    }
}

extension KeyRuns {
    /// Turns a block's runs and its single keys outside `gathered` into ordered ranges, and returns its other single keys.
    ///
    /// Kernels show gathered keys to every query of a task. Under a causal limit or a window that is right only for keys that
    /// every query of the block may see. The others become ranges of one key, which obey the limits; they are few.
    func keyRanges(block: Int, gathering gathered: Range<Int>, into ranges: inout [KeyRange]) -> ArraySlice<Int32> {
        ranges.removeAll(keepingCapacity: true)
        let keys = keys(block: block)
        let first = keys.firstIndex { $0 >= gathered.lowerBound } ?? keys.endIndex
        let end = keys[first...].firstIndex { $0 >= gathered.upperBound } ?? keys.endIndex
        var next = keys.startIndex
        func single() {
            if next < first || next >= end { ranges.append(KeyRange(begin: Int(keys[next]), end: Int(keys[next]) + 1)) }
            next += 1
        }
        for run in runs(block: block) {
            while next < keys.endIndex && keys[next] < run.lowerBound { single() }
            ranges.append(KeyRange(begin: run.lowerBound, end: run.upperBound))
        }
        while next < keys.endIndex { single() }
        return keys[first..<end]
    }
}
