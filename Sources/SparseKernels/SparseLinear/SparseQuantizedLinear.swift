internal import KernelInterface

/// A quantised layer of which a call uses some outputs, or some inputs, in whole blocks of the packed weight.
///
/// ```swift
/// let gate = try SparseQuantizedLinear(layer, picking: .outputs)     // a QuantizedLinear
/// let kept = try gate.channels(ofBlocks: blocks)                     // a subset of gate.blocks
/// try gate.run(x: x, channels: kept, y: y)                           // [tokens, kept.count]
/// ```
///
/// The packed weight is the layer's own, which may be used whole at the same time; nothing is copied. Its order fixes what can be
/// picked: outputs in panels of `blockSize`, since a panel is stored column by column, and inputs in groups of `blockSize`, which share a
/// scale. The last block may be short.
///
/// - Exactness: as the whole layer. With picked outputs, the bits are those of its columns. With picked inputs, the result is that of a
///   layer of these inputs alone, but for the rounding of sums in `Float`: scales per token are those of the picked inputs.
/// - Complexity: the product and the reading of the picked blocks; with picked outputs, also one pass over all of x.
/// - Scratch: as the layer, and a list of blocks.
/// - Source: Polar Sparsity (arXiv 2505.14884) and CATS (arXiv 2404.08763), whose kernels read 16-bit weights; the blocks are our own.
public struct SparseQuantizedLinear: Sendable {
    public let layer: QuantizedLinear
    /// The side whose channels may be picked.
    public let side: SparseLinear.Side

    /// - Parameters:
    ///   - layer: the whole layer.
    ///   - side: the side whose channels may be picked.
    /// - Throws: `.invalidArgument` for picked inputs of a layer with smoothing factors or a low-rank branch, which take all inputs.
    public init(_ layer: QuantizedLinear, picking side: SparseLinear.Side) throws(SparseKernelsError) {
        try require(
            side == .outputs || layer.smooth == nil, .invalidArgument, "layer.smooth",
            expected: "nil for a layer whose inputs are picked", actual: "\(layer.inFeatures) factors")
        try require(
            side == .outputs || layer.rank == 0, .invalidArgument, "layer.rank",
            expected: "0 for a layer whose inputs are picked", actual: "\(layer.rank)")
        self.layer = layer
        self.side = side
    }

    /// The number of channels that may be picked: the features of `side`.
    public var channels: Int { side == .outputs ? layer.outFeatures : layer.inFeatures }
    /// Channels of a block, which are picked together: outputs of a panel, or inputs of a group. It depends on the instruction set.
    public var blockSize: Int { side == .outputs ? layer.weight.layout.panelWidth : layer.weight.layout.groupSize }
    /// The number of blocks. The last one has what is left of the channels.
    public var blocks: Int { (channels + blockSize - 1) / blockSize }

    /// The channels of some blocks.
    /// - Throws: `.invalidShape` for a subset of another number of blocks.
    public func channels(ofBlocks blocks: ChannelSubset) throws(SparseKernelsError) -> ChannelSubset {
        try require(
            blocks.width == self.blocks, .invalidShape, "blocks", expected: "a subset of \(self.blocks) blocks",
            actual: "of \(blocks.width)")
        var indices: [Int32] = []
        indices.reserveCapacity(blocks.count * blockSize)
        for block in blocks.indices {
            let first = Int(block) * blockSize
            for channel in first..<min(channels, first + blockSize) { indices.append(Int32(channel)) }
        }
        return ChannelSubset(unchecked: indices, of: channels)
    }

    /// The blocks of a subset.
    /// - Throws: `.invalidShape` for a subset of another width; `.invalidArgument` naming the first position at which the subset has a
    ///   part of a block, and the block size.
    public func blocks(of subset: ChannelSubset) throws(SparseKernelsError) -> ChannelSubset {
        var list = [Int32](repeating: 0, count: try blockCount(of: subset))
        list.withUnsafeMutableBufferPointer { if let base = $0.baseAddress { write(subset, into: base, count: $0.count) } }
        return ChannelSubset(unchecked: list, of: blocks)
    }

    // MARK: - Run

    /// Computes the outputs for the rows of x, with some of the channels.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`, or `[tokens, picked]` for `.inputs`; may have no tokens.
    ///   - subset: channels in whole blocks; nil means all.
    ///   - y: `[tokens, picked]`, or `[tokens, outFeatures]` for `.inputs`, overwritten. Without inputs it is the epilogue of the bias.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for a subset of another width, and naming the operand that disagrees; `.invalidArgument` for a subset
    ///   that has a part of a block, with the block size. Nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, channels subset: ChannelSubset? = nil, y: consuming MutableMatrixView<Y>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        guard let subset, !subset.isAll else {
            if let subset { _ = try blockCount(of: subset) }
            return try layer.run(x: x, y: y, on: pool)
        }
        let count = try blockCount(of: subset)
        let (inputs, outputs) =
            side == .outputs ? (layer.inFeatures, subset.count) : (subset.count, layer.outFeatures)
        try requireColumns("x", x.columns, expected: inputs)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, outputs))
        if x.rows == 0 || outputs == 0 { return }
        // Pointers are used only until this call returns, which borrows or owns the views.
        let (source, target, rows) = (RowOperand(x), RowTarget(&y), x.rows)
        pool.withWorkspace(byteCount: max(1, count) * 4) { workspace in
            let list = workspace.assumingMemoryBound(to: Int32.self)
            write(subset, into: list, count: count)
            var part = QuantizedPart(layer.weight.layout)
            if side == .outputs {
                part.panels = count
                part.panelList = UnsafePointer(list)
            } else {
                part.inFeatures = subset.count
                part.groups = count
                part.groupList = UnsafePointer(list)
            }
            QuantizedLinearCall(layer: layer, x: source, y: target, part: part).run(rows: rows, on: pool)
        }
    }

    /// Checks that a subset has whole blocks, and returns their number.
    private func blockCount(of subset: ChannelSubset) throws(SparseKernelsError) -> Int {
        try require(
            subset.width == channels, .invalidShape, "channels",
            expected: "a subset of \(channels), the layer's \(side.rawValue)", actual: "of \(subset.width)")
        let size = blockSize
        var (position, count) = (0, 0)
        while position < subset.count {
            let first = Int(subset.indices[position])
            let length = min(size, channels - first)
            // Indices ascend, so the last one of a block says whether all are there.
            let isWhole =
                first % size == 0 && position + length <= subset.count
                && Int(subset.indices[position + length - 1]) == first + length - 1
            try require(
                isWhole, .invalidArgument, "channels", expected: "whole blocks of \(size) \(side.rawValue)",
                actual: "a part of block \(first / size), at position \(position)")
            position += length
            count += 1
        }
        return count
    }

    /// Writes the blocks of a subset that was checked.
    private func write(_ subset: ChannelSubset, into list: UnsafeMutablePointer<Int32>, count: Int) {
        for place in 0..<count { list[place] = subset.indices[place * blockSize] / Int32(blockSize) }
    }
}
