internal import SparseKernels

#if canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#elseif canImport(Darwin)
    internal import Darwin
#endif

/// The layout of a task's scratch: that of the kernel, then rows, whose offsets count floats.
struct TileScratch {
    /// Keys that are in scratch at a time. Keys and values of 128 channels are 2 MiB then, and the rest of a step is small beside
    /// its products.
    static let keys = 2048
    /// Text queries of a task.
    static let textRows = 192

    /// Rows of all heads of a group.
    let rows: Int
    let queries: Int
    let keys: Int
    let values: Int
    /// Scores to add, 0 or −∞; only tiles of different windows have them.
    let bias: Int
    let outputs: Int
    let logSumExps: Int
    let kernelByteCount: Int
    let byteCount: Int

    init(_ plan: NeighborhoodAttention) {
        let shape = plan.shape
        let tileRows = max(plan.tiling.maximumRows, plan.textQueries.isEmpty ? 1 : Self.textRows)
        rows = tileRows * shape.queryHeadsPerKVHead
        let mixedRows = min(tileRows, NeighborhoodTiling.maximumMixedRows)
        queries = 0
        keys = queries + rows * shape.headDim
        values = keys + Self.keys * shape.headDim
        bias = values + Self.keys * shape.valueDim
        // The state so far, and that of a step.
        outputs = bias + mixedRows * Self.keys
        logSumExps = outputs + 2 * rows * shape.valueDim
        kernelByteCount = (plan.step.scratchByteCount + 63) / 64 * 64
        byteCount = kernelByteCount + 4 * (logSumExps + 2 * rows)
    }
}

/// One call of neighbourhood attention. A task is a tile of queries, or some text queries, of the heads that share a KV head.
struct NeighborhoodCall: PoolCall {
    let plan: NeighborhoodAttention
    let query: OperandRows
    let key: OperandRows
    let value: OperandRows
    let output: OutputRows
    let logSumExp: UnsafeMutablePointer<Float>?

    private var textTasks: Int {
        plan.textQueries.reduce(0) { $0 + ($1.count + TileScratch.textRows - 1) / TileScratch.textRows }
    }

    func run(on pool: WorkerPool) {
        pool.run(
            self, tasks: plan.shape.kvHeads * (textTasks + plan.tiling.count),
            work: plan.computedPairs * (plan.shape.headDim + plan.shape.valueDim),
            scratchByteCount: plan.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        // Text queries see all keys, so they go first. Then tiles go head by head, and neighbours share keys in the cache.
        let textTasks = textTasks
        let (kvHead, tile) =
            task < textTasks * plan.shape.kvHeads
            ? (task / textTasks, task % textTasks - textTasks)
            : (task - textTasks * plan.shape.kvHeads).quotientAndRemainder(dividingBy: plan.tiling.count)
        var work = TileTask(call: self, kvHead: kvHead, scratch: scratch)
        if tile < 0 {
            work.attendText(textRows(tile + textTasks))
        } else {
            work.attend(plan.tiling[tile])
        }
    }

    private func textRows(_ index: Int) -> Range<Int> {
        var index = index
        for range in plan.textQueries {
            let tasks = (range.count + TileScratch.textRows - 1) / TileScratch.textRows
            if index < tasks {
                let first = range.lowerBound + index * TileScratch.textRows
                return first..<min(range.upperBound, first + TileScratch.textRows)
            }
            index -= tasks
        }
        preconditionFailure("no such task")
    }
}

/// The work of one task: gathers queries, then steps of keys and values, attends to each step, and merges the states.
private struct TileTask {
    let call: NeighborhoodCall
    let kvHead: Int
    /// Scratch of the kernel, and the rows behind it.
    let scratch: UnsafeMutableRawPointer
    let floats: UnsafeMutablePointer<Float>
    let layout: TileScratch
    /// Queries of each head.
    private var rows = 0
    /// Keys in scratch.
    private var filled = 0
    private var hasState = false

    init(call: NeighborhoodCall, kvHead: Int, scratch: UnsafeMutableRawPointer) {
        self.call = call
        self.kvHead = kvHead
        self.scratch = scratch
        layout = TileScratch(call.plan)
        floats = (scratch + layout.kernelByteCount).assumingMemoryBound(to: Float.self)
    }

    private var plan: NeighborhoodAttention { call.plan }
    private var shape: AttentionShape { call.plan.shape }
    private var group: Int { shape.queryHeadsPerKVHead }

    // MARK: - Tasks

    /// Text queries: all tokens, and the text that is not padding.
    mutating func attendText(_ queries: Range<Int>) {
        rows = queries.count
        for head in 0..<group {
            call.query.stage(
                head: kvHead * group + head, first: queries.lowerBound, count: rows,
                into: floats + layout.queries + head * rows * shape.headDim)
        }
        appendContext()
        append(first: plan.tokens.lowerBound, step: 1, count: plan.tokens.count, hides: nil)
        attendStep(hidesPairs: false)
        store { queries.lowerBound + $0 }
    }

    mutating func attend(_ tile: (AxisTile, AxisTile, AxisTile)) {
        let map = TileMap(plan, tile)
        rows = map.rows
        for head in 0..<group {
            for line in 0..<rows / map.width {
                call.query.stage(
                    head: kvHead * group + head, first: map.token(ofRow: line * map.width), step: map.step, count: map.width,
                    into: floats + layout.queries + (head * rows + line * map.width) * shape.headDim)
            }
        }
        let hides = map.isUniform ? nil : map
        appendContext(hides: hides)
        for x in tile.0.keys {
            for y in tile.1.keys {
                append(
                    first: map.token(x, y, tile.2.keys.lowerBound), step: map.step, count: tile.2.keys.count, hides: hides,
                    line: (x, y, tile.2.keys.lowerBound))
            }
        }
        attendStep(hidesPairs: hides != nil)
        store { map.token(ofRow: $0) }
    }

    // MARK: - Steps

    private mutating func appendContext(hides: TileMap? = nil) {
        append(first: plan.contextKeys.lowerBound, step: 1, count: plan.contextKeys.count, hides: hides)
    }

    /// Gathers keys and values, attending whenever scratch is full. `line` has the place of the first key in the tile; nil shows
    /// the keys to all queries.
    private mutating func append(first: Int, step: Int, count: Int, hides: TileMap?, line: (Int, Int, Int)? = nil) {
        var done = 0
        while done < count {
            if filled == TileScratch.keys { attendStep(hidesPairs: hides != nil) }
            let part = min(count - done, TileScratch.keys - filled)
            let token = first + done * step
            call.key.stage(
                head: kvHead, first: token, step: step, count: part,
                into: floats + layout.keys + filled * shape.headDim)
            call.value.stage(
                head: kvHead, first: token, step: step, count: part,
                into: floats + layout.values + filled * shape.valueDim)
            if let hides {
                let bias = floats + layout.bias + filled
                if let line {
                    hides.writeBias(x: line.0, y: line.1, keys: line.2 + done..<line.2 + done + part, into: bias)
                } else {
                    for row in 0..<rows { (bias + row * TileScratch.keys).update(repeating: 0, count: part) }
                }
            }
            filled += part
            done += part
        }
    }

    /// Attends to the keys in scratch and adds the state to that of earlier steps.
    private mutating func attendStep(hidesPairs: Bool) {
        if filled == 0 && hasState { return }
        let (heads, width) = (group * rows, shape.valueDim)
        let offset = hasState ? layout.rows : 0
        let outputs = floats + layout.outputs + offset * width
        let logs = floats + layout.logSumExps + offset
        attend(keys: filled, outputs: outputs, logs: logs, bias: hidesPairs ? floats + layout.bias : nil)
        if hasState {
            for row in 0..<heads {
                merge(row, outputs: outputs + row * width, log: logs[row])
            }
        }
        hasState = true
        filled = 0
    }

    /// Heads of a group share the keys, and their rows follow each other. A bias is the same for all of them.
    private func attend(
        keys: Int, outputs: UnsafeMutablePointer<Float>, logs: UnsafeMutablePointer<Float>, bias: UnsafeMutablePointer<Float>?
    ) {
        let step = plan.step
        let together = bias == nil ? group : 1
        for first in stride(from: 0, to: group, by: together) {
            step.attend(
                query: floats + layout.queries + first * rows * shape.headDim, rows: together * rows,
                key: floats + layout.keys, value: floats + layout.values, keys: keys, bias: bias,
                biasStride: TileScratch.keys, output: outputs + first * rows * shape.valueDim, logSumExp: logs + first * rows,
                scratch: scratch)
        }
    }

    /// Adds a row of a step to the state, as `AttentionState.merge` does.
    private func merge(_ row: Int, outputs: UnsafePointer<Float>, log other: Float) {
        let width = shape.valueDim
        let sums = floats + layout.outputs + row * width
        let logs = floats + layout.logSumExps
        let (a, b) = (Double(logs[row]), Double(other))
        if b == -.infinity { return }
        if a == -.infinity {
            logs[row] = other
            sums.update(from: outputs, count: width)
            return
        }
        let m = Swift.max(a, b)
        let (first, second) = (exp(a - m), exp(b - m))
        let total = first + second
        logs[row] = Float(m + log(total))
        let (fa, fb) = (Float(first / total), Float(second / total))
        for channel in 0..<width { sums[channel] = fa * sums[channel] + fb * outputs[channel] }
    }

    private func store(_ token: (Int) -> Int) {
        for head in 0..<group {
            for row in 0..<rows {
                let (queryHead, token) = (kvHead * group + head, token(row))
                call.output.store(
                    floats + layout.outputs + (head * rows + row) * shape.valueDim, head: queryHead, token: token)
                call.logSumExp?[queryHead * shape.queryLength + token] = floats[layout.logSumExps + head * rows + row]
            }
        }
    }
}

/// From the rows and keys of a tile to tokens, and back to what is hidden.
private struct TileMap {
    let tile: (AxisTile, AxisTile, AxisTile)
    let axes: [NeighborhoodAxis]
    /// The first token of the neighbourhood.
    let origin: Int
    let isUniform: Bool

    init(_ plan: NeighborhoodAttention, _ tile: (AxisTile, AxisTile, AxisTile)) {
        self.tile = tile
        axes = plan.tiling.axes
        origin = plan.tokens.lowerBound
        isUniform = tile.0.isUniform && tile.1.isUniform && tile.2.isUniform
    }

    /// Queries along the last axis.
    var width: Int { tile.2.queries.count }
    var rows: Int { tile.0.queries.count * tile.1.queries.count * width }
    /// Tokens between neighbours along the last axis.
    var step: Int { axes[2].dilation }

    /// The token at a place of the tile's dilation groups.
    func token(_ x: Int, _ y: Int, _ z: Int) -> Int {
        let first = x * axes[0].dilation + tile.0.group
        let second = y * axes[1].dilation + tile.1.group
        return origin + (first * axes[1].length + second) * axes[2].length + z * axes[2].dilation + tile.2.group
    }

    func token(ofRow row: Int) -> Int {
        let (rest, z) = row.quotientAndRemainder(dividingBy: width)
        let (x, y) = rest.quotientAndRemainder(dividingBy: tile.1.queries.count)
        return token(tile.0.queries.lowerBound + x, tile.1.queries.lowerBound + y, tile.2.queries.lowerBound + z)
    }

    /// Writes 0 for the pairs of all queries and a line of keys that are neighbours, and −∞ for the others, in rows of
    /// `TileScratch.keys`.
    func writeBias(x: Int, y: Int, keys: Range<Int>, into bias: UnsafeMutablePointer<Float>) {
        let counts = (
            axes[0].length(ofGroup: tile.0.group), axes[1].length(ofGroup: tile.1.group), axes[2].length(ofGroup: tile.2.group)
        )
        var line = bias
        for a in tile.0.queries {
            let seesFirst = axes[0].window(of: a, in: counts.0).contains(x)
            for b in tile.1.queries {
                let sees = seesFirst && axes[1].window(of: b, in: counts.1).contains(y)
                for c in tile.2.queries {
                    line.update(repeating: -.infinity, count: keys.count)
                    if sees {
                        let seen = axes[2].window(of: c, in: counts.2).clamped(to: keys)
                        (line + seen.lowerBound - keys.lowerBound).update(repeating: 0, count: seen.count)
                    }
                    line += TileScratch.keys
                }
            }
        }
    }
}
