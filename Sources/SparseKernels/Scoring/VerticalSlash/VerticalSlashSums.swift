internal import KernelInterface

/// The offsets of one head's scores and sums in scratch, in floats; the matrix product's own scratch comes first.
struct VerticalSlashScratch: Sendable {
    /// Lanes of the loops here, and the padding of rows of scores. Fixed, so that sums are equal on every instruction set.
    static let lanes = 16
    /// Keys scored at once: a block of the matrix product, and a multiple of `lanes` and of every panel width.
    static let columnBlock = GEMMScratch.columnBlock

    let rows: Int
    let keys: Int
    let headDim: Int
    /// Floats per row of scores, in whole vectors.
    let stride: Int
    let query: Int
    let stagedKeys: Int
    let scores: Int
    let vertical: Int
    let diagonal: Int
    let maxima: Int
    let byteCount: Int

    init(rows: Int, keys: Int, headDim: Int) {
        func padded(_ floats: Int) -> Int { (floats + Self.lanes - 1) / Self.lanes * Self.lanes }
        self.rows = rows
        self.keys = keys
        self.headDim = headDim
        stride = padded(keys)
        query = GEMMScratch.byteCount / 4
        stagedKeys = query + padded(rows * headDim)
        scores = stagedKeys + padded(min(keys, Self.columnBlock) * headDim)
        vertical = scores + rows * stride
        diagonal = vertical + stride
        maxima = diagonal + padded(stride + rows)
        byteCount = (maxima + padded(rows)) * 4
    }
}

/// The passes over one head's scores [rows][keys]: products and maxima, then exponentials and weights, then sums. Columns past
/// the last key are hidden like those after the diagonal, so that every loop runs over whole vectors.
struct VerticalSlashSums {
    private typealias Lanes = SIMD16<Float>

    let layout: VerticalSlashScratch
    let kernels: any KernelTable.Type
    let query: UnsafeMutablePointer<Float>
    /// Sums by key.
    let vertical: UnsafeMutablePointer<Float>
    /// Sums by keys − 1 − distance, an index that grows with the key.
    let diagonal: UnsafeMutablePointer<Float>
    private let scratch: UnsafeMutableRawPointer
    private let stagedKeys: UnsafeMutablePointer<Float>
    private let scores: UnsafeMutablePointer<Float>
    /// The largest score of each row; later the factor that turns its exponentials into probabilities.
    private let maxima: UnsafeMutablePointer<Float>

    init(layout: VerticalSlashScratch, scratch: UnsafeMutableRawPointer, kernels: any KernelTable.Type) {
        let floats = scratch.assumingMemoryBound(to: Float.self)
        self.layout = layout
        self.kernels = kernels
        self.scratch = scratch
        query = floats + layout.query
        stagedKeys = floats + layout.stagedKeys
        scores = floats + layout.scores
        vertical = floats + layout.vertical
        diagonal = floats + layout.diagonal
        maxima = floats + layout.maxima
    }

    func clear() {
        vertical.update(repeating: 0, count: layout.stride)
        diagonal.update(repeating: 0, count: layout.stride + layout.rows)
        maxima.update(repeating: -.infinity, count: layout.rows)
    }

    /// Computes the scores of a block of columns, −∞ for hidden ones, and updates their maxima.
    func scores(of keys: RowOperand, columns: Range<Int>) {
        var (source, stride) = (UnsafePointer(stagedKeys), layout.headDim)
        if keys.type == .float32 {
            source = keys.base.assumingMemoryBound(to: Float.self) + columns.lowerBound * keys.stride
            stride = keys.stride
        } else {
            kernels.stageRows(
                keys, first: columns.lowerBound, count: columns.count, channels: layout.headDim, into: stagedKeys)
        }
        var arguments = GEMMArguments(
            a: query, aStride: layout.headDim, b: source, bStride: stride, bIsTransposed: true,
            c: scores + columns.lowerBound, cStride: layout.stride, rows: layout.rows, columns: columns.count,
            depth: layout.headDim, scratch: scratch)
        kernels.multiplyBlock(&arguments)
        let end = columns.upperBound == layout.keys ? layout.stride : columns.upperBound
        for row in 0..<layout.rows {
            let line = scores + row * layout.stride
            let visible = layout.keys - layout.rows + row + 1
            for column in max(columns.lowerBound, min(visible, end))..<end { line[column] = -.infinity }
            var maximum = Lanes(repeating: maxima[row])
            for column in Swift.stride(from: columns.lowerBound, to: end, by: VerticalSlashScratch.lanes) {
                let score = load(line + column)
                maximum = maximum.replacing(with: score, where: score .> maximum)
            }
            maxima[row] = maximum.max()
        }
    }

    /// Replaces the scores by e^(score − maximum) and the maxima by 1 / Σ. Vectors of a block are added in `Float`, blocks in
    /// `Double`.
    func exponentiate() {
        for row in 0..<layout.rows {
            let maximum = Lanes(repeating: maxima[row])
            var total = 0.0
            for first in stride(from: 0, to: layout.stride, by: VerticalSlashScratch.columnBlock) {
                let count = min(VerticalSlashScratch.columnBlock, layout.stride - first)
                let block = scores + row * layout.stride + first
                for column in stride(from: 0, to: count, by: VerticalSlashScratch.lanes) {
                    store(load(block + column) - maximum, block + column)
                }
                kernels.applyPrimitive(.exp, from: block, to: block, count: count)
                var sum = Lanes.zero
                for column in stride(from: 0, to: count, by: VerticalSlashScratch.lanes) { sum += load(block + column) }
                total += Double(sum.sum())
            }
            maxima[row] = Float(1 / total)
        }
    }

    /// Sums the probabilities block by block, so that both lines of sums stay in the first-level cache.
    func add() {
        for first in stride(from: 0, to: layout.stride, by: VerticalSlashScratch.columnBlock) {
            let end = min(layout.stride, first + VerticalSlashScratch.columnBlock)
            for row in 0..<layout.rows {
                let weight = Lanes(repeating: maxima[row])
                let line = scores + row * layout.stride
                let shifted = diagonal + (layout.rows - 1 - row)
                for column in stride(from: first, to: end, by: VerticalSlashScratch.lanes) {
                    let probability = load(line + column) * weight
                    store(load(vertical + column) + probability, vertical + column)
                    store(load(shifted + column) + probability, shifted + column)
                }
            }
        }
    }

    @inline(__always)
    private func load(_ pointer: UnsafePointer<Float>) -> Lanes {
        UnsafeRawPointer(pointer).loadUnaligned(as: Lanes.self)
    }

    @inline(__always)
    private func store(_ value: Lanes, _ pointer: UnsafeMutablePointer<Float>) {
        UnsafeMutableRawPointer(pointer).storeBytes(of: value, as: Lanes.self)
    }
}
