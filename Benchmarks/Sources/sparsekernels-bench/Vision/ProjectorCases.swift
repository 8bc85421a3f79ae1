import BenchmarkReport
import NVILA
import SparseKernels
import SparseKernelsReference

/// The start of NVILA's projector for 64 frames of 32 × 32 tokens of 1152 channels: space-to-channel and LayerNorm in one pass, against
/// reshaping and then normalising; and the whole projector, to see what that is worth there.
///
/// Both are bound by memory: every call starts with empty caches, and the roof is the memory bandwidth, measured on the same threads
/// right before the call. What a call writes counts once, although memory that is not in the cache is read before it is written.
extension VisionCases {
    func projectorGroups() -> [CaseGroup] {
        let frames = isQuick ? 16 : 64
        return NVILADownsampling.allCases.flatMap { kind in
            instructionSets.map { normGroup(kind, frames: frames, $0) }
        } + NVILADownsampling.allCases.map { wholeGroup($0, frames: isQuick ? 1 : 4) }
    }

    private func normGroup(_ kind: NVILADownsampling, frames: Int, _ set: InstructionSet) -> CaseGroup {
        let name = "cells \(kind.factor)×\(kind.factor) of \(frames)×32×32×1152"
        return CaseGroup(
            op: "vision.projector", name: name, amounts: .uncounted, labels: [VisionBaseline.unfused, "fused"]
        ) { _ in
            let problem = try ProjectorNormProblem(frames: frames, factor: kind.factor, set)
            let caches = ColdCaches(set, pool)
            func variant(_ label: String, bytes: Int, _ body: @escaping () -> Void) -> Variant {
                // One operation per element, so that rates have a unit.
                let (elements, bytes) = (Double(problem.elements), Double(bytes))
                var variant = Variant(
                    isa: set.name, threads: pool.threads, body: body,
                    verify: {
                        body()
                        return problem.check()
                    },
                    preparation: caches.empty, roof: { caches.rate(operations: elements, bytes: bytes) }, label: label)
                variant.amounts = .operations(elements)
                variant.metrics[.bytesRead] = bytes
                return variant
            }
            let unfused = variant(VisionBaseline.unfused, bytes: problem.unfusedBytes) { problem.runUnfused(on: pool) }
            var fused = variant("fused", bytes: problem.fusedBytes) { problem.runFused(on: pool) }
            fused.baseline = (0, VisionBaseline.unfused)
            return [unfused, fused]
        }
    }

    private func wholeGroup(_ kind: NVILADownsampling, frames: Int) -> CaseGroup {
        let formats: [(String, NVILALinearFormat)] = [(VisionBaseline.float, .float32), ("f16", .float16), ("W8A8", .w8a8)]
        let (channels, hidden) = (1152, 3584)
        let cells = kind == .twoByTwo ? 256 : 121
        let cell = kind.factor * kind.factor * channels
        let weights = kind == .twoByTwo ? cell * hidden + hidden * hidden : (cell + hidden) * 3 * channels + hidden * hidden
        return CaseGroup(
            op: "vision.projector", name: "projector \(kind.factor)×\(kind.factor) of \(frames)×32×32×1152",
            amounts: .operations(2 * Double(frames * cells * weights)), labels: formats.map(\.0)
        ) { announce in
            announce("making the layers")
            let source = try ProjectorSource.weights(kind, channels: channels, hidden: hidden)
            let x = try Tensor<Float>.normal([frames, 1024, channels], seed: 1)
            var exact: Tensor<Float>?
            return try formats.enumerated().map { index, format in
                let projector = try NVILAProjector(
                    source, kind, grid: GridSize(side: 32), format: format.1, instructionSet: instructionSet, on: pool)
                var workspace = try projector.makeWorkspace(frames: frames)
                var y = try Tensor<Float>(zeros: [frames * cells, hidden])
                let pool = pool
                let body = { try! projector.run(x, into: &y, workspace: &workspace, on: pool) }
                var variant = Variant(
                    isa: instructionSet.name, threads: pool.threads, body: body,
                    verify: {
                        body()
                        guard let exact else {
                            exact = y
                            return nil
                        }
                        var verification = Verification.none
                        let scale = exact.elements.reduce(0) { max($0, abs($1)) }
                        for index in stride(from: 0, to: y.count, by: 997) {
                            verification.add(error: Double(abs(y[flat: index] - exact[flat: index])), bound: Double(scale) / 20)
                        }
                        return verification
                    }, label: format.0)
                if index > 0 { variant.baseline = (0, VisionBaseline.float) }
                return variant
            }
        }
    }
}

/// Weights whose numbers do not matter to the time.
enum ProjectorSource {
    static func weights(_ kind: NVILADownsampling, channels: Int, hidden: Int) throws -> NVILAProjectorWeights {
        typealias Weights = NVILAProjectorWeights
        let cell = kind.factor * kind.factor * channels
        let widths = kind == .twoByTwo ? [cell, hidden, hidden] : [cell, 3 * channels, hidden, hidden]
        func norm(_ width: Int) throws -> Weights.Norm {
            Weights.Norm(weight: try Tensor([width]) { _ in 1 }, bias: try Tensor(zeros: [width]))
        }
        var linears: [Weights.Linear] = []
        for layer in 0..<widths.count - 1 {
            let weight = try matrix(widths[layer + 1], widths[layer])
            linears.append(Weights.Linear(weight: weight, bias: try Tensor(zeros: [widths[layer + 1]])))
        }
        return Weights(
            norms: kind == .twoByTwo ? [try norm(cell)] : [try norm(cell), try norm(3 * channels)], linears: linears)
    }

    /// A matrix like one of uniform random numbers, made faster.
    static func matrix(_ rows: Int, _ columns: Int) throws -> Tensor<Float> {
        let scale = 1 / Float(columns).squareRoot()
        return try Tensor([rows, columns]) { index in
            let bits = UInt32(truncatingIfNeeded: index &* 2_654_435_761) ^ UInt32(truncatingIfNeeded: index >> 7)
            return (Float(bits & 0xffff) / 32_768 - 1) * scale
        }
    }
}

/// Tokens of frames, and both ways to normalised cells.
final class ProjectorNormProblem {
    private let reshape: SpaceToChannel
    private let norm: SpaceToChannelNorm
    private let plain: LayerNorm
    private let frames: Int
    private let x: Tensor<Float>
    private let (weight, bias): (Tensor<Float>, Tensor<Float>)
    private var cells: Tensor<Float>
    private var y: Tensor<Float>

    init(frames: Int, factor: Int, _ set: InstructionSet) throws {
        self.frames = frames
        reshape = try SpaceToChannel(grid: GridSize(side: 32), factor: factor, channels: 1152)
        let width = reshape.cellChannels
        (weight, bias) = (try .normal([width], seed: 1), try .normal([width], seed: 2))
        norm = try SpaceToChannelNorm(reshape, weight: weight, bias: bias, instructionSet: set)
        plain = try LayerNorm(channels: width, weight: weight, bias: bias, instructionSet: set)
        let one = try Tensor<Float>.normal([1024 * 1152], seed: 3)
        x = try Tensor([frames * 1024, 1152]) { one[flat: $0 % one.count] }
        cells = try Tensor(zeros: [frames * reshape.cells.count, width])
        y = cells
    }

    var elements: Int { y.count }
    var fusedBytes: Int { 4 * (x.count + y.count) }
    /// The cells are written and read besides.
    var unfusedBytes: Int { fusedBytes + 8 * cells.count }

    // Shapes agree by construction, so no `run` can throw.

    func runFused(on pool: WorkerPool) { Self.run(norm, x, &y, pool) }

    func runUnfused(on pool: WorkerPool) {
        Self.run(reshape, x, &cells, pool)
        try! plain.run(cells, into: &y, on: pool)
    }

    private static func run(_ norm: SpaceToChannelNorm, _ x: Tensor<Float>, _ y: inout Tensor<Float>, _ pool: WorkerPool) {
        try! norm.run(x.matrixView(), into: y.mutableMatrixView(), on: pool)
    }

    private static func run(_ reshape: SpaceToChannel, _ x: Tensor<Float>, _ y: inout Tensor<Float>, _ pool: WorkerPool) {
        try! reshape.run(x.matrixView(), into: y.mutableMatrixView(), on: pool)
    }

    /// Compares the first and the last cell of a frame in the middle and of the last one with the oracle.
    func check() -> Verification {
        var verification = Verification.none
        let (width, size) = (reshape.cellChannels, reshape.cells)
        for frame in [frames / 2, frames - 1] {
            for cell in [0, size.count - 1] {
                let values = ReferenceTokenCells.row(
                    of: reshape, frame: frame, cell: (cell / size.columns, cell % size.columns)
                ) { Double(x[$0, $1]) }
                let (w, b) = (weight.elements.map(Double.init), bias.elements.map(Double.init))
                let expected = ReferenceRows.layerNorm(values, weight: w, bias: b, epsilon: Double(norm.epsilon))
                let mean = values.reduce(0, +) / Double(width)
                let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(width)
                for channel in 0..<width {
                    let bound = ReferenceTokenCells.normBound(
                        expected[channel], weight: w[channel], bias: b[channel], channels: width, pieces: reshape.factor,
                        variance: variance, epsilon: Double(norm.epsilon))
                    let actual = Double(y[frame * size.count + cell, channel])
                    verification.add(error: abs(actual - expected[channel]), bound: bound)
                }
            }
        }
        return verification
    }
}
