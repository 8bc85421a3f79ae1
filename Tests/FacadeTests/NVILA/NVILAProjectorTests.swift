import NVILA
import SparseKernelsReference
import TestSupport
import Testing

@Suite("NVILA: projectors and formats")
struct NVILAProjectorTests {
    static func weights(_ kind: NVILADownsampling, channels: Int, hidden: Int) throws -> NVILAProjectorWeights {
        typealias Weights = NVILAProjectorWeights
        let cell = kind.factor * kind.factor * channels
        let widths = kind == .twoByTwo ? [cell, hidden, hidden] : [cell, 3 * channels, hidden, hidden]
        func norm(_ width: Int, _ seed: UInt64) throws -> Weights.Norm {
            let bias = try Tensor<Float>.normal([width], seed: seed)
            return Weights.Norm(weight: try Tensor([width]) { 1 + bias[flat: $0] / 4 }, bias: bias)
        }
        var linears: [Weights.Linear] = []
        for layer in 0..<widths.count - 1 {
            let (rows, columns) = (widths[layer + 1], widths[layer])
            let scale = 1 / Float(columns).squareRoot()
            let weight = try Tensor<Float>.normal([rows, columns], seed: UInt64(layer), scale: scale)
            linears.append(Weights.Linear(weight: weight, bias: try .normal([rows], seed: UInt64(layer + 10))))
        }
        let norms = kind == .twoByTwo ? [try norm(cell, 20)] : [try norm(cell, 20), try norm(3 * channels, 21)]
        return Weights(norms: norms, linears: linears)
    }

    /// A row through the projector in `Double`.
    static func reference(_ row: [Double], _ weights: NVILAProjectorWeights) -> [Double] {
        func norm(_ x: [Double], _ n: NVILAProjectorWeights.Norm) -> [Double] {
            ReferenceRows.layerNorm(
                x, weight: n.weight.elements.map(Double.init), bias: n.bias.elements.map(Double.init), epsilon: 1e-5)
        }
        var x = norm(row, weights.norms[0])
        for (index, linear) in weights.linears.enumerated() {
            var y = linear.bias.elements.map(Double.init)
            for (out, _) in y.enumerated() {
                for (k, value) in x.enumerated() { y[out] += value * Double(linear.weight[out, k]) }
            }
            let isLast = index + 1 == weights.linears.count
            x = isLast ? y : y.map { ReferenceRows.activation(.gelu, $0) }
            if index == 0, weights.norms.count == 2 { x = norm(x, weights.norms[1]) }
        }
        return x
    }

    @Test("agree with the description in Double", arguments: InstructionSet.available, NVILADownsampling.allCases)
    func reference(_ set: InstructionSet, _ kind: NVILADownsampling) throws {
        let weights = try Self.weights(kind, channels: 11, hidden: 23)
        let projector = try NVILAProjector(weights, kind, grid: GridSize(rows: 5, columns: 7), instructionSet: set)
        let x = try Tensor<Float>.normal([2, 35, 11], seed: 30)
        let y = try projector(x)
        let reshape = projector.reshape
        #expect(y.shape == [2, reshape.cells.count, 23])
        for frame in 0..<2 {
            for cell in 0..<reshape.cells.count {
                let (row, column) = cell.quotientAndRemainder(dividingBy: reshape.cells.columns)
                let values = ReferenceTokenCells.row(of: reshape, frame: frame, cell: (row, column)) {
                    Double(x[flat: $0 * 11 + $1])
                }
                let expected = Self.reference(values, weights)
                let place = (frame * reshape.cells.count + cell) * 23
                // The tolerance of the recorded cases.
                let isNear = (0..<23).allSatisfy {
                    abs(Double(y[flat: place + $0]) - expected[$0]) <= 2e-5 + 1e-5 * abs(expected[$0])
                }
                #expect(isNear, "\(set), \(kind), frame \(frame), cell \(cell)")
            }
        }
    }

    @Test("frames in one call are frames alone, on any number of threads", arguments: NVILADownsampling.allCases)
    func frames(_ kind: NVILADownsampling) throws {
        // More frames than go through the layers together.
        let (frames, grid) = (300, GridSize(side: 4))
        let projector = try NVILAProjector(Self.weights(kind, channels: 6, hidden: 9), kind, grid: grid)
        let cells = projector.reshape.cells.count
        let x = try Tensor<Float>.normal([frames, 16, 6], seed: 31)
        let y = try projector(x, on: .serial)
        for threads in [2, 7] { #expect(try projector(x, on: WorkerPool(threads: threads)).bits == y.bits) }
        var workspace = try projector.makeWorkspace(frames: 2)
        for frame in [0, 255, 256, 298] {
            let part = try Tensor([2, 16, 6], Array(x.elements[frame * 96..<(frame + 2) * 96]))
            var alone = try Tensor<Float>(zeros: [2, cells, 9])
            try projector.run(part, into: &alone, workspace: &workspace)
            #expect(alone.elements == Array(y.elements[frame * cells * 9..<(frame + 2) * cells * 9]))
        }
        // NaN stays in its cell.
        var damaged = x
        damaged[7, 0, 2] = .nan
        let z = try projector(damaged)
        for index in 0..<z.count where index / 9 != 7 * cells {
            if z[flat: index].bitPattern != y[flat: index].bitPattern { Issue.record("element \(index)") }
        }
        #expect((7 * cells * 9..<(7 * cells + 1) * 9).allSatisfy { z[flat: $0].isNaN })
        #expect(try projector(Tensor<Float>(zeros: [0, 16, 6])).shape == [0, cells, 9])
    }

    @Test("quantised projectors are near the one in single precision")
    func formats() throws {
        let weights = try Self.weights(.twoByTwo, channels: 64, hidden: 96)
        let x = try Tensor<Float>.normal([4, 16, 64], seed: 32)
        func projected(_ format: NVILALinearFormat) throws -> Tensor<Float> {
            try NVILAProjector(weights, .twoByTwo, grid: GridSize(side: 4), format: format)(x)
        }
        let exact = try projected(.float32)
        let scale = exact.elements.reduce(0) { max($0, abs($1)) }
        // Half a step of the formats, of which some hundred errors add up to a few.
        for (format, limit) in [
            (NVILALinearFormat.float16, Float(0.003)), (.bfloat16, 0.02), (.w8a8, 0.05), (.w4a16(), 0.3),
            (.w4a16(groupSize: 32), 0.25),
        ] {
            let y = try projected(format)
            let worst = zip(y.elements, exact.elements).reduce(0) { max($0, abs($1.0 - $1.1)) }
            #expect(worst > 0 && worst <= limit * scale, "\(format): \(worst / scale)")
        }
        let sizes = try [NVILALinearFormat.float32, .float16, .w8a8, .w4a16()].map {
            try NVILALinear(weight: weights.linears[0].weight, format: $0).byteCount
        }
        #expect(sizes == sizes.sorted(by: >))
    }

    @Test("weights of a file are those of tensors")
    func file() throws {
        for kind in NVILADownsampling.allCases {
            let weights = try Self.weights(kind, channels: 5, hidden: 7)
            let (norms, linears) = kind == .twoByTwo ? ([1], [2, 4]) : ([1, 4], [2, 5, 7])
            var writer = SafetensorsWriter()
            for (layer, norm) in zip(norms, weights.norms) {
                try writer.add("mm.layers.\(layer).weight", norm.weight)
                try writer.add("mm.layers.\(layer).bias", norm.bias)
            }
            for (layer, linear) in zip(linears, weights.linears) {
                try writer.add("mm.layers.\(layer).weight", linear.weight)
                try writer.add("mm.layers.\(layer).bias", linear.bias)
            }
            let folder = try TemporaryDirectory()
            try writer.write(to: folder.path + "/projector.safetensors")
            let file = try SafetensorsFile(path: folder.path + "/projector.safetensors")
            let read = try NVILAProjectorWeights(file, prefix: "mm.", downsampling: kind)
            let (x, grid) = (try Tensor<Float>.normal([1, 9, 5], seed: 1), GridSize(side: 3))
            #expect(try NVILAProjector(read, kind, grid: grid)(x) == NVILAProjector(weights, kind, grid: grid)(x))
            expectError(.notFound, describing: "layers.1.weight") {
                _ = try NVILAProjectorWeights(file, downsampling: kind)
            }
        }
        #expect(try NVILADownsampling(projectorType: "mlp_downsample") == .twoByTwo)
        #expect(try NVILADownsampling(projectorType: "mlp_downsample_3x3_fix") == .threeByThree)
        expectError(.invalidArgument, "projectorType", containing: "linear") {
            _ = try NVILADownsampling(projectorType: "linear")
        }
    }

    @Test("errors name the part and both shapes")
    func errors() throws {
        let grid = GridSize(side: 4)
        let weights = try Self.weights(.threeByThree, channels: 4, hidden: 6)
        expectError(.invalidShape, "norms", containing: "1", "2") { _ = try NVILAProjector(weights, .twoByTwo, grid: grid) }
        var other = weights
        other.linears.removeLast()
        expectError(.invalidShape, "linears", containing: "3", "2") {
            _ = try NVILAProjector(other, .threeByThree, grid: grid)
        }
        other = weights
        other.linears[1].weight = try .init(zeros: [6, 11])
        expectError(.invalidShape, "linears[1].weight", containing: "12", "[6, 11]") {
            _ = try NVILAProjector(other, .threeByThree, grid: grid)
        }
        other = weights
        other.norms[1].weight = try .init(zeros: [11])
        expectError(.invalidShape, "norms[1].weight", containing: "[12]", "[11]") {
            _ = try NVILAProjector(other, .threeByThree, grid: grid)
        }
        other.norms[0].weight = try .init(zeros: [35])
        expectError(.invalidShape, "norms[0].weight", containing: "multiple of 9", "[35]") {
            _ = try NVILAProjector(other, .threeByThree, grid: grid)
        }
        other = weights
        other.linears[2].bias = try .init(zeros: [5])
        expectError(.invalidShape, "linears[2].bias", containing: "[6]", "[5]") {
            _ = try NVILAProjector(other, .threeByThree, grid: grid)
        }
        expectError(.invalidArgument, "groupSize", containing: "100") {
            _ = try NVILAProjector(weights, .threeByThree, grid: grid, format: .w4a16(groupSize: 100))
        }
        let projector = try NVILAProjector(weights, .threeByThree, grid: grid)
        let x = try Tensor<Float>(zeros: [1, 16, 4])
        var workspace = try projector.makeWorkspace()
        var y = try Tensor<Float>([4, 7]) { _ in 7 }
        expectError(.invalidShape, "y", containing: "4 × 6", "4 × 7") {
            try projector.run(x, into: &y, workspace: &workspace)
        }
        expectError(.invalidShape, "x", containing: "16 tokens", "15 × 4") {
            try projector.run(Tensor<Float>(zeros: [15, 4]), into: &y, workspace: &workspace)
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
    }
}
