// One row of activations times nibbles, which are unpacked in registers. The product with a vector is bound by memory, and
// unpacking a panel into scratch first would leave memory idle meanwhile.
//
// Activations as codes: y += Σ_g scale · scale · (Σ a · w − zero · Σ w), exact within a group, as for many rows.
//
// Floating-point activations: y += Σ_g scale · Σ_k x · code. A nibble that is masked in its place in a 32-bit lane is exactly
// code · 2⁰, 2⁸, 2¹⁶ or 2²⁴ as a float. Each place has its own sums, scaled once per group: a vector of codes costs a
// conversion and a multiply-add but no shift. Signed codes get 8 added by flipping the highest bit; 8·Σ x is subtracted.

import KernelInterface

/// Adds the product over `channels` channels of a panel, a multiple of the group size, to `c`. A narrow sum can hold `chunk`
/// channels. `scales` and `offsets` begin with the first of the channels.
@inline(never)
func multiplyVectorByOne(
    _ args: QuantizedProductArguments, channel: Int, channels: Int, chunk: Int, scales: UnsafePointer<Float>,
    offsets: UnsafePointer<Float>?, c: UnsafeMutablePointer<Float>
) {
    let part = VectorPart(channel: channel, channels: channels, chunk: chunk, scales: scales, offsets: offsets, c: c)
    if args.values == nil { multiplyCodes(args, part, width: 1) } else { multiplyFloats(args, part, width: 1) }
}

@inline(never)
func multiplyVectorByTwo(
    _ args: QuantizedProductArguments, channel: Int, channels: Int, chunk: Int, scales: UnsafePointer<Float>,
    offsets: UnsafePointer<Float>?, c: UnsafeMutablePointer<Float>
) {
    let part = VectorPart(channel: channel, channels: channels, chunk: chunk, scales: scales, offsets: offsets, c: c)
    if args.values == nil { multiplyCodes(args, part, width: 2) } else { multiplyFloats(args, part, width: 2) }
}

private struct VectorPart {
    var channel: Int
    var channels: Int
    var chunk: Int
    var scales: UnsafePointer<Float>
    var offsets: UnsafePointer<Float>?
    var c: UnsafeMutablePointer<Float>
}

// MARK: - Codes

@_transparent
private func multiplyCodes(_ args: QuantizedProductArguments, _ part: VectorPart, width: Int) {
    let lanes = width * laneCount
    let bytes = 4 * laneCount
    let ones = splatWord(0x0101_0101)
    let ahead = args.bytesAhead
    var a = args.codes! + part.channel
    var panel = args.panel + part.channel * lanes / 2
    for group in 0..<part.channels / args.groupSize {
        var total = integerRow(0)
        var done = 0
        while done < args.groupSize {
            var products = sumRow(0)
            var weights = sumRow(0)
            for _ in 0..<part.chunk / 8 {
                let (low, high) = (splatCodes(a), splatCodes(a + 4))
                let w = unpacked(panel, args.table)
                products.x0 = addProducts(addProducts(products.x0, low, w.low), high, w.high)
                weights.x0 = addProducts(weights.x0, ones, addBytes(w.low, w.high))
                if width > 1 {
                    let w = unpacked(panel + bytes, args.table)
                    products.x1 = addProducts(addProducts(products.x1, low, w.low), high, w.high)
                    weights.x1 = addProducts(weights.x1, ones, addBytes(w.low, w.high))
                }
                prefetch((panel + ahead).assumingMemoryBound(to: Float.self))
                if width * bytes > 64 {
                    prefetch((panel + ahead + 64).assumingMemoryBound(to: Float.self))
                }
                a += 8
                panel += width * bytes
            }
            let zero = integerRow(args.zeroCode)
            total = total + integers(products, isByte: false) - zero * integers(weights, isByte: false)
            done += part.chunk
        }
        let place = part.channel / args.groupSize + group
        var c = loadRow(part.c, width: width)
        c = multiplyAdd(args.scales[place], floats(total) * loadRow(part.scales + group * lanes, width: width), c)
        store(c, part.c, width: width)
    }
    // After all groups, as for many rows, so that a row has the same bits alone.
    guard let offsets = part.offsets else { return }
    let sums = args.sums + part.channel / args.groupSize
    var c = loadRow(part.c, width: width)
    for group in 0..<part.channels / args.groupSize {
        c = multiplyAdd(-sums[group], loadRow(offsets + group * lanes, width: width), c)
    }
    store(c, part.c, width: width)
}

/// Unpacks eight channels to signed bytes.
@_transparent
private func unpacked(_ panel: UnsafeRawPointer, _ table: UnsafePointer<UInt8>) -> (low: CodeVector, high: CodeVector) {
    let codes = nibblesInBytes(panel.loadUnaligned(as: CodeVector.self))
    return (lookUp(codes.low, table), lookUp(codes.high, table))
}

// MARK: - Floating point

/// Sums of the four places of a low nibble in its lane.
private typealias PlaceSums = (p0: Vector, p1: Vector, p2: Vector, p3: Vector)

@_transparent
private func multiplyFloats(_ args: QuantizedProductArguments, _ part: VectorPart, width: Int) {
    let lanes = width * laneCount
    let flip = IntVector(repeating: args.nibbleZero == 8 ? Int32(bitPattern: 0x8888_8888) : 0)
    let zero = splat(Float(args.nibbleZero))
    let ahead = args.bytesAhead
    let x = args.values! + part.channel
    var panel = args.panel + part.channel * lanes / 2
    for group in 0..<part.channels / args.groupSize {
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
            prefetch((panel + ahead).assumingMemoryBound(to: Float.self))
            if 4 * lanes > 64 { prefetch((panel + ahead + 64).assumingMemoryBound(to: Float.self)) }
            panel += 4 * lanes
        }
        let sum = splat(args.sums[part.channel / args.groupSize + group])
        addGroup(a, sum, zero, part.scales + group * lanes, part.offsets.map { $0 + group * lanes }, part.c)
        if width > 1 {
            let lane = group * lanes + laneCount
            addGroup(b, sum, zero, part.scales + lane, part.offsets.map { $0 + lane }, part.c + laneCount)
        }
    }
}

/// Adds eight channels: the low nibbles of the bytes, then the high ones.
@_transparent
private func addPlaces(_ sums: inout PlaceSums, _ word: IntVector, _ x: UnsafePointer<Float>) {
    // The shift is arithmetic. The masks clear the sign bits that it shifts in.
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
