import SparseKernels
import SparseKernelsTraining

extension LoRATrainer {
    /// Runs the final norm, the output projection and the loss over the rows that count, and back to `workspace.hidden`, which is the
    /// gradient of the residual stream then.
    ///
    /// - Parameters:
    ///   - rows: those that count, ascending.
    ///   - backward: whether gradients are computed.
    func runHead(
        _ batch: TrainingBatch, _ rows: [Int], backward: Bool
    ) throws(SparseKernelsError) -> CrossEntropy.Loss {
        let width = model.configuration.hiddenSize
        var sum = CrossEntropy.Loss()
        var next = 0
        for start in stride(from: 0, to: rows.count, by: workspace.headRows) {
            let part = rows[start..<min(start + workspace.headRows, rows.count)]
            let loss = try runHead(part, batch, count: rows.count, backward, &workspace)
            sum.nats += loss.nats
            sum.tokens += loss.tokens
            if backward { spread(part, from: &next, width, workspace.scoredUpdate, to: &workspace.hidden) }
        }
        if backward { clear(&workspace.hidden, next..<max(next, batch.tokens.count * width)) }
        clock.lap(\.head)
        return sum
    }

    /// Some of the rows. The gradient of their residual stream is in `w.scoredUpdate` then.
    private func runHead(
        _ part: ArraySlice<Int>, _ batch: TrainingBatch, count: Int, _ backward: Bool, _ w: inout TrainingWorkspace
    ) throws(SparseKernelsError) -> CrossEntropy.Loss {
        let (width, rows) = (model.configuration.hiddenSize, part.count)
        gather(part, width, w.hidden, w.update, into: &w.scored)
        try model.finalNorm.run(w.scored, rows: rows, into: &w.scoredNormalized, on: pool)
        try model.head.run(w.scoredNormalized, rows: rows, into: &w.logits, on: pool)
        let targets = part.map { batch.targets[$0] }
        guard backward else {
            return try loss.loss(
                MatrixView(w.logits.span, rows: rows, columns: loss.vocabulary, named: "logits"), targets: targets, on: pool)
        }
        let result = try loss.run(w.logits, targets: targets, divisor: Double(count), gradient: &w.logitGradient, on: pool)
        try model.head.inputGradient(w.logitGradient, rows: rows, into: &w.scoredNormalized, on: pool)
        try model.finalNormGradient.run(
            w.scoredNormalized, x: w.scored, rows: rows, width: width, into: &w.scoredUpdate, accumulates: false, on: pool)
        return result
    }

    /// The sums of some rows of two matrices.
    private func gather(
        _ rows: ArraySlice<Int>, _ width: Int, _ x: Tensor<Float>, _ y: Tensor<Float>, into z: inout Tensor<Float>
    ) {
        let (x, y) = (x.span, y.span)
        var z = z.mutableSpan
        var target = 0
        for row in rows {
            for i in row * width..<(row + 1) * width {
                z[target] = x[i] + y[i]
                target += 1
            }
        }
    }

    /// Puts gradients of some rows to their places. Rows between, from `next` on, become 0.
    private func spread(
        _ rows: ArraySlice<Int>, from next: inout Int, _ width: Int, _ gradient: Tensor<Float>, to hidden: inout Tensor<Float>
    ) {
        var target = hidden.mutableSpan
        let source = gradient.span
        var position = 0
        for row in rows {
            for i in next..<row * width { target[i] = 0 }
            next = row * width
            for i in next..<next + width {
                target[i] = source[position]
                position += 1
            }
            next += width
        }
    }

    private func clear(_ x: inout Tensor<Float>, _ range: Range<Int>) {
        var elements = x.mutableSpan
        for i in range { elements[i] = 0 }
    }
}
