internal import KernelInterface

/// One `run` of paged attention: stages the queries, attends the chunks of every group and merges the partial results.
struct PagedAttentionCall {
    let plan: PagedAttention
    let batch: PagedBatch
    let storage: KVStorage
    let layer: Int
    let query: AttentionOperand
    let output: MutableAttentionOperand
    let logSumExp: UnsafeMutablePointer<Float>?

    /// The byte offset of the records in the memory of a call, and its size in bytes.
    private struct Layout {
        let records: Int
        let byteCount: Int
        let recordStride: Int
    }

    /// The data that attending tasks read.
    private struct Step: PoolCall {
        let call: UnsafePointer<PagedAttentionCall>
        let tasks: UnsafePointer<(group: Int32, chunk: Int32)>
        let source: TokenList.Source
        let queries: UnsafeMutablePointer<Float>
        let records: UnsafeMutablePointer<Float>
        let recordStride: Int

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            call.pointee.attend(self, task: tasks[task], scratch: scratch)
        }
    }

    /// Rows per merging task.
    private static let mergedRows = 16

    func run(on pool: WorkerPool) {
        let tasks = chunkTasks
        let layout = layout
        let empty: [Int32] = [0]
        let indices = batch.selection.map { $0.indices.isEmpty ? empty : $0.indices } ?? empty
        let tables = batch.tables.isEmpty ? empty : batch.tables
        pool.withWorkspace(byteCount: layout.byteCount) { memory in
            withUnsafePointer(to: self) { call in
                tasks.withUnsafeBufferPointer { tasks in
                    indices.withUnsafeBufferPointer { indices in
                        tables.withUnsafeBufferPointer { tables in
                            let source = TokenList.Source(
                                tables: tables.baseAddress!, indices: indices.baseAddress!, pageSize: batch.pageSize)
                            let queries = memory.assumingMemoryBound(to: Float.self)
                            let records = (memory + layout.records).assumingMemoryBound(to: Float.self)
                            stageQueries(into: queries)
                            // Empty lists have no chunks.
                            if let first = tasks.baseAddress {
                                let step = Step(
                                    call: call, tasks: first, source: source, queries: queries, records: records,
                                    recordStride: layout.recordStride)
                                attend(step, count: tasks.count, on: pool)
                            }
                            merge(call, records: records, stride: layout.recordStride, on: pool)
                        }
                    }
                }
            }
        }
    }

    private var layout: Layout {
        let rows = batch.groupOfRow.count
        let recordStride = TokenLayout.padded(plan.configuration.valueDim) + TokenLayout.channelUnit
        let records = (rows * plan.configuration.headDim * 4 + 63) / 64 * 64
        return Layout(
            records: records, byteCount: records + batch.recordCount * recordStride * 4, recordStride: recordStride)
    }

    /// Every chunk of every group; chunks of a group are adjacent.
    private var chunkTasks: [(group: Int32, chunk: Int32)] {
        var tasks: [(group: Int32, chunk: Int32)] = []
        for (index, group) in batch.groups.enumerated() {
            for chunk in 0..<group.chunks {
                tasks.append((Int32(truncatingIfNeeded: index), Int32(truncatingIfNeeded: chunk)))
            }
        }
        return tasks
    }

    /// Converts queries to floats, in the order of the rows.
    private func stageQueries(into target: UnsafeMutablePointer<Float>) {
        let channels = plan.configuration.headDim
        var row = target
        for kvHead in 0..<plan.configuration.kvHeads {
            var sequence = 0
            for index in 0..<batch.rowsPerHead {
                let place = batch.place(ofRow: index, group: plan.group, from: &sequence)
                let head = batch.queryHead(of: place.sequence, kvHead: kvHead, place: place.head, group: plan.group)
                let rows = query.rows(head: head, from: place.sequence.firstQuery + place.query)
                plan.kernels.stageRows(rows, first: 0, count: 1, channels: channels, into: row)
                row += channels
            }
        }
    }

    // MARK: - Chunks

    private func attend(_ step: Step, count: Int, on pool: WorkerPool) {
        let configuration = plan.configuration
        let scratch = TaskScratch(configuration)
        let tokens = batch.groups.reduce(0) { $0 + $1.list.count * $1.rows.count }
        pool.run(
            step, tasks: count, work: tokens * (configuration.headDim + configuration.valueDim),
            scratchByteCount: scratch.byteCount)
    }

    /// The byte offsets of the parts of a task's scratch.
    private struct TaskScratch {
        let slots = 0
        let visible: Int
        let positions: Int
        let rowPositions: Int
        let slopes: Int
        let kernel: Int
        let byteCount: Int

        init(_ configuration: KVCacheConfiguration) {
            let (list, rows) = (4 * PagedBatch.chunk, 4 * PagedBatch.maximumRows)
            visible = list
            positions = visible + rows
            // Kernels read a vector of positions past the last one.
            rowPositions = positions + list + 64
            slopes = rowPositions + rows
            kernel = slopes + rows
            byteCount =
                kernel
                + TokenScratch(
                    headDim: configuration.headDim, valueDim: configuration.valueDim, rows: PagedBatch.maximumRows
                ).byteCount
        }
    }

    private func attend(_ step: Step, task: (group: Int32, chunk: Int32), scratch: UnsafeMutableRawPointer) {
        let configuration = plan.configuration
        let group = batch.groups[Int(task.group)]
        let first = Int(task.chunk) * PagedBatch.chunk
        var entries = min(PagedBatch.chunk, group.list.count - first)
        let layout = TaskScratch(configuration)
        var visible: UnsafeMutablePointer<Int32>?
        if let reach = group.reach {
            let counts = (scratch + layout.visible).assumingMemoryBound(to: Int32.self)
            var sequence = 0
            var most = 0
            for row in group.rows {
                let place = batch.place(ofRow: row, group: plan.group, from: &sequence)
                let limit = place.sequence.position(ofQuery: place.query) + reach + 1
                let count = min(entries, max(0, group.list.count(before: limit, from: step.source) - first))
                counts[row - group.rows.lowerBound] = Int32(truncatingIfNeeded: count)
                most = max(most, count)
            }
            // Tokens that no row sees are not read: half of a prompt's own tokens.
            entries = most
            visible = counts
        }
        let slots = (scratch + layout.slots).assumingMemoryBound(to: Int32.self)
        group.list.writeSlots(first..<first + entries, from: step.source, to: slots)
        let aliBi = plan.modifiers.aliBiSlopes.map {
            linearBiases($0, group, entries: first..<first + entries, step.source, scratch: scratch, layout)
        }
        let row = group.kvHead * batch.rowsPerHead + group.rows.lowerBound
        let record = group.firstRecord + Int(task.chunk) * group.rows.count
        var arguments = AttendTokensArguments(
            key: storage.keyOperand(layer: layer, head: group.kvHead),
            value: storage.valueOperand(layer: layer, head: group.kvHead), slots: slots, count: entries,
            query: step.queries + row * configuration.headDim, queryStride: configuration.headDim, rows: group.rows.count,
            visible: UnsafePointer(visible), softmaxScale: plan.softmaxScale, logitsSoftCap: plan.modifiers.logitsSoftCap ?? 0,
            aliBi: aliBi, records: step.records + record * step.recordStride, recordStride: step.recordStride,
            scratch: scratch + layout.kernel)
        plan.kernels.attendTokens(&arguments)
    }

    /// Writes the positions of the entries of a list and of the rows that attend it, and the slopes of the rows' heads.
    private func linearBiases(
        _ slopes: [Float], _ group: PagedBatch.Group, entries: Range<Int>, _ source: TokenList.Source,
        scratch: UnsafeMutableRawPointer, _ layout: TaskScratch
    ) -> TokenAliBi {
        let positions = (scratch + layout.positions).assumingMemoryBound(to: Int32.self)
        let rowPositions = (scratch + layout.rowPositions).assumingMemoryBound(to: Int32.self)
        let rowSlopes = (scratch + layout.slopes).assumingMemoryBound(to: Float.self)
        group.list.writePositions(entries, from: source, to: positions)
        var sequence = 0
        for (index, row) in group.rows.enumerated() {
            let place = batch.place(ofRow: row, group: plan.group, from: &sequence)
            rowPositions[index] = Int32(truncatingIfNeeded: place.sequence.position(ofQuery: place.query))
            rowSlopes[index] =
                slopes[batch.queryHead(of: place.sequence, kvHead: group.kvHead, place: place.head, group: plan.group)]
        }
        return TokenAliBi(
            slopes: rowSlopes, rowPositions: rowPositions, positions: positions,
            isSymmetric: plan.modifiers.aliBiForm == .symmetric)
    }

    // MARK: - Rows

    /// The data that merging tasks read.
    private struct Merge: PoolCall {
        let call: UnsafePointer<PagedAttentionCall>
        let records: UnsafePointer<Float>
        let stride: Int

        func perform(task: Int, scratch: UnsafeMutableRawPointer) { call.pointee.merge(self, task: task, scratch: scratch) }
    }

    private func merge(
        _ call: UnsafePointer<PagedAttentionCall>, records: UnsafePointer<Float>, stride: Int, on pool: WorkerPool
    ) {
        let rows = batch.groupOfRow.count
        let chunks = batch.groups.reduce(0) { max($0, $1.chunks) }
        pool.run(
            Merge(call: call, records: records, stride: stride), tasks: (rows + Self.mergedRows - 1) / Self.mergedRows,
            work: batch.recordCount * stride,
            scratchByteCount: 4 * (TokenLayout.padded(plan.configuration.valueDim) + (batch.prefixLevels + 1) * chunks))
    }

    private func merge(_ merge: Merge, task: Int, scratch: UnsafeMutableRawPointer) {
        let rows = task * Self.mergedRows..<min((task + 1) * Self.mergedRows, batch.groupOfRow.count)
        let sums = scratch.assumingMemoryBound(to: Float.self)
        let channels = plan.configuration.valueDim
        let indices = (scratch + 4 * TokenLayout.padded(channels)).assumingMemoryBound(to: Int32.self)
        var sequence = 0
        for number in rows {
            let (kvHead, row) = (number / batch.rowsPerHead, number % batch.rowsPerHead)
            if row == 0 { sequence = 0 }
            let place = batch.place(ofRow: row, group: plan.group, from: &sequence)
            let head = batch.queryHead(of: place.sequence, kvHead: kvHead, place: place.head, group: plan.group)
            let token = place.sequence.firstQuery + place.query
            var count = 0
            for level in 0..<batch.prefixLevels {
                let prefix = batch.prefixesOfRow[number * batch.prefixLevels + level]
                count += addRecords(of: prefix, row: row, to: indices + count)
            }
            count += addRecords(of: batch.groupOfRow[number], row: row, to: indices + count)
            var arguments = MergeTokensArguments(
                records: merge.records, recordStride: merge.stride, indices: indices, count: count, valueDim: channels,
                output: output.row(head: head, token: token), outputType: output.type,
                logSumExp: logSumExp.map { $0 + head * batch.queryCount + token }, scratch: sums)
            // A skipped head sees nothing, not even its sink.
            let isSkipped = batch.heads != nil && batch.groupOfRow[number] < 0
            arguments.sinkLogit = isSkipped ? -.infinity : plan.modifiers.sinkLogits?[head] ?? -.infinity
            plan.kernels.mergeTokens(&arguments)
        }
    }

    /// Lists the records of a row in a group, in the order of the chunks. Group −1 has none.
    private func addRecords(of index: Int32, row: Int, to indices: UnsafeMutablePointer<Int32>) -> Int {
        if index < 0 { return 0 }
        let group = batch.groups[Int(index)]
        for chunk in 0..<group.chunks {
            let record = group.firstRecord + chunk * group.rows.count + row - group.rows.lowerBound
            indices[chunk] = Int32(truncatingIfNeeded: record)
        }
        return group.chunks
    }
}
