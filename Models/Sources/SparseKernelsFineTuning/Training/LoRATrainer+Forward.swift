import SparseKernels
import SparseKernelsModels
import SparseKernelsTraining
import SparseLoRA

extension LoRATrainer {
    /// Runs the blocks. What the last MLP adds to `workspace.hidden` is in `workspace.update` then.
    ///
    /// - Parameters:
    ///   - split: the tokens that keep all channels; nil with `sparse` means that none do.
    ///   - sparse: whether channels are chosen.
    func runForward(_ batch: TrainingBatch, split: TokenSplit?, sparse: Bool) throws(SparseKernelsError) {
        try embed(batch.tokens, &workspace)
        for index in model.blocks.indices {
            try attend(index, batch.sequences, split, sparse, &tapes[index], &workspace, &clock)
            try runMLP(index, batch.sequences, split, sparse, &tapes[index], &workspace, &clock)
        }
    }

    private func embed(_ tokens: [Int], _ w: inout TrainingWorkspace) throws(SparseKernelsError) {
        try model.embedding.run(
            tokens: tokens,
            into: MutableMatrixView(
                w.hidden.mutableSpan, rows: tokens.count, columns: model.configuration.hiddenSize, named: "hidden"), on: pool)
    }

    /// The first half of a block, into `w.update`.
    private func attend(
        _ index: Int, _ sequences: Int, _ split: TokenSplit?, _ sparse: Bool, _ t: inout BlockTape,
        _ w: inout TrainingWorkspace,
        _ clock: inout TrainingClock
    ) throws(SparseKernelsError) {
        let (block, rows, width) = (model.blocks[index], sequences * configuration.length, model.configuration.hiddenSize)
        if index == 0 {
            try block.inputNorm.run(w.hidden, rows: rows, into: &t.normalized, on: pool)
        } else {
            try block.inputNorm.run(adding: w.update, to: &w.hidden, rows: rows, into: &t.normalized, on: pool)
        }
        copy(w.hidden, rows * width, to: &t.attentionInput)
        clock.lap(\.other)
        var channels: AttentionChannels?
        if sparse, let estimators {
            channels = try estimators.attentionChannels(
                index, MatrixView(t.normalized.span, rows: rows, columns: width, named: "normalized"), on: pool)
            clock.lap(\.selection)
        }
        t.channels.attention = channels
        try block.query.run(
            t.normalized, rows: rows, split: split, channels: channels?.query, lora: factors(.query, index), tape: &t.queryTape,
            workspace: &w.buffers, into: &t.query, on: pool)
        try block.key.run(
            t.normalized, rows: rows, split: split, channels: channels?.key, lora: factors(.key, index), tape: &t.keyTape,
            workspace: &w.buffers, into: &t.key, on: pool)
        try block.value.run(
            t.normalized, rows: rows, split: split, channels: channels?.value, lora: factors(.value, index), tape: &t.valueTape,
            workspace: &w.buffers, into: &t.value, on: pool)
        clock.lap(\.projections)
        for sequence in 0..<sequences {
            let heads = try HeadViews(model.configuration, length: configuration.length, sequence: sequence)
            try rotate(&t.query, heads.query, from: heads.queryStart)
            try rotate(&t.key, heads.key, from: heads.keyStart)
            try attend(index, heads, query: t.query, key: t.key, value: t.value, into: &t.attended, &t.logSumExp)
        }
        clock.lap(\.attention)
        try block.output.run(
            t.attended, rows: rows, split: split, channels: channels?.output, lora: factors(.output, index),
            tape: &t.outputTape,
            workspace: &w.buffers, into: &w.update, on: pool)
        clock.lap(\.projections)
    }

    /// The second half of a block, into `w.update`.
    private func runMLP(
        _ index: Int, _ sequences: Int, _ split: TokenSplit?, _ sparse: Bool, _ t: inout BlockTape,
        _ w: inout TrainingWorkspace,
        _ clock: inout TrainingClock
    ) throws(SparseKernelsError) {
        let (block, rows, width) = (model.blocks[index], sequences * configuration.length, model.configuration.hiddenSize)
        try block.innerNorm.run(adding: w.update, to: &w.hidden, rows: rows, into: &t.innerNormalized, on: pool)
        copy(w.hidden, rows * width, to: &t.innerInput)
        clock.lap(\.other)
        var channels: ChannelSubset?
        if sparse, let estimators {
            channels = try estimators.mlpChannels(
                index, MatrixView(t.innerNormalized.span, rows: rows, columns: width, named: "normalized"),
                sequences: sequences, on: pool)
            clock.lap(\.selection)
        }
        t.channels.mlp = channels
        try block.mlp.run(
            t.innerNormalized, rows: rows, split: split, channels: channels, tape: &t.mlpTape, workspace: &w.buffers,
            into: &w.update, on: pool)
        clock.lap(\.mlp)
    }

    /// Rotates the heads of a sequence.
    private func rotate(
        _ x: inout Tensor<Float>, _ heads: TensorGeometry, from start: Int
    ) throws(SparseKernelsError) {
        var elements = x.mutableSpan
        try rotation.rotate(
            MutableTensorView(elements._mutatingExtracting(start...), geometry: heads, named: "heads"), on: pool)
    }

    /// The attention of a sequence.
    private func attend(
        _ index: Int, _ heads: HeadViews, query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>,
        into output: inout Tensor<Float>, _ logSumExp: inout Tensor<Float>
    ) throws(SparseKernelsError) {
        var rows = output.mutableSpan
        var sums = logSumExp.mutableSpan
        try attention[index].run(
            query: TensorView(query.span.extracting(heads.queryStart...), geometry: heads.query, named: "query"),
            key: TensorView(key.span.extracting(heads.keyStart...), geometry: heads.key, named: "key"),
            value: TensorView(value.span.extracting(heads.keyStart...), geometry: heads.key, named: "value"),
            output: MutableTensorView(rows._mutatingExtracting(heads.queryStart...), geometry: heads.query, named: "output"),
            logSumExp: sums._mutatingExtracting(heads.sums), on: pool)
    }

    /// The factors of a target, where it has an adapter.
    private func factors(_ target: AdapterTarget, _ index: Int) -> LoRAFactors? {
        adapters.place(target, block: index).map { adapters.factors[$0] }
    }

    /// Copies the first elements.
    private func copy(_ source: Tensor<Float>, _ count: Int, to target: inout Tensor<Float>) {
        let from = source.span
        var to = target.mutableSpan
        from.withUnsafeBufferPointer { from in
            to.withUnsafeMutableBufferPointer { to in
                if count > 0 { to.baseAddress!.update(from: from.baseAddress!, count: count) }
            }
        }
    }
}

/// Where the heads of a sequence are in matrices of all rows.
struct HeadViews {
    let query: TensorGeometry
    let key: TensorGeometry
    let queryStart: Int
    let keyStart: Int
    /// The log-sum-exps of its queries.
    let sums: Range<Int>

    init(_ c: LanguageModelConfiguration, length: Int, sequence: Int) throws(SparseKernelsError) {
        query = try TensorGeometry(heads: c.queryHeads, tokens: length, channels: c.headDim, layout: .nhd, named: "query")
        key = try TensorGeometry(heads: c.kvHeads, tokens: length, channels: c.headDim, layout: .nhd, named: "key")
        queryStart = sequence * length * c.queryHeads * c.headDim
        keyStart = sequence * length * c.kvHeads * c.headDim
        sums = sequence * c.queryHeads * length..<(sequence + 1) * c.queryHeads * length
    }
}
