// Means of rows that are given by index:
//
//     y[list] = (Σ x[row] over the rows of the list, in its order) / rows of the list
//
// Four vectors of channels go through all rows of a list in registers, so that y is written once. A list of one row is a copy, and one
// without rows is zeros. A sum of n rows is rounded n − 1 times, and the quotient once.

public import KernelInterface

extension Kernels {
    public static func averageRows(_ arguments: UnsafePointer<AverageRowsArguments>) {
        let args = arguments.pointee
        for list in 0..<args.count {
            let (start, end) = (Int(args.offsets[list]), Int(args.offsets[list + 1]))
            let row = args.targets.map { Int($0[list]) } ?? list
            averageList(args, args.rows + start, end - start, row)
        }
    }
}

@inline(never)
private func averageList(_ args: AverageRowsArguments, _ rows: UnsafePointer<Int32>, _ count: Int, _ target: Int) {
    let y = args.y.base + target * args.y.stride * byteCount(args.y.type)
    let divisor = splat(count == 0 ? 1 : Float(count))
    let (type, rowBytes) = (args.x.type, args.x.stride * byteCount(args.x.type))
    var channel = 0
    while channel + 4 * laneCount <= args.channels {
        var (s0, s1, s2, s3) = (splat(0), splat(0), splat(0), splat(0))
        for index in 0..<count {
            let x = args.x.base + Int(rows[index]) * rowBytes
            s0 += loadLanes(x, type, channel)
            s1 += loadLanes(x, type, channel + laneCount)
            s2 += loadLanes(x, type, channel + 2 * laneCount)
            s3 += loadLanes(x, type, channel + 3 * laneCount)
        }
        storeLanes(s0 / divisor, y, args.y.type, channel)
        storeLanes(s1 / divisor, y, args.y.type, channel + laneCount)
        storeLanes(s2 / divisor, y, args.y.type, channel + 2 * laneCount)
        storeLanes(s3 / divisor, y, args.y.type, channel + 3 * laneCount)
        channel += 4 * laneCount
    }
    while channel < args.channels {
        var sum = splat(0)
        for index in 0..<count {
            sum += loadPart(args.x.base + Int(rows[index]) * rowBytes, type, channel, args.channels)
        }
        storePart(sum / divisor, y, args.y.type, channel, args.channels)
        channel += laneCount
    }
}
