internal import SparseKernels

/// `blocksparse.attention`: attention under one block mask per query head.
///
/// Tolerance, as recorded with the cases for single precision: output 3e-6 absolute plus 3e-6 relative, LSE 2e-6. LSE values go
/// up to 18, where 2e-6 is one unit in the last place, so another unit is added: 2⁻²³ relative.
func replayBlockSparseAttention(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var queryBlockSize: Int
        var keyBlockSize: Int
        var causal: Bool?

        enum CodingKeys: String, CodingKey {
            case queryBlockSize = "block_q"
            case keyBlockSize = "block_k"
            case causal
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let query = try golden.file.floatTensor("in.q")
    let key = try golden.file.floatTensor("in.k")
    let value = try golden.file.floatTensor("in.v")
    let blocks = try golden.file.tensor("in.block_mask", as: UInt8.self)
    let output = try golden.file.floatTensor("out.o")
    let logSumExp = try golden.file.floatTensor("out.lse")

    let shape = try AttentionShape(
        query: query.view(named: "in.q"), key: key.view(named: "in.k"), value: value.view(named: "in.v"))
    let grid = try BlockGrid(
        queryLength: shape.queryLength, keyLength: shape.keyLength, queryBlockSize: parameters.queryBlockSize,
        keyBlockSize: parameters.keyBlockSize, isCausal: parameters.causal == true)
    for (name, actual, expected) in [
        ("in.block_mask", blocks.shape, [shape.queryHeads, grid.blockRows, grid.blockColumns]),
        ("out.o", output.shape, [shape.queryHeads, shape.queryLength, shape.valueDim]),
        ("out.lse", logSumExp.shape, [shape.queryHeads, shape.queryLength]),
    ] where actual != expected {
        throw SparseKernelsError(
            .invalidShape, "\(name) of \(golden.name)", expected: "\(expected)", actual: "\(actual)")
    }
    let mask = try BlockMask(grid: grid, booleans: blocks)
    let state = try BlockSparseAttention(shape, mask: mask, instructionSet: instructionSet)(
        query: query, key: key, value: value, on: pool)
    var comparison = GoldenComparison()
    for index in 0..<output.count {
        let expected = Double(output[flat: index])
        comparison.compare(
            "out.o[\(index)]", actual: Double(state.output[flat: index]), expected: expected,
            bound: 3e-6 + 3e-6 * abs(expected))
    }
    for index in 0..<logSumExp.count {
        let expected = Double(logSumExp[flat: index])
        comparison.compare(
            "out.lse[\(index)]", actual: Double(state.logSumExp[flat: index]), expected: expected,
            bound: 2e-6 + 0x1p-23 * (expected.isFinite ? abs(expected) : 0))
    }
    return comparison.result(golden)
}
