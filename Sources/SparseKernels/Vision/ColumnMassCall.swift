internal import Foundation
internal import KernelInterface

/// How column masses are cut into tasks. It follows from the shape and the choice, never from the threads.
///
/// A *unit* is what a row of the result sums: the chosen heads of one KV head, whose rows are stacked so that keys are read once for
/// them, or one head when heads have rows of their own. Rows of a unit go head by head, in blocks of `ColumnMassScratch.maximumRows`.
struct ColumnMassTiling: Sendable {
    struct Unit: Sendable {
        let kvHead: Int
        /// Its heads are `order[heads]`.
        let heads: Range<Int>
    }

    let units: [Unit]
    /// Chosen heads in the order of the units.
    let order: [Int]
    /// Chosen queries.
    let queries: Int
    /// Keys of a task.
    let keysPerTask: Int
    let keyTasks: Int
    /// Parts of the keys for which statistics of rows are taken apart; more than 1 only for few rows.
    let pieces: Int
    let keysPerPiece: Int

    /// Statistics of so many blocks of rows keep 16 threads busy to the end.
    private static let enoughTasks = 64

    init(_ shape: AttentionShape, queries: Int, heads: [Int], _ reduction: AttentionColumnMass.Reduction) {
        let group = shape.queryHeadsPerKVHead
        let order = reduction == .none ? heads : heads.sorted()
        var units: [Unit] = []
        var first = 0
        while first < order.count {
            var end = first + 1
            if reduction == .meanOfHeads {
                while end < order.count && order[end] / group == order[first] / group { end += 1 }
            }
            units.append(Unit(kvHead: order[first] / group, heads: first..<end))
            first = end
        }
        self.units = units
        self.order = order
        self.queries = queries
        // Packing the rows of a block costs as much as scoring about twenty keys with them, so that 1024 keys make it 2%.
        let block = ColumnMassScratch.keyBlock
        let rows = reduction == .none ? units.count : 1
        let wanted = max(1, Self.enoughTasks / max(1, rows))
        keysPerTask = min(1024, max(block, (shape.keyLength / wanted + block - 1) / block * block))
        keyTasks = (shape.keyLength + keysPerTask - 1) / keysPerTask
        var blocks = 0
        for unit in units { blocks += Self.blocks(rows: unit.heads.count * queries) }
        let parts = min((shape.keyLength + 1023) / 1024, max(1, Self.enoughTasks / max(1, blocks)))
        keysPerPiece = max(block, (shape.keyLength / max(1, parts) + block - 1) / block * block)
        pieces = (shape.keyLength + keysPerPiece - 1) / keysPerPiece
    }

    /// Blocks of rows.
    static func blocks(rows: Int) -> Int { (rows + ColumnMassScratch.maximumRows - 1) / ColumnMassScratch.maximumRows }

    /// Rows of all units.
    var rows: Int { order.count * queries }

    /// Blocks of the largest unit.
    var blocksPerUnit: Int {
        var most = 0
        for index in 0..<units.count { most = max(most, Self.blocks(rows: units[index].heads.count * queries)) }
        return most
    }
}

/// One run of `AttentionColumnMass`: statistics of the rows where the LSE is not known, then sums by key.
struct ColumnMassCall {
    let plan: AttentionColumnMass
    let query: AttentionOperand
    let key: AttentionOperand
    let known: UnsafePointer<Float>?
    let knownStride: Int
    let mass: RowTarget

    func run(on pool: WorkerPool) {
        let tiling = plan.tiling
        let rows = tiling.rows
        if rows == 0 {
            for row in 0..<plan.rows { line(row).update(repeating: 0, count: plan.shape.keyLength) }
            return
        }
        let partial = known == nil ? 2 * tiling.pieces * rows : 0
        pool.withWorkspace(byteCount: (2 * rows + partial) * 4) { memory in
            let shifts = memory.assumingMemoryBound(to: Float.self)
            let weights = shifts + rows
            if let known {
                for row in 0..<rows {
                    let head = tiling.order[row / tiling.queries]
                    let value = known[head * knownStride + plan.queries[row % tiling.queries]]
                    // A row that sees nothing has an LSE of −∞, and no key that it could add to.
                    shifts[row] = value == -.infinity ? 0 : value
                    weights[row] = 1
                }
            } else {
                takeStatistics(shifts, weights, partial: weights + rows, on: pool)
            }
            let work = rows * plan.shape.keyLength * plan.shape.headDim
            let sums = ColumnMassSums(call: self, shifts: shifts, weights: weights)
            pool.run(
                sums, tasks: plan.rows * tiling.keyTasks, work: work, scratchByteCount: plan.scratchByteCount)
        }
    }

    /// A row of the result.
    func line(_ row: Int) -> UnsafeMutablePointer<Float> {
        mass.base.assumingMemoryBound(to: Float.self) + row * mass.stride
    }

    /// The maximum score of every row, and 1 / Σ e^(s − maximum).
    private func takeStatistics(
        _ shifts: UnsafeMutablePointer<Float>, _ weights: UnsafeMutablePointer<Float>, partial: UnsafeMutablePointer<Float>,
        on pool: WorkerPool
    ) {
        let tiling = plan.tiling
        let (rows, pieces) = (tiling.rows, tiling.pieces)
        let statistics = ColumnMassStatistics(call: self, maxima: partial, sums: partial + pieces * rows)
        pool.run(
            statistics, tasks: tiling.units.count * tiling.blocksPerUnit * pieces,
            work: rows * plan.shape.keyLength * plan.shape.headDim, scratchByteCount: plan.scratchByteCount)
        for row in 0..<rows {
            var maximum = -Float.infinity
            for piece in 0..<pieces where statistics.maxima[piece * rows + row] > maximum {
                maximum = statistics.maxima[piece * rows + row]
            }
            let shift = maximum == -.infinity ? 0 : maximum
            var total = 0.0
            for piece in 0..<pieces {
                let (m, l) = (statistics.maxima[piece * rows + row], statistics.sums[piece * rows + row])
                // A piece without a visible key has the sum 0, and one with a NaN keeps it.
                if l != 0 { total += Double(l) * exp(m == -.infinity ? 0 : Double(m) - Double(shift)) }
            }
            shifts[row] = shift
            weights[row] = total == 0 ? 0 : Float(1 / total)
        }
    }

    // MARK: - Tasks

    /// Bytes of scratch of a task: queries, limits, shifts and weights of a block, then the kernel's own.
    static func scratchByteCount(headDim: Int) -> Int {
        operandFloats(headDim: headDim) * 4 + ColumnMassScratch(headDim: headDim, stagesKeys: true).byteCount
    }

    private static func operandFloats(headDim: Int) -> Int { ColumnMassScratch.maximumRows * (headDim + 4) }

    /// The memory of a task.
    struct Space {
        let query: UnsafeMutablePointer<Float>
        let limits: UnsafeMutablePointer<Int32>
        let first: UnsafeMutablePointer<Float>
        let second: UnsafeMutablePointer<Float>
        let kernel: UnsafeMutableRawPointer

        init(_ scratch: UnsafeMutableRawPointer, headDim: Int) {
            let most = ColumnMassScratch.maximumRows
            query = scratch.assumingMemoryBound(to: Float.self)
            limits = (scratch + most * headDim * 4).assumingMemoryBound(to: Int32.self)
            first = (scratch + most * (headDim + 2) * 4).assumingMemoryBound(to: Float.self)
            second = first + most
            kernel = scratch + ColumnMassCall.operandFloats(headDim: headDim) * 4
        }
    }

    /// Gathers the queries and the limits of a block of rows of a unit, for a run of keys. Nil when no row sees any of them.
    func arguments(
        _ unit: ColumnMassTiling.Unit, rows: Range<Int>, keys: Range<Int>, _ space: Space
    ) -> ColumnMassArguments? {
        let (queries, most) = (plan.tiling.queries, ColumnMassScratch.maximumRows)
        var (low, high) = (keys.upperBound, keys.lowerBound)
        for row in rows {
            let index = row % queries
            let (from, to) = (plan.limits.from[index], plan.limits.to[index])
            space.limits[row - rows.lowerBound] = from
            space.limits[most + row - rows.lowerBound] = to
            if from < to { (low, high) = (min(low, Int(from)), max(high, Int(to))) }
        }
        let (first, end) = (max(low, keys.lowerBound), min(high, keys.upperBound))
        if first >= end { return nil }
        for row in rows.count..<most { (space.limits[row], space.limits[most + row]) = (0, 0) }
        var row = rows.lowerBound
        while row < rows.upperBound {
            // The rows of one head.
            let (head, index) = (row / queries, row % queries)
            let count = min(queries - index, rows.upperBound - row)
            let source = query.rows(head: plan.tiling.order[unit.heads.lowerBound + head])
            let target = space.query + (row - rows.lowerBound) * plan.shape.headDim
            plan.tokens.withUnsafeBufferPointer { tokens in
                plan.kernels.gatherRows(
                    source, order: tokens.baseAddress! + index, count: count, channels: plan.shape.headDim, into: target)
            }
            row += count
        }
        return ColumnMassArguments(
            query: space.query, queryRows: rows.count, key: key.rows(head: unit.kvHead), firstKey: first, endKey: end,
            headDim: plan.shape.headDim, softmaxScale: plan.softmaxScale, limits: space.limits, limitStride: most,
            scratch: space.kernel)
    }
}

/// Takes the maxima and sums of a block of rows over a piece of the keys.
private struct ColumnMassStatistics: PoolCall {
    let call: ColumnMassCall
    /// `[pieces, rows]`.
    let maxima: UnsafeMutablePointer<Float>
    let sums: UnsafeMutablePointer<Float>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (plan, tiling) = (call.plan, call.plan.tiling)
        let (place, piece) = (task / tiling.pieces, task % tiling.pieces)
        let unit = tiling.units[place / tiling.blocksPerUnit]
        let first = place % tiling.blocksPerUnit * ColumnMassScratch.maximumRows
        let end = min(unit.heads.count * tiling.queries, first + ColumnMassScratch.maximumRows)
        if first >= end { return }
        let space = ColumnMassCall.Space(scratch, headDim: plan.shape.headDim)
        space.first.update(repeating: -.infinity, count: ColumnMassScratch.maximumRows)
        space.second.update(repeating: 0, count: ColumnMassScratch.maximumRows)
        let keys = piece * tiling.keysPerPiece..<min(plan.shape.keyLength, (piece + 1) * tiling.keysPerPiece)
        if var arguments = call.arguments(unit, rows: first..<end, keys: keys, space) {
            arguments.maxima = space.first
            arguments.sums = space.second
            plan.kernels.sumColumnMass(&arguments)
        }
        let target = piece * tiling.rows + unit.heads.lowerBound * tiling.queries + first
        for row in 0..<end - first {
            maxima[target + row] = space.first[row]
            sums[target + row] = space.second[row]
        }
    }
}

/// Sums the probabilities of some keys, for one row of the result.
private struct ColumnMassSums: PoolCall {
    let call: ColumnMassCall
    let shifts: UnsafePointer<Float>
    let weights: UnsafePointer<Float>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (plan, tiling) = (call.plan, call.plan.tiling)
        let (row, part) = (task / tiling.keyTasks, task % tiling.keyTasks)
        let first = part * tiling.keysPerTask
        let keys = first..<min(plan.shape.keyLength, first + tiling.keysPerTask)
        let mass = call.line(row)
        (mass + first).update(repeating: 0, count: keys.count)
        let units = plan.reduction == .none ? row..<row + 1 : 0..<tiling.units.count
        for index in units { add(tiling.units[index], keys, to: mass, scratch) }
        if plan.reduction == .meanOfHeads {
            let factor = 1 / Float(plan.heads.count)
            for key in keys { mass[key] *= factor }
        }
    }

    private func add(
        _ unit: ColumnMassTiling.Unit, _ keys: Range<Int>, to mass: UnsafeMutablePointer<Float>,
        _ scratch: UnsafeMutableRawPointer
    ) {
        let (plan, tiling) = (call.plan, call.plan.tiling)
        let space = ColumnMassCall.Space(scratch, headDim: plan.shape.headDim)
        let (rows, base) = (unit.heads.count * tiling.queries, unit.heads.lowerBound * tiling.queries)
        var first = 0
        while first < rows {
            let end = min(rows, first + ColumnMassScratch.maximumRows)
            if var arguments = call.arguments(unit, rows: first..<end, keys: keys, space) {
                for row in 0..<ColumnMassScratch.maximumRows {
                    let isRow = row < end - first
                    space.first[row] = isRow ? shifts[base + first + row] : 0
                    space.second[row] = isRow ? weights[base + first + row] : 0
                }
                arguments.shifts = UnsafePointer(space.first)
                arguments.weights = UnsafePointer(space.second)
                arguments.mass = mass + arguments.firstKey
                plan.kernels.sumColumnMass(&arguments)
            }
            first = end
        }
    }
}
