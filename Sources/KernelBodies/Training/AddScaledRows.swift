// Sums of rows, the small steps between products: y += scale · x, or y = scale · x.
// Sums and transposes of rows, the small steps between products.

public import KernelInterface

extension Kernels {
    /// y += scale · x, or y = scale · x.
    public static func addScaledRows(_ arguments: UnsafePointer<AddRowsArguments>) {
        let args = arguments.pointee
        let scale = splat(args.scale)
        for row in 0..<args.rows {
            let x = args.x + row * args.xStride
            let y = args.y + row * args.yStride
            var column = 0
            while column + laneCount <= args.columns {
                let value = load(x + column) * scale
                store(args.accumulates ? load(y + column) + value : value, y + column)
                column += laneCount
            }
            while column < args.columns {
                let value = x[column] * args.scale
                y[column] = args.accumulates ? y[column] + value : value
                column += 1
            }
        }
    }

    /// target[x][y] = scale · source[y][x].
    public static func transposeRows(_ arguments: UnsafePointer<TransposeArguments>) {
        let args = arguments.pointee
        transpose(
            args.source, stride: args.stride, rows: args.rows, columns: args.columns, times: args.scale, into: args.target,
            destinationStride: args.targetStride)
    }
}
