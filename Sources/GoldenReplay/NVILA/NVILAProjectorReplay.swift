internal import NVILA
internal import SparseKernels

/// `nvila.projector`: both projectors.
///
/// Tolerance, as recorded with the cases: 2·10⁻⁵ and 10⁻⁵ of the value, against float64.
func replayNVILAProjector(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var projector: String
        var side: Int
    }
    let parameters = try golden.parameters(Parameters.self)
    let downsampling = try NVILADownsampling(projectorType: parameters.projector)
    let weights = try NVILAProjectorWeights(golden.file, prefix: "in.param.", downsampling: downsampling)
    let projector = try NVILAProjector(
        weights, downsampling, grid: GridSize(side: parameters.side), instructionSet: instructionSet, on: pool)
    let x = try golden.file.floatTensor("in.x")
    let (y, expected) = (try projector(x, on: pool), try golden.file.tensor("aux.f64_y", as: Double.self))
    try requireExtents("aux.f64_y of \(golden.name)", expected.shape, y.shape)
    var comparison = GoldenComparison()
    for index in 0..<expected.count {
        let value = expected[flat: index]
        comparison.compare(
            "aux.f64_y[\(index)]", actual: Double(y[flat: index]), expected: value, bound: 2e-5 + 1e-5 * abs(value))
    }
    return comparison.result(golden)
}

/// `nvila.space_to_channel`: grids of all kinds by 2 × 2 and 3 × 3, exactly. The layer norm that reads them in place is compared with one
/// over the recorded cells, to the rounding of sums in another order.
func replaySpaceToChannel(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var channels: Int
        var variants: [String: Variant]

        struct Variant: Decodable {
            var h: Int
            var w: Int
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let x: Tensor<Float16> = try golden.file.tensor("in.\(name)")
        for (factor, suffixes) in [
            (2, ["s2c_2x2", "DownSample2x2BlockFix", "DownSampleBlock"]), (3, ["s2c_3x3", "DownSample3x3BlockFix"]),
        ] {
            let reshape = try SpaceToChannel(
                grid: GridSize(rows: variant.h, columns: variant.w), factor: factor, channels: parameters.channels)
            let y = try reshape(x, on: pool)
            let normalized = try SpaceToChannelNorm(reshape, instructionSet: instructionSet)(x, on: pool)
            // The blocks of released code take squares only.
            for suffix in suffixes where suffix.hasPrefix("s2c") || variant.h == variant.w {
                let expected: Tensor<Float16> = try golden.file.tensor("out.\(name).\(suffix)")
                guard expected.count == y.count else {
                    throw SparseKernelsError(
                        .invalidShape, "out.\(name).\(suffix) of \(golden.name)", expected: "\(y.shape)",
                        actual: "\(expected.shape)")
                }
                for index in 0..<y.count {
                    comparison.compare(
                        "out.\(name).\(suffix)[\(index)]", actual: Double(y[flat: index]),
                        expected: Double(expected[flat: index]), bound: 0)
                }
                let rows = try Tensor<Float16>([y.count / reshape.cellChannels, reshape.cellChannels], expected.elements)
                let plain = try LayerNorm(channels: reshape.cellChannels, instructionSet: instructionSet)(rows, on: pool)
                for index in 0..<plain.count {
                    comparison.compare(
                        "norm of out.\(name).\(suffix)[\(index)]", actual: Double(normalized[flat: index]),
                        expected: Double(plain[flat: index]), bound: 2e-6)
                }
            }
        }
    }
    return comparison.result(golden)
}

/// Throws `.invalidShape` unless a recorded tensor has the extents of the result.
func requireExtents(_ name: String, _ actual: [Int], _ expected: [Int]) throws(SparseKernelsError) {
    guard actual == expected else {
        throw SparseKernelsError(.invalidShape, name, expected: "\(expected)", actual: "\(actual)")
    }
}
