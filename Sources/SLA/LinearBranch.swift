internal import SparseKernels

/// One call of the linear branch: the sums of key blocks, their sums over the marginal blocks of every row, and φ(q) times these.
///
/// Key/value heads go one after the other, so that only the sums of one are in memory. Holds the addresses of the operands, which
/// must outlive it.
struct LinearBranch {
    let plan: SparseLinearOperator
    let query: OperandRows
    let key: OperandRows
    let value: OperandRows

    init<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        _ plan: SparseLinearOperator, query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>
    ) {
        self.plan = plan
        self.query = OperandRows(query, instructionSet: plan.instructionSet)
        self.key = OperandRows(key, instructionSet: plan.instructionSet)
        self.value = OperandRows(value, instructionSet: plan.instructionSet)
    }

    /// Where the branch goes.
    struct Target {
        /// What is added to the rows of the branch.
        enum Base {
            case none
            /// The rows of the output, which are floats.
            case output
            /// The rows of a tensor `[queryHeads, queryLength, valueDim]`.
            case tensor(Tensor<Float>)
        }
        let output: OutputRows
        let projection: SparseLinearProjection?
        let base: Base
    }

    /// Floats of the sums of a block: Σ φ(k)·vᵀ, `[headDim, valueDim]`, then Σ φ(k).
    var sumCount: Int { plan.shape.headDim * (plan.shape.valueDim + 1) }

    /// Rows of blocks whose sums are made together. 8 MiB of sums leave the third-level cache of small machines room for the
    /// factors; fewer than 16 rows would read the sums of all key blocks too often.
    private var rowsPerGroup: Int { max(16, min(128, (8 << 20) / (4 * sumCount))) }

    func run(_ target: Target, on pool: WorkerPool) throws(SparseKernelsError) {
        let (shape, grid) = (plan.shape, plan.blocks.grid)
        if shape.queryLength == 0 { return }
        let columns = grid.blockColumns
        // Where the branch sees all tokens, all rows of blocks have the same sums.
        let sharesSums = plan.rule.linearSeesAllTokens
        let groupRows = sharesSums ? 1 : min(rowsPerGroup, grid.blockRows)
        var sums = try Tensor<Float>(zeros: [columns, sumCount])
        var totals = try Tensor<Float>(zeros: [groupRows, sumCount])
        var isFinite = [Bool](repeating: true, count: columns)
        for kvHead in 0..<shape.kvHeads {
            sumBlocks(kvHead: kvHead, into: &sums, isFinite: &isFinite, on: pool)
            for head in kvHead * shape.queryHeadsPerKVHead..<(kvHead + 1) * shape.queryHeadsPerKVHead {
                let step = sharesSums ? grid.blockRows : groupRows
                for first in stride(from: 0, to: grid.blockRows, by: step) {
                    let rows = first..<min(grid.blockRows, first + step)
                    if !sharesSums || head % shape.queryHeadsPerKVHead == 0 {
                        let products = sharesSums ? 1 : rows.count
                        let weights = try weights(head: head, rows: first..<first + products, isFinite: isFinite)
                        let product = try GEMM(
                            m: products, n: sumCount, k: columns, instructionSet: plan.instructionSet)
                        try product.run(
                            a: weights.matrixView(named: "weights"), b: sums.matrixView(named: "sums"),
                            c: MutableMatrixView(totals.mutableSpan, rows: products, columns: sumCount), on: pool)
                    }
                    finish(head: head, rows: rows, totals: totals, sharesTotals: sharesSums, target, on: pool)
                }
            }
        }
    }

    /// 1 for every key block that a row of blocks sees linearly, NaN where its sums are not finite: those were set to 0, because
    /// 0 times them would be NaN in the rows that do not see them.
    private func weights(head: Int, rows: Range<Int>, isFinite: [Bool]) throws(SparseKernelsError) -> Tensor<Float> {
        let blocks = plan.blocks
        let columns = blocks.grid.blockColumns
        let maskHead = head * blocks.heads / plan.shape.queryHeads
        var weights = try Tensor<Float>(zeros: [rows.count, columns])
        var elements = weights.mutableSpan
        for row in rows {
            let line = (row - rows.lowerBound) * columns
            for column in 0..<columns { elements[line + column] = isFinite[column] ? 1 : .nan }
            if plan.rule.linearSeesAllTokens { continue }
            for column in blocks.critical.columns(head: maskHead, row: row) { elements[line + Int(column)] = 0 }
            for column in blocks.negligible.columns(head: maskHead, row: row) { elements[line + Int(column)] = 0 }
        }
        return weights
    }

    private func sumBlocks(kvHead: Int, into sums: inout Tensor<Float>, isFinite: inout [Bool], on pool: WorkerPool) {
        // Pointers are used only until this call returns.
        var span = sums.mutableSpan
        span.withUnsafeMutableBufferPointer { sums in
            isFinite.withUnsafeMutableBufferPointer { isFinite in
                guard let sums = sums.baseAddress, let isFinite = isFinite.baseAddress else { return }
                BlockSumsCall(branch: self, kvHead: kvHead, sums: sums, isFinite: isFinite).run(on: pool)
            }
        }
    }

    private func finish(
        head: Int, rows: Range<Int>, totals: Tensor<Float>, sharesTotals: Bool, _ target: Target, on pool: WorkerPool
    ) {
        totals.span.withUnsafeBufferPointer { totals in
            func run(weight: UnsafePointer<Float>?, bias: UnsafePointer<Float>?, base: UnsafePointer<Float>?) {
                var addsToOutput = false
                if case .output = target.base { addsToOutput = true }
                LinearRowsCall(
                    branch: self, head: head, rows: rows, totals: totals.baseAddress!,
                    totalStride: sharesTotals ? 0 : sumCount, weight: weight, bias: bias, base: base,
                    addsToOutput: addsToOutput, output: target.output
                ).run(on: pool)
            }
            func run(base: UnsafePointer<Float>?) {
                guard let projection = target.projection else { return run(weight: nil, bias: nil, base: base) }
                projection.weight.span.withUnsafeBufferPointer { weight in
                    projection.bias.span.withUnsafeBufferPointer { bias in
                        run(weight: weight.baseAddress, bias: bias.baseAddress, base: base)
                    }
                }
            }
            if case .tensor(let tensor) = target.base {
                tensor.span.withUnsafeBufferPointer { run(base: $0.baseAddress) }
            } else {
                run(base: nil)
            }
        }
    }
}

/// The sums of the key blocks of one head. Each task is a block.
private struct BlockSumsCall: PoolCall {
    let branch: LinearBranch
    let kvHead: Int
    let sums: UnsafeMutablePointer<Float>
    let isFinite: UnsafeMutablePointer<Bool>

    private var shape: AttentionShape { branch.plan.shape }
    private var partition: BlockPartition { branch.plan.blocks.grid.key }

    func run(on pool: WorkerPool) {
        let longest = partition.count == 0 ? 0 : partition.blockSize.map { min($0, partition.length) } ?? partition.sizes.max()!
        let floats = OperandRows.padded(longest * shape.headDim) + longest * (shape.headDim + shape.valueDim)
        pool.run(
            self, tasks: partition.count, work: shape.keyLength * shape.headDim * shape.valueDim,
            scratchByteCount: GEMM.taskScratchByteCount + 4 * floats)
    }

    func perform(task block: Int, scratch: UnsafeMutableRawPointer) {
        let tokens = partition[block]
        let (count, depth, width) = (tokens.count, shape.headDim, shape.valueDim)
        let features = (scratch + GEMM.taskScratchByteCount).assumingMemoryBound(to: Float.self)
        let transposed = features + OperandRows.padded(count * depth)
        let values = transposed + count * depth
        branch.key.stage(head: kvHead, first: tokens.lowerBound, count: count, into: features)
        branch.plan.featureMap.apply(to: features, rows: count, channels: depth, with: branch.key)
        branch.value.stage(head: kvHead, first: tokens.lowerBound, count: count, into: values)
        let sum = sums + block * branch.sumCount
        let total = sum + depth * width
        for channel in 0..<depth { total[channel] = 0 }
        for token in 0..<count {
            let row = features + token * depth
            for channel in 0..<depth {
                total[channel] += row[channel]
                transposed[channel * count + token] = row[channel]
            }
        }
        GEMM.multiply(
            rows: depth, columns: width, depth: count, a: transposed, aStride: count, b: values, bStride: width,
            transposesB: false, c: sum, cStride: width, scratch: scratch, instructionSet: branch.plan.instructionSet)
        // 0 · x is 0 exactly for finite x.
        var zero: Float = 0
        for index in 0..<branch.sumCount { zero += 0 * sum[index] }
        isFinite[block] = zero == 0
        if zero != 0 { for index in 0..<branch.sumCount { sum[index] = 0 } }
    }
}

/// φ(q) times the sums of its row of blocks, projected and added to what is there. Each task is a row of blocks.
private struct LinearRowsCall: PoolCall {
    let branch: LinearBranch
    let head: Int
    let rows: Range<Int>
    /// The sums of the first row, and the distance to those of the next.
    let totals: UnsafePointer<Float>
    let totalStride: Int
    let weight: UnsafePointer<Float>?
    let bias: UnsafePointer<Float>?
    let base: UnsafePointer<Float>?
    let addsToOutput: Bool
    let output: OutputRows

    /// Queries whose features are in scratch at a time.
    private static let stageRows = 128

    private var shape: AttentionShape { branch.plan.shape }

    func run(on pool: WorkerPool) {
        let floats = OperandRows.padded(Self.stageRows * shape.headDim) + 2 * Self.stageRows * shape.valueDim
        let partition = branch.plan.blocks.grid.query
        let tokens = rows.isEmpty ? 0 : partition[rows.upperBound - 1].upperBound - partition[rows.lowerBound].lowerBound
        pool.run(
            self, tasks: rows.count, work: tokens * (shape.headDim + shape.valueDim) * shape.valueDim,
            scratchByteCount: GEMM.taskScratchByteCount + 4 * floats)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let tokens = branch.plan.blocks.grid.query[rows.lowerBound + task]
        for first in stride(from: tokens.lowerBound, to: tokens.upperBound, by: Self.stageRows) {
            attend(first..<min(tokens.upperBound, first + Self.stageRows), totals + task * totalStride, scratch)
        }
    }

    private func attend(_ tokens: Range<Int>, _ sums: UnsafePointer<Float>, _ scratch: UnsafeMutableRawPointer) {
        let (depth, width, set) = (shape.headDim, shape.valueDim, branch.plan.instructionSet)
        let features = (scratch + GEMM.taskScratchByteCount).assumingMemoryBound(to: Float.self)
        let linear = features + OperandRows.padded(Self.stageRows * depth)
        let projected = linear + Self.stageRows * width
        branch.query.stage(head: head, first: tokens.lowerBound, count: tokens.count, into: features)
        branch.plan.featureMap.apply(to: features, rows: tokens.count, channels: depth, with: branch.query)
        GEMM.multiply(
            rows: tokens.count, columns: width, depth: depth, a: features, aStride: depth, b: sums, bStride: width,
            transposesB: false, c: linear, cStride: width, scratch: scratch, instructionSet: set)
        let epsilon = branch.plan.rule.epsilon
        for row in 0..<tokens.count {
            let total = dot(features + row * depth, sums + depth * width, count: depth) + epsilon
            let factor = total == 0 ? 0 : 1 / total
            for channel in 0..<width { linear[row * width + channel] *= factor }
        }
        var result = linear
        if let weight, let bias {
            GEMM.multiply(
                rows: tokens.count, columns: width, depth: width, a: linear, aStride: width, b: weight, bStride: width,
                transposesB: true, c: projected, cStride: width, scratch: scratch, instructionSet: set)
            for row in 0..<tokens.count { for channel in 0..<width { projected[row * width + channel] += bias[channel] } }
            result = projected
        }
        for (row, token) in tokens.enumerated() {
            let line = result + row * width
            if let base {
                let base = base + (head * shape.queryLength + token) * width
                for channel in 0..<width { line[channel] += base[channel] }
            } else if addsToOutput {
                let base = output.floats(head: head, token: token)
                for channel in 0..<width { line[channel] += base[channel] }
            }
            output.store(line, head: head, token: token)
        }
    }

    /// In eight chains, as one would wait for each addition.
    private func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Float {
        var sums = SIMD8<Float>.zero
        let whole = count & ~7
        for index in stride(from: 0, to: whole, by: 8) {
            sums +=
                UnsafeRawPointer(a + index).loadUnaligned(as: SIMD8<Float>.self)
                * UnsafeRawPointer(b + index).loadUnaligned(as: SIMD8<Float>.self)
        }
        var sum = sums.sum()
        for index in whole..<count { sum += a[index] * b[index] }
        return sum
    }
}

extension LinearFeatureMap {
    /// Replaces rows of tokens by their features. The memory has room for `OperandRows.padded(rows · channels)` floats.
    ///
    /// NaN stays NaN, and rows with an infinity have NaN features under softmax.
    func apply(to x: UnsafeMutablePointer<Float>, rows: Int, channels: Int, with operand: OperandRows) {
        let count = rows * channels
        switch self {
        case .relu:
            for index in 0..<count { x[index] = x[index] < 0 ? 0 : x[index] }
        case .elu:
            // The exponential of min(x, 0) is 1 for positive x, so that eˣ + max(x, 0) is x + 1 there.
            withUnsafeTemporaryAllocation(of: Float.self, capacity: OperandRows.padded(count)) { positive in
                for index in 0..<count {
                    let value = x[index]
                    positive[index] = value > 0 ? value : 0
                    x[index] = value > 0 ? 0 : value
                }
                for index in count..<OperandRows.padded(count) { x[index] = 0 }
                operand.exponentiate(x, count: count)
                for index in 0..<count { x[index] += positive[index] }
            }
        case .softmax:
            for row in 0..<rows {
                let line = x + row * channels
                var maximum = -Float.infinity
                for channel in 0..<channels { maximum = max(maximum, line[channel]) }
                for channel in 0..<channels { line[channel] -= maximum }
            }
            for index in count..<OperandRows.padded(count) { x[index] = 0 }
            operand.exponentiate(x, count: count)
            for row in 0..<rows {
                let line = x + row * channels
                var sum: Float = 0
                for channel in 0..<channels { sum += line[channel] }
                let factor = 1 / sum
                for channel in 0..<channels { line[channel] *= factor }
            }
        }
    }
}
