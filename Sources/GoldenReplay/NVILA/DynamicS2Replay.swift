internal import NVILA
internal import SparseKernels

/// `nvila.dynamic_s2_tiles`: the boxes of pictures of many aspect ratios, exactly.
func replayDynamicS2Tiles(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var imageSize: Int
        var maximum: Int
        var scales: [Int]
        var variants: [String: Variant]

        struct Variant: Decodable {
            var width: Int
            var height: Int
        }

        enum CodingKeys: String, CodingKey {
            case imageSize = "image_size"
            case maximum = "max_num"
            case scales = "s2_scales"
            case variants
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let configuration = try DynamicS2(
        tileSize: parameters.imageSize, scales: parameters.scales, maximumTiles: parameters.maximum)
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let boxes = try configuration.tiling(width: variant.width, height: variant.height).boxes
        let expected: Tensor<Int32> = try golden.file.tensor("out.\(name).boxes")
        try requireExtents("out.\(name).boxes of \(golden.name)", expected.shape, [boxes.count, 4])
        for (index, box) in boxes.enumerated() {
            for (side, actual) in [box.left, box.upper, box.right, box.lower].enumerated() {
                comparison.compare(
                    "out.\(name).boxes[\(index), \(side)]", actual: Double(actual),
                    expected: Double(expected[flat: 4 * index + side]), bound: 0)
            }
        }
    }
    return comparison.result(golden)
}

/// `nvila.dynamic_s2_merge`: boards, and the maps of which they are parts, also of pictures without tiles.
///
/// Tolerance, as recorded with the cases: 2·10⁻⁶.
func replayDynamicS2Merge(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var blocks: [[Int]?]
        var outputScale: Int?
        var scales: [Int]
        var side: Int

        enum CodingKeys: String, CodingKey {
            case blocks, scales
            case outputScale = "resize_output_to_scale_idx"
            case side = "tile_side"
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let configuration = try DynamicS2(
        tileSize: parameters.scales[0], scales: parameters.scales, outputScale: parameters.outputScale ?? 0)
    let merge = try DynamicS2Merge(
        configuration, images: parameters.blocks.map { $0.map { GridSize(rows: $0[0], columns: $0[1]) } },
        tokens: GridSize(side: parameters.side), instructionSet: instructionSet)
    let x = try golden.file.floatTensor("in.tiles")
    let y = try merge(x, on: pool)
    let (side, channels) = (parameters.side, y.shape[2])
    var comparison = GoldenComparison()
    for image in merge.boards.indices {
        let (range, grid) = (merge.boards(ofImage: image), merge.boards[image])
        let boards = try golden.file.floatTensor("out.image\(image).boards")
        try requireExtents("out.image\(image).boards of \(golden.name)", boards.shape, [range.count, side * side, channels])
        let first = range.lowerBound * side * side * channels
        for index in 0..<boards.count {
            comparison.compare(
                "out.image\(image).boards[\(index)]", actual: Double(y[flat: first + index]),
                expected: Double(boards[flat: index]), bound: 2e-6)
        }
        let merged = try golden.file.floatTensor("out.image\(image).merged")
        let (height, width) = (grid.rows * side, grid.columns * side)
        try requireExtents("out.image\(image).merged of \(golden.name)", merged.shape, [channels, height, width])
        for index in 0..<merged.count {
            let (channel, place) = index.quotientAndRemainder(dividingBy: height * width)
            let (row, column) = place.quotientAndRemainder(dividingBy: width)
            let board = range.lowerBound + row / side * grid.columns + column / side
            let token = row % side * side + column % side
            comparison.compare(
                "out.image\(image).merged[\(index)]",
                actual: Double(y[flat: (board * side * side + token) * channels + channel]),
                expected: Double(merged[flat: index]), bound: 2e-6)
        }
    }
    return comparison.result(golden)
}
