internal import KernelInterface

/// The parameters of a selective scan, by blocks of channels, which never cross a group.
///
/// A block has `[stateSize]` rows of A · log₂e, then a row each of the largest |A · log₂e|, D and the bias, and then B and C if they are
/// fixed. Rows have `ScanScratch.blockChannels` floats, which are 0 beyond the channels of the block.
struct ScanWeights: Sendable {
    let storage: TensorStorage
    let channelsPerGroup: Int
    let blocksPerGroup: Int
    let blockCount: Int
    let stateSize: Int
    let hasSkip: Bool
    let hasBias: Bool
    let isFixed: Bool

    init(
        a: Tensor<Float>, b: Tensor<Float>?, c: Tensor<Float>?, skip: Tensor<Float>?, deltaBias: Tensor<Float>?, groups: Int
    ) throws(SparseKernelsError) {
        let (channels, stateSize) = (a.shape[0], a.shape[1])
        let width = ScanScratch.blockChannels
        channelsPerGroup = channels / groups
        blocksPerGroup = (channelsPerGroup + width - 1) / width
        blockCount = groups * blocksPerGroup
        self.stateSize = stateSize
        hasSkip = skip != nil
        hasBias = deltaBias != nil
        isFixed = b != nil
        let rows = (isFixed ? 3 : 1) * stateSize + 3
        let count = try checkedElementCount([blockCount, rows, width], elementBytes: 4)
        storage = TensorStorage(byteCount: count * 4)
        let target = storage.pointer.bindMemory(to: Float.self, capacity: count)
        target.initialize(repeating: 0, count: count)
        for block in 0..<blockCount {
            let base = target + block * rows * width
            let (first, end) = (
                Self.first(block, channelsPerGroup, blocksPerGroup), Self.end(block, channelsPerGroup, blocksPerGroup)
            )
            for channel in first..<end {
                let column = base + (channel - first)
                var fastest: Float = 0
                for state in 0..<stateSize {
                    let index = channel * stateSize + state
                    // Rounded once: the factor is exact to 53 bits.
                    let decay = Float(Double(a[flat: index]) * 1.442_695_040_888_963_4)
                    column[state * width] = decay
                    fastest = max(fastest, -decay)
                    if let b, let c {
                        column[(stateSize + 3 + state) * width] = b[flat: index]
                        column[(2 * stateSize + 3 + state) * width] = c[flat: index]
                    }
                }
                column[stateSize * width] = fastest
                column[(stateSize + 1) * width] = skip?[flat: channel] ?? 0
                column[(stateSize + 2) * width] = deltaBias?[flat: channel] ?? 0
            }
        }
    }

    private static func first(_ block: Int, _ perGroup: Int, _ blocks: Int) -> Int {
        block / blocks * perGroup + block % blocks * ScanScratch.blockChannels
    }

    private static func end(_ block: Int, _ perGroup: Int, _ blocks: Int) -> Int {
        min(first(block, perGroup, blocks) + ScanScratch.blockChannels, (block / blocks + 1) * perGroup)
    }

    /// The channels of a block.
    func channels(of block: Int) -> Range<Int> {
        Self.first(block, channelsPerGroup, blocksPerGroup)..<Self.end(block, channelsPerGroup, blocksPerGroup)
    }

    func group(of block: Int) -> Int { block / blocksPerGroup }

    /// Sets the parameters of a block. The storage outlives the call, which holds this value.
    func fill(_ arguments: inout ScanArguments, block: Int) {
        let width = ScanScratch.blockChannels
        let rows = (isFixed ? 3 : 1) * stateSize + 3
        let base = UnsafePointer(storage.pointer.assumingMemoryBound(to: Float.self) + block * rows * width)
        arguments.decays = base
        arguments.fastest = base + stateSize * width
        if hasSkip { arguments.skip = base + (stateSize + 1) * width }
        if hasBias { arguments.bias = base + (stateSize + 2) * width }
        if isFixed {
            arguments.fixedInput = base + (stateSize + 3) * width
            arguments.fixedOutput = base + (2 * stateSize + 3) * width
        }
    }
}
