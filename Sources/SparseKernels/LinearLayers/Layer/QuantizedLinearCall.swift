internal import KernelInterface

/// One `run` of a quantised layer. For each block of rows it first quantises all activations, then multiplies by all panels.
///
/// Tasks of the product go row block by row block, so that a thread finds its activations in the second-level cache.
struct QuantizedLinearCall {
    let layer: QuantizedLinear
    let x: RowOperand
    let y: RowTarget
    /// The panels and groups that take part.
    let part: QuantizedPart

    init(layer: QuantizedLinear, x: RowOperand, y: RowTarget, part: QuantizedPart? = nil) {
        self.layer = layer
        self.x = x
        self.y = y
        self.part = part ?? QuantizedPart(layer.weight.layout)
    }

    func run(rows: Int, on pool: WorkerPool) {
        // Blocks have equal sizes, because a last block of a single row would be summed in another order.
        let block = ActivationBlock(
            layer, rows: GEMMScratch.block(rows, limit: QuantizedLinear.blockRows, unit: 1),
            hasTurnedCodes: layer.hasQuietWeight && part.groupList == nil)
        pool.withWorkspace(byteCount: block.byteCount) { workspace in
            var first = 0
            while first < rows {
                let count = min(block.rows, rows - first)
                quantize(from: first, rows: count, block, workspace, on: pool)
                multiply(from: first, rows: count, block, workspace, on: pool)
                first += count
            }
        }
    }

    // MARK: - Activations

    /// Quantises activations and projects them down. With many rows, a task does both for a step of channels while it is in the
    /// cache. With few rows, each is a task of its own, because one of them may take as long as the product of one thread.
    /// Results do not depend on this.
    func quantize(
        from first: Int, rows: Int, _ block: ActivationBlock, _ workspace: UnsafeMutableRawPointer, on pool: WorkerPool
    ) {
        let unit = layer.weight.kernels.sizes.tileRows
        let isSplit = rows < 8 * unit
        // Rows whose codes are turned together are rows of one task.
        let taskUnit = block.turns(rows: rows) ? 4 * layer.weight.layout.laneCount : unit
        let taskRows =
            isSplit
            ? (rows + 7) / 8
            : min(QuantizedScratch.activationRows, ((rows + 15) / 16 + taskUnit - 1) / taskUnit * taskUnit)
        let phase = Phase(
            call: self, block: block, workspace: workspace, first: first, rows: rows, taskRows: taskRows,
            codeTasks: (rows + taskRows - 1) / taskRows, lowRows: isSplit ? unit : 0)
        let lowTasks = isSplit && layer.rank > 0 ? (rows + unit - 1) / unit : 0
        pool.run(
            phase, tasks: phase.codeTasks + lowTasks, work: rows * part.inFeatures * (layer.rank + 8),
            scratchByteCount: layer.scratchByteCount)
    }

    private func multiply(
        from first: Int, rows: Int, _ block: ActivationBlock, _ workspace: UnsafeMutableRawPointer, on pool: WorkerPool
    ) {
        let product = product(from: first, rows: rows, block, workspace)
        pool.run(
            product, tasks: product.productTasks,
            work: Self.work(rows, part.inFeatures, part.panels * layer.weight.layout.panelWidth),
            scratchByteCount: layer.scratchByteCount)
    }

    /// The estimated cost of a product in multiply-adds. With few rows it is bound by reading and unpacking the weights, which
    /// take as long as four rows.
    static func work(_ rows: Int, _ inFeatures: Int, _ outFeatures: Int) -> Int { max(rows, 4) * inFeatures * outFeatures }

    /// The product of rows whose activations are in the workspace.
    func product(
        from first: Int, rows: Int, _ block: ActivationBlock, _ workspace: UnsafeMutableRawPointer
    ) -> Phase {
        let sizes = layer.weight.kernels.sizes
        let taskRows: Int
        if layer.activation == .float {
            taskRows = QuantizedScratch.valueRows(
                rows, depth: part.inFeatures, tileRows: sizes.tileRows, laneCount: sizes.laneCount)
        } else if layer.hasQuietWeight && block.turns(rows: rows) {
            taskRows = GEMMScratch.block(rows, limit: QuantizedScratch.quietRows, unit: QuantizedScratch.quietRowUnit)
        } else if layer.sumsWholeRows {
            taskRows = GEMMScratch.block(rows, limit: QuantizedScratch.wholeRows, unit: QuantizedScratch.wholeRowUnit)
        } else {
            taskRows = GEMMScratch.block(rows, limit: QuantizedScratch.taskRows, unit: 6)
        }
        return Phase(
            call: self, block: block, workspace: workspace, first: first, rows: rows, taskRows: taskRows)
    }

    /// Projects rows down for the low-rank branch, without their codes.
    func projectDown(
        from first: Int, rows: Int, _ block: ActivationBlock, _ workspace: UnsafeMutableRawPointer, on pool: WorkerPool
    ) {
        let unit = layer.weight.kernels.sizes.tileRows
        let phase = Phase(
            call: self, block: block, workspace: workspace, first: first, rows: rows, taskRows: 1, codeTasks: 0, lowRows: unit)
        pool.run(
            Projection(phase: phase), tasks: (rows + unit - 1) / unit, work: rows * layer.inFeatures * layer.rank,
            scratchByteCount: layer.scratchByteCount)
    }

    private struct Projection: PoolCall {
        let phase: Phase

        func perform(task: Int, scratch: UnsafeMutableRawPointer) { phase.quantize(task: task, scratch: scratch) }
    }

    /// The quantisation or the product of a block of rows.
    struct Phase: PoolCall {
        let call: QuantizedLinearCall
        let block: ActivationBlock
        let workspace: UnsafeMutableRawPointer
        /// The first row of the block, its number of rows, and the rows per task.
        let first: Int
        let rows: Int
        let taskRows: Int
        /// The number of tasks that quantise (0 in the half that multiplies), and the rows of each later task that projects down (0 if
        /// the former do both).
        var codeTasks = 0
        var lowRows = 0

        /// Tasks of the half that multiplies.
        var productTasks: Int { (rows + taskRows - 1) / taskRows * call.part.panels }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            if codeTasks > 0 { quantize(task: task, scratch: scratch) } else { multiply(task: task, scratch: scratch) }
        }

        func quantize(task: Int, scratch: UnsafeMutableRawPointer) {
            let layer = call.layer
            let (layout, part) = (layer.weight.layout, call.part)
            let isCodes = task < codeTasks
            let row = isCodes ? task * taskRows : (task - codeTasks) * lowRows
            let groups = row * part.groups
            var arguments = QuantizeArguments(
                x: call.x.from(first + row), rows: min(isCodes ? taskRows : lowRows, rows - row), depth: part.inFeatures,
                paddedDepth: part.groups * layout.groupSize,
                smooth: layer.smooth?.span.withUnsafeBufferPointer { $0.baseAddress! }, coding: layer.activation.coding,
                shift: layer.activation.shift, groupSize: layout.groupSize, zeroCode: layer.zeroCode,
                scales: block.scales(workspace) + groups, sums: block.sums(workspace) + groups, scratch: scratch)
            arguments.needsSums = layer.weight.offsets != nil
            if isCodes {
                if layer.activation == .float {
                    arguments.values = block.values(workspace) + row * block.valueStride
                    arguments.valueStride = block.valueStride
                } else {
                    arguments.codes = block.codes(workspace) + row * block.codeStride
                    arguments.codeStride = block.codeStride
                    if block.turns(rows: rows) { arguments.turnedCodes = block.turnedCodes(workspace, row: row) }
                }
            }
            if let lowRank = layer.lowRank, !isCodes || lowRows == 0 {
                arguments.down = lowRank.down.pointer
                arguments.factorType = lowRank.down.type
                arguments.lowVectors = lowRank.vectors
                arguments.low = block.low(workspace) + row * block.lowStride
                arguments.lowStride = block.lowStride
                arguments.isAlone = rows == 1
            }
            layer.weight.kernels.quantizeActivations(&arguments)
        }

        func multiply(task: Int, scratch: UnsafeMutableRawPointer) {
            let layer = call.layer
            let weight = layer.weight
            let (layout, part) = (weight.layout, call.part)
            let (rowBlock, place) = task.quotientAndRemainder(dividingBy: part.panels)
            let row = rowBlock * taskRows
            let panel = part.panel(place)
            let column = panel * layout.panelWidth
            let groups = row * part.groups
            let y = call.y.from(first + row).from(column: place * layout.panelWidth)
            var arguments = QuantizedProductArguments(
                scales: block.scales(workspace) + groups, zeroCode: layer.zeroCode,
                sums: block.sums(workspace) + groups, rows: min(taskRows, rows - row),
                paddedDepth: part.groups * layout.groupSize,
                groupSize: layout.groupSize, largestCode: layer.activation.largestCode + Int(layer.zeroCode),
                largestWeight: weight.largestCode,
                panel: UnsafeRawPointer(weight.codes.pointer) + column * layout.paddedInFeatures * layout.bits / 8,
                isByte: weight.format.code == .int8, table: weight.table.pointer.assumingMemoryBound(to: UInt8.self),
                weightScales: weight.scales.pointer + column * layout.groups * weight.scales.type.byteCount,
                scaleType: weight.scales.type, y: y.base, yStride: y.stride, yType: y.type,
                columns: min(layout.panelWidth, layout.outFeatures - column),
                function: layer.epilogue.function, scratch: scratch)
            arguments.panelBytes = layout.panelWidth * layout.paddedInFeatures * layout.bits / 8
            arguments.groupList = part.groupList
            if place + 1 < part.panels { arguments.bytesSkipped = (part.panel(place + 1) - panel - 1) * arguments.panelBytes }
            if layer.activation == .float {
                arguments.values = UnsafePointer(block.values(workspace)) + row * block.valueStride
                arguments.valueStride = block.valueStride
            } else {
                arguments.codes = UnsafePointer(block.codes(workspace)) + row * block.codeStride
                arguments.codeStride = block.codeStride
            }
            switch weight.format.code {
            case .int4: arguments.nibbleZero = 8
            case .uint4: arguments.nibbleZero = 0
            case .fp4, .int8: break
            }
            arguments.offsets = floats(weight.offsets, at: column * layout.groups)
            arguments.channelScales = floats(weight.channelScales, at: column)
            arguments.codeSums = weight.codeSums.map {
                UnsafePointer($0.pointer.assumingMemoryBound(to: Int32.self)) + column * layout.groups
            }
            arguments.bias = floats(layer.bias, at: column)
            arguments.isWhole = layer.sumsWholeRows
            if arguments.isWhole && part.groupList == nil { arguments.depth = part.inFeatures }
            if let remainders = weight.remainders, layer.hasQuietWeight && block.turns(rows: rows) {
                arguments.turnedCodes = UnsafePointer(block.turnedCodes(workspace, row: row))
                arguments.remainders = remainders.pointer
                arguments.remainderStarts = remainders.starts(column: column)
            }
            if let lowRank = layer.lowRank {
                arguments.low = UnsafePointer(block.low(workspace)) + row * block.lowStride
                arguments.lowStride = block.lowStride
                arguments.up = lowRank.up.pointer + column * lowRank.rank * lowRank.up.type.byteCount
                arguments.factorType = lowRank.up.type
                arguments.rank = lowRank.rank
            }
            weight.kernels.multiplyQuantized(&arguments)
        }

        private func floats(_ storage: TensorStorage?, at index: Int) -> UnsafePointer<Float>? {
            storage.map { UnsafePointer($0.pointer.assumingMemoryBound(to: Float.self)) + index }
        }
    }
}

/// The panels and groups of a packed weight that take part in a product: all of them, or those of lists that outlive the call.
struct QuantizedPart {
    /// Input features that take part, and their groups.
    var inFeatures: Int
    var groups: Int
    var panels: Int
    /// `groups` groups, or `panels` panels, in ascending order; nil for all.
    var groupList: UnsafePointer<Int32>?
    var panelList: UnsafePointer<Int32>?

    init(_ layout: PackedLayout) {
        inFeatures = layout.inFeatures
        groups = layout.groups
        panels = layout.panels
    }

    func panel(_ place: Int) -> Int { panelList.map { Int($0[place]) } ?? place }
}

/// The offsets of the activations of a block of rows in the workspace.
struct ActivationBlock {
    let rows: Int
    let codeStride: Int
    let valueStride: Int
    private(set) var lowStride: Int
    let byteCount: Int
    /// Whether there is memory for the codes by columns, and the channels of a row.
    private let hasTurnedCodes: Bool
    private let depth: Int
    private var places: (codes: Int, turned: Int, scales: Int, sums: Int, low: Int)

    /// The block of another layer that shares the codes of this one. The low-rank projections of its own lie at an offset.
    func sharing(_ layer: QuantizedLinear, low: Int) -> ActivationBlock {
        var block = self
        block.lowStride = Self.lowStride(layer)
        block.places.low = low
        return block
    }

    /// Bytes of the low-rank projections of a layer.
    static func lowByteCount(_ layer: QuantizedLinear, rows: Int) -> Int {
        wholeLines((rows + layer.weight.kernels.sizes.tileRows) * lowStride(layer) * 4)
    }

    /// Rounds bytes up to whole cache lines.
    private static func wholeLines(_ bytes: Int) -> Int { (bytes + 63) / 64 * 64 }

    private static func lowStride(_ layer: QuantizedLinear) -> Int {
        (layer.lowRank?.vectors ?? 0) * layer.weight.kernels.sizes.laneCount
    }

    /// - Parameter hasTurnedCodes: whether a product may use quiet weights.
    init(_ layer: QuantizedLinear, rows: Int, hasTurnedCodes: Bool) {
        let layout = layer.weight.layout
        self.rows = rows
        self.hasTurnedCodes = hasTurnedCodes
        depth = layout.paddedInFeatures
        // A cache line more than the row: depths are often multiples of 4096, and rows a page apart share few cache sets.
        codeStride = (layout.paddedInFeatures + 63) / 64 * 64 + 64
        valueStride = codeStride
        lowStride = Self.lowStride(layer)
        // Written out: a local function that captures an offset would allocate in debug builds.
        // Codes are turned four rows at a time, so the last row may have three more after it.
        let codeRows = (rows + 3) / 4 * 4
        let codeBytes = Self.wholeLines(codeRows * codeStride * (layer.activation == .float ? 4 : 1))
        let turnedBlock = 4 * layout.laneCount
        let turnedBytes =
            hasTurnedCodes && rows >= QuantizedScratch.fewestQuietRows
            ? Self.wholeLines((rows + turnedBlock - 1) / turnedBlock * turnedBlock * depth) : 0
        let groupBytes = Self.wholeLines(rows * layout.groups * 4)
        let scales = codeBytes + turnedBytes
        places = (0, codeBytes, scales, scales + groupBytes, scales + 2 * groupBytes)
        byteCount = places.low + Self.lowByteCount(layer, rows: rows)
    }

    func codes(_ workspace: UnsafeMutableRawPointer) -> UnsafeMutablePointer<UInt8> {
        (workspace + places.codes).assumingMemoryBound(to: UInt8.self)
    }

    /// Whether codes are also stored by columns when so many rows are multiplied.
    func turns(rows: Int) -> Bool { hasTurnedCodes && rows >= QuantizedScratch.fewestQuietRows }

    /// The codes by columns from a row on that is a multiple of the rows that are turned together.
    func turnedCodes(_ workspace: UnsafeMutableRawPointer, row: Int) -> UnsafeMutablePointer<UInt8> {
        (workspace + places.turned).assumingMemoryBound(to: UInt8.self) + row * depth
    }

    func values(_ workspace: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float> {
        (workspace + places.codes).assumingMemoryBound(to: Float.self)
    }

    func scales(_ workspace: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float> {
        (workspace + places.scales).assumingMemoryBound(to: Float.self)
    }

    func sums(_ workspace: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float> {
        (workspace + places.sums).assumingMemoryBound(to: Float.self)
    }

    func low(_ workspace: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float> {
        (workspace + places.low).assumingMemoryBound(to: Float.self)
    }
}

// MARK: - The kernels' names

extension ActivationFormat {
    var coding: ActivationCoding {
        switch self {
        case .float: .float
        case .int8PerToken: .int8PerToken
        case .int8PerGroup: .int8PerGroup
        case .int4: .int4
        case .uint4: .uint4
        case .fp4: .fp4
        }
    }

    /// The largest magnitude of a code, before codes are made unsigned.
    var largestCode: Int {
        switch self {
        case .float, .int8PerToken, .int8PerGroup: 127
        case .int4: 7
        case .uint4: 15
        case .fp4: 12
        }
    }

    /// The number that is added to activations; 0 for formats without a shift.
    package var shift: Float {
        if case .uint4(let shift) = self { shift } else { 0 }
    }
}

extension QuantizedLinear {
    /// Whether products are summed over the whole depth in integers: both sides have one scale per row then.
    var sumsWholeRows: Bool { activation == .int8PerToken && weight.hasWholeRows }

    /// Whether products with many rows use quiet weights.
    var hasQuietWeight: Bool { sumsWholeRows && weight.remainders != nil }

    /// The number that is added to codes of activations to make them unsigned.
    var zeroCode: Int32 {
        if case .uint4 = activation { return 0 }
        if sumsWholeRows { return 128 }
        return weight.format.code == .int8 ? weight.kernels.sizes.byteZero : Int32(activation.largestCode) + 1
    }
}

extension Epilogue {
    var function: OutputFunction {
        switch self {
        case .none: .none
        case .gelu: .gelu
        case .silu: .silu
        case .geluErf: .geluErf
        }
    }
}
