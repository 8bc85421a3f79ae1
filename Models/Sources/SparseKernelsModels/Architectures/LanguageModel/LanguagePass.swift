import Foundation
import SparseKernels

/// The memory of a pass, which passes use one after the other, so that they allocate next to nothing. Rows are tokens.
struct LanguageWorkspace: Sendable {
    let rows: Int
    /// `[rows, hiddenSize]`: the residual stream.
    var hidden: Tensor<Float>
    /// The input of the linear layers; after a pass, that of the output projection.
    var normalized: Tensor<Float>
    var heads: HeadRows
    /// `[rows, queryHeads · headDim]`.
    var attended: Tensor<Float>
    var update: Tensor<Float>
    /// `[rows, 2 · intermediateSize]`.
    var gateUp: Tensor<Float>
    var inner: Tensor<Float>

    init(_ c: LanguageModelConfiguration, rows: Int) throws(SparseKernelsError) {
        self.rows = rows
        hidden = try Tensor(zeros: [rows, c.hiddenSize])
        normalized = try Tensor(zeros: [rows, c.hiddenSize])
        heads = try HeadRows(c, capacity: rows)
        attended = try Tensor(zeros: [rows, c.queryHeads * c.headDim])
        update = try Tensor(zeros: [rows, c.hiddenSize])
        gateUp = try Tensor(zeros: [rows, 2 * c.intermediateSize])
        inner = try Tensor(zeros: [rows, c.intermediateSize])
    }

    var byteCount: Int {
        4
            * (hidden.count + normalized.count + heads.elements.count + attended.count + update.count + gateUp.count
                + inner.count)
    }
}

/// The tokens of a pass, a row each.
struct PassTokens {
    var ids: [Int] = []
    /// The position of each token in its sequence.
    var positions: [Int] = []
    /// The rows of each sequence, and its length after the call that the pass is a part of. The dynamic scaling of the rotation
    /// depends on it.
    var sequences: [(rows: Range<Int>, length: Int)] = []

    init() {}

    /// Tokens of one sequence from its start on.
    init(_ ids: [Int]) {
        self.ids = ids
        positions = Array(0..<ids.count)
        sequences = [(0..<ids.count, ids.count)]
    }

    mutating func append(_ tokens: ArraySlice<Int>, after count: Int, length: Int) {
        sequences.append((ids.count..<ids.count + tokens.count, length))
        ids += tokens
        positions += count..<count + tokens.count
    }
}

/// The rows of a pass whose results are used after the last layer.
enum NeededRows {
    case all
    /// Ascending rows.
    case rows([Int])
}

extension LanguageModel {
    /// Runs tokens through the blocks. The final norm of the needed rows is in the first rows of `workspace.normalized` then.
    ///
    /// - Parameters:
    ///   - tokens: ids within the vocabulary, at most as many as the workspace has rows.
    ///   - needed: the rows that are finished. In the last layer others stop once attention has their keys and values.
    ///   - attention: attends, and keeps keys and values.
    func run(
        _ tokens: PassTokens, needed: NeededRows, attention: any TokenAttention,
        workspace w: inout LanguageWorkspace, stopwatch: inout Stopwatch, on pool: WorkerPool,
        observe: LayerObserver = { _, _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) {
        let c = configuration
        var rows = tokens.ids.count
        embed(tokens.ids, into: &w.hidden)
        let tables = rotaryTables(tokens)
        w.heads.rows = rows
        blocks[0].attentionNorm.run(w.hidden, rows: rows, into: &w.normalized, on: pool)
        for (layer, block) in blocks.enumerated() {
            for name in block.qkvNames { try observe(name, w.normalized) }
            stopwatch.lap(\.other)
            try block.qkv.run(w.normalized, rows: rows, into: &w.heads.elements, on: pool)
            stopwatch.lap(\.linear)
            if let norm = block.queryNorm {
                norm.normalize(&w.heads.elements, rows: rows, offset: 0, heads: c.queryHeads, on: pool)
            }
            if let norm = block.keyNorm {
                norm.normalize(&w.heads.elements, rows: rows, offset: w.heads.keyOffset, heads: c.kvHeads, on: pool)
            }
            for (table, rows) in tables {
                table.rotate(&w.heads.elements, rows: rows, heads: c.queryHeads + c.kvHeads, on: pool)
            }
            stopwatch.lap(\.other)
            try attention.attend(&w.heads, layer: layer, into: &w.attended, on: pool)
            stopwatch.lap(\.attention)

            if layer == blocks.count - 1, case .rows(let list) = needed {
                rows = list.count
                if rows == 0 { return }
                keep(list, of: &w.hidden)
                keep(list, of: &w.attended)
            }
            try observe(block.outputName, w.attended)
            stopwatch.lap(\.other)
            try block.output.run(w.attended, rows: rows, into: &w.update, on: pool)
            stopwatch.lap(\.linear)
            block.afterAttention?.normalize(&w.update, rows: rows, offset: 0, heads: 1, on: pool)
            block.mlpNorm.run(adding: w.update, to: &w.hidden, rows: rows, into: &w.normalized, on: pool)
            for name in block.gateUpNames { try observe(name, w.normalized) }
            stopwatch.lap(\.other)
            try block.gateUp.run(w.normalized, rows: rows, into: &w.gateUp, on: pool)
            stopwatch.lap(\.linear)
            GatedActivation(function: c.activation).run(w.gateUp, rows: rows, into: &w.inner, on: pool)
            try observe(block.downName, w.inner)
            stopwatch.lap(\.other)
            try block.down.run(w.inner, rows: rows, into: &w.update, on: pool)
            stopwatch.lap(\.linear)
            block.afterMLP?.normalize(&w.update, rows: rows, offset: 0, heads: 1, on: pool)
            let next = layer + 1 < blocks.count ? blocks[layer + 1].attentionNorm : finalNorm
            next.run(adding: w.update, to: &w.hidden, rows: rows, into: &w.normalized, on: pool)
        }
        stopwatch.lap(\.other)
    }

    /// The logits of rows that the final norm has left.
    func project(
        _ rows: Tensor<Float>, rows count: Int, into logits: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try head.run(rows, rows: count, into: &logits, on: pool)
        guard let cap = configuration.logitSoftCap else { return }
        var elements = logits.mutableSpan
        for i in 0..<elements.count { elements[i] = cap * tanhf(elements[i] / cap) }
    }

    /// Cosines and sines for all layers: one table, or one per sequence where angles depend on its length.
    private func rotaryTables(_ tokens: PassTokens) -> [(table: RotaryTable, rows: Range<Int>)] {
        guard case .dynamicNTK = configuration.rotary.scaling else {
            return [(configuration.rotary.table(positions: tokens.positions, length: 0), 0..<tokens.ids.count)]
        }
        return tokens.sequences.map { rows, length in
            (configuration.rotary.table(positions: Array(tokens.positions[rows]), length: length), rows)
        }
    }

    private func embed(_ tokens: [Int], into hidden: inout Tensor<Float>) {
        let (source, width, scale) = (embedding.span, configuration.hiddenSize, configuration.embeddingScale)
        var target = hidden.mutableSpan
        for (row, token) in tokens.enumerated() {
            for i in 0..<width { target[row * width + i] = source[token * width + i] * scale }
        }
    }

    /// Moves some rows to the front.
    private func keep(_ rows: [Int], of matrix: inout Tensor<Float>) {
        let width = matrix.shape[1]
        var elements = matrix.mutableSpan
        for (target, source) in rows.enumerated() where source != target {
            for i in 0..<width { elements[target * width + i] = elements[source * width + i] }
        }
    }
}
