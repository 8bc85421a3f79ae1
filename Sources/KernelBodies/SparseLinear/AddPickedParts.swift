// Adds the sums of parts of a list of rows: C (+)= factor · (part 0 + part 1 + …) + bias.

public import KernelInterface

extension Kernels {
    /// See `PickedPartsArguments`.
    public static func addPickedParts(_ arguments: UnsafePointer<PickedPartsArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            let (c, first) = (args.c + row * args.cStride, args.parts + row * args.rowStride)
            let whole = args.columns / laneCount * laneCount
            var x = 0
            while x < whole {
                var sum = load(first + x)
                for part in 1..<args.count { sum = sum + load(first + part * args.partStride + x) }
                sum = sum * splat(args.factor)
                if let bias = args.bias { sum = sum + load(bias + x) }
                if args.accumulates { sum = load(c + x) + sum }
                store(sum, c + x)
                x += laneCount
            }
            while x < args.columns {
                var sum = first[x]
                for part in 1..<args.count { sum += first[part * args.partStride + x] }
                sum *= args.factor
                if let bias = args.bias { sum += bias[x] }
                c[x] = args.accumulates ? c[x] + sum : sum
                x += 1
            }
        }
    }
}
