internal import KernelInterface

/// The factors of a low-rank branch in the order that the kernels read, in 16 bits where that is exact.
struct PackedLowRank: Sendable {
    let rank: Int
    /// Registers that the rank fills.
    let vectors: Int
    /// Panels [inFeatures][lanes].
    let down: CompactFloats
    /// Panels [rank][lanes], cut like the weight.
    let up: CompactFloats

    var byteCount: Int { down.byteCount + up.byteCount }

    init(_ branch: LowRankBranch, layout: PackedLayout, kernels: any KernelTable.Type) {
        let (rank, depth) = (branch.rank, layout.inFeatures)
        self.rank = rank
        vectors = (rank + kernels.sizes.laneCount - 1) / kernels.sizes.laneCount
        let lanes = vectors * kernels.sizes.laneCount
        down = CompactFloats(count: lanes * depth, kernels: kernels) { target in
            branch.down.span.withUnsafeBufferPointer { source in
                for first in stride(from: 0, to: lanes, by: kernels.sizes.panelWidth) {
                    let width = min(kernels.sizes.panelWidth, lanes - first)
                    for lane in 0..<width {
                        for k in 0..<depth {
                            target[first * depth + k * width + lane] =
                                first + lane < rank ? source[(first + lane) * depth + k] : 0
                        }
                    }
                }
            }
        }
        up = CompactFloats(count: layout.lanes * rank, kernels: kernels) { target in
            branch.up.span.withUnsafeBufferPointer { source in
                for panel in 0..<layout.panels {
                    let (first, width) = (panel * layout.panelWidth, layout.lanes(ofPanel: panel))
                    for lane in 0..<width {
                        for r in 0..<rank {
                            let row = first + lane
                            target[first * rank + r * width + lane] = row < layout.outFeatures ? source[row * rank + r] : 0
                        }
                    }
                }
            }
        }
    }
}
