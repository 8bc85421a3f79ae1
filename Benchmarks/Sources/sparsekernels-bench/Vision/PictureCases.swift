import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Pictures: patches embedded as tokens beside the plain product of as many rows, depthwise convolutions of grids, and resizing.
///
/// The roof of products and convolutions is that of multiply-adds. Resizing starts with empty caches, and its roof is the memory: what
/// is read and written once.
extension VisionCases {
    private static let dense = "GEMM"

    var pictureGroups: [CaseGroup] { patchGroups + depthwiseGroups + resizeGroups }

    // MARK: - Patches

    /// Patches of 14 pixels spread over a picture of 3780², as PS3 selects them, and all patches of one of 378².
    private var patchGroups: [CaseGroup] {
        (isQuick ? [(256, 756)] : [(256, 3780), (2560, 3780), (729, 378)]).map { count, side in
            let problem = PatchShape(count: count, picture: side, side: 14, width: 1152)
            return CaseGroup(
                op: "vision.patches", name: "\(count) of \(side)² p 14 to 1152", amounts: .operations(problem.operations),
                labels: [Self.dense, "patches", "patches of bytes"]
            ) { _ in try patchVariants(problem) }
        }
    }

    private func patchVariants(_ shape: PatchShape) throws -> [Variant] {
        let problem = try PatchProblem(shape)
        var variants: [Variant] = []
        for set in instructionSets {
            let first = variants.count
            let embedding = try PatchEmbedding(weight: problem.weight, bias: problem.bias, instructionSet: set, on: pool)
            let gemm = try GEMM(
                m: shape.count, n: shape.width, k: shape.depth, transposesB: true, instructionSet: set)
            let roof = { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }
            let bodies: [(String, () -> Void, () -> Verification?)] = [
                (Self.dense, { problem.multiply(gemm, on: pool) }, { nil }),
                ("patches", { problem.embed(embedding, on: pool) }, { problem.check(bytes: false) }),
                ("patches of bytes", { problem.embedBytes(embedding, on: pool) }, { problem.check(bytes: true) }),
            ]
            for (label, body, check) in bodies {
                variants.append(
                    Variant(
                        isa: set.name, threads: pool.threads, body: body,
                        verify: {
                            body()
                            return check()
                        },
                        baseline: label == Self.dense ? nil : (first, Self.dense), roof: roof, label: label))
            }
        }
        return variants
    }

    // MARK: - Depthwise convolution

    private var depthwiseGroups: [CaseGroup] {
        let shapes = [(27, 1152, 7), (135, 128, 7), (56, 256, 3)]
        return (isQuick ? Array(shapes.prefix(1)) : shapes).map { side, channels, k in
            let operations = 2 * Double(side * side * channels * k * k)
            return CaseGroup(
                op: "vision.depthwise", name: "\(side)² × \(channels) k \(k)", amounts: .operations(operations)
            ) { _ in
                let problem = try DepthwiseProblem(grid: GridSize(side: side), channels: channels, side: k)
                return try instructionSets.map { set in
                    let convolution = try DepthwiseConvolution(
                        weight: problem.weight, bias: problem.bias, instructionSet: set)
                    let body = { problem.run(convolution, on: pool) }
                    return Variant(
                        isa: set.name, threads: pool.threads, body: body,
                        verify: {
                            body()
                            return problem.check()
                        }, roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) })
                }
            }
        }
    }

    // MARK: - Resizing

    private var resizeGroups: [CaseGroup] {
        let pictures = isQuick ? [(756, 378)] : [(3780, 1512), (1512, 3780), (3780, 378), (3780, 3780)]
        let methods: [(ImageResize.Filter, Bool)] = [
            (.nearest, false), (.area, false), (.bilinear, false), (.bicubic, false), (.bicubic, true),
        ]
        var groups: [CaseGroup] = []
        for (source, target) in pictures {
            for (filter, antialias) in source == target ? [(.bicubic, false)] : methods {
                groups.append(
                    memoryGroup(
                        op: "vision.resize",
                        name: "3 × \(source)² to \(target)² \(filter.rawValue)\(antialias ? " smooth" : "")"
                    ) {
                        try ResizeProblem(
                            GridSize(side: source), GridSize(side: target), filter, antialias, .planar, channels: 3)
                    })
            }
        }
        for (source, target) in isQuick ? [(32, 16)] : [(81, 27), (27, 54)] {
            for filter in ImageResize.Filter.allCases {
                groups.append(
                    memoryGroup(op: "vision.resize", name: "\(source)² to \(target)² × 1152 \(filter.rawValue)") {
                        try ResizeProblem(
                            GridSize(side: source), GridSize(side: target), filter, false, .interleaved, channels: 1152)
                    })
            }
        }
        return groups
    }
}

private struct PatchShape {
    let count: Int
    let picture: Int
    let side: Int
    let width: Int

    var depth: Int { 3 * side * side }
    var operations: Double { 2 * Double(count * depth * width) }
}

/// A picture, a weight, and patches evenly spread over the picture.
private final class PatchProblem {
    let weight: Tensor<Float>
    let bias: Tensor<Float>
    private let shape: PatchShape
    private let matrix: Tensor<Float>
    private let rows: Tensor<Float>
    private let picture: Tensor<Float>
    private let pictureOfBytes: Tensor<UInt8>
    private let bytes = PatchEmbedding.ByteScale(mean: [0.5, 0.4, 0.3], deviation: [0.5, 0.4, 0.3])
    private let patches: [Int32]
    private var y: Tensor<Float>

    init(_ shape: PatchShape) throws {
        self.shape = shape
        weight = try .normal([shape.width, 3, shape.side, shape.side], seed: 1, scale: 0.05)
        matrix = try Tensor([shape.width, shape.depth], weight.elements)
        bias = try .normal([shape.width], seed: 2)
        rows = try .normal([shape.count, shape.depth], seed: 3)
        let extents = [3, shape.picture, shape.picture]
        let bytes = try Tensor<UInt8>(extents) { UInt8(truncatingIfNeeded: ($0 &* 2_654_435_761) >> 13) }
        pictureOfBytes = bytes
        let (scale, offset, plane) = (self.bytes.scale, self.bytes.offset, shape.picture * shape.picture)
        picture = try Tensor(extents) { scale[$0 / plane] * Float(bytes[flat: $0]) + offset[$0 / plane] }
        let grid = (shape.picture / shape.side) * (shape.picture / shape.side)
        patches = (0..<shape.count).map { Int32($0 * grid / shape.count) }
        y = try Tensor(zeros: [shape.count, shape.width])
    }

    // Shapes agree by construction, so no call can throw.

    func multiply(_ gemm: GEMM, on pool: WorkerPool) { try! gemm.run(a: rows, b: matrix, into: &y, on: pool) }

    func embed(_ embedding: PatchEmbedding, on pool: WorkerPool) {
        withTarget { y in
            let picture = self.picture
            let view = try! picture.pictureView()
            try! embedding.run(view, patches: patches, into: y.mutableMatrixView(), on: pool)
        }
    }

    func embedBytes(_ embedding: PatchEmbedding, on pool: WorkerPool) {
        withTarget { y in
            let picture = pictureOfBytes
            let view = try! picture.pictureView()
            try! embedding.run(view, bytes: bytes, patches: patches, into: y.mutableMatrixView(), on: pool)
        }
    }

    /// Lends y to a call. A view of a property would outlive its access.
    private func withTarget(_ body: (inout Tensor<Float>) -> Void) {
        var target = try! Tensor<Float>(zeros: [0])
        swap(&target, &y)
        body(&target)
        swap(&target, &y)
    }

    /// Compares some tokens with the oracle. Those of bytes are the same, because the floats are scaled bytes.
    func check(bytes: Bool) -> Verification {
        var verification = Verification.none
        let (side, columns) = (shape.side, shape.picture / shape.side)
        for row in Swift.stride(from: 0, to: shape.count, by: max(1, shape.count / 8)) {
            let (top, left) = (Int(patches[row]) / columns * side, Int(patches[row]) % columns * side)
            for column in Swift.stride(from: row % 7, to: shape.width, by: 97) {
                let (value, magnitude) = ReferenceMatrixProduct.element(
                    row: row, column: column, depth: shape.depth,
                    a: { picture[$1 / (side * side), top + $1 / side % side, left + $1 % side] },
                    b: { matrix[flat: $1 * shape.depth + $0] })
                let shift = Double(bias[flat: column])
                verification.add(
                    error: abs(Double(y[flat: row * shape.width + column]) - value - shift),
                    bound: ReferenceMatrixProduct.errorBound(magnitude: magnitude + abs(shift), depth: shape.depth + 1)
                        + 0x1p-24 * abs(value + shift))
            }
        }
        return verification
    }
}

private final class DepthwiseProblem {
    let weight: Tensor<Float>
    let bias: Tensor<Float>
    private let grid: GridSize
    private let x: Tensor<Float>
    private var y: Tensor<Float>

    init(grid: GridSize, channels: Int, side: Int) throws {
        self.grid = grid
        weight = try .normal([channels, 1, side, side], seed: 1)
        bias = try .normal([channels], seed: 2)
        x = try .normal([grid.rows, grid.columns, channels], seed: 3)
        y = try Tensor(zeros: x.shape)
    }

    // Shapes agree by construction.
    func run(_ convolution: DepthwiseConvolution, on pool: WorkerPool) { try! convolution.run(x, into: &y, on: pool) }

    func check() -> Verification {
        var verification = Verification.none
        let (channels, side) = (weight.shape[0], weight.shape[2])
        for flat in stride(from: 0, to: y.count, by: y.count / 200 + 1) {
            let (cell, channel) = (flat / channels, flat % channels)
            let (value, magnitude) = ReferenceDepthwise.cell(
                cell / grid.columns, cell % grid.columns, grid: grid, side: side, bias: Double(bias[flat: channel]),
                weight: { weight[channel, 0, $0, $1] }, x: { x[$0, $1, channel] })
            verification.add(
                error: abs(Double(y[flat: flat]) - value),
                bound: ReferenceDepthwise.errorBound(magnitude: magnitude, side: side))
        }
        return verification
    }
}

/// A picture, or a grid of features, that is resized.
private final class ResizeProblem: RowProblem {
    private let (source, target): (GridSize, GridSize)
    private let (filter, antialias): (ImageResize.Filter, Bool)
    private let layout: ImageLayout
    private let channels: Int
    private let x: Tensor<Float>
    private var y: Tensor<Float>

    init(
        _ source: GridSize, _ target: GridSize, _ filter: ImageResize.Filter, _ antialias: Bool, _ layout: ImageLayout,
        channels: Int
    ) throws {
        (self.source, self.target, self.filter, self.antialias) = (source, target, filter, antialias)
        (self.layout, self.channels) = (layout, channels)
        func shape(_ size: GridSize) -> [Int] {
            layout == .planar ? [channels, size.rows, size.columns] : [size.rows, size.columns, channels]
        }
        x = try Tensor(shape(source)) { Float(($0 &* 2_654_435_761) & 0xffff) / 65536 - 0.5 }
        y = try Tensor(zeros: shape(target))
    }

    var elements: Int { y.count }
    /// Nearest cells of a smaller picture leave rows unread, but not lines of them.
    var bytes: Int {
        4 * (x.count * (filter == .nearest ? min(source.rows, target.rows) : source.rows) / source.rows + y.count)
    }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let resize = try ImageResize(source, to: target, filter: filter, antialias: antialias, instructionSet: set)
        return { try! resize.run(self.x, into: &self.y, layout: self.layout, on: pool) }
    }

    func check() -> Verification {
        let oracle = ReferenceResize(source, to: target, filter: filter, antialias: antialias)
        var verification = Verification.none
        for place in stride(from: 0, to: target.count, by: target.count / 60 + 1) {
            let (row, column, channel) = (place / target.columns, place % target.columns, place % channels)
            let isPlanar = layout == .planar
            let (value, magnitude) = oracle.cell(row, column) { isPlanar ? x[channel, $0, $1] : x[$0, $1, channel] }
            let actual = isPlanar ? y[channel, row, column] : y[row, column, channel]
            verification.add(
                error: abs(Double(actual) - value), bound: oracle.errorBound(row, column, magnitude: magnitude))
        }
        return verification
    }
}
