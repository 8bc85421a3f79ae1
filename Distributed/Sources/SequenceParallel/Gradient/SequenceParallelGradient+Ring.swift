internal import SparseKernelsTraining

extension SequenceParallelGradient {
    private static let keyTag = 1
    private static let gradientTag = 2
    private static let homeTag = 3

    /// Adds up the gradients of the group's queries, and those of its keys and values at home.
    ///
    /// Every rank waits only for what its neighbours did in earlier steps, so that the ring cannot stand still.
    func rotate(_ queries: Queries, on pool: WorkerPool) throws(SparseKernelsError) {
        let (count, columns) = (grid.ring, heads.keyRow)
        let (before, behind) = ((ownGroup + count - 1) % count, (ownGroup + 1) % count)
        func bytes(_ step: Int) -> Range<Int> { 0..<schedule.counts[schedule.steps[step].visitor] * columns * 4 }
        var (keySends, gradientSends): ([Transfer?], [Transfer?]) = ([nil, nil], [nil, nil])
        var (nextKeys, home): (Transfer?, Transfer?) = (nil, nil)
        if let source = schedule.homeSource {
            home = try ring.receive(into: buffers.home, bytes(0), from: source, tag: Self.homeTag)
        }
        if !schedule.beginsWithAllQueries {
            GradientMatrix(buffers.queryGradient, columns: heads.queryGradientRow).clear(rows: schedule.own.count, on: pool)
        }
        for (index, step) in schedule.steps.enumerated() {
            let (now, next) = (index % 2, (index + 1) % 2)
            if let transfer = nextKeys { try ring.wait(for: transfer) }
            nextKeys = nil
            if index + 1 < count && schedule.steps[index + 1].arrives {
                try finish(&keySends[next])
                nextKeys = try ring.receive(into: buffers.keys[next], bytes(index + 1), from: before, tag: Self.keyTag)
            }
            if step.isPassedOn {
                keySends[now] = try ring.send(buffers.keys[now], bytes(index), to: behind, tag: Self.keyTag)
            }
            var arriving: Transfer?
            if step.arrives {
                try finish(&gradientSends[now])
                arriving = try ring.receive(
                    into: buffers.visiting[now], bytes(index), from: before, tag: Self.gradientTag)
            }
            if !overlaps {
                // To compare: transfers of keys first, then the computation.
                if let transfer = nextKeys { try ring.wait(for: transfer) }
                nextKeys = nil
                try finish(&keySends[now])
            }

            let rows = schedule.counts[step.visitor]
            let first = step.isPassedOn ? buffers.visiting[now] : buffers.home
            let target = index == 0 ? first : buffers.partial
            try compute(index, into: target, queries, on: pool)
            if let transfer = arriving {
                try ring.wait(for: transfer)
                if !step.blocks.isEmpty {
                    let sums = GradientMatrix(buffers.visiting[now], columns: columns)
                    sums.add(GradientMatrix(buffers.partial, columns: columns), rows: rows, on: pool)
                }
            }
            if step.isPassedOn {
                gradientSends[now] = try ring.send(
                    buffers.visiting[now], bytes(index), to: behind, tag: Self.gradientTag)
            } else if step.goesHome {
                gradientSends[now] = try ring.send(
                    buffers.visiting[now], bytes(index), to: step.visitor, tag: Self.homeTag)
            }
        }
        for index in 0..<2 {
            try finish(&keySends[index])
            try finish(&gradientSends[index])
        }
        if let home { try ring.wait(for: home) }
    }

    private func finish(_ transfer: inout Transfer?) throws(SparseKernelsError) {
        if let unfinished = transfer { try ring.wait(for: unfinished) }
        transfer = nil
    }

    /// The operands of the group's queries.
    struct Queries: ~Escapable {
        let query, output, outputGradient: TensorView<Float>
        /// `[local heads, rows]`.
        let logSumExp: Span<Float>

        @_lifetime(copy query, copy output, copy outputGradient, copy logSumExp)
        init(
            _ query: TensorView<Float>, output: TensorView<Float>, outputGradient: TensorView<Float>, logSumExp: Span<Float>
        ) {
            (self.query, self.output, self.outputGradient) = (query, output, outputGradient)
            self.logSumExp = logSumExp
        }
    }

    /// Adds the gradients of queries, and writes this rank's part of those of the visitor's keys and values.
    private func compute(
        _ index: Int, into target: MessageBuffer, _ queries: Queries, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let step = schedule.steps[index]
        let keys = schedule.counts[step.visitor]
        if (index == 0 || !step.blocks.isEmpty) && step.blocks.first?.keys != 0..<keys {
            GradientMatrix(target, columns: heads.keyRow).clear(rows: keys, on: pool)
        }
        for number in step.blocks.indices {
            for slice in 0..<slices {
                try compute(index, number, slice: slice, into: target, queries, on: pool)
                if overlaps { try ring.progress() }
            }
        }
    }

    /// Computes the gradients of a block and slice of heads. Where sums begin they go to their place, and otherwise to memory from which they
    /// are added.
    private func compute(
        _ index: Int, _ number: Int, slice: Int, into target: MessageBuffer, _ queries: Queries, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (step, plan, block) = (schedule.steps[index], plans[index][number], schedule.steps[index].blocks[number])
        let writesKeys = number == 0 && block.keys == 0..<schedule.counts[step.visitor]
        let writesQueries = index == 0 && number == 0 && schedule.beginsWithAllQueries
        let (queryHeads, kvHeads) = (heads.localQueryHeads / slices, heads.localKVHeads / slices)
        let (range, kvHead) = (slice * queryHeads..<(slice + 1) * queryHeads, slice * kvHeads)
        let q = queries.query.heads(range).tokens(block.queries)
        let o = queries.output.heads(range).tokens(block.queries)
        let g = queries.outputGradient.heads(range).tokens(block.queries)

        let operands = KeyRowLayout(heads, rowHeads: heads.localKVHeads, kvHead, kvHeads, tokens: block.keys.count)
        let source = buffers.keys[index % 2]
        let (first, geometries) = (4 * block.keys.lowerBound * heads.keyRow, try operands.geometries())
        let k = try source.view(Float.self, atByte: first + operands.keyByte, geometry: geometries.key, named: "key")
        let v = try source.view(Float.self, atByte: first + operands.valueByte, geometry: geometries.value, named: "value")

        let sums = KeyRowLayout(
            heads, rowHeads: writesKeys ? heads.localKVHeads : kvHeads, writesKeys ? kvHead : 0, kvHeads,
            tokens: block.keys.count)
        let (keyBuffer, places) = (writesKeys ? target : buffers.blockKeys, try sums.geometries())
        let dk = try keyBuffer.mutableView(
            Float.self, atByte: sums.keyByte, geometry: places.key, named: "keyGradient")
        let dv = try keyBuffer.mutableView(
            Float.self, atByte: sums.valueByte, geometry: places.value, named: "valueGradient")
        let queryBuffer = writesQueries ? buffers.queryGradient : buffers.blockQueries
        let rows = try TensorGeometry(
            heads: queryHeads, tokens: block.queries.count, channels: heads.headDim, headStride: heads.headDim,
            tokenStride: writesQueries ? heads.queryGradientRow : queryHeads * heads.headDim)
        let dq = try queryBuffer.mutableView(
            Float.self, atByte: writesQueries ? 4 * range.lowerBound * heads.headDim : 0, geometry: rows,
            named: "queryGradient")

        let count = schedule.own.count
        let statistics = buffers.blockLogSumExp
        if block.queries == 0..<count {
            let logSumExp = queries.logSumExp.extracting(range.lowerBound * count..<range.upperBound * count)
            try plan.run(
                query: q, key: k, value: v, output: o, logSumExp: logSumExp, outputGradient: g, queryGradient: dq,
                keyGradient: dk, valueGradient: dv, on: pool)
        } else {
            copyLogSumExp(queries.logSumExp, range, block.queries, count)
            let logSumExp = statistics.elements(Float.self, count: queryHeads * block.queries.count)
            try plan.run(
                query: q, key: k, value: v, output: o, logSumExp: logSumExp, outputGradient: g, queryGradient: dq,
                keyGradient: dk, valueGradient: dv, on: pool)
        }
        if !writesQueries { addQueries(block.queries, range.lowerBound, queryHeads, on: pool) }
        if !writesKeys {
            addKeys(block.keys, kvHead, kvHeads, to: GradientMatrix(target, columns: heads.keyRow), on: pool)
        }
    }

    // MARK: - Rows

    /// Copies the LSE of some heads and queries, so that they are adjacent.
    private func copyLogSumExp(_ all: Span<Float>, _ heads: Range<Int>, _ queries: Range<Int>, _ rows: Int) {
        let target = GradientMatrix(buffers.blockLogSumExp, columns: queries.count)
        all.withUnsafeBufferPointer { all in
            for (index, head) in heads.enumerated() {
                target.row(index).update(from: all.baseAddress! + head * rows + queries.lowerBound, count: queries.count)
            }
        }
    }

    // MARK: - Sums

    private func addQueries(_ queries: Range<Int>, _ head: Int, _ count: Int, on pool: WorkerPool) {
        let columns = count * heads.headDim
        let sums = GradientMatrix(buffers.queryGradient, columns: heads.queryGradientRow)
        let terms = GradientMatrix(buffers.blockQueries, columns: columns)
        let first = head * heads.headDim
        pool.forEachRange(of: queries.count, workPerItem: 2 * columns) { range in
            for row in range {
                GradientMatrix.add(terms.row(row), to: sums.row(queries.lowerBound + row) + first, count: columns)
            }
        }
    }

    private func addKeys(_ keys: Range<Int>, _ head: Int, _ count: Int, to sums: GradientMatrix, on pool: WorkerPool) {
        let heads = heads
        let (keyColumns, valueColumns) = (count * heads.headDim, count * heads.valueDim)
        let terms = GradientMatrix(buffers.blockKeys, columns: keyColumns + valueColumns)
        let values = heads.localKVHeads * heads.headDim + head * heads.valueDim
        pool.forEachRange(of: keys.count, workPerItem: 2 * (keyColumns + valueColumns)) { range in
            for row in range {
                let (line, sum) = (terms.row(row), sums.row(keys.lowerBound + row))
                GradientMatrix.add(line, to: sum + head * heads.headDim, count: keyColumns)
                GradientMatrix.add(line + keyColumns, to: sum + values, count: valueColumns)
            }
        }
    }
}
