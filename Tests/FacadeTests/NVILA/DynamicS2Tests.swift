import NVILA
import SparseKernelsReference
import TestSupport
import Testing

@Suite("NVILA: tiles of pictures at several scales")
struct DynamicS2Tests {
    @Test("the largest scale has the closest aspect ratio of 9 to 12 tiles")
    func tilings() throws {
        let configuration = try DynamicS2()
        #expect(configuration.minimumTiles == 9 && configuration.outputScale == 2)
        // Width and height, then rows and columns of tiles.
        for (width, height, rows, columns) in [
            (448, 448, 3, 3), (1, 1, 3, 3), (1920, 1080, 3, 4), (1080, 1920, 4, 3), (1000, 500, 2, 5), (100, 5000, 12, 1),
            (5000, 100, 1, 12), (3000, 1000, 2, 6), (1 << 30, 1 << 30, 3, 3),
        ] {
            let tiling = try configuration.tiling(width: width, height: height)
            #expect(tiling.largest == GridSize(rows: rows, columns: columns), "\(width) × \(height)")
            #expect(tiling.blocks.dropLast() == [GridSize(side: 1), GridSize(side: 2)])
            #expect(tiling.count == 5 + rows * columns && tiling.boxes.count == tiling.count)
            #expect(tiling.pictureSize(ofScale: 2) == GridSize(rows: rows * 448, columns: columns * 448))
        }
    }

    @Test("boxes tile the picture of their scale", arguments: [(640, 480), (333, 1777)])
    func boxes(_ size: (Int, Int)) throws {
        let tiling = try DynamicS2(tileSize: 10, scales: [20, 40, 60, 80], maximumTiles: 18).tiling(
            width: size.0, height: size.1)
        for scale in 0..<4 {
            let picture = tiling.pictureSize(ofScale: scale)
            var covered = [Int](repeating: 0, count: picture.count)
            for box in tiling.boxes where box.scale == scale {
                #expect(box.right - box.left == 10 && box.lower - box.upper == 10)
                for row in box.upper..<box.lower {
                    for column in box.left..<box.right { covered[row * picture.columns + column] += 1 }
                }
            }
            #expect(covered.allSatisfy { $0 == 1 })
        }
    }

    @Test("one scale is plain tiling, and a ratio of one allows a single tile")
    func oneScale() throws {
        let configuration = try DynamicS2(scales: [448], maximumTiles: 6)
        #expect(configuration.minimumTiles == 1)
        #expect(try configuration.tiling(width: 300, height: 300).blocks == [GridSize(side: 1)])
        #expect(try configuration.tiling(width: 600, height: 300).blocks == [GridSize(rows: 1, columns: 2)])
        // 1 × 1 and 2 × 2 are equally close: the larger one if the picture has more than half of its pixels.
        #expect(try configuration.tiling(width: 700, height: 700).blocks == [GridSize(side: 2)])
    }

    @Test("errors name the option and its limits")
    func errors() throws {
        expectError(.invalidArgument, "scales", containing: "[]") { _ = try DynamicS2(scales: []) }
        expectError(.invalidArgument, "scales[1]", containing: "above 896", "448") { _ = try DynamicS2(scales: [896, 448]) }
        expectError(.invalidArgument, "scales[2]", containing: "multiple of 448", "1000") {
            _ = try DynamicS2(scales: [448, 896, 1000])
        }
        expectError(.invalidArgument, "maximumTiles", containing: "9", "8") { _ = try DynamicS2(maximumTiles: 8) }
        expectError(.invalidArgument, "outputScale", containing: "-3 to 2", "3") { _ = try DynamicS2(outputScale: 3) }
        expectError(.invalidArgument, "outputScale", containing: "-4") { _ = try DynamicS2(outputScale: -4) }
        expectError(.invalidArgument, "tileSize", containing: "0") { _ = try DynamicS2(tileSize: 0) }
        let configuration = try DynamicS2()
        expectError(.invalidShape, "width", containing: "0") { _ = try configuration.tiling(width: 0, height: 5) }
        expectError(.invalidShape, "height", containing: "-1") { _ = try configuration.tiling(width: 5, height: -1) }
    }

    /// What the released code does, map by map, in `Double`.
    static func reference(
        _ x: Tensor<Float>, firstTile: Int, _ blocks: [GridSize], _ output: GridSize, _ tokens: GridSize
    ) -> [[Double]] {
        let channels = x.shape[2]
        let (down, across) = (output.rows * tokens.rows, output.columns * tokens.columns)
        var (first, result) = (firstTile, [[Double]](repeating: [], count: down * across))
        for block in blocks {
            let (height, width) = (block.rows * tokens.rows, block.columns * tokens.columns)
            for cell in 0..<down * across {
                let (i, j) = cell.quotientAndRemainder(dividingBy: across)
                let rows = i * height / down..<((i + 1) * height + down - 1) / down
                let columns = j * width / across..<((j + 1) * width + across - 1) / across
                for channel in 0..<channels {
                    var sum = 0.0
                    for r in rows {
                        for c in columns {
                            let tile = first + r / tokens.rows * block.columns + c / tokens.columns
                            let token = r % tokens.rows * tokens.columns + c % tokens.columns
                            sum += Double(x[flat: (tile * tokens.count + token) * channels + channel])
                        }
                    }
                    result[cell].append(sum / Double(rows.count * columns.count))
                }
            }
            first += block.count
        }
        return result
    }

    @Test("merged boards are stitched, resized and split", arguments: InstructionSet.available, [0, 1, 2])
    func merge(_ set: InstructionSet, _ outputScale: Int) throws {
        let configuration = try DynamicS2(outputScale: outputScale)
        let tokens = GridSize(rows: 3, columns: 5)
        let images: [GridSize?] = [GridSize(rows: 3, columns: 4), nil, GridSize(rows: 2, columns: 5)]
        let merge = try DynamicS2Merge(configuration, images: images, tokens: tokens, instructionSet: set)
        #expect(merge.tileCount == 17 + 1 + 15)
        let x = try Tensor<Float>.normal([33, 15, 7], seed: 1)
        let y = try merge(x)
        #expect(y.shape == [merge.boardCount, 15, 21])
        var first = 0
        for (image, largest) in images.enumerated() {
            let blocks = largest.map { [GridSize(side: 1), GridSize(side: 2), $0] }
            let output = blocks?[outputScale] ?? GridSize(side: 1)
            #expect(merge.boards[image] == output && merge.boards(ofImage: image).count == output.count)
            let expected: [[Double]]
            if let blocks {
                expected = Self.reference(x, firstTile: first, blocks, output, tokens)
                first += blocks.reduce(0) { $0 + $1.count }
            } else {
                let map = Self.reference(x, firstTile: first, [GridSize(side: 1)], output, tokens)
                expected = map.map { $0 + $0 + $0 }
                first += 1
            }
            let across = output.columns * tokens.columns
            for board in 0..<output.count {
                let (row, column) = board.quotientAndRemainder(dividingBy: output.columns)
                for token in 0..<15 {
                    let cell = (row * 3 + token / 5) * across + column * 5 + token % 5
                    let place = ((merge.boards(ofImage: image).lowerBound + board) * 15 + token) * 21
                    let isNear = (0..<21).allSatisfy { abs(Double(y[flat: place + $0]) - expected[cell][$0]) <= 2e-6 }
                    #expect(isNear, "\(set), image \(image), board \(board), token \(token)")
                }
            }
        }
        #expect(try merge(x, on: WorkerPool(threads: 7)).bits == y.bits)
    }

    @Test("merging refuses other tiles")
    func mergeErrors() throws {
        let tokens = GridSize(side: 2)
        let merge = try DynamicS2Merge(DynamicS2(), images: [nil, GridSize(side: 3)], tokens: tokens)
        expectError(.invalidShape, "x", containing: "[15, 4, channels]", "[14, 4, 3]") {
            _ = try merge(Tensor<Float>(zeros: [14, 4, 3]))
        }
        expectError(.invalidShape, "images[1]", containing: "0 × 3") {
            _ = try DynamicS2Merge(DynamicS2(), images: [nil, GridSize(rows: 0, columns: 3)], tokens: tokens)
        }
        expectError(.invalidShape, "tokens") { _ = try DynamicS2Merge(DynamicS2(), images: [], tokens: GridSize(side: 0)) }
        let x = try Tensor<Float>(zeros: [60, 3])
        var y = try Tensor<Float>([40, 8]) { _ in 7 }
        expectError(.invalidShape, "y", containing: "40 × 9", "40 × 8") {
            try merge.run(x.matrixView(), into: y.mutableMatrixView())
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
        #expect(
            try DynamicS2Merge(DynamicS2(), images: [], tokens: tokens)(Tensor<Float>(zeros: [0, 4, 3])).shape == [0, 4, 9])
    }
}
