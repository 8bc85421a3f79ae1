// Packs a matrix, or the transpose of one, as panels for `multiplyPanels`: one to three vectors of adjacent columns, row by row, times a
// factor. Columns past the end are 0.

public import KernelInterface

extension Kernels {
    public static func packPanels(_ arguments: UnsafePointer<PackPanelsArguments>) {
        let args = arguments.pointee
        let vectors = (args.columns + laneCount - 1) / laneCount
        var done = 0
        while done < vectors {
            let left = vectors - done
            let width = left == 4 ? 2 : minimum(left, panelVectors)
            packOnePanel(args, column: done * laneCount, width: width * laneCount)
            done += width
        }
    }
}

@inline(never)
private func packOnePanel(_ args: PackPanelsArguments, column: Int, width: Int) {
    let panel = args.panels + column * args.depth
    let columns = minimum(width, args.columns - column)
    if columns < width { for x in 0..<width * args.depth { panel[x] = 0 } }
    if args.isTransposed {
        transpose(
            args.source + column * args.stride, stride: args.stride, rows: columns, columns: args.depth, times: args.scale,
            into: panel, destinationStride: width)
    } else {
        for k in 0..<args.depth {
            let (source, target) = (args.source + k * args.stride + column, panel + k * width)
            for x in 0..<columns { target[x] = source[x] * args.scale }
        }
    }
}
