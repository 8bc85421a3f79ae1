internal import PS3
internal import SparseKernels

extension GoldenComparison {
    /// Compares the patches of a pass with a recorded map, scale by scale.
    ///
    /// Many patches are equally probable, and the order of `torch.topk` among them is not defined. So what is compared are the numbers of
    /// patches, and the recorded probabilities of both selections in ascending order: those of the largest k are the same whichever of
    /// equal ones are taken, in every pass. Our probabilities and the recorded ones differ by rounding, `bound`.
    ///
    /// - Parameters:
    ///   - label: the name of the variant or case in the file, with a point, or nothing.
    ///   - pass: the number of the pass.
    mutating func compare(
        _ selection: PS3Selection, pass: Int, _ label: String, in file: SafetensorsFile, bound: Double
    ) throws(SparseKernelsError) {
        for (index, cells) in selection.cells.enumerated() {
            let name = "out.\(label)pass\(pass).map_scale\(index + 1)"
            let map = try file.tensor(name, as: UInt8.self)
            let probabilities = try file.floatTensor("out.\(label)prob_scale\(index + 1)")
            let recorded = (0..<map.count).filter { map[flat: $0] != 0 }
            compare("patches of \(name)", actual: Double(cells.count), expected: Double(recorded.count), bound: 0)
            if cells.count != recorded.count { continue }
            let actual = cells.map { probabilities[flat: Int($0)] }.sorted()
            let expected = recorded.map { probabilities[flat: $0] }.sorted()
            for rank in 0..<actual.count {
                compare(
                    "probability \(rank) of \(name)", actual: Double(actual[rank]), expected: Double(expected[rank]),
                    bound: bound)
            }
        }
    }

    /// Compares a tensor with a recorded one of the same number of elements.
    mutating func compare(
        _ actual: Tensor<Float>, _ name: String, in file: SafetensorsFile, bound: Double
    ) throws(SparseKernelsError) {
        let expected = try file.floatTensor(name)
        guard actual.count == expected.count else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(file.name)", expected: "\(actual.shape)", actual: "\(expected.shape)")
        }
        for index in 0..<expected.count {
            compare(
                "\(name)[\(index)]", actual: Double(actual[flat: index]), expected: Double(expected[flat: index]), bound: bound)
        }
    }
}
