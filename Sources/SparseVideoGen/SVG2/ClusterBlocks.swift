import SparseKernels

/// The blocks of a sequence in the order of clusters: those of the video, and text and padding as one block each.
///
/// | Rows | see video | see the prompt | see padding |
/// |---|---|---|---|
/// | video | what is selected | yes | no |
/// | prompt | yes | yes | no |
/// | padding | no | no | yes |
struct ClusterBlocks {
    private let geometry: VideoGeometry
    /// Blocks before those of the video.
    private let before: Int
    private let textSizes: [Int]

    init(_ geometry: VideoGeometry) {
        self.geometry = geometry
        textSizes = geometry.textTokens == 0 ? [] : [geometry.prompt.count, geometry.padding.count]
        before = geometry.textPlacement == .before ? textSizes.count : 0
    }

    private func sizes(_ video: [Int]) -> [Int] {
        geometry.textPlacement == .before ? textSizes + video : video + textSizes
    }

    /// The mask of one head from the key clusters that each query cluster keeps, ascending.
    func mask(_ kept: [[Int]], querySizes: [Int], keySizes: [Int]) throws(SparseKernelsError) -> BlockMask {
        let grid = try BlockGrid(
            query: BlockPartition(sizes: sizes(querySizes)), key: BlockPartition(sizes: sizes(keySizes)), isCausal: false)
        var builder = BlockMaskBuilder(grid: grid, heads: 1)
        let prompt = before == 0 ? keySizes.count : 0
        let hasText = !textSizes.isEmpty
        func text() {
            if !hasText { return }
            // The prompt's row, then that of padding.
            if before > 0 { builder.keep(prompt) }
            builder.keep(before..<before + keySizes.count)
            if before == 0 { builder.keep(prompt) }
            builder.endRow()
            builder.keep(prompt + 1)
            builder.endRow()
        }
        if before > 0 { text() }
        for columns in kept {
            if hasText && before > 0 { builder.keep(prompt) }
            for column in columns { builder.keep(before + column) }
            if hasText && before == 0 { builder.keep(prompt) }
            builder.endRow()
        }
        if before == 0 { text() }
        return builder.mask
    }
}
