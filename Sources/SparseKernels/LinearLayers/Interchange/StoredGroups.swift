/// Groups of input features as checkpoints have them: 16, 32, 64, a multiple of 128, or whole rows.
///
/// Kernels are built for groups of up to 128. A wider group becomes groups of 128 that repeat its scale and zero point, which is the same
/// weight exactly.
struct StoredGroups: Hashable, Sendable {
    /// nil: the whole row.
    let size: Int?

    /// - Throws: `.invalidArgument` "groupSize" for a size that is neither a kernel's nor a multiple of the largest of them.
    init(_ size: Int?) throws(SparseKernelsError) {
        try require(
            size.map { WeightFormat.groupSizes.contains($0) || ($0 > 0 && $0 < 1 << 31 && $0 % Self.widest == 0) } ?? true,
            .invalidArgument, "groupSize", expected: "16, 32, 64, a multiple of 128, or nil for whole rows",
            actual: "\(size ?? 0)")
        self.size = size
    }

    private static let widest = 128

    /// Groups of a row in the file; the last one may be short.
    func count(inFeatures: Int) -> Int { size.map { (inFeatures + $0 - 1) / $0 } ?? 1 }

    /// The group size of a weight that kernels read.
    var kernelSize: Int? { size.map { min($0, Self.widest) } }

    /// Numbers of groups `[outFeatures, groups]` as those of the kernels' groups.
    func expanded<Element>(
        _ numbers: Tensor<Element>, inFeatures: Int
    ) throws(SparseKernelsError) -> Tensor<Element> {
        guard let size, let kernelSize, size > kernelSize else { return numbers }
        let (rows, given, repeats) = (numbers.shape[0], numbers.shape[1], size / kernelSize)
        let groups = (inFeatures + kernelSize - 1) / kernelSize
        let source = numbers.span
        return try Tensor([rows, groups]) { source[$0 / groups * given + $0 % groups / repeats] }
    }
}
