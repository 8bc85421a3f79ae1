internal import SparseKernels

/// The positions of a vision transformer's tokens, made for one grid of patches and resized to others.
struct PositionTable: Sendable {
    private let grid: GridSize
    private let classTokens: Int
    /// `[classTokens + patches, width]`.
    private let table: Tensor<Float>

    init(_ weights: VisionTransformerWeights) throws(SparseKernelsError) {
        grid = weights.configuration.grid
        classTokens = weights.configuration.classTokens
        table = try weights.positions()
    }

    /// The positions of the tokens of a grid, `[classTokens + patches, width]`. Those of patches are resized by bicubic interpolation
    /// without antialiasing, as `interpolate_pos_encoding` of Hugging Face transformers does.
    func rows(
        for other: GridSize, instructionSet: InstructionSet?, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        if other == grid { return table }
        let width = table.shape[1]
        let resize = try ImageResize(grid, to: other, filter: .bicubic, instructionSet: instructionSet)
        let patches = try Tensor<Float>([grid.rows, grid.columns, width]) { table[flat: classTokens * width + $0] }
        let resized = try resize(patches, layout: .interleaved, on: pool)
        let first = classTokens * width
        return try Tensor([classTokens + other.count, width]) {
            $0 < first ? table[flat: $0] : resized[flat: $0 - first]
        }
    }
}
