internal import Foundation
internal import SparseKernels

/// What a sample adds for one head and order: block masses, and the mean of max/mean over the free blocks.
struct PAROBlockSums: Hashable, Sendable {
    /// `[blockRows, blockColumns]`.
    var masses: [Double]
    var incoherence: Double

    mutating func add(_ other: PAROBlockSums) {
        for index in masses.indices { masses[index] += other.masses[index] }
        incoherence += other.incoherence
    }
}

/// The queries and keys of a calibration sample in single precision.
struct PAROSample {
    private let calibration: PAROAttentionCalibration
    private let query: Tensor<Float>
    private let key: Tensor<Float>
    private let scale: Float

    /// Rows of the attention map that exist at a time, at most, and their entries: 2²² floats are 16 MiB.
    private static let pieceRows = 256
    private static let pieceEntries = 1 << 22

    init<Q: AttentionElement, K: AttentionElement>(
        _ calibration: PAROAttentionCalibration, query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        self.calibration = calibration
        let asTheyCome = try Permutation.identity(length: calibration.shape.queryLength)
        self.query = try asTheyCome.gathered(query, instructionSet: calibration.instructionSet, on: pool)
        self.key = try asTheyCome.gathered(key, instructionSet: calibration.instructionSet, on: pool)
        scale = calibration.configuration.softmaxScale ?? 1 / Float(calibration.shape.headDim).squareRoot()
    }

    /// The block sums of a head in some orders. The attention map does not depend on the order of tokens, so it is computed once
    /// and its entries are added to the blocks of every order.
    func sums(head: Int, orders: [PAROAxisOrder], on pool: WorkerPool) throws(SparseKernelsError) -> [PAROBlockSums] {
        let (shape, grid) = (calibration.shape, calibration.blocks.grid)
        let (tokens, channels, blocks) = (shape.queryLength, shape.headDim, grid.blockColumns)
        let kvHead = head / shape.queryHeadsPerKVHead
        // The block of every token in every order.
        var blockOf: [Int32] = []
        for order in orders {
            let position = order.permutation(calibration.geometry).inverse.order(head: 0)
            blockOf += position.map { $0 / Int32(clamping: calibration.blocks.blockSize) }
        }
        let rows = min(tokens, max(16, min(Self.pieceRows, Self.pieceEntries / tokens)))
        var scores = try Tensor<Float>(zeros: [rows, tokens])
        let lines = rows * orders.count * blocks
        var (lineSums, linePeaks) = ([Float](repeating: 0, count: lines), [Float](repeating: 0, count: lines))
        var isFinite = [UInt8](repeating: 0, count: rows)
        let entries = orders.count * blocks * blocks
        var (masses, peaks) = ([Double](repeating: 0, count: entries), [Float](repeating: 0, count: entries))
        for first in stride(from: 0, to: tokens, by: rows) {
            let count = min(rows, tokens - first)
            let gemm = try GEMM(
                m: count, n: tokens, k: channels, transposesB: true, instructionSet: calibration.instructionSet)
            let queries = head * tokens + first
            try gemm.run(
                a: MatrixView(
                    query.span.extracting(queries * channels..<(queries + count) * channels), rows: count, columns: channels),
                b: MatrixView(
                    key.span.extracting(kvHead * tokens * channels..<(kvHead + 1) * tokens * channels), rows: tokens,
                    columns: channels),
                c: MutableMatrixView(scores.mutableSpan, rows: count, columns: tokens), on: pool)
            var span = scores.mutableSpan
            span.withUnsafeMutableBufferPointer { scores in
                blockOf.withUnsafeBufferPointer { blockOf in
                    lineSums.withUnsafeMutableBufferPointer { sums in
                        linePeaks.withUnsafeMutableBufferPointer { peaks in
                            isFinite.withUnsafeMutableBufferPointer { isFinite in
                                PAROLineCall(
                                    scores: scores.baseAddress!, tokens: tokens, scale: scale,
                                    blockOf: blockOf.baseAddress!, orders: orders.count, blocks: blocks,
                                    sums: sums.baseAddress!, peaks: peaks.baseAddress!, isFinite: isFinite.baseAddress!
                                ).run(on: pool, rows: count)
                            }
                        }
                    }
                }
            }
            if let row = isFinite[..<count].firstIndex(of: 0) {
                throw SparseKernelsError(
                    .invalidArgument, "query", expected: "queries and keys with finite scores",
                    actual: "others at query \(first + row) of head \(head)")
            }
            blockOf.withUnsafeBufferPointer { blockOf in
                lineSums.withUnsafeBufferPointer { lineSums in
                    linePeaks.withUnsafeBufferPointer { linePeaks in
                        masses.withUnsafeMutableBufferPointer { masses in
                            peaks.withUnsafeMutableBufferPointer { peaks in
                                let call = PAROAccumulationCall(
                                    first: first, rows: count, tokens: tokens, orders: orders.count, blocks: blocks,
                                    blockOf: blockOf.baseAddress!, lineSums: lineSums.baseAddress!,
                                    linePeaks: linePeaks.baseAddress!, masses: masses.baseAddress!,
                                    peaks: peaks.baseAddress!)
                                pool.run(call, tasks: orders.count, work: 2 * count * orders.count * blocks)
                            }
                        }
                    }
                }
            }
        }
        return orders.indices.map { index in
            let range = index * blocks * blocks..<(index + 1) * blocks * blocks
            return result(Array(masses[range]), peaks: peaks[range])
        }
    }

    /// Divides sums of probabilities by the queries of their row of blocks.
    private func result(_ sums: [Double], peaks: ArraySlice<Float>) -> PAROBlockSums {
        let (blocks, grid) = (calibration.blocks, calibration.blocks.grid)
        var ratios = 0.0
        for row in blocks.free {
            for column in blocks.free {
                let index = row * grid.blockColumns + column
                let mean = sums[index] / Double(grid.query[row].count * grid.key[column].count)
                ratios += mean > 0 ? max(1, Double(peaks[peaks.startIndex + index]) / mean) : 1
            }
        }
        let free = blocks.free.count * blocks.free.count
        let masses = sums.indices.map { sums[$0] / Double(grid.query[$0 / grid.blockColumns].count) }
        return PAROBlockSums(masses: masses, incoherence: free == 0 ? 1 : ratios / Double(free))
    }
}

/// Turns rows of scores into probabilities and sums them by block, in every order. A task is a row.
private struct PAROLineCall: PoolCall {
    let scores: UnsafeMutablePointer<Float>
    let tokens: Int
    let scale: Float
    /// `[orders, tokens]`.
    let blockOf: UnsafePointer<Int32>
    let orders: Int
    let blocks: Int
    /// `[rows, orders, blocks]`, and the same for the largest probabilities.
    let sums: UnsafeMutablePointer<Float>
    let peaks: UnsafeMutablePointer<Float>
    /// 1 for rows whose probabilities are numbers.
    let isFinite: UnsafeMutablePointer<UInt8>

    func run(on pool: WorkerPool, rows: Int) {
        // An exponential takes about as long as 8 multiply-adds, and adding to a block as 2.
        pool.run(self, tasks: rows, work: rows * tokens * (8 + 2 * orders))
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let line = scores + task * tokens
        var maximum = -Float.infinity
        for token in 0..<tokens {
            line[token] *= scale
            if line[token] > maximum { maximum = line[token] }
        }
        var total = 0.0
        for token in 0..<tokens {
            line[token] = exp(line[token] - maximum)
            total += Double(line[token])
        }
        isFinite[task] = total.isFinite && total > 0 ? 1 : 0
        if isFinite[task] == 0 { return }
        let factor = Float(1 / total)
        for order in 0..<orders {
            let place = (task * orders + order) * blocks
            let (sums, peaks, blockOf) = (sums + place, peaks + place, blockOf + order * tokens)
            for block in 0..<blocks { (sums[block], peaks[block]) = (0, 0) }
            for token in 0..<tokens {
                let (block, weight) = (Int(blockOf[token]), line[token] * factor)
                sums[block] += weight
                peaks[block] = max(peaks[block], weight)
            }
        }
    }
}

/// Adds the sums of rows to the blocks of their queries. A task is an order, so that rows are added in the same sequence on any
/// number of threads.
private struct PAROAccumulationCall: PoolCall {
    /// The first row's token.
    let first: Int
    let rows: Int
    let tokens: Int
    let orders: Int
    let blocks: Int
    let blockOf: UnsafePointer<Int32>
    let lineSums: UnsafePointer<Float>
    let linePeaks: UnsafePointer<Float>
    /// `[orders, blocks, blocks]`.
    let masses: UnsafeMutablePointer<Double>
    let peaks: UnsafeMutablePointer<Float>

    func perform(task order: Int, scratch: UnsafeMutableRawPointer) {
        for row in 0..<rows {
            let line = (row * orders + order) * blocks
            let target = (order * blocks + Int(blockOf[order * tokens + first + row])) * blocks
            for block in 0..<blocks {
                masses[target + block] += Double(lineSums[line + block])
                peaks[target + block] = max(peaks[target + block], linePeaks[line + block])
            }
        }
    }
}
