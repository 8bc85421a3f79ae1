internal import SparseKernels

/// `twilight.top_p_mask`: the bisection of Twilight's kernel on rows of probabilities, for several p.
///
/// Masks are compared exactly. The kernel's sums are in single precision in thread order, and ours are rounded once, so a sum
/// within 1e-6 of p could decide differently. No recorded row has one.
func replayTopPMask(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var p: [Double]
        var eps: Float
    }
    let parameters = try golden.parameters(Parameters.self)
    let weights = try golden.file.floatTensor("in.weights")
    var comparison = GoldenComparison()
    for p in parameters.p {
        let name = "\(twilightVariant(p)).mask"
        let mask = try golden.file.tensor(name, as: UInt8.self)
        try golden.check(name, mask.shape, weights.shape)
        let length = weights.shape[1]
        for row in 0..<weights.shape[0] {
            let span = weights.span.extracting(row * length..<(row + 1) * length)
            let threshold = try TopP.bisection(weights: span, mass: p, epsilon: parameters.eps).threshold
            for index in 0..<length {
                comparison.compare(
                    "\(name)[\(row), \(index)]", actual: span[index] > threshold ? 1 : 0,
                    expected: Double(mask[flat: row * length + index]), bound: 0)
            }
        }
    }
    return comparison.result(golden)
}
