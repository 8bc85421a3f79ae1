internal import KernelInterface

/// One call of `TokenPruner`. A task is a key/value head of a sequence.
///
/// The query heads of a group score the union of their candidates, so that a key is read and expanded once for all of them. A
/// score of −∞ hides candidates that belong only to other heads, so that they have no part in a head's softmax.
struct TokenPruneCall: PoolCall {
    private let pruner: TokenPruner
    private let kernels: any KernelTable.Type
    private let storage: KVStorage
    private let layer: Int
    private let query: AttentionOperand
    private let sequences: UnsafeBufferPointer<ScoredPages.Sequence>
    private let pages: UnsafePointer<ScoredPages.Page>?
    private let candidates: Candidates?
    private let layout: Layout
    /// The kept positions, with memory for `layout.capacity` per list.
    private let positions: UnsafeMutablePointer<Int32>
    private let counts: UnsafeMutablePointer<Int>
    private let masses: UnsafeMutablePointer<Float>

    /// The addresses of a selection.
    private struct Candidates {
        let unit: Int
        let heads: Int
        let offsets: UnsafePointer<Int>
        let indices: UnsafePointer<Int32>?
    }

    /// The offsets of the parts of a task's scratch, in bytes.
    private struct Layout {
        /// Query heads per key/value head.
        let group: Int
        /// The maximum number of candidates of a task.
        let capacity: Int
        /// Floats per row of scores, and words per row of bits.
        let scoreStride: Int
        let positions: Int
        let slots: Int
        let places: Int
        let query: Int
        let scores: Int
        let kept: Int
        let thresholds: Int
        let list: Int
        let kernel: Int
        let byteCount: Int

        init(group: Int, headDim: Int, capacity: Int) {
            self.group = group
            self.capacity = capacity
            scoreStride = PruneScratch.padded(capacity)
            var end = 0
            func take(_ bytes: Int) -> Int {
                defer { end += (bytes + 63) / 64 * 64 }
                return end
            }
            positions = take(4 * capacity)
            slots = take(4 * capacity)
            places = take(8 * group)
            query = take(4 * group * headDim)
            scores = take(4 * group * scoreStride)
            kept = take(group * scoreStride / 8)
            thresholds = take(4 * group)
            list = take(PruneScratch.byteCount(count: capacity))
            kernel = take(TokenScratch(headDim: headDim, valueDim: 1, rows: group).byteCount)
            byteCount = end
        }
    }

    static func run(
        _ pruner: TokenPruner, query: AttentionOperand, cache: PagedKVCache, layer: Int, tables: ScoredPages,
        candidates: KVSelection?, on pool: WorkerPool
    ) -> TokenPruning {
        let lists = tables.sequences.count * pruner.lists
        let group = pruner.queryHeads / pruner.configuration.kvHeads
        let capacity = largestTask(tables, candidates, pruner)
        let layout = Layout(group: group, headDim: pruner.configuration.headDim, capacity: capacity)
        var offsets = [Int](repeating: 0, count: lists + 1)
        var masses = [Float](repeating: 0, count: tables.sequences.count * pruner.queryHeads)
        var indices: [Int32] = []
        pool.withWorkspace(byteCount: max(64, 4 * lists * capacity)) { memory in
            let positions = memory.bindMemory(to: Int32.self, capacity: lists * capacity)
            offsets.withUnsafeMutableBufferPointer { offsets in
                masses.withUnsafeMutableBufferPointer { masses in
                    tables.withPointers { sequences, pages in
                        withPointers(candidates) { candidates in
                            TokenPruneCall(
                                pruner: pruner, kernels: cache.storage.kernels, storage: cache.storage, layer: layer,
                                query: query,
                                sequences: sequences, pages: pages, candidates: candidates, layout: layout,
                                positions: positions, counts: offsets.baseAddress! + 1, masses: masses.baseAddress!
                            ).run(on: pool)
                        }
                    }
                }
                for list in 0..<lists { offsets[list + 1] += offsets[list] }
            }
            indices = [Int32](unsafeUninitializedCapacity: offsets[lists]) { buffer, count in
                count = offsets[lists]
                guard let target = buffer.baseAddress else { return }
                for list in 0..<lists {
                    (target + offsets[list]).initialize(
                        from: positions + list * capacity, count: offsets[list + 1] - offsets[list])
                }
            }
        }
        let selection = KVSelection(
            unchecked: 1, sequences: tables.sequences.count, heads: pruner.lists, offsets: offsets, indices: indices)
        return TokenPruning(selection: selection, masses: masses)
    }

    /// The maximum number of candidates of any task.
    private static func largestTask(_ tables: ScoredPages, _ candidates: KVSelection?, _ pruner: TokenPruner) -> Int {
        var most = 0
        for (index, sequence) in tables.sequences.enumerated() {
            guard let candidates else {
                most = max(most, sequence.length)
                continue
            }
            let listsPerTask = candidates.heads / pruner.configuration.kvHeads
            for head in 0..<pruner.configuration.kvHeads {
                let first = index * candidates.heads + head * listsPerTask
                let units = candidates.offsets[first + listsPerTask] - candidates.offsets[first]
                most = max(most, min(sequence.length, units * candidates.unit))
            }
        }
        return most
    }

    private static func withPointers(_ selection: KVSelection?, _ body: (Candidates?) -> Void) {
        guard let selection else { return body(nil) }
        selection.offsets.withUnsafeBufferPointer { offsets in
            selection.indices.withUnsafeBufferPointer { indices in
                body(
                    Candidates(
                        unit: selection.unit, heads: selection.heads, offsets: offsets.baseAddress!,
                        indices: indices.baseAddress))
            }
        }
    }

    private func run(on pool: WorkerPool) {
        let configuration = pruner.configuration
        pool.run(
            self, tasks: sequences.count * configuration.kvHeads,
            work: sequences.count * pruner.queryHeads * layout.capacity * configuration.headDim,
            scratchByteCount: layout.byteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let configuration = pruner.configuration
        let (index, head) = (task / configuration.kvHeads, task % configuration.kvHeads)
        let sequence = sequences[index]
        let group = layout.group
        let listsPerTask = pruner.lists / configuration.kvHeads
        let firstList = task * listsPerTask
        let tokens = scratch.bindMemory(to: Int32.self, capacity: layout.capacity)
        let slots = (scratch + layout.slots).bindMemory(to: Int32.self, capacity: layout.capacity)
        let places = (scratch + layout.places).bindMemory(to: Int.self, capacity: group)
        let count = gather(task: task, sequence, places: places, positions: tokens, slots: slots)
        if count == 0 {
            for list in firstList..<firstList + listsPerTask { counts[list] = 0 }
            return
        }

        let rows = (scratch + layout.query).bindMemory(to: Float.self, capacity: group * configuration.headDim)
        for member in 0..<group {
            kernels.stageRows(
                query.rows(head: head * group + member, from: sequence.row), first: 0, count: 1,
                channels: configuration.headDim, into: rows + member * configuration.headDim)
        }
        let scores = (scratch + layout.scores).bindMemory(to: Float.self, capacity: group * layout.scoreStride)
        let key = storage.estimateOperand(layer: layer, head: head) ?? storage.keyOperand(layer: layer, head: head)
        var scoring = ScoreTokensArguments(
            key: key, slots: slots, count: count, query: rows, queryStride: configuration.headDim, rows: group,
            scale: pruner.softmaxScale, scores: scores, scoreStride: layout.scoreStride, scratch: scratch + layout.kernel)
        kernels.scoreTokens(&scoring)
        hide(task: task, positions: tokens, count: count, scores: scores)

        let words = PruneScratch.padded(count) / 64
        let kept = (scratch + layout.kept).bindMemory(to: UInt64.self, capacity: group * layout.scoreStride / 64)
        let thresholds = (scratch + layout.thresholds).bindMemory(to: Float.self, capacity: group)
        var pruning = PruneArguments(
            scores: scores, scoreStride: layout.scoreStride, rows: group, count: count, topP: Float(pruner.topP),
            epsilon: pruner.epsilon, startsAtMaximum: pruner.upperBound == .maximum, first: tokens[0] == 0 ? 0 : -1, kept: kept,
            keptStride: listsPerTask == 1 ? 0 : words, thresholds: thresholds, masses: masses + task * group,
            scratch: scratch + layout.list)
        kernels.pruneWeights(&pruning)

        for list in 0..<listsPerTask {
            let target = positions + (firstList + list) * layout.capacity
            var length = 0
            for word in 0..<words {
                forEachBit(of: kept[list * words + word]) {
                    target[length] = tokens[word * 64 + $0]
                    length += 1
                }
            }
            counts[firstList + list] = length
        }
    }
}

// MARK: - Candidates

extension TokenPruneCall {
    /// The lists with a task's candidates.
    private func lists(of task: Int, _ candidates: Candidates) -> Range<Int> {
        let perTask = candidates.heads / pruner.configuration.kvHeads
        return task * perTask..<(task + 1) * perTask
    }

    /// Writes positions and slots of the candidates of any of the group's heads in ascending order. Returns their number.
    ///
    /// `places` has memory for a position in each head's list.
    private func gather(
        task: Int, _ sequence: ScoredPages.Sequence, places: UnsafeMutablePointer<Int>, positions: UnsafeMutablePointer<Int32>,
        slots: UnsafeMutablePointer<Int32>
    ) -> Int {
        guard let pages, !sequence.pages.isEmpty else { return 0 }
        let pageSize = pruner.configuration.pageSize
        var count = 0
        var page = sequence.pages.lowerBound

        /// Adds the tokens of a range within one page, unless the page was discarded.
        func add(_ tokens: Range<Int>) {
            let wanted = tokens.lowerBound / pageSize
            while page < sequence.pages.upperBound && pages[page].position < wanted { page += 1 }
            if page == sequence.pages.upperBound || pages[page].position != wanted { return }
            let base = Int(pages[page].index) * pageSize - wanted * pageSize
            for token in tokens {
                positions[count] = Int32(truncatingIfNeeded: token)
                slots[count] = Int32(truncatingIfNeeded: base + token)
                count += 1
            }
        }

        guard let candidates else {
            for page in sequence.pages {
                let first = Int(pages[page].position) * pageSize
                add(first..<min(sequence.length, first + pageSize))
            }
            return count
        }
        guard let indices = candidates.indices else { return 0 }
        let lists = lists(of: task, candidates)
        for (number, list) in lists.enumerated() { places[number] = candidates.offsets[list] }
        while true {
            // The smallest index of any list that was not added yet.
            var next = Int32.max
            for (number, list) in lists.enumerated() where places[number] < candidates.offsets[list + 1] {
                next = min(next, indices[places[number]])
            }
            if next == .max { return count }
            for (number, list) in lists.enumerated() where places[number] < candidates.offsets[list + 1] {
                if indices[places[number]] == next { places[number] += 1 }
            }
            let first = Int(next) * candidates.unit
            add(first..<min(sequence.length, first + candidates.unit))
        }
    }

    /// Hides from every query head those candidates of its group that are not its own.
    private func hide(
        task: Int, positions: UnsafePointer<Int32>, count: Int, scores: UnsafeMutablePointer<Float>
    ) {
        guard let candidates, let indices = candidates.indices else { return }
        let lists = lists(of: task, candidates)
        if lists.count == 1 { return }
        for (row, list) in lists.enumerated() {
            let row = scores + row * layout.scoreStride
            let end = candidates.offsets[list + 1]
            var place = candidates.offsets[list]
            var token = 0
            while token < count {
                let index = Int(positions[token]) / candidates.unit
                var next = token + 1
                while next < count && Int(positions[next]) < (index + 1) * candidates.unit { next += 1 }
                while place < end && Int(indices[place]) < index { place += 1 }
                if place == end || Int(indices[place]) != index {
                    (row + token).update(repeating: -.infinity, count: next - token)
                }
                token = next
            }
        }
    }
}
