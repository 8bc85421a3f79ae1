// Moves columns between a wide matrix and the compact one of a list of columns, row by row. A row of a wide matrix is tens of
// kilobytes, so its picked lines are read or written in ascending order, which the hardware prefetchers follow.

public import KernelInterface

extension Kernels {
    /// See `MoveColumnsArguments`.
    public static func moveColumns(_ arguments: UnsafePointer<MoveColumnsArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            let source = args.source + row * args.sourceStride
            let target = args.target + row * args.targetStride
            switch args.direction {
            case .gather:
                for t in 0..<args.count { target[t] = source[Int(args.columns[t])] }
            case .scatter:
                var next = 0
                for t in 0..<args.count {
                    let column = Int(args.columns[t])
                    while next < column {
                        target[next] = 0
                        next += 1
                    }
                    target[column] = source[t]
                    next = column + 1
                }
                while next < args.width {
                    target[next] = 0
                    next += 1
                }
            case .scatterAmongOthers:
                for t in 0..<args.count { target[Int(args.columns[t])] = source[t] }
            }
        }
    }
}
