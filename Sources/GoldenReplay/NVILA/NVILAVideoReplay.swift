internal import NVILA
internal import SparseKernels

/// `nvila.temporal_pooling`: every pooling, and the tokens of all of them with end tokens alone, and with start, end and separator tokens.
///
/// Tolerance, as recorded with the cases: 10⁻⁶, against float64 where it is recorded.
func replayTemporalPooling(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var channels: Int
        var frames: Int
        var pools: [[Int]]
        var side: Int

        enum CodingKeys: String, CodingKey {
            case channels, frames, side
            case pools = "pool_sizes"
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let (file, grid) = (golden.file, GridSize(side: parameters.side))
    let pools = parameters.pools.map { PoolingWindow(frames: $0[0], rows: $0[1], columns: $0[2]) }
    let x = try file.floatTensor("in.x")
    var comparison = GoldenComparison()
    func compare(_ name: String, _ y: Tensor<Float>, _ expected: [Double]) throws(SparseKernelsError) {
        guard y.count == expected.count else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\(y.count) elements", actual: "\(expected.count)")
        }
        for index in 0..<y.count {
            comparison.compare("\(name)[\(index)]", actual: Double(y[flat: index]), expected: expected[index], bound: 1e-6)
        }
    }
    for size in pools {
        let name = "aux.f64_pool_\(size.frames)_\(size.rows)_\(size.columns)"
        let pooling = try TemporalPooling(
            frames: parameters.frames, grid: grid, pool: size, instructionSet: instructionSet)
        try compare(name, pooling(x, on: pool), file.tensor(name, as: Double.self).elements)
    }
    let (start, end, separator) = (
        try file.floatTensor("in.start"), try file.floatTensor("in.end"), try file.floatTensor("in.sep")
    )
    let both = try NVILAVideoEncoder(
        frames: parameters.frames, grid: grid, channels: parameters.channels, pools: pools, start: start, end: end,
        separator: separator, instructionSet: instructionSet)
    try compare("out.start_end_sep", both(x, on: pool), file.floatTensor("out.start_end_sep").elements.map(Double.init))
    let newlines = try NVILAVideoEncoder(
        frames: parameters.frames, grid: grid, channels: parameters.channels, pools: pools, end: end,
        instructionSet: instructionSet)
    try compare("out.end_only", newlines(x, on: pool), file.floatTensor("out.end_only").elements.map(Double.init))
    return comparison.result(golden)
}
