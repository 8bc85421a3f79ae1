/// One `run` of ``SequenceParallelAttention`` on several ranks.
struct SequenceParallelCall<Q: AttentionElement, K: AttentionElement, O: AttentionElement> {
    private let plan: SequenceParallelAttention
    private let pool: WorkerPool
    private let output: RowMemory
    private let logSumExp: UnsafeMutablePointer<Float>?
    private let schedule: RingSchedule
    private let plans: [[DenseAttention]]
    private let layout: ExchangeLayout
    private let buffers: ExchangeBuffers
    private let communicator: any Communicator
    /// The place of this rank in its group.
    private let place: Int

    private var clock = CallClock()
    private var statistics = SequenceParallelStatistics()
    private var queriesToCome: [Transfer] = []
    private var keysToCome: [Transfer] = []
    private var outputsToCome: [Transfer] = []
    /// Sends of this call that are waited for at its end.
    private var sent: [Transfer] = []
    /// Slices of each rank of the group that are not finished.
    private var unfinished: [Int]

    /// Messages of one kind between two ranks arrive in the order in which they were sent, so that a kind needs one tag.
    /// Callers rarely use such large ones.
    private enum Tag {
        static var keys: Int { 32_700 }
        static var queries: Int { 32_701 }
        static var ring: Int { 32_702 }
        static var output: Int { 32_703 }
    }

    /// The buffers are prepared for the element types.
    init(
        _ plan: SequenceParallelAttention, _ ring: RankWork, output: RowMemory, _: O.Type,
        logSumExp: UnsafeMutablePointer<Float>?, _: Q.Type, _: K.Type, on pool: WorkerPool
    ) {
        let buffers = ring.buffers
        (self.plan, self.pool, self.output, self.logSumExp) = (plan, pool, output, logSumExp)
        (schedule, plans, self.buffers, communicator) = (ring.schedule, ring.plans, buffers, plan.communicator)
        layout = buffers.layout
        place = plan.grid.place(of: communicator.rank)
        unfinished = Array(repeating: 0, count: plan.grid.ulysses)
        for slice in schedule.slices { unfinished[slice.place] += 1 }
    }

    mutating func run(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<K>
    ) throws(SparseKernelsError) {
        let before = communicator.traffic.sentBytes
        try exchange(RowMemory(reading: query), RowMemory(reading: key), RowMemory(reading: value))
        if layout.ulysses == 1 {
            try attend(query)
        } else {
            let geometry = try layout.queryGeometry(tokens: schedule.own.count)
            let memory = buffers.queries
            let queries = try memory.view(Q.self, geometry: geometry, named: "query")
            try attend(queries)
        }
        try wait(outputsToCome)
        unpack()
        try wait(sent)
        clock.end(&statistics.exchangeSeconds)
        statistics.sentBytes = communicator.traffic.sentBytes - before
        statistics.expectedSentBytes = expectedSentBytes
        plan.statistics = statistics
    }

    /// What the formula says. Of the ring, the groups that are passed on.
    private var expectedSentBytes: Int {
        let costs = SequenceParallelCosts(
            queryHeads: plan.queryHeads, kvHeads: plan.kvHeads, headDim: plan.headDim, valueDim: plan.valueDim,
            queryElementBytes: layout.queryBytes, keyElementBytes: layout.keyBytes, outputElementBytes: layout.outputBytes,
            sendsLogSumExp: logSumExp != nil)
        let ulysses = plan.grid.ulysses
        let tokens = (0..<plan.grid.ranks).map { plan.shards.count(of: $0) }
        let sent = costs.sentBytes(by: communicator.rank, tokens: tokens, ulysses: ulysses)
        let passed = schedule.steps.reduce(0) { $0 + ($1.isPassedOn ? schedule.counts[$1.group] : 0) }
        return sent.exchange + passed * costs.ringBytesPerToken(ulysses: ulysses)
    }

    // MARK: - Messages

    private func rank(ofPlace place: Int) -> Int { plan.grid.rank(place: place, group: plan.grid.group(of: communicator.rank)) }

    private mutating func wait(_ transfers: [Transfer]) throws(SparseKernelsError) {
        if transfers.isEmpty { return }
        clock.end(&statistics.exchangeSeconds)
        for transfer in transfers { try communicator.wait(for: transfer) }
        clock.end(&statistics.waitingSeconds)
    }

    // MARK: - To the heads

    /// Sends this rank's rows to the ranks of the group that compute their heads, and starts to receive.
    private mutating func exchange(_ query: RowMemory, _ key: RowMemory, _ value: RowMemory) throws(SparseKernelsError) {
        let ulysses = layout.ulysses
        let group = layout.keyPlaces(heads: layout.kvHeads, tokens: schedule.own.count)
        let own = layout.firstKVHead(ofPlace: place)
        copyKeys(
            key, value, heads: own..<own + layout.kvHeads, to: buffers.keys, group, head: 0, row: schedule.own.starts[place])
        if ulysses > 1 {
            try receive(group)
            if buffers.tokens > 0 { try send(query, key, value) }
            try wait(keysToCome)
        }
        clock.end(&statistics.exchangeSeconds)
    }

    /// Starts to receive what the other ranks of the group send: keys and queries of their rows, and outputs of this rank's.
    private mutating func receive(_ group: KeyPlaces) throws(SparseKernelsError) {
        // Every rank begins with another one.
        for turn in 1..<layout.ulysses {
            let peer = (place + turn) % layout.ulysses
            let (source, rows) = (rank(ofPlace: peer), schedule.own.rows(ofPlace: peer))
            if !rows.isEmpty {
                for head in 0..<layout.kvHeads {
                    keysToCome.append(
                        try communicator.receive(into: buffers.keys, group.keys(head: head, rows), from: source, tag: Tag.keys))
                    keysToCome.append(
                        try communicator.receive(
                            into: buffers.keys, group.values(head: head, rows), from: source, tag: Tag.keys))
                }
                let bytes = rows.lowerBound * layout.queryRowBytes..<rows.upperBound * layout.queryRowBytes
                queriesToCome.append(try communicator.receive(into: buffers.queries, bytes, from: source, tag: Tag.queries))
            }
            if buffers.tokens > 0 {
                let first = peer * buffers.homeBytes
                let bytes = layout.messageBytes(tokens: buffers.tokens, logSumExp: logSumExp != nil)
                outputsToCome.append(
                    try communicator.receive(into: buffers.outputs, first..<first + bytes, from: source, tag: Tag.output))
            }
        }
    }

    /// Packs this rank's rows and sends each rank of the group those of its heads.
    private mutating func send(_ query: RowMemory, _ key: RowMemory, _ value: RowMemory) throws(SparseKernelsError) {
        let (ulysses, tokens) = (layout.ulysses, buffers.tokens)
        let packed = layout.keyPlaces(heads: layout.allKVHeads, tokens: tokens)
        let own = layout.firstKVHead(ofPlace: place)
        for first in stride(from: 0, to: layout.allKVHeads, by: layout.kvHeads) where first != own || layout.copies > 1 {
            copyKeys(key, value, heads: first..<first + layout.kvHeads, to: buffers.packedKeys, packed, head: first, row: 0)
        }
        for turn in 1..<ulysses {
            let peer = (place + turn) % ulysses
            let (target, first) = (rank(ofPlace: peer), layout.firstKVHead(ofPlace: peer))
            for head in first..<first + layout.kvHeads {
                for bytes in [packed.keys(head: head, 0..<tokens), packed.values(head: head, 0..<tokens)] {
                    sent.append(try communicator.send(buffers.packedKeys, bytes, to: target, tag: Tag.keys))
                }
            }
        }
        copyQueries(query, place: place, to: buffers.queries.address + schedule.own.starts[place] * layout.queryRowBytes)
        let bytes = tokens * layout.queryRowBytes
        for turn in 1..<ulysses {
            let peer = (place + turn) % ulysses
            let first = peer * bytes
            copyQueries(query, place: peer, to: buffers.packedQueries.address + first)
            sent.append(
                try communicator.send(
                    buffers.packedQueries, first..<first + bytes, to: rank(ofPlace: peer), tag: Tag.queries))
        }
    }

    /// Copies this rank's keys and values of some heads to places in a buffer, from a head and a row on.
    private func copyKeys(
        _ key: RowMemory, _ value: RowMemory, heads: Range<Int>, to buffer: MessageBuffer, _ places: KeyPlaces, head: Int,
        row: Int
    ) {
        key.from(head: heads.lowerBound).copy(
            to: RowMemory(
                base: buffer.address + places.key(head: head, row: row), headStride: places.tokens * places.keyBytes,
                tokenStride: places.keyBytes),
            heads: heads.count, tokens: buffers.tokens, rowBytes: places.keyBytes, on: pool)
        value.from(head: heads.lowerBound).copy(
            to: RowMemory(
                base: buffer.address + places.value(head: head, row: row), headStride: places.tokens * places.valueBytes,
                tokenStride: places.valueBytes),
            heads: heads.count, tokens: buffers.tokens, rowBytes: places.valueBytes, on: pool)
    }

    private func copyQueries(_ query: RowMemory, place: Int, to address: UnsafeMutableRawPointer) {
        query.from(head: layout.firstQueryHead(ofPlace: place)).copy(
            to: layout.queryMemory(address), heads: layout.queryHeads, tokens: buffers.tokens,
            rowBytes: layout.headDim * layout.queryBytes, on: pool)
    }

    // MARK: - Around the ring

    private mutating func attend(_ query: TensorView<Q>) throws(SparseKernelsError) {
        let (ring, group) = (plan.grid.ring, plan.grid.group(of: communicator.rank))
        let after = plan.grid.rank(place: place, group: (group + 1) % ring)
        let before = plan.grid.rank(place: place, group: (group + ring - 1) % ring)
        // Of the last two steps: the first of them has to be over before its memory gets the keys of the next step.
        var (earlier, last): ([Transfer], [Transfer]) = ([], [])
        for (index, step) in schedule.steps.enumerated() {
            try wait(earlier)
            (earlier, last) = (last, [])
            var moving: [Transfer] = []
            if index + 1 < ring && schedule.steps[index + 1].arrives {
                let bytes = schedule.counts[schedule.steps[index + 1].group] * layout.keyRowBytes
                if bytes > 0 {
                    moving.append(
                        try communicator.receive(into: buffers.keys(ofStep: index + 1), 0..<bytes, from: before, tag: Tag.ring))
                }
            }
            let bytes = schedule.counts[step.group] * layout.keyRowBytes
            if step.isPassedOn && bytes > 0 {
                last.append(try communicator.send(buffers.keys(ofStep: index), 0..<bytes, to: after, tag: Tag.ring))
            }
            if index == 0 { try wait(queriesToCome) }
            if !plan.overlaps {
                try wait(moving)
                try wait(last)
                last = []
            }
            for (number, piece) in step.pieces.enumerated() {
                try attend(piece, plans[index][number], query, step: index)
                if piece.isLast { try finish(schedule.slices[piece.slice].place) }
                if plan.overlaps {
                    try communicator.progress()
                    clock.end(&statistics.exchangeSeconds)
                }
            }
            if plan.overlaps { try wait(moving) }
        }
        sent += earlier + last
    }

    /// Attends one piece, and merges it into the state of its slice.
    private mutating func attend(
        _ piece: RingSchedule.Piece, _ dense: DenseAttention, _ query: TensorView<Q>, step: Int
    ) throws(SparseKernelsError) {
        let slice = schedule.slices[piece.slice]
        let (rows, count) = (slice.rows.count, schedule.counts[schedule.steps[step].group])
        let memory = buffers.keys(ofStep: step)
        let keyGeometry = try layout.keyGeometry(tokens: count)
        let valueGeometry = try layout.valueGeometry(tokens: count)
        let outputGeometry = try layout.stateGeometry(tokens: rows)
        let queries = query.tokens(slice.rows)
        let keys = try memory.view(K.self, geometry: keyGeometry, named: "key")
        let values = try memory.view(
            K.self, atByte: layout.valueOffset(tokens: count), geometry: valueGeometry, named: "value")
        let states = buffers.states
        let (sums, logs) = (buffers.outputOffset(of: slice), buffers.logSumExpOffset(of: slice))
        let (target, outputPlace, logPlace) =
            piece.isFirst ? (states, sums, logs) : (buffers.partial, 0, rows * layout.stateRowBytes)
        let logCount = rows * layout.queryHeads
        try dense.run(
            query: queries, key: keys.tokens(piece.keys), value: values.tokens(piece.keys),
            output: try target.mutableView(Float.self, atByte: outputPlace, geometry: outputGeometry, named: "output"),
            logSumExp: target.mutableElements(Float.self, atByte: logPlace, count: logCount), on: pool)
        if !piece.isFirst {
            StateMerging(
                output: (states.address + sums).assumingMemoryBound(to: Float.self),
                logSumExp: (states.address + logs).assumingMemoryBound(to: Float.self),
                otherOutput: UnsafeRawPointer(target.address).assumingMemoryBound(to: Float.self),
                otherLogSumExp: UnsafeRawPointer(target.address + logPlace).assumingMemoryBound(to: Float.self), rows: rows,
                heads: layout.queryHeads, channels: layout.valueDim
            ).run(on: pool)
        }
        clock.end(&statistics.attentionSeconds)
    }

    // MARK: - Home

    /// Counts a slice as finished, and sends the output of a rank's rows when all of its slices are.
    private mutating func finish(_ place: Int) throws(SparseKernelsError) {
        unfinished[place] -= 1
        if unfinished[place] > 0 || place == self.place { return }
        let rows = schedule.own.rows(ofPlace: place)
        let bytes = layout.messageBytes(tokens: rows.count, logSumExp: logSumExp != nil)
        var (buffer, first) = (buffers.states, buffers.stateOffset(ofPlace: place))
        if layout.outputBytes < 4 {
            let state = buffers.states.address + first
            (buffer, first) = (buffers.packedOutputs, buffers.outputOffset(ofPlace: place))
            let row = layout.queryHeads * layout.valueDim
            RowMemory(base: state, headStride: row * 4, tokenStride: row * 4).convert(
                to: RowMemory(
                    base: buffer.address + first, headStride: row * layout.outputBytes, tokenStride: row * layout.outputBytes),
                O.self, heads: 1, tokens: rows.count, channels: row, on: pool)
            (buffer.address + first + layout.outputBytes(tokens: rows.count)).copyMemory(
                from: state + rows.count * layout.stateRowBytes, byteCount: rows.count * layout.logSumExpRowBytes)
        }
        sent.append(
            try communicator.send(buffer, first..<first + bytes, to: rank(ofPlace: place), tag: Tag.output))
    }

    /// Writes the output of this rank's rows: of its own heads, and of those that came.
    private mutating func unpack() {
        let tokens = buffers.tokens
        if tokens == 0 { return }
        let row = layout.valueDim * 4
        let own = buffers.states.address + buffers.stateOffset(ofPlace: place)
        RowMemory(base: own, headStride: row, tokenStride: layout.stateRowBytes).convert(
            to: output.from(head: layout.firstQueryHead(ofPlace: place)), O.self, heads: layout.queryHeads, tokens: tokens,
            channels: layout.valueDim, on: pool)
        unpackLogSumExp(own + tokens * layout.stateRowBytes, from: place)
        let rounded = layout.valueDim * layout.outputBytes
        for peer in 0..<layout.ulysses where peer != place {
            let message = buffers.outputs.address + peer * buffers.homeBytes
            RowMemory(base: message, headStride: rounded, tokenStride: layout.queryHeads * rounded).copy(
                to: output.from(head: layout.firstQueryHead(ofPlace: peer)), heads: layout.queryHeads, tokens: tokens,
                rowBytes: rounded, on: pool)
            unpackLogSumExp(message + layout.outputBytes(tokens: tokens), from: peer)
        }
    }

    /// Writes the LSE of this rank's rows in the heads of a rank, which come by slices.
    private func unpackLogSumExp(_ source: UnsafeMutableRawPointer, from peer: Int) {
        guard let logSumExp else { return }
        let (tokens, start) = (buffers.tokens, schedule.own.starts[place])
        let values = source.assumingMemoryBound(to: Float.self)
        for slice in schedule.slices where slice.place == place {
            let first = slice.rows.lowerBound - start
            for head in 0..<layout.queryHeads {
                let target = logSumExp + (layout.firstQueryHead(ofPlace: peer) + head) * tokens + first
                target.update(
                    from: values + first * layout.queryHeads + head * slice.rows.count, count: slice.rows.count)
            }
        }
    }
}

/// Time since the last look.
struct CallClock {
    private var start = WaitClock.now

    /// Seconds since the clock was made or last read.
    var seconds: Double { WaitClock.now - start }

    /// Adds the time since the last look to a sum.
    mutating func end(_ sum: inout Double) {
        let now = WaitClock.now
        sum += now - start
        start = now
    }
}
