public import KernelInterface

/// The kernels of this level, which the other files in this folder add. `KernelTable` lists the required ones.
public enum Kernels: KernelTable {
    public static var sizes: TileSizes {
        TileSizes(
            laneCount: laneCount, panelWidth: panelWidth, tileRows: tileRows,
            weightPanelWidth: weightVectors * laneCount, byteZero: byteZero,
            prefersQuietWeights: prefersQuietWeights)
    }
}
