public import KernelInterface
// The AVX2 level's kernels: the shared bodies over 256-bit vectors.
@_exported import VectorAVX2

/// The table of this instruction set.
public func avx2Kernels() -> KernelTable {
    KernelTable(
        laneCount: laneCount, panelWidth: panelWidth, tileRows: tileRows,
        attendBlock: { attendBlock($0) }, multiplyBlock: { multiplyBlock($0) })
}
