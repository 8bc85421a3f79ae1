// Heads for tokens before the ring, and tokens for heads after it.

extension SequenceParallelGradient {
    /// Gives every rank of the group the keys and values of its heads, in the first buffer of the ring.
    func sendKeys(
        _ key: TensorView<Float>, _ value: TensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (heads, count) = (heads, ownCount)
        let target = GradientMatrix(grid.ulysses == 1 ? buffers.keys[0] : buffers.keySent, columns: heads.keyRow)
        let (keys, values) = (RowMemory(reading: key), RowMemory(reading: value))
        pool.forEachRange(of: count * heads.ulysses, workPerItem: 4 * heads.keyRow) { range in
            for index in range {
                let (peer, token) = (index / count, index % count)
                let first = heads.kvHead(ofPlace: peer)
                var place = target.row(index)
                for head in first..<first + heads.localKVHeads {
                    place.update(from: keys.floats(head, token), count: heads.headDim)
                    place += heads.headDim
                }
                for head in first..<first + heads.localKVHeads {
                    place.update(from: values.floats(head, token), count: heads.valueDim)
                    place += heads.valueDim
                }
            }
        }
        if grid.ulysses > 1 {
            try exchange(from: buffers.keySent, into: buffers.keys[0], columns: heads.keyRow)
        }
    }

    /// Gives every rank of the group the queries of its heads with output, gradient and LSE.
    func sendQueries(
        _ query: TensorView<Float>, _ output: TensorView<Float>, _ outputGradient: TensorView<Float>, _ logSumExp: Span<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (heads, count, rows) = (heads, ownCount, schedule.own.count)
        let local = heads.localQueryHeads
        let sent = GradientMatrix(buffers.querySent, columns: heads.queryRow)
        let (queries, outputs) = (RowMemory(reading: query), RowMemory(reading: output))
        let gradients = RowMemory(reading: outputGradient)
        let statistics = RowMemory(
            reading: try TensorView(logSumExp, heads: heads.queryHeads, tokens: count, channels: 1, named: "logSumExp"))
        pool.forEachRange(of: count * heads.ulysses, workPerItem: 4 * heads.queryRow) { range in
            for index in range {
                let (peer, token) = (index / count, index % count)
                var place = sent.row(index)
                let first = heads.queryHead(ofPlace: peer)
                for head in first..<first + local {
                    place.update(from: queries.floats(head, token), count: heads.headDim)
                    place += heads.headDim
                }
                for head in first..<first + local {
                    place.update(from: outputs.floats(head, token), count: heads.valueDim)
                    place += heads.valueDim
                }
                for head in first..<first + local {
                    place.update(from: gradients.floats(head, token), count: heads.valueDim)
                    place += heads.valueDim
                }
                for head in first..<first + local {
                    place.pointee = statistics.floats(head, token).pointee
                    place += 1
                }
            }
        }
        try exchange(from: buffers.querySent, into: buffers.queryReceived, columns: heads.queryRow)
        // The backward pass reads the LSE of a head as adjacent numbers.
        let received = GradientMatrix(buffers.queryReceived, columns: heads.queryRow)
        let byHead = GradientMatrix(buffers.logSumExp, columns: rows)
        pool.forEachRange(of: rows, workPerItem: 8 * local) { range in
            for row in range {
                let line = received.row(row) + heads.queryRow - local
                for head in 0..<local { byHead.row(head)[row] = line[head] }
            }
        }
    }

    /// Runs the ring with the operands that came from the group.
    func rotateExchanged(on pool: WorkerPool) throws(SparseKernelsError) {
        let (rows, local) = (schedule.own.count, heads.localQueryHeads)
        let query = try TensorGeometry(
            heads: local, tokens: rows, channels: heads.headDim, headStride: heads.headDim, tokenStride: heads.queryRow)
        let output = try TensorGeometry(
            heads: local, tokens: rows, channels: heads.valueDim, headStride: heads.valueDim, tokenStride: heads.queryRow)
        let received = buffers.queryReceived
        let outputs = 4 * local * heads.headDim
        let gradients = outputs + 4 * local * heads.valueDim
        // A buffer without rows is shorter than where its columns would be.
        let isEmpty = rows == 0
        let statistics = buffers.logSumExp
        let logSumExp = statistics.elements(Float.self, count: local * rows)
        let queries = try received.view(Float.self, geometry: query, named: "query")
        let outputRows = try received.view(Float.self, atByte: isEmpty ? 0 : outputs, geometry: output, named: "output")
        let gradientRows = try received.view(
            Float.self, atByte: isEmpty ? 0 : gradients, geometry: output, named: "outputGradient")
        try rotate(
            Queries(queries, output: outputRows, outputGradient: gradientRows, logSumExp: logSumExp), on: pool)
    }

    /// Gives every rank the gradients of its own tokens, and writes them.
    func returnGradients(
        _ queryGradient: RowMemory, _ keyGradient: RowMemory, _ valueGradient: RowMemory, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (heads, count) = (heads, ownCount)
        var (queries, keys) = (buffers.queryGradient, buffers.home)
        if grid.ulysses > 1 {
            // The sums have the rows of a rank one behind the other, so they are sent from where they are.
            try exchangeBack(from: queries, into: buffers.queryReturned, columns: heads.queryGradientRow)
            try exchangeBack(from: keys, into: buffers.keyReturned, columns: heads.keyRow)
            (queries, keys) = (buffers.queryReturned, buffers.keyReturned)
        }
        let queryRows = GradientMatrix(queries, columns: heads.queryGradientRow)
        let keyRows = GradientMatrix(keys, columns: heads.keyRow)
        pool.forEachRange(of: count, workPerItem: 4 * heads.ulysses * (heads.queryGradientRow + heads.keyRow)) { range in
            for token in range {
                for head in 0..<heads.queryHeads {
                    let (peer, local) = (head / heads.localQueryHeads, head % heads.localQueryHeads)
                    queryGradient.floats(head, token).update(
                        from: queryRows.row(peer * count + token) + local * heads.headDim, count: heads.headDim)
                }
                for head in 0..<heads.kvHeads {
                    // Ranks that have a copy of the head are neighbours.
                    let (peer, local) = (head / heads.localKVHeads * heads.copies, head % heads.localKVHeads)
                    let (dk, dv) = (keyGradient.floats(head, token), valueGradient.floats(head, token))
                    for copy in peer..<peer + heads.copies {
                        let line = keyRows.row(copy * count + token)
                        let k = line + local * heads.headDim
                        let v = line + heads.localKVHeads * heads.headDim + local * heads.valueDim
                        if copy == peer {
                            dk.update(from: k, count: heads.headDim)
                            dv.update(from: v, count: heads.valueDim)
                        } else {
                            GradientMatrix.add(k, to: dk, count: heads.headDim)
                            GradientMatrix.add(v, to: dv, count: heads.valueDim)
                        }
                    }
                }
            }
        }
    }

    /// Sends a part of this rank's tokens to every rank of the group, and receives theirs.
    private func exchange(from sent: MessageBuffer, into received: MessageBuffer, columns: Int) throws(SparseKernelsError) {
        let (own, group) = (ownCount, schedule.own)
        try self.group.allToAll(
            from: sent, counts: Array(repeating: own * columns * 4, count: grid.ulysses), into: received,
            counts: (0..<grid.ulysses).map { group.rows(ofPlace: $0).count * columns * 4 })
    }

    /// The other way round.
    private func exchangeBack(from sent: MessageBuffer, into received: MessageBuffer, columns: Int) throws(SparseKernelsError) {
        let (own, group) = (ownCount, schedule.own)
        try self.group.allToAll(
            from: sent, counts: (0..<grid.ulysses).map { group.rows(ofPlace: $0).count * columns * 4 }, into: received,
            counts: Array(repeating: own * columns * 4, count: grid.ulysses))
    }
}
