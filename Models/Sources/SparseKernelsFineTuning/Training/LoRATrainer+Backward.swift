import SparseKernels
import SparseKernelsModels
import SparseKernelsTraining
import SparseLoRA

extension LoRATrainer {
    /// Runs back through the blocks, from the gradient of the residual stream in `workspace.hidden`.
    func runBackward(_ batch: TrainingBatch) throws(SparseKernelsError) {
        for index in model.blocks.indices.reversed() {
            try runBackMLP(index, batch.sequences, tapes[index], &workspace, &clock)
            try attendBack(index, batch.sequences, tapes[index], &workspace, &adapters, &clock)
        }
    }

    private func runBackMLP(
        _ index: Int, _ sequences: Int, _ t: BlockTape, _ w: inout TrainingWorkspace, _ clock: inout TrainingClock
    ) throws(SparseKernelsError) {
        let (block, rows, width) = (model.blocks[index], sequences * configuration.length, model.configuration.hiddenSize)
        try block.mlp.gradient(w.hidden, rows: rows, tape: t.mlpTape, workspace: &w.buffers, into: &w.update, on: pool)
        clock.lap(\.mlp)
        try block.innerNormGradient.run(
            w.update, x: t.innerInput, rows: rows, width: width, into: &w.hidden, accumulates: true, on: pool)
        clock.lap(\.other)
    }

    private func attendBack(
        _ index: Int, _ sequences: Int, _ t: BlockTape, _ w: inout TrainingWorkspace, _ adapters: inout TrainedAdapters,
        _ clock: inout TrainingClock
    ) throws(SparseKernelsError) {
        let (block, rows, width) = (model.blocks[index], sequences * configuration.length, model.configuration.hiddenSize)
        let passes = configuration.sparsity?.mode != .released
        try adapters.gradient(
            block.output, .output, block: index, w.hidden, x: t.attended, rows: rows, tape: t.outputTape, workspace: &w.buffers,
            into: &w.attended, accumulates: false, passesFrozenGradient: passes, on: pool)
        clock.lap(\.projections)
        for sequence in 0..<sequences {
            let heads = try HeadViews(model.configuration, length: configuration.length, sequence: sequence)
            try attendBack(index, heads, t, outputGradient: w.attended, query: &w.query, key: &w.key, value: &w.value)
            try rotateBack(&w.query, heads.query, from: heads.queryStart)
            try rotateBack(&w.key, heads.key, from: heads.keyStart)
        }
        clock.lap(\.attention)
        try adapters.gradient(
            block.query, .query, block: index, w.query, x: t.normalized, rows: rows, tape: t.queryTape, workspace: &w.buffers,
            into: &w.update, accumulates: false, passesFrozenGradient: passes, on: pool)
        try adapters.gradient(
            block.key, .key, block: index, w.key, x: t.normalized, rows: rows, tape: t.keyTape, workspace: &w.buffers,
            into: &w.update, accumulates: true, passesFrozenGradient: passes, on: pool)
        try adapters.gradient(
            block.value, .value, block: index, w.value, x: t.normalized, rows: rows, tape: t.valueTape, workspace: &w.buffers,
            into: &w.update, accumulates: true, passesFrozenGradient: passes, on: pool)
        clock.lap(\.projections)
        // Nothing below the first block is trained.
        guard index > 0 else { return }
        try block.inputNormGradient.run(
            w.update, x: t.attentionInput, rows: rows, width: width, into: &w.hidden, accumulates: true, on: pool)
        clock.lap(\.other)
    }

    /// The gradients of a sequence's queries, keys and values.
    private func attendBack(
        _ index: Int, _ heads: HeadViews, _ t: BlockTape, outputGradient: Tensor<Float>, query: inout Tensor<Float>,
        key: inout Tensor<Float>, value: inout Tensor<Float>
    ) throws(SparseKernelsError) {
        var queries = query.mutableSpan
        var keys = key.mutableSpan
        var values = value.mutableSpan
        try attentionGradient[index].run(
            query: TensorView(t.query.span.extracting(heads.queryStart...), geometry: heads.query, named: "query"),
            key: TensorView(t.key.span.extracting(heads.keyStart...), geometry: heads.key, named: "key"),
            value: TensorView(t.value.span.extracting(heads.keyStart...), geometry: heads.key, named: "value"),
            output: TensorView(t.attended.span.extracting(heads.queryStart...), geometry: heads.query, named: "output"),
            logSumExp: t.logSumExp.span.extracting(heads.sums),
            outputGradient: TensorView(
                outputGradient.span.extracting(heads.queryStart...), geometry: heads.query, named: "outputGradient"),
            queryGradient: MutableTensorView(
                queries._mutatingExtracting(heads.queryStart...), geometry: heads.query, named: "queryGradient"),
            keyGradient: MutableTensorView(
                keys._mutatingExtracting(heads.keyStart...), geometry: heads.key, named: "keyGradient"),
            valueGradient: MutableTensorView(
                values._mutatingExtracting(heads.keyStart...), geometry: heads.key, named: "valueGradient"), on: pool)
    }

    private func rotateBack(
        _ x: inout Tensor<Float>, _ heads: TensorGeometry, from start: Int
    ) throws(SparseKernelsError) {
        var elements = x.mutableSpan
        try rotation.rotateBack(
            MutableTensorView(elements._mutatingExtracting(start...), geometry: heads, named: "heads"), on: pool)
    }
}
