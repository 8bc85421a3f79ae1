public import KernelInterface

/// The kernels of this level. Every other file here adds one; `KernelTable` lists those that there must be.
public enum Kernels: KernelTable {
    public static var sizes: TileSizes {
        TileSizes(
            laneCount: laneCount, panelWidth: panelWidth, tileRows: tileRows,
            weightPanelWidth: weightVectors * laneCount, byteZero: byteZero)
    }
}
