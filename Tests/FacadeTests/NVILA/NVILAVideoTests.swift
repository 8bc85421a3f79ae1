import NVILA
import SparseKernelsReference
import TestSupport
import Testing

@Suite("NVILA: tokens of videos")
struct NVILAVideoTests {
    @Test("start, end and separator tokens stand around pooled frames", arguments: InstructionSet.available)
    func tokens(_ set: InstructionSet) throws {
        let x = try Tensor<Float>.normal([12, 4, 5], seed: 1)
        func embedding(_ rows: Int, _ value: Float) throws -> Tensor<Float> { try Tensor([rows, 5]) { _ in value } }
        let pools = [PoolingWindow(frames: 4), PoolingWindow(frames: 6, rows: 2, columns: 1)]
        let grid = GridSize(side: 2)
        let encoder = try NVILAVideoEncoder(
            frames: 12, grid: grid, channels: 5, pools: pools, start: embedding(2, 100), end: embedding(1, 200),
            separator: embedding(3, 300), instructionSet: set)
        let y = try encoder(x)
        var expected: [Float] = []
        for pool in pools {
            let pooled = try TemporalPooling(frames: 12, grid: grid, pool: pool, instructionSet: set)(x)
            let size = pooled.count / pooled.shape[0]
            for frame in 0..<pooled.shape[0] {
                expected += [Float](repeating: 100, count: 10) + pooled.elements[frame * size..<(frame + 1) * size]
                expected += [Float](repeating: 200, count: 5)
            }
            expected += [Float](repeating: 300, count: 15)
        }
        #expect(y.elements == expected && y.shape == [encoder.tokenCount, 5])
        #expect(try encoder(x, on: WorkerPool(threads: 7)).bits == y.bits)
        let plain = try NVILAVideoEncoder(frames: 12, grid: grid, channels: 5, pools: [PoolingWindow(frames: 1)])
        #expect(try plain(x).elements == x.elements)
    }

    @Test("256 frames become 32 of 256 tokens and a newline")
    func released() throws {
        let encoder = try NVILAVideoEncoder(
            frames: 256, grid: GridSize(side: 16), channels: 2, end: .init(zeros: [1, 2]))
        #expect(encoder.tokenCount == 32 * 257)
    }

    @Test("a configuration counts the tokens of a picture, and has the released formats")
    func configuration() throws {
        let configuration = try NVILAConfiguration()
        #expect(configuration.tower == .w8a8 && configuration.languageModel == .w4a16(groupSize: 128))
        #expect(configuration.tower.weightBits == 8 && configuration.languageModel.weightBits == 4)
        // 12 boards of 16 × 16 cells.
        #expect(try configuration.tokenCount(width: 1920, height: 1080, tokens: GridSize(side: 32)) == 12 * 256)
        var small = try NVILAConfiguration(tiles: DynamicS2(outputScale: 0), downsampling: .threeByThree)
        #expect(try small.tokenCount(width: 1920, height: 1080, tokens: GridSize(side: 32)) == 121)
        small.tiles = try DynamicS2(outputScale: 1)
        #expect(try small.tokenCount(width: 5, height: 5, tokens: GridSize(side: 32)) == 4 * 121)
        expectError(.invalidShape, "width") { _ = try small.tokenCount(width: 0, height: 5, tokens: GridSize(side: 32)) }
        expectError(.invalidArgument, "temporalPools") { _ = try NVILAConfiguration(temporalPools: []) }
    }

    @Test("errors name the embedding, the extents and the limits")
    func errors() throws {
        let grid = GridSize(side: 2)
        expectError(.invalidArgument, "frames", containing: "8", "12") {
            _ = try NVILAVideoEncoder(frames: 12, grid: grid, channels: 5)
        }
        #expect(try NVILAVideoEncoder(frames: 12, grid: grid, channels: 5, tails: .averaged).tokenCount == 8)
        expectError(.invalidArgument, "pools") { _ = try NVILAVideoEncoder(frames: 8, grid: grid, channels: 5, pools: []) }
        expectError(.invalidShape, "end", containing: "[tokens, 5]", "[1, 4]") {
            _ = try NVILAVideoEncoder(frames: 8, grid: grid, channels: 5, end: .init(zeros: [1, 4]))
        }
        expectError(.invalidShape, "channels") { _ = try NVILAVideoEncoder(frames: 8, grid: grid, channels: 0) }
        let encoder = try NVILAVideoEncoder(frames: 8, grid: grid, channels: 5)
        expectError(.invalidShape, "x", containing: "32 × 5", "31 × 5") { _ = try encoder(Tensor<Float>(zeros: [31, 5])) }
        let x = try Tensor<Float>(zeros: [32, 5])
        var y = try Tensor<Float>([5, 5]) { _ in 7 }
        expectError(.invalidShape, "y", containing: "4 × 5", "5 × 5") {
            try encoder.run(x.matrixView(), into: y.mutableMatrixView())
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
    }
}
