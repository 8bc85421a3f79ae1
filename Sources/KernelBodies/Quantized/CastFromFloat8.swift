// Codes of 8-bit floats to rows of numbers: value · scale, rounded once to the type of the numbers after one product in `Float`.

public import KernelInterface

extension Kernels {
    public static func castFromFloat8(_ arguments: UnsafePointer<Float8CastArguments>) {
        let args = arguments.pointee
        let scale = splat(args.scale)
        for row in 0..<args.rows {
            let codes = UnsafeRawPointer(args.codes + row * args.codeStride)
            let y = args.numbers.base + row * args.numbers.stride * byteCount(args.numbers.type)
            var column = 0
            while column + laneCount <= args.columns {
                storeLanes(value(codes + column, args.type) * scale, y, args.numbers.type, column)
                column += laneCount
            }
            let rest = args.columns - column
            if rest > 0 { castLast(args, codes, y, column, rest) }
        }
    }
}

/// The values of `laneCount` codes. Codes of E4M3 that stand for NaN are those with all bits of exponent and mantissa set.
@_transparent
private func value(_ codes: UnsafeRawPointer, _ type: Float8Type) -> Vector {
    if type == .e5m2 { return loadE5M2(codes) }
    let isNaN = (loadByteLanes(codes) & 0x7f) .== IntVector(repeating: 0x7f)
    return (loadE4M3(codes) * splat(256)).replacing(with: splat(.nan), where: isNaN)
}

/// The last codes of a row, fewer than a vector, one by one as halves.
@inline(never)
private func castLast(
    _ args: Float8CastArguments, _ codes: UnsafeRawPointer, _ y: UnsafeMutableRawPointer, _ column: Int, _ rest: Int
) {
    var last = splat(0)
    for lane in 0..<rest {
        let code = UInt16(codes.load(fromByteOffset: column + lane, as: UInt8.self))
        if args.type == .e5m2 {
            last[lane] = widenHalf(code &<< 8)
        } else if code & 0x7f == 0x7f {
            last[lane] = .nan
        } else {
            last[lane] = widenHalf((code & 0x80) &<< 8 | (code & 0x7f) &<< 7) * 256
        }
    }
    storeLastLanes(last * splat(args.scale), y, args.numbers.type, column, rest)
}
