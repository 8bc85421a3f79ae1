internal import KernelInterface

/// The product of a layer with one panel after another, as its kernel takes it: all arguments that no call changes.
///
/// It holds addresses of the layer's memory and no references, so that tasks copy it without counting them. Whoever keeps it keeps
/// the layer.
struct PanelProduct {
    let outFeatures: Int
    let panels: Int
    private let panelWidth: Int
    /// The arguments of the first panel, without rows.
    private let first: QuantizedProductArguments
    /// Bytes per output feature of the panels and of their scales, and groups, for the numbers of each.
    private let bytes: Int
    private let scaleBytes: Int
    private let groups: Int

    init(_ layer: FloatLinear) {
        let panel = UnsafeRawPointer(layer.weights.pointer)
        // Nothing reads scales, sums or the table of weights that are numbers, and rows are given per call.
        let none = layer.weights.pointer.assumingMemoryBound(to: Float.self)
        var arguments = QuantizedProductArguments(
            scales: none, zeroCode: 0, sums: none, rows: 0, paddedDepth: layer.inFeatures, groupSize: 1 << 40,
            largestCode: 0, largestWeight: 0, panel: panel, isByte: false, table: panel.assumingMemoryBound(to: UInt8.self),
            weightScales: panel, scaleType: .float32, y: layer.weights.pointer, yStride: 0, yType: .float32, columns: 0,
            function: layer.epilogue.function, scratch: layer.weights.pointer)
        arguments.weightType = layer.type
        arguments.channelScales = Self.floats(layer.factors)
        arguments.bias = Self.floats(layer.bias)
        first = arguments
        outFeatures = layer.outFeatures
        panelWidth = layer.kernels.sizes.weightPanelWidth
        panels = (layer.outFeatures + panelWidth - 1) / panelWidth
        bytes = layer.inFeatures * layer.type.byteCount
        scaleBytes = 0
        groups = 0
    }

    /// - Parameter layer: its low-rank branch is not part of the arguments; it changes from call to call.
    init(_ layer: QuantizedLinear) {
        let weight = layer.weight
        let layout = weight.layout
        let panel = UnsafeRawPointer(weight.codes.pointer)
        let none = weight.codes.pointer.assumingMemoryBound(to: Float.self)
        var arguments = QuantizedProductArguments(
            scales: none, zeroCode: layer.zeroCode, sums: none, rows: 0, paddedDepth: layout.paddedInFeatures,
            groupSize: layout.groupSize, largestCode: layer.activation.largestCode + Int(layer.zeroCode),
            largestWeight: weight.largestCode, panel: panel, isByte: weight.format.code == .int8,
            table: weight.table.pointer.assumingMemoryBound(to: UInt8.self), weightScales: weight.scales.pointer,
            scaleType: weight.scales.type, y: weight.codes.pointer, yStride: 0, yType: .float32, columns: 0,
            function: layer.epilogue.function, scratch: weight.codes.pointer)
        switch weight.format.code {
        case .int4: arguments.nibbleZero = 8
        case .uint4: arguments.nibbleZero = 0
        case .fp4, .int8: break
        }
        arguments.offsets = Self.floats(weight.offsets)
        arguments.channelScales = Self.floats(weight.channelScales)
        arguments.codeSums = weight.codeSums.map { UnsafePointer($0.pointer.assumingMemoryBound(to: Int32.self)) }
        arguments.bias = Self.floats(layer.bias)
        arguments.isWhole = layer.sumsWholeRows
        if arguments.isWhole { arguments.depth = layout.inFeatures }
        first = arguments
        outFeatures = layer.outFeatures
        panelWidth = layout.panelWidth
        panels = layout.panels
        bytes = layout.paddedInFeatures * layout.bits / 8
        scaleBytes = layout.groups * weight.scales.type.byteCount
        groups = layout.groups
    }

    private static func floats(_ storage: TensorStorage?) -> UnsafePointer<Float>? {
        storage.map { UnsafePointer($0.pointer.assumingMemoryBound(to: Float.self)) }
    }

    /// The first column of a panel, and how many it has.
    func columns(ofPanel panel: Int) -> (first: Int, count: Int) {
        (panel * panelWidth, min(panelWidth, outFeatures - panel * panelWidth))
    }

    /// The product of some rows with a panel.
    /// - Parameters:
    ///   - y: the rows of the outputs of this panel.
    ///   - scratch: the bytes that the layer wants per thread.
    func arguments(
        panel: Int, _ activations: ActivationRows, rows: Int, y: RowTarget, scratch: UnsafeMutableRawPointer
    ) -> QuantizedProductArguments {
        let column = panel * panelWidth
        var arguments = first
        arguments.panel = first.panel + column * bytes
        arguments.weightScales = first.weightScales + column * scaleBytes
        if let offsets = first.offsets { arguments.offsets = offsets + column * groups }
        if let sums = first.codeSums { arguments.codeSums = sums + column * groups }
        if let scales = first.channelScales { arguments.channelScales = scales + column }
        if let bias = first.bias { arguments.bias = bias + column }
        arguments.rows = rows
        if let codes = activations.codes {
            (arguments.codes, arguments.codeStride) = (codes, activations.stride)
        } else {
            (arguments.values, arguments.valueStride) = (activations.values, activations.stride)
        }
        (arguments.scales, arguments.sums) = (activations.scales, activations.sums)
        arguments.y = y.base
        arguments.yStride = y.stride
        arguments.yType = y.type
        arguments.columns = min(panelWidth, outFeatures - column)
        arguments.scratch = scratch
        return arguments
    }
}

/// Rows of activations in the form in which a product reads them: codes, or floats where there are no codes.
struct ActivationRows {
    var codes: UnsafePointer<UInt8>?
    var values: UnsafePointer<Float>
    /// Codes or floats from row to row.
    var stride: Int
    /// [groups] per row; unused by weights that are numbers.
    var scales: UnsafePointer<Float>
    var sums: UnsafePointer<Float>
}

extension ActivationRows {
    /// Rows for weights that are numbers.
    init(values: UnsafePointer<Float>, stride: Int) {
        self.init(codes: nil, values: values, stride: stride, scales: values, sums: values)
    }
}

/// Where the activations of up to some number of rows are in memory, for one layer or for several that read them alike.
struct ActivationStorage {
    /// Whether rows are codes, and not floats.
    let isCoded: Bool
    let stride: Int
    let groups: Int

    init(_ layer: FloatLinear) {
        isCoded = false
        // A cache line more than the row: rows a page apart share few cache sets.
        stride = (layer.inFeatures + 15) / 16 * 16 + 16
        groups = 0
    }

    init(_ layer: QuantizedLinear) {
        isCoded = layer.activation != .float
        stride = (layer.weight.layout.paddedInFeatures + 63) / 64 * 64 + 64
        groups = layer.weight.layout.groups
    }

    private func rowBytes(_ rows: Int) -> Int { (rows * stride * (isCoded ? 1 : 4) + 63) / 64 * 64 }
    private func groupBytes(_ rows: Int) -> Int { (rows * groups * 4 + 63) / 64 * 64 }

    /// Bytes of the activations of some rows.
    func byteCount(rows: Int) -> Int { rowBytes(rows) + 2 * groupBytes(rows) }

    /// The rows from `row` on, of `rows` rows at an address.
    func rows(from row: Int, of rows: Int, at base: UnsafeMutableRawPointer) -> ActivationRows {
        let scales = base + rowBytes(rows)
        return ActivationRows(
            codes: isCoded ? UnsafePointer(base.assumingMemoryBound(to: UInt8.self)) + row * stride : nil,
            values: base.assumingMemoryBound(to: Float.self) + (isCoded ? 0 : row * stride), stride: stride,
            scales: scales.assumingMemoryBound(to: Float.self) + row * groups,
            sums: (scales + groupBytes(rows)).assumingMemoryBound(to: Float.self) + row * groups)
    }
}

/// How rows become the activations of a layer: copied as floats, or smoothed and coded.
struct ActivationCoder {
    private let channels: Int
    /// The arguments without rows; nil for a layer of numbers, whose rows are floats.
    private let coding: QuantizeArguments?

    init(_ layer: FloatLinear) {
        channels = layer.inFeatures
        coding = nil
    }

    /// - Parameter needsSums: whether any layer that reads the codes has weights with offsets.
    init(_ layer: QuantizedLinear, needsSums: Bool) {
        let layout = layer.weight.layout
        channels = layout.inFeatures
        let none = layer.weight.codes.pointer
        var arguments = QuantizeArguments(
            x: RowOperand(base: none, stride: 0, type: .float32), rows: 0, depth: layout.inFeatures,
            paddedDepth: layout.paddedInFeatures, smooth: layer.smooth?.span.withUnsafeBufferPointer { $0.baseAddress! },
            coding: layer.activation.coding, shift: layer.activation.shift, groupSize: layout.groupSize,
            zeroCode: layer.zeroCode, scales: none.assumingMemoryBound(to: Float.self),
            sums: none.assumingMemoryBound(to: Float.self), scratch: none)
        arguments.needsSums = needsSums
        coding = arguments
    }

    /// Writes the activations of the first row of x.
    /// - Parameter scratch: `QuantizedScratch.activationByteCount` bytes.
    func code(
        _ x: RowOperand, into rows: ActivationRows, kernels: any KernelTable.Type, scratch: UnsafeMutableRawPointer
    ) {
        guard var arguments = coding else {
            kernels.stageRows(
                x, first: 0, count: 1, channels: channels, into: UnsafeMutablePointer(mutating: rows.values))
            return
        }
        arguments.x = x
        arguments.rows = 1
        if let codes = rows.codes {
            (arguments.codes, arguments.codeStride) = (UnsafeMutablePointer(mutating: codes), rows.stride)
        } else {
            (arguments.values, arguments.valueStride) = (UnsafeMutablePointer(mutating: rows.values), rows.stride)
        }
        (arguments.scales, arguments.sums) = (
            UnsafeMutablePointer(mutating: rows.scales), UnsafeMutablePointer(mutating: rows.sums)
        )
        arguments.scratch = scratch
        kernels.quantizeActivations(&arguments)
    }
}
