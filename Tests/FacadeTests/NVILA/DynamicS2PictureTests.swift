import NVILA
import SparseKernelsReference
import TestSupport
import Testing

@Suite("NVILA: tiles cut from pictures")
struct DynamicS2PictureTests {
    @Test("tiles are parts of the resized pictures", arguments: InstructionSet.available)
    func parts(_ set: InstructionSet) throws {
        let configuration = try DynamicS2(tileSize: 8, scales: [8, 16, 24])
        let picture = try Tensor<Float>.normal([3, 37, 61], seed: 1)
        let tiling = try configuration.tiling(width: 61, height: 37)
        let tiles = try tiling.tiles(of: picture, instructionSet: set)
        #expect(tiles.shape == [tiling.count, 3, 8, 8])
        for (index, box) in tiling.boxes.enumerated() {
            let size = tiling.pictureSize(ofScale: box.scale)
            let resize = try ImageResize(
                GridSize(rows: 37, columns: 61), to: size, filter: .bicubic, antialias: true, instructionSet: set)
            let resized = try resize(picture)
            for channel in 0..<3 {
                for row in 0..<8 {
                    for column in 0..<8 {
                        let expected = resized[channel, box.upper + row, box.left + column]
                        let actual = tiles[flat: ((index * 3 + channel) * 8 + row) * 8 + column]
                        if actual != expected { Issue.record("\(set), tile \(index): \(actual) for \(expected)") }
                    }
                }
            }
        }
        #expect(try tiling.tiles(of: picture, instructionSet: set, on: WorkerPool(threads: 7)).bits == tiles.bits)
    }

    @Test("a picture of the size of a scale is cut and not changed")
    func exact() throws {
        let tiling = try DynamicS2(tileSize: 4, scales: [4], maximumTiles: 6).tiling(width: 12, height: 8)
        #expect(tiling.blocks == [GridSize(rows: 2, columns: 3)])
        let picture = try Tensor<Float>([1, 8, 12]) { Float($0) }
        let tiles = try tiling.tiles(of: picture)
        #expect(tiles[flat: 0] == 0 && tiles[flat: 16] == 4 && tiles[flat: 3 * 16] == 48 && tiles[flat: 5 * 16 + 15] == 95)
    }

    @Test("pictures without pixels or channels are errors")
    func errors() throws {
        let tiling = try DynamicS2().tiling(width: 5, height: 5)
        for shape in [[3, 0, 5], [0, 5, 5], [5, 5], [1, 3, 5, 5]] {
            expectError(.invalidShape, "picture", containing: "\(shape)") {
                _ = try tiling.tiles(of: Tensor<Float>(zeros: shape))
            }
        }
    }
}
