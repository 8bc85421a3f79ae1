internal import KernelInterface

/// One pass of a layer over some tokens. It has five phases, of which each is one call of the pool:
///
///     gather    rows of x, in the order of their experts, as their products read them
///     expand    hidden = f(gate x) · up x, panel by panel
///     code      hidden rows as the down-projections read them, where these are quantised
///     contract  outputs = hidden · downᵀ, panel by panel, over the memory of the inputs
///     combine   y = Σ weight · output, token by token
///
/// Everything here is numbers and addresses, so that tasks copy no references. The layer and the routing outlive the call.
struct ExpertCall {
    let kernels: any KernelTable.Type
    let function: RowFunction
    let x: RowOperand
    let y: RowTarget
    let tokens: Int
    let width: Int
    let hiddenWidth: Int
    let sharedWidth: Int
    /// Of the tokens of the pass.
    let ids: UnsafePointer<Int32>
    let weights: UnsafePointer<Float>
    let sorted: UnsafePointer<Int32>
    let places: UnsafePointer<Int32>
    let slots: Int
    let routed: BankMemory
    /// That of `routed` where no expert is shared.
    let shared: BankMemory
    let sharedExperts: Int
    /// Experts with rows.
    let list: UnsafePointer<ExpertRows>
    let count: Int
    let inTasks: Int
    let outTasks: Int
    /// The estimated multiply-adds of gate and up.
    let inWork: Int

    /// Rows of a panel of hidden features before they are activated.
    private static let tileFloats = QuantizedScratch.taskRows * 2 * AttentionScratch.maximumLanes

    static var scratchByteCount: Int {
        max(QuantizedScratch.activationByteCount, productByteCount + tileFloats * 4)
    }
    private static var productByteCount: Int { (QuantizedScratch.productByteCount(rank: 0) + 63) / 64 * 64 }

    static func run(
        _ layer: ExpertLayer, x: RowOperand, routing: ExpertRouting, y: RowTarget, on pool: WorkerPool
    ) {
        let tokens = routing.tokens
        let limit = GEMMScratch.block(tokens, limit: ExpertLayer.passTokens, unit: 1)
        let workspace = ExpertWorkspace(
            layer, tokens: limit, slots: routing.expertsPerToken, sortsAgain: limit < tokens)
        pool.withWorkspace(byteCount: workspace.byteCount) { base in
            var first = 0
            while first < tokens {
                let count = min(limit, tokens - first)
                let call = ExpertCall(
                    layer, workspace, at: base, x: x.from(first), routing: routing, first: first, tokens: count,
                    y: y.from(first))
                call.run(on: pool)
                first += count
            }
        }
    }

    private init(
        _ layer: ExpertLayer, _ workspace: ExpertWorkspace, at base: UnsafeMutableRawPointer, x: RowOperand,
        routing: ExpertRouting, first: Int, tokens: Int, y: RowTarget
    ) {
        kernels = layer.kernels
        function = layer.activation.kernel
        (self.x, self.y, self.tokens) = (x, y, tokens)
        (width, hiddenWidth) = (layer.routed.width, layer.routed.hiddenWidth)
        sharedWidth = layer.shared?.hiddenWidth ?? 0
        slots = routing.expertsPerToken
        let (experts, rows) = (routing.experts, tokens * slots)
        ids = UnsafePointer(routing.idPointer) + first * slots
        weights = UnsafePointer(routing.weightPointer) + first * slots
        var (counts, offsets) = (routing.countPointer, routing.offsetPointer)
        if tokens < routing.tokens {
            let sorted = workspace.sorted(base)
            (counts, offsets) = (sorted + 2 * rows, sorted + 2 * rows + experts)
            ExpertRouting.sort(
                ids: ids, count: rows, experts: experts, counts: counts, offsets: offsets, sorted: sorted,
                places: sorted + rows)
            (self.sorted, places) = (UnsafePointer(sorted), UnsafePointer(sorted + rows))
        } else {
            (sorted, places) = (UnsafePointer(routing.sortedPointer), UnsafePointer(routing.placePointer))
        }
        routed = BankMemory(layer.routed, rows: rows, at: base)
        sharedExperts = layer.shared?.experts.count ?? 0
        if let bank = layer.shared {
            shared = BankMemory(bank, rows: tokens * sharedExperts, at: workspace.shared(base))
        } else {
            shared = routed
        }
        let list = workspace.list(base)
        var listed = ExpertList(list: list, sizes: layer.kernels.sizes, width: width)
        // Shared experts have the most rows, so their tasks come first.
        for expert in 0..<sharedExperts {
            listed.append(
                shared, bank: 1, expert: expert, row: expert * tokens, rows: tokens, hiddenWidth: sharedWidth)
        }
        for expert in 0..<experts where counts[expert] > 0 {
            listed.append(
                routed, bank: 0, expert: expert, row: Int(offsets[expert]), rows: Int(counts[expert]),
                hiddenWidth: hiddenWidth)
        }
        self.list = UnsafePointer(list)
        (count, inTasks, outTasks, inWork) = (listed.count, listed.inTasks, listed.outTasks, listed.work)
    }

    private func run(on pool: WorkerPool) {
        let rows = tokens * (slots + sharedExperts)
        let scratch = Self.scratchByteCount
        pool.run(
            Coding(call: self, isHidden: false), tasks: rows, work: rows * width * 8, scratchByteCount: scratch)
        pool.run(Expansion(call: self), tasks: inTasks, work: inWork, scratchByteCount: scratch)
        if routed.codesHidden || (sharedExperts > 0 && shared.codesHidden) {
            pool.run(
                Coding(call: self, isHidden: true), tasks: rows, work: rows * hiddenWidth * 8, scratchByteCount: scratch)
        }
        pool.run(Contraction(call: self), tasks: outTasks, work: inWork / 2, scratchByteCount: scratch)
        let tasks = RowTasks(rows: tokens, bytesPerRow: width * 4 * (slots + sharedExperts + 1))
        pool.run(Combination(call: self, tasks: tasks), tasks)
    }

    func memory(_ bank: Int) -> BankMemory { bank == 0 ? routed : shared }

    /// The expert whose tasks of a phase include this one.
    private func rows(ofTask task: Int, isOut: Bool) -> ExpertRows {
        var (low, high) = (0, count)
        while high - low > 1 {
            let middle = (low + high) / 2
            if (isOut ? list[middle].firstOut : list[middle].firstIn) <= task { low = middle } else { high = middle }
        }
        return list[low]
    }

    // MARK: - Phases

    /// Rows of x, or hidden rows, as products read them. A task is one row.
    private struct Coding: PoolCall {
        let call: ExpertCall
        let isHidden: Bool

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let routedRows = call.tokens * call.slots
            let isShared = task >= routedRows
            let row = isShared ? task - routedRows : task
            let memory = isShared ? call.shared : call.routed
            let slot = isShared ? 0 : Int(call.sorted[row])
            let expert = isShared ? row / call.tokens : Int(call.ids[slot])
            if isHidden {
                if !memory.codesHidden { return }
                let source = RowOperand(
                    base: memory.floats + row * memory.hiddenStride, stride: memory.hiddenStride, type: .float32)
                memory.coders[2 * expert + 1].code(
                    source, into: memory.hidden(from: row), kernels: call.kernels, scratch: scratch)
            } else {
                let token = isShared ? row % call.tokens : slot / call.slots
                memory.coders[2 * expert].code(
                    call.x.from(token), into: memory.inputs(from: row), kernels: call.kernels, scratch: scratch)
            }
        }
    }

    /// Gate, up and activation of a block of rows of an expert and a panel of hidden features.
    private struct Expansion: PoolCall {
        let call: ExpertCall

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let part = call.rows(ofTask: task, isOut: false)
            let memory = call.memory(part.bank)
            let gate = memory.products + 3 * part.expert
            let (block, panel) = (task - part.firstIn).quotientAndRemainder(dividingBy: gate.pointee.panels)
            let first = block * part.inRows
            let rows = min(part.inRows, part.rows - first)
            let inputs = memory.inputs(from: part.row + first)
            let columns = gate.pointee.columns(ofPanel: panel)
            let hidden = RowTarget(
                base: memory.floats + (part.row + first) * memory.hiddenStride + columns.first,
                stride: memory.hiddenStride, type: .float32)
            let tile = RowTarget(
                base: scratch + ExpertCall.productByteCount, stride: 2 * AttentionScratch.maximumLanes, type: .float32)
            var arguments = gate.pointee.arguments(panel: panel, inputs, rows: rows, y: tile, scratch: scratch)
            call.kernels.multiplyQuantized(&arguments)
            arguments = gate[1].arguments(panel: panel, inputs, rows: rows, y: hidden, scratch: scratch)
            call.kernels.multiplyQuantized(&arguments)
            var activation = ActivateArguments(
                gate: tile.asOperand, up: hidden.asOperand, hasUp: true, y: hidden, rows: rows, columns: columns.count,
                function: call.function)
            call.kernels.activateRows(&activation)
        }
    }

    /// The down-projection of a block of rows of an expert and a panel of outputs.
    private struct Contraction: PoolCall {
        let call: ExpertCall

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let part = call.rows(ofTask: task, isOut: true)
            let memory = call.memory(part.bank)
            let down = memory.products + 3 * part.expert + 2
            let (block, panel) = (task - part.firstOut).quotientAndRemainder(dividingBy: down.pointee.panels)
            let first = block * part.outRows
            let rows = min(part.outRows, part.rows - first)
            let output = RowTarget(
                base: memory.outputs + (part.row + first) * memory.outputStride + down.pointee.columns(ofPanel: panel).first,
                stride: memory.outputStride, type: .float32)
            var arguments = down.pointee.arguments(
                panel: panel, memory.hidden(from: part.row + first), rows: rows, y: output, scratch: scratch)
            call.kernels.multiplyQuantized(&arguments)
        }
    }

    /// The sums of some tokens.
    private struct Combination: PoolCall {
        let call: ExpertCall
        let tasks: RowTasks

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let first = tasks.first(task)
            var arguments = CombineRowsArguments(
                rows: call.routed.outputs, stride: call.routed.outputStride, places: call.places + first * call.slots,
                weights: call.weights + first * call.slots, listed: call.slots, y: call.y.from(first),
                tokens: tasks.count(task), channels: call.width)
            arguments.extra = UnsafePointer(call.shared.outputs) + first * call.shared.outputStride
            arguments.extraStride = call.shared.outputStride
            arguments.blocks = call.sharedExperts
            arguments.blockStride = call.tokens * call.shared.outputStride
            call.kernels.combineRows(&arguments)
        }
    }
}

/// The list of experts with rows while it is made.
private struct ExpertList {
    let list: UnsafeMutablePointer<ExpertRows>
    let sizes: TileSizes
    let width: Int
    var count = 0
    var inTasks = 0
    var outTasks = 0
    /// Multiply-adds of gate and up.
    var work = 0

    mutating func append(_ memory: BankMemory, bank: Int, expert: Int, row: Int, rows: Int, hiddenWidth: Int) {
        let inRows = taskRows(rows, depth: width, memory.input)
        let outRows = taskRows(rows, depth: hiddenWidth, memory.hidden)
        list[count] = ExpertRows(
            bank: bank, expert: expert, row: row, rows: rows, inRows: inRows, outRows: outRows, firstIn: inTasks,
            firstOut: outTasks)
        count += 1
        inTasks += (rows + inRows - 1) / inRows * memory.products[3 * expert].panels
        outTasks += (rows + outRows - 1) / outRows * memory.products[3 * expert + 2].panels
        work += 2 * QuantizedLinearCall.work(rows, width, hiddenWidth)
    }

    /// The rows of each task, as those of a layer of its own.
    private func taskRows(_ rows: Int, depth: Int, _ storage: ActivationStorage) -> Int {
        storage.isCoded
            ? GEMMScratch.block(rows, limit: QuantizedScratch.taskRows, unit: 6)
            : QuantizedScratch.valueRows(rows, depth: depth, tileRows: sizes.tileRows, laneCount: sizes.laneCount)
    }
}
