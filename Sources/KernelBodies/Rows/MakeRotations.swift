// cos and sin of position · frequency, for rotary embedding.
//
// Angles are integers: a frequency is a number of 2⁻⁶⁴ turns per position, so the product modulo 2⁶⁴ is the angle modulo a turn,
// exactly, at any position. What rounds is the frequency (2⁻⁵³ relatively, as `Double`) and the angle to 2⁻³³ turns (7e-10). The
// upper bits of the angle are the quadrant; the rest, −π/4…π/4, goes through the polynomials of least error, whose own errors are
// 1.8e-9 (sine, odd, degree 7) and 1e-10 (cosine, even, degree 8). With the roundings to `Float` cos and sin are within 3e-7.

public import KernelInterface

extension Kernels {
    public static func makeRotations(_ arguments: UnsafePointer<MakeRotationsArguments>) {
        let args = arguments.pointee
        let width = args.layout.width
        var sineFactor = splat(args.factor)
        if args.layout.isInterleaved {
            for lane in 0..<laneCount / 2 { sineFactor[2 * lane] = 0 - args.factor }
        }
        for row in 0..<args.rows {
            let cosines = args.table + row * args.layout.stride
            // Angles stand in the place of the sines until those are made.
            let angles = UnsafeMutableRawPointer(cosines + width).assumingMemoryBound(to: Int32.self)
            let position = UInt64(bitPattern: Int64(args.positions[row]))
            for x in 0..<width {
                let angle = position &* args.frequencies[x] &+ 0x8000_0000
                angles[x] = Int32(truncatingIfNeeded: angle >> 32)
            }
            var x = 0
            while x < width {
                let (cosine, sine) = cosineAndSine(UnsafeRawPointer(angles + x).loadUnaligned(as: IntVector.self))
                store(cosine * splat(args.factor), cosines + x)
                store(sine * sineFactor, cosines + width + x)
                x += laneCount
            }
        }
    }
}

/// cos and sin of angles in 2⁻³² turns.
@_transparent
private func cosineAndSine(_ angle: IntVector) -> (Vector, Vector) {
    let quadrant = (angle &+ IntVector(repeating: 1 << 29)) &>> 30
    // 2π / 2³².
    let x = floats(angle &- (quadrant &<< 30)) * splat(1.462_918_1e-9)
    let square = x * x
    var sine = splat(-1.949_555e-4)
    sine = multiplyAdd(sine, square, splat(8.331_978e-3))
    sine = multiplyAdd(sine, square, splat(-1.666_665_1e-1))
    sine = multiplyAdd(sine * square, x, x)
    var cosine = splat(2.443_836_3e-5)
    cosine = multiplyAdd(cosine, square, splat(-1.388_736_7e-3))
    cosine = multiplyAdd(cosine, square, splat(4.166_664_6e-2))
    cosine = multiplyAdd(cosine, square, splat(-0.5))
    cosine = multiplyAdd(cosine, square, splat(1))
    let isOdd = (quadrant & 1) .!= 0
    let c = cosine.replacing(with: sine, where: isOdd)
    let s = sine.replacing(with: cosine, where: isOdd)
    // Quadrants 1 and 2 have a negative cosine, 2 and 3 a negative sine.
    let cosineSign = ((quadrant &+ 1) & 2) &<< 30
    let sineSign = (quadrant & 2) &<< 30
    return (
        unsafeBitCast(unsafeBitCast(c, to: IntVector.self) ^ cosineSign, to: Vector.self),
        unsafeBitCast(unsafeBitCast(s, to: IntVector.self) ^ sineSign, to: Vector.self)
    )
}
