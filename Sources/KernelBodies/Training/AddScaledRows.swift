// Sums of rows, the small steps between products: y += scale · x, or y = scale · x.

public import KernelInterface

extension Kernels {
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
}
