// Rows of a table by index, times a factor: the embedding of tokens.

public import KernelInterface

extension Kernels {
    public static func embedTokens(_ arguments: UnsafePointer<EmbedArguments>) {
        let args = arguments.pointee
        let scale = splat(args.scale)
        for row in 0..<args.rows {
            let x = args.table.base + args.tokens[row] * args.table.stride * byteCount(args.table.type)
            let y = args.y.base + row * args.y.stride * byteCount(args.y.type)
            var channel = 0
            while channel + laneCount <= args.channels {
                storeLanes(loadLanes(x, args.table.type, channel) * scale, y, args.y.type, channel)
                channel += laneCount
            }
            let rest = args.channels - channel
            if rest > 0 {
                let value = loadLastLanes(x, args.table.type, channel, rest, filler: 0) * scale
                storeLastLanes(value, y, args.y.type, channel, rest)
            }
        }
    }
}
