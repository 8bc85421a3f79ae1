// Rows of numbers to codes of 8-bit floats: cast(x · scale), to nearest, ties to even, saturating.

public import KernelInterface

extension Kernels {
    public static func castToFloat8(_ arguments: UnsafePointer<Float8CastArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            let x = UnsafeRawPointer(args.numbers.base + row * args.numbers.stride * byteCount(args.numbers.type))
            let codes = args.codes.assumingMemoryBound(to: UInt8.self) + row * args.codeStride
            if args.type == .e4m3 { castRowToE4M3(args, x, codes) } else { castRowToE5M2(args, x, codes) }
        }
    }
}

@inline(never)
private func castRowToE4M3(_ args: Float8CastArguments, _ x: UnsafeRawPointer, _ codes: UnsafeMutablePointer<UInt8>) {
    let scale = splat(args.scale)
    var column = 0
    while column + laneCount <= args.columns {
        storeLowBytes(e4m3Bits(loadLanes(x, args.numbers.type, column) * scale), codes + column)
        column += laneCount
    }
    let rest = args.columns - column
    if rest > 0 {
        let last = e4m3Bits(loadLastLanes(x, args.numbers.type, column, rest, filler: 0) * scale)
        for lane in 0..<rest { codes[column + lane] = UInt8(truncatingIfNeeded: last[lane]) }
    }
}

@inline(never)
private func castRowToE5M2(_ args: Float8CastArguments, _ x: UnsafeRawPointer, _ codes: UnsafeMutablePointer<UInt8>) {
    let scale = splat(args.scale)
    var column = 0
    while column + laneCount <= args.columns {
        storeLowBytes(e5m2Bits(loadLanes(x, args.numbers.type, column) * scale), codes + column)
        column += laneCount
    }
    let rest = args.columns - column
    if rest > 0 {
        let last = e5m2Bits(loadLastLanes(x, args.numbers.type, column, rest, filler: 0) * scale)
        for lane in 0..<rest { codes[column + lane] = UInt8(truncatingIfNeeded: last[lane]) }
    }
}
