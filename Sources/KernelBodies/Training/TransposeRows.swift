// target[x][y] = scale · source[y][x].

public import KernelInterface

extension Kernels {
    public static func transposeRows(_ arguments: UnsafePointer<TransposeArguments>) {
        let args = arguments.pointee
        transpose(
            args.source, stride: args.stride, rows: args.rows, columns: args.columns, times: args.scale, into: args.target,
            destinationStride: args.targetStride)
    }
}
