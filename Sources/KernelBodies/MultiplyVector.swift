// One row of floating-point activations times nibbles: y += Σ_g scale · Σ_k x · code, for the product with a vector that waits for memory.
//
// A nibble that is masked where it stands in its 32-bit lane is code · 2⁰, 2⁸, 2¹⁶ or 2²⁴, exactly, as a float. So each place has sums of
// its own, which are scaled once per group: a conversion and a multiply-add per register of codes, and no shift. Codes with a sign have 8
// added by flipping their highest bit, and 8·Σ x taken off again.

import KernelInterface

/// `c` += the product over some channels, a multiple of the group.
@inline(never)
func multiplyVectorByOne(
    _ args: QuantizedProductArguments, channel: Int, channels: Int, scales: UnsafePointer<Float>,
    offsets: UnsafePointer<Float>?,
    c: UnsafeMutablePointer<Float>
) { multiplyVector(args, channel: channel, channels: channels, scales: scales, offsets: offsets, c: c, width: 1) }

@inline(never)
func multiplyVectorByTwo(
    _ args: QuantizedProductArguments, channel: Int, channels: Int, scales: UnsafePointer<Float>,
    offsets: UnsafePointer<Float>?,
    c: UnsafeMutablePointer<Float>
) { multiplyVector(args, channel: channel, channels: channels, scales: scales, offsets: offsets, c: c, width: 2) }

/// Sums by the place of the nibble in its lane.
private typealias PlaceSums = (p0: Vector, p1: Vector, p2: Vector, p3: Vector)

@_transparent
private func multiplyVector(
    _ args: QuantizedProductArguments, channel: Int, channels: Int, scales: UnsafePointer<Float>,
    offsets: UnsafePointer<Float>?,
    c: UnsafeMutablePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    let flip = IntVector(repeating: args.nibbleZero == 8 ? Int32(bitPattern: 0x8888_8888) : 0)
    let zero = splat(Float(args.nibbleZero))
    let x = args.values! + channel
    var panel = args.panel + channel * lanes / 2
    for group in 0..<channels / args.groupSize {
        let none = splat(0)
        var a: PlaceSums = (none, none, none, none)
        var b = a
        let values = x + group * args.groupSize
        for step in 0..<args.groupSize / 8 {
            let word = panel.loadUnaligned(as: IntVector.self) ^ flip
            addPlaces(&a, word, values + step * 8)
            if width > 1 {
                let second = (panel + 4 * laneCount).loadUnaligned(as: IntVector.self) ^ flip
                addPlaces(&b, second, values + step * 8)
            }
            panel += 4 * lanes
        }
        let sum = splat(args.sums[channel / args.groupSize + group])
        addGroup(a, sum, zero, scales + group * lanes, offsets.map { $0 + group * lanes }, c)
        if width > 1 {
            let lane = group * lanes + laneCount
            addGroup(b, sum, zero, scales + lane, offsets.map { $0 + lane }, c + laneCount)
        }
    }
}

/// Eight channels: the low nibbles of the bytes, then the high ones.
@_transparent
private func addPlaces(_ sums: inout PlaceSums, _ word: IntVector, _ x: UnsafePointer<Float>) {
    // The shift is arithmetic; what it brings in at the top is masked off.
    let high = word &>> 4
    sums.p0 = multiplyAdd(floats(word & 0xf), splat(x[0]), sums.p0)
    sums.p1 = multiplyAdd(floats(word & 0xf00), splat(x[1]), sums.p1)
    sums.p2 = multiplyAdd(floats(word & 0xf_0000), splat(x[2]), sums.p2)
    sums.p3 = multiplyAdd(floats(word & 0xf00_0000), splat(x[3]), sums.p3)
    sums.p0 = multiplyAdd(floats(high & 0xf), splat(x[4]), sums.p0)
    sums.p1 = multiplyAdd(floats(high & 0xf00), splat(x[5]), sums.p1)
    sums.p2 = multiplyAdd(floats(high & 0xf_0000), splat(x[6]), sums.p2)
    sums.p3 = multiplyAdd(floats(high & 0xf00_0000), splat(x[7]), sums.p3)
}

/// c += scale · (Σ x · code − zero · Σ x) − offset · Σ x.
@_transparent
private func addGroup(
    _ sums: PlaceSums, _ sum: Vector, _ zero: Vector, _ scale: UnsafePointer<Float>, _ offset: UnsafePointer<Float>?,
    _ c: UnsafeMutablePointer<Float>
) {
    var total = multiplyAdd(sums.p3, splat(0x1p-24), sums.p2 * splat(0x1p-16))
    total = multiplyAdd(sums.p1, splat(0x1p-8), sums.p0) + total
    var y = multiplyAdd(total - zero * sum, load(scale), load(c))
    if let offset { y = y - load(offset) * sum }
    store(y, c)
}
