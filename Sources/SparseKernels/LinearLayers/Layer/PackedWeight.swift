internal import KernelInterface

/// The quantised weight of a linear layer in the order in which the kernels of one instruction set read it.
///
/// It is made from a `QuantizedWeight` when a layer is loaded, may be shared by several layers, and is never written to disk.
/// It has codes, scales and offsets, but no copy of the weight in floating point. Docs/Layouts shows the order.
public struct PackedWeight: Sendable {
    public let format: WeightFormat
    public let outFeatures: Int
    public let inFeatures: Int
    /// The instruction set whose kernels read this weight.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    let layout: PackedLayout
    /// The largest magnitude of a code.
    let largestCode: Int
    /// The signed bytes that nibbles stand for. Whole bytes do not use it.
    let table: TensorStorage
    let codes: TensorStorage
    let scales: CompactFloats
    let offsets: TensorStorage?
    let channelScales: TensorStorage?
    /// Σ codes of each group for whole bytes. Sums of nibbles are taken when they are unpacked.
    let codeSums: TensorStorage?
    /// What quiet codes differ in from the codes, for levels that prefer quiet ones; nil if they would differ in too many.
    let remainders: WeightRemainders?

    /// Packs a weight.
    ///
    /// - Parameters:
    ///   - weight: the weight in logical form, which is not stored.
    ///   - instructionSet: the level whose kernels will read it; nil means `InstructionSet.selected()`.
    ///   - pool: the threads that pack.
    /// - Throws: `.unsupportedInstructionSet`.
    public init(
        _ weight: QuantizedWeight, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        format = weight.format
        outFeatures = weight.outFeatures
        inFeatures = weight.inFeatures
        let layout = PackedLayout(weight.format, outFeatures: outFeatures, inFeatures: inFeatures, kernels: kernels)
        self.layout = layout
        let values = (0..<16).map { weight.format.code.value(ofNibble: $0) }
        table = TensorStorage(byteCount: 16)
        table.pointer.copyMemory(from: values.map { Int8($0) }, byteCount: 16)
        largestCode = weight.format.code == .int8 ? 128 : values.reduce(0) { max($0, abs($1)) }
        codes = TensorStorage(byteCount: layout.codeByteCount)
        PackCall(weight: weight, layout: layout, codes: codes.pointer).run(on: pool)
        // The code of an E2M1 number is twice its value, so its scale is halved.
        let step: Float = weight.format.code == .fp4 ? 0.5 : 1
        scales = CompactFloats(count: layout.lanes * layout.groups, kernels: kernels) { target in
            layout.scatter(weight.scales, times: step, groups: weight.groups, into: target)
        }
        offsets = weight.offsets.map { offsets in
            let storage = TensorStorage(byteCount: layout.lanes * layout.groups * 4)
            layout.scatter(
                offsets, times: 1, groups: weight.groups, into: storage.pointer.assumingMemoryBound(to: Float.self))
            return storage
        }
        channelScales = weight.channelScales.map { layout.padded($0) }
        codeSums = weight.format.code == .int8 ? layout.sums(of: codes) : nil
        let isQuiet = kernels.sizes.prefersQuietWeights && Self.hasWholeRows(format, layout)
        remainders = isQuiet ? WeightRemainders(of: codes, layout: layout, on: pool) : nil
    }

    /// Bytes of codes, scales and offsets, with rows and columns filled up to whole registers and groups.
    public var byteCount: Int {
        codes.byteCount + scales.byteCount + (offsets?.byteCount ?? 0) + (channelScales?.byteCount ?? 0)
            + (codeSums?.byteCount ?? 0) + (remainders?.byteCount ?? 0)
    }

    /// Whether every row has one scale, and sums of byte products over a whole row fit in 32 bits.
    var hasWholeRows: Bool { Self.hasWholeRows(format, layout) }

    private static func hasWholeRows(_ format: WeightFormat, _ layout: PackedLayout) -> Bool {
        format == .int8PerChannel && layout.paddedInFeatures <= QuantizedScratch.largestWholeDepth
    }
}

/// The positions in a packed weight: panels of up to two registers of output features, each with all its input features, groups
/// or ranks.
struct PackedLayout: Sendable {
    let outFeatures: Int
    let inFeatures: Int
    let laneCount: Int
    let panelWidth: Int
    /// The group size. Rows without groups are cut into groups of 128 that repeat one scale.
    let groupSize: Int
    let groups: Int
    let bits: Int

    static let groupOfWholeRows = 128

    init(_ format: WeightFormat, outFeatures: Int, inFeatures: Int, kernels: any KernelTable.Type) {
        self.outFeatures = outFeatures
        self.inFeatures = inFeatures
        laneCount = kernels.sizes.laneCount
        panelWidth = kernels.sizes.weightPanelWidth
        groupSize = format.groupSize ?? Self.groupOfWholeRows
        groups = (inFeatures - 1) / groupSize + 1
        bits = format.code.bits
    }

    var paddedInFeatures: Int { groups * groupSize }
    /// Output features, filled up to whole registers.
    var lanes: Int { (outFeatures + laneCount - 1) / laneCount * laneCount }
    var panels: Int { (outFeatures + panelWidth - 1) / panelWidth }
    var codeByteCount: Int { lanes * paddedInFeatures * bits / 8 }

    /// Lanes of a panel: all of them, except in the last panel.
    func lanes(ofPanel panel: Int) -> Int { min(panelWidth, lanes - panel * panelWidth) }

    /// Stores one number per output feature, followed by zeros.
    func padded(_ values: Tensor<Float>) -> TensorStorage {
        let storage = TensorStorage(byteCount: lanes * 4)
        let target = storage.pointer.assumingMemoryBound(to: Float.self)
        for lane in 0..<lanes { target[lane] = lane < outFeatures ? values[flat: lane] : 0 }
        return storage
    }

    /// Reorders numbers `[outFeatures, groups]` to panels [groups][lanes]. A row with a single number repeats it.
    func scatter(_ values: Tensor<Float>, times factor: Float, groups given: Int, into target: UnsafeMutablePointer<Float>) {
        values.span.withUnsafeBufferPointer { source in
            for panel in 0..<panels {
                let (first, width) = (panel * panelWidth, lanes(ofPanel: panel))
                let base = target + first * groups
                for lane in 0..<width {
                    for group in 0..<groups {
                        let row = first + lane
                        let value = row < outFeatures ? source[row * given + min(group, given - 1)] * factor : 0
                        base[group * width + lane] = value
                    }
                }
            }
        }
    }
}

extension PackedLayout {
    /// Computes Σ codes of each group of packed bytes, in panels [groups][lanes].
    fileprivate func sums(of codes: TensorStorage) -> TensorStorage {
        let storage = TensorStorage(byteCount: lanes * groups * 4)
        let target = storage.pointer.assumingMemoryBound(to: Int32.self)
        let bytes = codes.pointer.assumingMemoryBound(to: Int8.self)
        for panel in 0..<panels {
            let (first, width) = (panel * panelWidth, lanes(ofPanel: panel))
            for lane in 0..<width {
                for group in 0..<groups {
                    var sum: Int32 = 0
                    for k in group * groupSize..<(group + 1) * groupSize {
                        sum += Int32(bytes[first * paddedInFeatures + (k / 4 * width + lane) * 4 + k % 4])
                    }
                    target[first * groups + group * width + lane] = sum
                }
            }
        }
        return storage
    }
}

/// Packs codes into panels. A task is one panel.
private struct PackCall: PoolCall {
    let weight: QuantizedWeight
    let layout: PackedLayout
    let codes: UnsafeMutableRawPointer

    func run(on pool: WorkerPool) {
        pool.run(self, tasks: layout.panels, work: layout.codeByteCount)
    }

    func perform(task panel: Int, scratch: UnsafeMutableRawPointer) {
        let (first, width) = (panel * layout.panelWidth, layout.lanes(ofPanel: panel))
        let rowBytes = weight.codes.shape[1]
        let words = layout.paddedInFeatures * layout.bits / 32
        let target = (codes + first * layout.paddedInFeatures * layout.bits / 8).assumingMemoryBound(to: UInt32.self)
        weight.codes.span.withUnsafeBufferPointer { source in
            for lane in 0..<width {
                for word in 0..<words {
                    var bytes: UInt32 = 0
                    if first + lane < layout.outFeatures {
                        let start = (first + lane) * rowBytes + word * 4
                        for i in 0..<max(0, min(4, rowBytes - word * 4)) { bytes |= UInt32(source[start + i]) << (8 * i) }
                    }
                    target[word * width + lane] = packed(bytes)
                }
            }
        }
    }

    /// Reorders four bytes of a row for the kernels. Nibbles: codes k…k+3 in the low halves, k+4…k+7 in the high ones.
    private func packed(_ bytes: UInt32) -> UInt32 {
        if weight.format.code == .int8 { return bytes }
        return Self.spread(bytes & 0xffff) | Self.spread(bytes >> 16) << 4
    }

    /// Spreads four nibbles to the low halves of four bytes.
    private static func spread(_ nibbles: UInt32) -> UInt32 {
        let pairs = (nibbles | nibbles << 8) & 0x00ff_00ff
        return (pairs | pairs << 4) & 0x0f0f_0f0f
    }
}
