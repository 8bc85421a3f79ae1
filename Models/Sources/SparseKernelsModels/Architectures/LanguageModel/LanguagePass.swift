import CATS
import Foundation
import NemotronH
import PolarSparsity
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
    /// `[rows, 2 · intermediateSize]`, or half of it in an MLP without a gate.
    var gateUp: Tensor<Float>
    var inner: Tensor<Float>
    /// `[rows, projectedWidth]` and `[rows, innerWidth]` of recurrent layers, and rows between; empty in models without.
    var projected: Tensor<Float>
    var mixed: Tensor<Float>
    var recurrence = Mamba2Workspace()
    var cats = CATSWorkspace()
    /// Channels of MLPs that skip some, since the session took it last.
    var channels = ChannelCounts()

    /// - Parameter hasCATS: whether MLPs skip small activations.
    init(_ c: LanguageModelConfiguration, rows: Int, hasCATS: Bool = false) throws(SparseKernelsError) {
        self.rows = rows
        hidden = try Tensor(zeros: [rows, c.hiddenSize])
        normalized = try Tensor(zeros: [rows, c.hiddenSize])
        heads = try HeadRows(c, capacity: rows)
        attended = try Tensor(zeros: [rows, c.queryHeads * c.headDim])
        update = try Tensor(zeros: [rows, c.hiddenSize])
        // MLPs that skip activations have their own memory.
        let inner = hasCATS ? 0 : c.intermediateSize
        gateUp = try Tensor(zeros: [rows, (c.gatesMLP ? 2 : 1) * inner])
        self.inner = try Tensor(zeros: [rows, inner])
        projected = try Tensor(zeros: [rows, c.mamba2?.projectedWidth ?? 0])
        mixed = try Tensor(zeros: [rows, c.mamba2?.innerWidth ?? 0])
        if c.gatesMLP, hasCATS { try cats.reserve(tokens: rows, innerWidth: c.intermediateSize) }
        if let mamba2 = c.mamba2 { try recurrence.reserve(tokens: rows, mamba2) }
    }

    var byteCount: Int {
        4
            * (hidden.count + normalized.count + heads.elements.count + attended.count + update.count + gateUp.count
                + inner.count + projected.count + mixed.count) + recurrence.byteCount + cats.byteCount
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
    /// Runs tokens through the layers. The final norm of the needed rows is in the first rows of `workspace.normalized` then.
    ///
    /// - Parameters:
    ///   - tokens: ids within the vocabulary, at most as many as the workspace has rows.
    ///   - needed: the rows that are finished. In the last layer that mixes tokens, others stop once they are mixed.
    ///   - attention: attends, and keeps keys, values and recurrent states.
    func run(
        _ tokens: PassTokens, needed: NeededRows, attention: any TokenAttention,
        workspace w: inout LanguageWorkspace, stopwatch: inout Stopwatch, on pool: WorkerPool,
        observe: LayerObserver = { _, _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) {
        let c = configuration
        var rows = tokens.ids.count
        try embedding.run(
            tokens: tokens.ids,
            into: MutableMatrixView(w.hidden.mutableSpan, rows: rows, columns: c.hiddenSize, named: "hidden"), on: pool)
        let tables = try rotaryTables(tokens, on: pool)
        w.heads.rows = rows
        try normalize(w.hidden, by: layers.first?.norm ?? finalNorm, rows: rows, into: &w.normalized, on: pool)
        for (index, layer) in layers.enumerated() {
            switch layer.mixer {
            case .attention(let mixer):
                try attend(mixer, tables, rows: rows, attention, &w, &stopwatch, on: pool, observe)
            case .mamba2(let mixer):
                try recur(mixer, rows: rows, attention, &w, &stopwatch, on: pool, observe)
            case .mlp, .cats: break
            }
            if index == lastMixingLayer, case .rows(let list) = needed {
                rows = list.count
                if rows == 0 { return }
                keep(list, of: &w.hidden)
                if case .mamba2 = layer.mixer { keep(list, of: &w.mixed) } else { keep(list, of: &w.attended) }
            }
            switch layer.mixer {
            case .attention(let mixer):
                try observe(mixer.outputName, w.attended)
                stopwatch.lap(\.other)
                try mixer.output.run(w.attended, rows: rows, into: &w.update, on: pool)
            case .mamba2(let mixer):
                try observe(mixer.outputName, w.mixed)
                stopwatch.lap(\.other)
                try mixer.output.run(w.mixed, rows: rows, into: &w.update, on: pool)
            case .mlp(let mixer):
                for name in mixer.upNames { try observe(name, w.normalized) }
                stopwatch.lap(\.other)
                try mixer.up.run(w.normalized, rows: rows, into: &w.gateUp, on: pool)
                stopwatch.lap(\.linear)
                try activate(w.gateUp, rows: rows, into: &w.inner, on: pool)
                try observe(mixer.downName, w.inner)
                stopwatch.lap(\.other)
                try mixer.down.run(w.inner, rows: rows, into: &w.update, on: pool)
            case .cats(let mixer):
                for name in mixer.upNames { try observe(name, w.normalized) }
                stopwatch.lap(\.other)
                w.channels.computed += try mixer.layer.run(
                    w.normalized, rows: rows, into: &w.update, workspace: &w.cats, on: pool)
                w.channels.all += c.intermediateSize
            }
            stopwatch.lap(\.linear)
            let next = index + 1 < layers.count ? layers[index + 1].norm : finalNorm
            try add(
                &w.update, normalizedBy: layer.after, to: &w.hidden, then: next, rows: rows, into: &w.normalized, on: pool)
        }
        stopwatch.lap(\.other)
    }

    /// Queries, keys and values of all rows, and attention, into `w.attended`.
    private func attend(
        _ mixer: AttentionMixer, _ tables: [(table: RotaryTable, rows: Range<Int>)], rows: Int,
        _ attention: any TokenAttention, _ w: inout LanguageWorkspace, _ stopwatch: inout Stopwatch, on pool: WorkerPool,
        _ observe: LayerObserver
    ) throws(SparseKernelsError) {
        for name in mixer.qkvNames { try observe(name, w.normalized) }
        stopwatch.lap(\.other)
        try mixer.qkv.run(w.normalized, rows: rows, into: &w.heads.elements, on: pool)
        stopwatch.lap(\.linear)
        try rotate(&w.heads, mixer, tables, on: pool)
        w.heads.selected = nil
        stopwatch.lap(\.other)
        if let count = attention.selectedHeads(layer: mixer.index), let router = headRouters?[mixer.index] {
            w.heads.selected = try router.select(
                MatrixView(w.normalized.span, rows: rows, columns: configuration.hiddenSize, named: "normalized"),
                count: count, on: pool)
        }
        try attention.attend(&w.heads, layer: mixer.index, into: &w.attended, on: pool)
        stopwatch.lap(\.attention)
    }

    /// The input projection of all rows, and the recurrence, into `w.mixed`.
    private func recur(
        _ mixer: RecurrentMixer, rows: Int, _ attention: any TokenAttention, _ w: inout LanguageWorkspace,
        _ stopwatch: inout Stopwatch, on pool: WorkerPool, _ observe: LayerObserver
    ) throws(SparseKernelsError) {
        try observe(mixer.inputName, w.normalized)
        stopwatch.lap(\.other)
        try mixer.input.run(w.normalized, rows: rows, into: &w.projected, on: pool)
        stopwatch.lap(\.linear)
        try mixer.run(
            w.projected, rows: rows, into: &w.mixed, batch: attention.batch(), states: attention.states(layer: mixer.index),
            workspace: &w.recurrence, on: pool)
        stopwatch.lap(\.recurrence)
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

    // MARK: - Between linear layers and attention

    private func normalize(
        _ x: Tensor<Float>, by norm: RMSNorm, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try norm.run(
            MatrixView(x.span, rows: rows, columns: norm.channels, named: "hidden"),
            into: MutableMatrixView(y.mutableSpan, rows: rows, columns: norm.channels, named: "normalized"), on: pool)
    }

    private func activate(
        _ gateUp: Tensor<Float>, rows: Int, into inner: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let width = configuration.intermediateSize
        guard configuration.gatesMLP else {
            try activation.run(
                MatrixView(gateUp.span, rows: rows, columns: width, named: "up"),
                into: MutableMatrixView(inner.mutableSpan, rows: rows, columns: width, named: "inner"), on: pool)
            return
        }
        try activation.run(
            halvesOf: MatrixView(gateUp.span, rows: rows, columns: 2 * width, named: "gateUp"),
            into: MutableMatrixView(inner.mutableSpan, rows: rows, columns: width, named: "inner"), on: pool)
    }

    /// Adds what attention or the MLP says to the residual stream, and normalises it for what comes next.
    private func add(
        _ update: inout Tensor<Float>, normalizedBy own: RMSNorm?, to hidden: inout Tensor<Float>, then norm: RMSNorm,
        rows: Int, into normalized: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let width = configuration.hiddenSize
        try own?.normalize(
            MutableTensorView(update.mutableSpan, heads: 1, tokens: rows, channels: width, named: "update"), on: pool)
        try norm.run(
            adding: MatrixView(update.span, rows: rows, columns: width, named: "update"),
            to: MutableMatrixView(hidden.mutableSpan, rows: rows, columns: width, named: "hidden"),
            into: MutableMatrixView(normalized.mutableSpan, rows: rows, columns: width, named: "normalized"), on: pool)
    }

    /// Normalises queries and keys where the model does so, and rotates them, in place.
    private func rotate(
        _ heads: inout HeadRows, _ mixer: AttentionMixer, _ tables: [(table: RotaryTable, rows: Range<Int>)],
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if let norm = mixer.queryNorm {
            let geometry = try heads.geometry(heads: heads.queryHeads)
            try norm.normalize(
                MutableTensorView(heads.elements.mutableSpan, geometry: geometry, named: "query"), on: pool)
        }
        if let norm = mixer.keyNorm {
            let (geometry, offset) = (try heads.geometry(heads: heads.kvHeads), heads.keyOffset)
            var elements = heads.elements.mutableSpan
            try norm.normalize(
                MutableTensorView(elements._mutatingExtracting(offset...), geometry: geometry, named: "key"), on: pool)
        }
        for (table, rows) in tables {
            // Keys follow queries in a row.
            let geometry = try heads.geometry(heads: heads.queryHeads + heads.kvHeads, tokens: rows.count)
            let start = rows.lowerBound * heads.width
            var elements = heads.elements.mutableSpan
            try table.rotate(
                MutableTensorView(elements._mutatingExtracting(start...), geometry: geometry, named: "heads"), on: pool)
        }
    }

    /// Cosines and sines for all layers: one table, or one per sequence where angles depend on its length. None in models without
    /// an encoding of positions.
    private func rotaryTables(
        _ tokens: PassTokens, on pool: WorkerPool
    ) throws(SparseKernelsError) -> [(table: RotaryTable, rows: Range<Int>)] {
        guard let rotary = configuration.rotary else { return [] }
        guard case .dynamicNTK = rotary.scaling else {
            return [(try rotary.table(positions: tokens.positions, on: pool), 0..<tokens.ids.count)]
        }
        var tables: [(table: RotaryTable, rows: Range<Int>)] = []
        for (rows, length) in tokens.sequences {
            tables.append((try rotary.table(positions: Array(tokens.positions[rows]), length: length, on: pool), rows))
        }
        return tables
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
