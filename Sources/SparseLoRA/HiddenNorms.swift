internal import SparseKernels

/// Sums of squares of estimated hidden values, channel by channel, without a matrix of them: a task estimates a block of channels for some
/// tokens at a time, which stay in the cache.
enum HiddenNorms {
    /// Tokens and channels of a tile. Two matrices of 32 KiB are in the second-level cache with the operands of the product.
    private static let (tileTokens, tileChannels) = (32, 256)

    /// sums[c] += Σ (f(g) · u)² over the tokens, with g and u the products of `t` with rows of the `up` factors.
    ///
    /// - Parameters:
    ///   - t: `[tokens, 2 · rank]`, the projections for gate and up.
    ///   - gate: `[channels, rank]`.
    ///   - up: `[channels, rank]`.
    static func addSquares(
        of t: Tensor<Float>, gate: Tensor<Float>, up: Tensor<Float>, _ function: GatedActivation.Function,
        to sums: inout Tensor<Double>, _ set: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (tokens, channels, rank) = (t.shape[0], gate.shape[0], gate.shape[1])
        if tokens == 0 || channels == 0 { return }
        let activation = try GatedActivation(function, instructionSet: set)
        var target = sums.mutableSpan
        let address = target.withUnsafeMutableBufferPointer { $0.baseAddress! }
        t.span.withUnsafeBufferPointer { t in
            gate.span.withUnsafeBufferPointer { gate in
                up.span.withUnsafeBufferPointer { up in
                    let call = Call(
                        t: t.baseAddress!, gate: gate.baseAddress!, up: up.baseAddress!, sums: address, tokens: tokens,
                        channels: channels, rank: rank, activation: activation)
                    // An exponential and its quotient take as long as about eight multiply-adds.
                    pool.run(
                        call, tasks: (channels + tileChannels - 1) / tileChannels, work: tokens * channels * (2 * rank + 8),
                        scratchByteCount: GEMM.taskScratchByteCount + (3 * tileTokens + 1) * tileChannels * 4)
                }
            }
        }
    }

    private struct Call: PoolCall {
        let t: UnsafePointer<Float>
        let gate: UnsafePointer<Float>
        let up: UnsafePointer<Float>
        let sums: UnsafeMutablePointer<Double>
        let tokens: Int
        let channels: Int
        let rank: Int
        let activation: GatedActivation

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let first = task * tileChannels
            let count = min(tileChannels, channels - first)
            let g = (scratch + GEMM.taskScratchByteCount).assumingMemoryBound(to: Float.self)
            let u = g + tileTokens * tileChannels
            let h = u + tileTokens * tileChannels
            let squares = h + tileTokens * tileChannels
            for token in stride(from: 0, to: tokens, by: tileTokens) {
                let rows = min(tileTokens, tokens - token)
                multiply(t + token * 2 * rank, rows, gate + first * rank, count, into: g, scratch)
                multiply(t + token * 2 * rank + rank, rows, up + first * rank, count, into: u, scratch)
                activate(g, u, into: h, rows: rows, columns: count)
                squares.update(repeating: 0, count: count)
                for row in 0..<rows { addSquares(of: h + row * count, to: squares, count) }
                for channel in 0..<count { sums[first + channel] += Double(squares[channel]) }
            }
        }

        private func multiply(
            _ a: UnsafePointer<Float>, _ rows: Int, _ b: UnsafePointer<Float>, _ count: Int,
            into c: UnsafeMutablePointer<Float>, _ scratch: UnsafeMutableRawPointer
        ) {
            GEMM.multiply(
                rows: rows, columns: count, depth: rank, a: a, aStride: 2 * rank, b: b, bStride: rank, transposesB: true, c: c,
                cStride: count, scratch: scratch, instructionSet: activation.instructionSet)
        }

        private func activate(
            _ g: UnsafePointer<Float>, _ u: UnsafePointer<Float>, into h: UnsafeMutablePointer<Float>, rows: Int, columns: Int
        ) {
            let size = rows * columns
            // Matrices of these extents are legal, so the calls cannot throw.
            try! activation.run(
                gate: MatrixView(UnsafeBufferPointer(start: g, count: size).span, rows: rows, columns: columns),
                up: MatrixView(UnsafeBufferPointer(start: u, count: size).span, rows: rows, columns: columns),
                into: MutableMatrixView(
                    UnsafeMutableBufferPointer(start: h, count: size).mutableSpan, rows: rows, columns: columns), on: .serial)
        }

        private func addSquares(of row: UnsafePointer<Float>, to squares: UnsafeMutablePointer<Float>, _ count: Int) {
            var index = 0
            while index + 16 <= count {
                let value = UnsafeRawPointer(row + index).loadUnaligned(as: SIMD16<Float>.self)
                let target = UnsafeMutableRawPointer(squares + index)
                target.storeBytes(of: target.loadUnaligned(as: SIMD16<Float>.self) + value * value, as: SIMD16<Float>.self)
                index += 16
            }
            while index < count {
                squares[index] += row[index] * row[index]
                index += 1
            }
        }
    }
}
