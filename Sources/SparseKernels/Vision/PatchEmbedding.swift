internal import KernelInterface

/// Embeds patches of a picture as tokens: the product of their elements with a weight, plus a bias, which is a convolution whose
/// stride is its side p.
///
/// ```swift
/// let embedding = try PatchEmbedding(weight: weight, bias: bias)           // [width, channels, 14, 14], [width]
/// let all = try embedding(picture)                                         // [27 · 27, width] of [3, 378, 378]
/// let some = try embedding(picture, patches: [3, 17, 700])                 // [3, width]
/// ```
///
/// Patches are numbered in raster order of ``grid(of:)``, which is ⌊rows / p⌋ × ⌊columns / p⌋: what is left at the right and at the
/// bottom belongs to none. A list may name patches in any order, and several times; a row of the result is the same in every list. A
/// list costs what its rows cost, whatever the picture's size, because patches are copied to the scratch of the task that multiplies
/// them, and no others are read.
///
/// Bytes of a picture become scale · byte + offset, per channel, while they are copied.
///
/// - Exactness, non-finite input: those of ``FloatLinear``; a NaN spoils the row of its patch.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: patches · channels · p² · width multiply-adds.
/// - Scratch: `scratchByteCount` per thread, at most 132 rows of the product and what ``FloatLinear`` needs.
/// - Source: Dosovitskiy et al., "An image is worth 16×16 words" (2021); `SelectedPatchEmbed` of PS3 (Shi et al., 2025).
public struct PatchEmbedding: Sendable {
    /// Elements of a token.
    public let width: Int
    /// Channels of a picture.
    public let channels: Int
    /// p.
    public let side: Int
    private let linear: FloatLinear

    /// - Parameters:
    ///   - weight: `[width, channels, p, p]`, as a checkpoint has it, of any attention element type. It is reordered once.
    ///   - bias: `[width]`, or nil for 0.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weight.
    /// - Throws: `.invalidShape` for tensors of other shapes or without elements, `.invalidArgument` for a bias that is not finite,
    ///   `.unsupportedInstructionSet`.
    public init<W: AttentionElement>(
        weight: Tensor<W>, bias: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let shape = weight.shape
        try require(
            shape.count == 4 && shape[2] == shape[3] && weight.count > 0, .invalidShape, "weight",
            expected: "[width, channels, p, p], with elements", actual: "\(shape)")
        width = shape[0]
        channels = shape[1]
        side = shape[2]
        linear = try FloatLinear(
            weight: Tensor([shape[0], shape[1] * shape[2] * shape[3]], weight.elements), bias: bias,
            instructionSet: instructionSet, on: pool)
    }

    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { linear.instructionSet }

    /// Bytes of scratch that each thread of the pool needs, for calls of any size.
    public var scratchByteCount: Int { scratchByteCount(rows: QuantizedScratch.taskRows + linear.kernels.sizes.tileRows) }

    /// The patches of a picture, ⌊rows / p⌋ × ⌊columns / p⌋.
    public func grid(of size: GridSize) -> GridSize { GridSize(rows: size.rows / side, columns: size.columns / side) }

    // MARK: - Floats

    /// Embeds all patches of a picture, or of a part of one.
    ///
    /// - Parameters:
    ///   - picture: of `channels` channels, at least one patch high and wide.
    ///   - y: patches × width, overwritten; rows of a larger matrix do as well.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run(
        _ picture: PictureView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let count = try requirePatches(picture.channels, picture.size)
        try run(PatchSource(picture), patches: [], count: count, isListed: false, into: y, on: pool)
    }

    /// Embeds the patches of a list.
    ///
    /// - Parameters:
    ///   - picture: of `channels` channels, at least one patch high and wide.
    ///   - patches: their numbers, in any order. May be empty.
    ///   - y: `patches.count` × width, overwritten; rows of a larger matrix do as well.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a patch that the picture does not have;
    ///   nothing is written then.
    public func run(
        _ picture: PictureView<Float>, patches: [Int32], into y: consuming MutableMatrixView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireList(patches, of: requirePatches(picture.channels, picture.size))
        try run(PatchSource(picture), patches: patches, count: patches.count, isListed: true, into: y, on: pool)
    }

    /// The tokens of all patches of a picture `[channels, rows, columns]`, as a new tensor `[patches, width]`.
    /// - Throws: `.invalidShape` for a picture of other channels, or smaller than a patch.
    public func callAsFunction(
        _ picture: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let view = try picture.pictureView(named: "picture")
        var y = try Tensor<Float>(zeros: [requirePatches(view.channels, view.size), width])
        try run(view, into: y.mutableMatrixView(), on: pool)
        return y
    }

    /// The tokens of some patches of a picture `[channels, rows, columns]`, as a new tensor `[patches.count, width]`.
    /// - Throws: the errors of `run`.
    public func callAsFunction(
        _ picture: Tensor<Float>, patches: [Int32], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let view = try picture.pictureView(named: "picture")
        var y = try Tensor<Float>(zeros: [patches.count, width])
        try run(view, patches: patches, into: y.mutableMatrixView(), on: pool)
        return y
    }

    // MARK: - Bytes

    /// What becomes of bytes: scale · byte + offset, per channel.
    public struct ByteScale: Hashable, Sendable {
        public var scale: [Float]
        public var offset: [Float]

        public init(scale: [Float], offset: [Float]) {
            self.scale = scale
            self.offset = offset
        }

        /// (byte / 255 − mean) / deviation, as processors of pictures state it.
        public init(mean: [Float], deviation: [Float]) {
            scale = deviation.map { 1 / (255 * $0) }
            offset = zip(mean, deviation).map { -$0 / $1 }
        }
    }

    /// Embeds patches of a picture of bytes.
    ///
    /// - Parameters:
    ///   - picture: of `channels` channels, at least one patch high and wide.
    ///   - bytes: a scale and an offset per channel.
    ///   - patches: their numbers, in any order, or nil for all.
    ///   - y: patches × width, overwritten; rows of a larger matrix do as well.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a patch that the picture does not have or
    ///   a scale or offset that is not finite; nothing is written then.
    public func run(
        _ picture: PictureView<UInt8>, bytes: ByteScale, patches: [Int32]? = nil,
        into y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let count = try requirePatches(picture.channels, picture.size)
        try requireChannels("bytes.scale", bytes.scale)
        try requireChannels("bytes.offset", bytes.offset)
        if let patches { try requireList(patches, of: count) }
        try run(
            PatchSource(picture, bytes), patches: patches ?? [], count: patches?.count ?? count, isListed: patches != nil,
            into: y,
            on: pool)
    }

    /// The tokens of patches of a picture of bytes, `[channels, rows, columns]`, as a new tensor `[patches, width]`.
    /// - Throws: the errors of `run`.
    public func callAsFunction(
        _ picture: Tensor<UInt8>, bytes: ByteScale, patches: [Int32]? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let view = try picture.pictureView(named: "picture")
        let all = try requirePatches(view.channels, view.size)
        var y = try Tensor<Float>(zeros: [patches?.count ?? all, width])
        try run(view, bytes: bytes, patches: patches, into: y.mutableMatrixView(), on: pool)
        return y
    }

    // MARK: - Checks and calls

    /// The number of patches of a picture.
    private func requirePatches(_ channels: Int, _ size: GridSize) throws(SparseKernelsError) -> Int {
        try require(
            channels == self.channels, .invalidShape, "picture", expected: "\(self.channels) channels", actual: "\(channels)")
        try require(
            size.rows >= side && size.columns >= side, .invalidShape, "picture", expected: "at least \(side) × \(side)",
            actual: "\(size)")
        return grid(of: size).count
    }

    private func requireChannels(_ name: String, _ values: [Float]) throws(SparseKernelsError) {
        try require(values.count == channels, .invalidShape, name, expected: "\(channels) numbers", actual: "\(values.count)")
        for index in 0..<values.count {
            try require(values[index].isFinite, .invalidArgument, name, expected: "finite", actual: "\(values[index])")
        }
    }

    private func requireList(_ patches: [Int32], of count: Int) throws(SparseKernelsError) {
        for index in 0..<patches.count {
            try require(
                patches[index] >= 0 && Int(patches[index]) < count, .invalidArgument, "patches",
                expected: "patches of 0..<\(count)", actual: "\(patches[index]) at place \(index)")
        }
    }

    /// Floats from a copied row to the next: a cache line more than the row, because rows a page apart share few cache sets.
    private var stride: Int { (linear.inFeatures + 15) / 16 * 16 + 16 }

    private func scratchByteCount(rows: Int) -> Int { rows * stride * 4 + linear.scratchByteCount }

    private func run(
        _ source: PatchSource, patches: [Int32], count: Int, isListed: Bool, into y: consuming MutableMatrixView<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (count, width))
        if count == 0 { return }
        let weights = PanelProduct(linear)
        let work = QuantizedLinearCall.work(count, linear.inFeatures, width)
        let cut = Cut(
            rows: count, depth: linear.inFeatures, panels: weights.panels,
            threads: work < WorkerPool.workCutoff ? 1 : pool.threads, sizes: linear.kernels.sizes)
        let call = Call(
            source: source, patches: patches, isListed: isListed, count: count, side: side, channels: channels,
            gridColumns: source.columns / side, stride: stride, cut: cut, weights: weights, kernels: linear.kernels,
            y: RowTarget(&y))
        pool.run(
            call, tasks: cut.rowBlocks * cut.panelBlocks, work: work, scratchByteCount: scratchByteCount(rows: cut.taskRows))
    }

    /// The cut of a product into tasks: rows that stay in the second-level cache, times all panels of the weight.
    ///
    /// With several threads blocks are smaller, down to 32 rows, and where they are still fewer than two per thread, several tasks take
    /// the same rows and some panels each. Each of them copies the patches. The sum of an element does not depend on its task.
    private struct Cut {
        let taskRows: Int
        let rowBlocks: Int
        let taskPanels: Int
        let panelBlocks: Int

        init(rows: Int, depth: Int, panels: Int, threads: Int, sizes: TileSizes) {
            var taskRows = QuantizedScratch.valueRows(
                rows, depth: depth, tileRows: sizes.tileRows, laneCount: sizes.laneCount)
            if threads > 1 {
                taskRows = min(taskRows, max(32, GEMMScratch.block(rows, into: threads, unit: sizes.tileRows)))
            }
            self.taskRows = taskRows
            rowBlocks = (rows + taskRows - 1) / taskRows
            let parts = threads > 1 ? min(panels, (2 * threads + rowBlocks - 1) / rowBlocks) : 1
            taskPanels = (panels + parts - 1) / parts
            panelBlocks = (panels + taskPanels - 1) / taskPanels
        }
    }

    /// Where a picture is in memory, and what becomes of its bytes. Whoever keeps it borrows the picture.
    private struct PatchSource {
        let base: UnsafeRawPointer
        let isBytes: Bool
        let columns: Int
        let rowStride: Int
        let planeStride: Int
        let scale: [Float]
        let offset: [Float]

        init(_ picture: PictureView<Float>) {
            base = UnsafeRawPointer(picture.address)
            isBytes = false
            columns = picture.size.columns
            (rowStride, planeStride) = (picture.rowStride, picture.planeStride)
            (scale, offset) = ([], [])
        }

        init(_ picture: PictureView<UInt8>, _ bytes: ByteScale) {
            base = UnsafeRawPointer(picture.address)
            isBytes = true
            columns = picture.size.columns
            (rowStride, planeStride) = (picture.rowStride, picture.planeStride)
            (scale, offset) = (bytes.scale, bytes.offset)
        }
    }

    /// One call. A task copies some patches and multiplies them with panels of the weight, while they are in the second-level cache.
    private struct Call: PoolCall {
        let source: PatchSource
        let patches: [Int32]
        let isListed: Bool
        let count: Int
        let side: Int
        let channels: Int
        let gridColumns: Int
        let stride: Int
        let cut: Cut
        let weights: PanelProduct
        let kernels: any KernelTable.Type
        let y: RowTarget

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let (block, part) = task.quotientAndRemainder(dividingBy: cut.panelBlocks)
            let first = block * cut.taskRows
            let rows = min(cut.taskRows, count - first)
            let values = scratch.assumingMemoryBound(to: Float.self)
            func address<Element>(_ array: [Element]) -> UnsafePointer<Element> {
                // The arrays are properties of the call. An empty one is not read.
                array.withUnsafeBufferPointer { $0.baseAddress }
                    ?? UnsafeRawPointer(values).assumingMemoryBound(to: Element.self)
            }
            var copy = PatchArguments(
                picture: source.base, isBytes: source.isBytes, rowStride: source.rowStride, planeStride: source.planeStride,
                channels: channels, side: side, gridColumns: gridColumns, patches: isListed ? address(patches) : nil,
                first: first, count: rows, scale: address(source.scale), offset: address(source.offset), rows: values,
                stride: stride)
            kernels.copyPatches(&copy)
            let activations = ActivationRows(values: values, stride: stride)
            let rest = scratch + cut.taskRows * stride * 4
            for panel in part * cut.taskPanels..<min(weights.panels, (part + 1) * cut.taskPanels) {
                var product = weights.arguments(
                    panel: panel, activations, rows: rows, y: y.from(first).from(column: weights.columns(ofPanel: panel).first),
                    scratch: rest)
                kernels.multiplyQuantized(&product)
            }
        }
    }
}
