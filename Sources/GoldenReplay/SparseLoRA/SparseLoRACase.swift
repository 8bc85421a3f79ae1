internal import SparseKernels
internal import SparseLoRA

/// What recorded cases of layers share.
struct SparseLoRACase {
    let golden: GoldenCase
    let set: InstructionSet
    let pool: WorkerPool
    let batch: Int
    let length: Int
    let dense: Range<Int>
    /// As recorded with the cases: of the largest element of a tensor, against float64. Released results in single precision have errors of
    /// their own.
    static let tolerance = 1e-5

    /// The dense positions of a variant's mask: nil when all tokens are sparse.
    func split(_ masks: String) throws(SparseKernelsError) -> TokenSplit? {
        switch masks {
        case "middle": try TokenSplit(dense: dense, length: length, batch: batch)
        case "leftpad": try TokenSplit(dense: dense.lowerBound..<length, length: length, batch: batch)
        case "nosplit": nil
        default:
            throw SparseKernelsError(
                .malformedFile, "masks of \(golden.name)", expected: "middle, leftpad or nosplit", actual: masks)
        }
    }

    /// A tensor whose axes but the last are rows.
    func matrix(_ name: String) throws(SparseKernelsError) -> Tensor<Float> {
        let tensor = try golden.file.floatTensor(name)
        let columns = tensor.shape.last ?? 1
        return try Tensor([columns == 0 ? 0 : tensor.count / columns, columns], tensor.elements)
    }

    func factors(_ name: String, scale: Float) throws(SparseKernelsError) -> LoRAFactors {
        try LoRAFactors(a: matrix("in.lora_a_\(name)"), b: matrix("in.lora_b_\(name)"), scale: scale)
    }

    /// Compares with a recorded tensor of `F64` or `F32`.
    /// - Parameter factor: of the tolerance.
    func compare(
        _ name: String, _ actual: [Float], factor: Double = 1, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        let isExact = try golden.file.entry(named: name).elementType == .float64
        let expected =
            isExact
            ? try golden.file.tensor(name, as: Double.self).elements
            : try golden.file.floatTensor(name).elements.map(Double.init)
        try require(
            expected.count == actual.count, .malformedFile, "\(name) of \(golden.name)", expected: "\(actual.count) elements",
            actual: "\(expected.count)")
        let largest = expected.reduce(0) { max($0, abs($1)) }
        let bound = largest * Self.tolerance * factor * (isExact ? 1 : 2)
        for (index, value) in expected.enumerated() {
            comparison.compare("\(name)[\(index)]", actual: Double(actual[index]), expected: value, bound: bound)
        }
    }

    /// Compares a set of channels, whose order is not recorded.
    func compare(
        _ name: String, _ channels: ChannelSubset, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        let expected = try golden.file.tensor(name, as: Int32.self).elements.sorted()
        for index in 0..<max(expected.count, channels.count) {
            comparison.compare(
                "\(name), channel \(index)", actual: index < channels.count ? Double(channels.indices[index]) : -1,
                expected: index < expected.count ? Double(expected[index]) : -1, bound: 0)
        }
    }

    /// Compares the product of an estimator's factors with the recorded one, `[inFeatures, outFeatures]`.
    func compare(
        _ name: String, _ estimator: ChannelEstimator, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        var product: [Float] = []
        for i in 0..<estimator.inFeatures {
            for o in 0..<estimator.outFeatures {
                var sum = 0.0
                for r in 0..<estimator.rank { sum += Double(estimator.down[r, i]) * Double(estimator.up[o, r]) }
                product.append(Float(sum))
            }
        }
        try compare(name, product, &comparison)
    }
}
