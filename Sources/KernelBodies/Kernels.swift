public import KernelInterface

/// The kernels of this level. Every other file in this folder adds some; `KernelTable` lists the required ones.
public enum Kernels: KernelTable {
    public static var sizes: TileSizes {
        TileSizes(
            laneCount: laneCount, panelWidth: panelWidth, tileRows: tileRows,
            weightPanelWidth: weightVectors * laneCount, byteZero: byteZero)
    }
}
