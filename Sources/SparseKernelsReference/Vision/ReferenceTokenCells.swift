public import SparseKernels

/// Cells of grids of tokens and means of tokens in `Double`, element by element.
public enum ReferenceTokenCells {
    /// The row of a cell: its tokens side by side in raster order, with zeros for those outside of the grid.
    ///
    /// - Parameters:
    ///   - x: the element of a token and channel.
    ///   - frame: the frame of the cell.
    ///   - cell: the cell's place in the frame.
    public static func row(
        of reshape: SpaceToChannel, frame: Int, cell: (row: Int, column: Int), _ x: (_ token: Int, _ channel: Int) -> Double
    ) -> [Double] {
        var row: [Double] = []
        for r in cell.row * reshape.factor..<(cell.row + 1) * reshape.factor {
            for c in cell.column * reshape.factor..<(cell.column + 1) * reshape.factor {
                for channel in 0..<reshape.channels {
                    let isInside = r < reshape.grid.rows && c < reshape.grid.columns
                    row.append(isInside ? x((frame * reshape.grid.rows + r) * reshape.grid.columns + c, channel) : 0)
                }
            }
        }
        return row
    }

    /// The mean of numbers, and what its value in `Float` may be off by: n − 1 roundings of sums and one of the quotient.
    public static func mean(_ values: [Double]) -> (value: Double, bound: Double) {
        let count = Double(max(1, values.count))
        let magnitude = values.reduce(0) { $0 + abs($1) } / count
        return (values.reduce(0, +) / count, (count + 1) * 0x1p-24 * magnitude + 0x1p-149)
    }

    /// What a channel of a layer norm in `Float` may be off by: `e` is the exact result, `mean` and `variance` those of its row.
    ///
    /// The sums of n terms have the relative error s = ``ReferenceRows/sumError(_:)`` and one more rounding per piece. The variance then is
    /// off by 2s relatively, its root by s, and a result by s of its distance from the bias. The mean of the deviations is within s of
    /// their magnitude, and moves a result by that much of the deviation.
    public static func normBound(
        _ e: Double, weight: Double, bias: Double, channels: Int, pieces: Int, variance: Double, epsilon: Double
    ) -> Double {
        let sums = ReferenceRows.sumError(channels) + Double(pieces) * 0x1p-24
        let deviation = (variance + epsilon).squareRoot()
        let shift = (2 * sums * (variance.squareRoot() + 0x1p-22) + 0x1p-23) / deviation
        return abs(e - bias) * (sums + 14 * 0x1p-24) + abs(weight) * shift + 0x1p-23 * abs(bias) + 0x1p-24
    }
}
