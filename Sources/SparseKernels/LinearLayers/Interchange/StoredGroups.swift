/// Groups of input features as in checkpoints: 16, 32, 64, a multiple of 128, or whole rows.
///
/// Kernels support groups of up to 128. A wider group becomes groups of 128 that repeat its scale and zero point, exactly the
/// same weight.
struct StoredGroups: Hashable, Sendable {
    /// The group size; nil means the whole row.
    let size: Int?

    /// - Throws: `.invalidArgument`, naming the argument `name`, for a size that is neither a kernel's nor a multiple of the
    ///   kernels' largest.
    init(_ size: Int?, named name: String = "groupSize") throws(SparseKernelsError) {
        try require(
            size.map { WeightFormat.groupSizes.contains($0) || ($0 > 0 && $0 < 1 << 31 && $0 % Self.widest == 0) } ?? true,
            .invalidArgument, name, expected: "16, 32, 64, a multiple of 128, or nil for whole rows",
            actual: "\(size ?? 0)")
        self.size = size
    }

    private static let widest = 128

    /// Groups per row in the file; the last one may be short.
    func count(inFeatures: Int) -> Int { size.map { (inFeatures + $0 - 1) / $0 } ?? 1 }

    /// The group size of a weight that kernels read.
    var kernelSize: Int? { size.map { min($0, Self.widest) } }

    /// Repeats numbers of groups `[outFeatures, groups]` for the groups of the kernels.
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
