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
/// - Exactness, non-finite input: those of ``GEMM`` with the bias as the last product of a sum; a NaN spoils the row of its patch.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: patches · channels · p² · width multiply-adds.
/// - Scratch: `scratchByteCount` per thread: 384 patches, and what ``GEMM`` needs.
/// - Source: Dosovitskiy et al., "An image is worth 16×16 words" (2021); `SelectedPatchEmbed` of PS3 (Shi et al., 2025).
public struct PatchEmbedding: Sendable {
    /// Elements of a token.
    public let width: Int
    /// Channels of a picture.
    public let channels: Int
    /// p.
    public let side: Int
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    /// `[channels · p · p + 1, width]`, the bias last: patches have a 1 at their end.
    private let weight: Tensor<Float>
    private let kernels: any KernelTable.Type

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
        let (width, depth) = (shape[0], shape[1] * shape[2] * shape[3])
        if let bias {
            try require(bias.shape == [width], .invalidShape, "bias", expected: "\([width])", actual: "\(bias.shape)")
            try bias.requireFinite(named: "bias")
        }
        self.width = width
        channels = shape[1]
        side = shape[2]
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        let floats = weight.converted(to: Float.self)
        var columns = try Tensor<Float>(zeros: [depth + 1, width])
        let target = columns.uniqueAddress()
        // A single panel with a row per element of a patch.
        withExtendedLifetime(floats) {
            FloatPacking(
                source: UnsafePointer(floats.storage.pointer.assumingMemoryBound(to: Float.self)), rows: width, firstRow: 0,
                target: target, lanes: width, depth: depth, panelWidth: width
            ).run(on: pool)
        }
        if let bias { for column in 0..<width { target[depth * width + column] = bias[flat: column] } }
        self.weight = columns
    }

    /// Bytes of scratch that each thread of the pool needs, for calls of any size.
    public var scratchByteCount: Int { scratchByteCount(rows: Self.taskRows) }

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

    /// The most rows of a task. 384 patches of 588 elements are 0.9 MiB, which the second-level cache holds until they are packed. Every
    /// task packs the weight once, at 0.2 cycles per element, compared with the 12 or 24 in which it multiplies with it.
    private static let taskRows = GEMMScratch.rowBlock

    /// Elements of a patch and the factor of the bias.
    private var depth: Int { weight.shape[0] }

    /// Floats from a copied row to the next: a cache line more than the row, because rows a page apart share few cache sets.
    private var stride: Int { (depth + 15) / 16 * 16 + 16 }

    private func scratchByteCount(rows: Int) -> Int { GEMMScratch.byteCount + rows * stride * 4 + 64 }

    private func run(
        _ source: PatchSource, patches: [Int32], count: Int, isListed: Bool, into y: consuming MutableMatrixView<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (count, width))
        if count == 0 { return }
        let work = QuantizedLinearCall.work(count, depth, width)
        let blocks = GEMMBlocks(
            m: count, n: width, threads: work < WorkerPool.workCutoff ? 1 : pool.threads, sizes: kernels.sizes,
            rowLimit: Self.taskRows, columnLimit: GEMMScratch.taskColumns)
        let targetStride = y.rowStride
        let call = Call(
            source: source, patches: patches, isListed: isListed, count: count, side: side, channels: channels,
            gridColumns: source.columns / side, depth: depth, stride: stride, width: width, blocks: blocks,
            // The tensor is a property of the plan, and the view is owned; both outlive the call.
            weight: UnsafePointer(weight.storage.pointer.assumingMemoryBound(to: Float.self)),
            y: y.span.withUnsafeMutableBufferPointer { $0.baseAddress! }, yStride: targetStride, kernels: kernels)
        pool.run(call, tasks: blocks.count, work: work, scratchByteCount: scratchByteCount(rows: blocks.rows))
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

    /// One call. A task copies some patches, with a 1 after each, and multiplies them with columns of the weight.
    private struct Call: PoolCall {
        let source: PatchSource
        let patches: [Int32]
        let isListed: Bool
        let count: Int
        let side: Int
        let channels: Int
        let gridColumns: Int
        let depth: Int
        let stride: Int
        let width: Int
        let blocks: GEMMBlocks
        let weight: UnsafePointer<Float>
        let y: UnsafeMutablePointer<Float>
        let yStride: Int
        let kernels: any KernelTable.Type

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let first = task % blocks.rowBlocks * blocks.rows
            let column = task / blocks.rowBlocks * blocks.columns
            let rows = min(blocks.rows, count - first)
            let values = (scratch + (GEMMScratch.byteCount + 63) / 64 * 64).assumingMemoryBound(to: Float.self)
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
            for row in 0..<rows { values[row * stride + depth - 1] = 1 }
            var product = GEMMArguments(
                a: values, aStride: stride, b: weight + column, bStride: width, bIsTransposed: false,
                c: y + first * yStride + column, cStride: yStride, rows: rows,
                columns: min(blocks.columns, width - column), depth: depth, scratch: scratch)
            kernels.multiplyBlock(&product)
        }
    }
}
