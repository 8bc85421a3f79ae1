// Converts stored slots of a cache back to floats. Formats are described in StoreTokens.swift.

public import KernelInterface

extension Kernels {
    /// Writes adjacent slots as adjacent rows of floats.
    @inline(never)
    public static func loadTokens(
        _ source: TokenOperand, slot: Int, count: Int, into target: UnsafeMutablePointer<Float>
    ) {
        if !source.format.isQuantized {
            Kernels.stageRows(
                floatRows(source), first: slot, count: count, channels: source.channels, into: target)
            return
        }
        for token in 0..<count {
            let row = target + token * source.channels
            if source.isGrouped {
                loadGrouped(source, slot: slot + token, into: row)
            } else {
                loadRow(source, slot: slot + token, into: row)
            }
        }
    }
}

/// The rows of a float format.
@_transparent
private func floatRows(_ source: TokenOperand) -> RowOperand {
    let type: StorageType = source.format == .float32 ? .float32 : source.format == .float16 ? .float16 : .bfloat16
    return RowOperand(base: source.base, stride: source.stride / (type == .float32 ? 4 : 2), type: type)
}

/// The value of some codes, as `TokenOffset` says. Not fused, so that the bits are those of `tokenElement`.
@_transparent
private func dequantized(_ codes: IntVector, _ scale: Float, _ offset: Float, _ kind: TokenOffset) -> Vector {
    kind == .minimum
        ? floats(codes) * splat(scale) + splat(offset) : (floats(codes) - splat(offset)) * splat(scale)
}

/// A row of codes, as keys are stored.
@inline(never)
private func loadRow(_ source: TokenOperand, slot: Int, into row: UnsafeMutablePointer<Float>) {
    let channels = source.channels
    let (scale, offset) = (widenHalf(source.scales![slot]), widenHalf(source.offsets![slot]))
    var codes = UnsafePointer((source.base + slot * source.stride).assumingMemoryBound(to: UInt8.self))
    if source.format == .int4 {
        // The last quarter of the row takes the nibbles as bytes: a register of floats is written only where bytes were read.
        let bytes = UnsafeMutableRawPointer(row).assumingMemoryBound(to: UInt8.self) + 3 * channels
        spreadNibbles(codes, into: bytes, count: channels)
        codes = UnsafePointer(bytes)
    }
    let whole = channels / laneCount * laneCount
    var x = 0
    while x < whole {
        store(dequantized(loadByteLanes(codes + x), scale, offset, source.offsetKind), row + x)
        x += laneCount
    }
    while x < channels {
        let code = Float(UnsafeRawPointer(codes).load(fromByteOffset: x, as: UInt8.self))
        row[x] = source.offsetKind == .minimum ? code * scale + offset : (code - offset) * scale
        x += 1
    }
}

/// Writes `count` nibbles as bytes, the low nibble of each byte first.
@_transparent
private func spreadNibbles(_ source: UnsafePointer<UInt8>, into bytes: UnsafeMutablePointer<UInt8>, count: Int) {
    var x = 0
    while x + 8 <= count {
        var word = UInt64(UnsafeRawPointer(source + x / 2).loadUnaligned(as: UInt32.self))
        word = (word | word &<< 16) & 0x0000_ffff_0000_ffff
        word = (word | word &<< 8) & 0x00ff_00ff_00ff_00ff
        word = (word | word &<< 4) & 0x0f0f_0f0f_0f0f_0f0f
        UnsafeMutableRawPointer(bytes + x).storeBytes(of: word, as: UInt64.self)
        x += 8
    }
    while x < count {
        bytes[x] = x & 1 == 0 ? source[x / 2] & 0xf : source[x / 2] &>> 4
        x += 1
    }
}

/// A token of a group of eight slots, as quantised values are stored: a word has one channel of four or eight tokens.
@inline(never)
private func loadGrouped(_ source: TokenOperand, slot: Int, into row: UnsafeMutablePointer<Float>) {
    let channels = source.channels
    let (scale, offset) = (widenHalf(source.scales![slot]), widenHalf(source.offsets![slot]))
    let place = slot & 7
    let isInt8 = source.format == .int8
    let first = isInt8 ? (place >> 2) * 4 * TokenLayout.padded(channels) : 0
    let words = source.base + (slot >> 3) * source.stride + first
    let shift = IntVector(repeating: Int32(truncatingIfNeeded: isInt8 ? 8 * (place & 3) : 4 * place))
    let mask = IntVector(repeating: isInt8 ? 0xff : 0xf)
    // Words are padded to whole registers, rows of floats are not.
    let whole = channels / laneCount * laneCount
    var x = 0
    while x < whole {
        let codes = ((words + 4 * x).loadUnaligned(as: IntVector.self) &>> shift) & mask
        store(dequantized(codes, scale, offset, source.offsetKind), row + x)
        x += laneCount
    }
    if x < channels {
        let codes = ((words + 4 * x).loadUnaligned(as: IntVector.self) &>> shift) & mask
        let values = dequantized(codes, scale, offset, source.offsetKind)
        for lane in 0..<channels - x { row[x + lane] = values[lane] }
    }
}

/// One element of a stored token as a float.
@inline(never)
func tokenElement(_ source: TokenOperand, slot: Int, _ channel: Int) -> Float {
    if !source.format.isQuantized { return element(floatRows(source), slot, channel) }
    var code: UInt8
    let place = slot & 7
    switch (source.format == .int8, source.isGrouped) {
    case (true, false): code = byte(source.base, slot * source.stride + channel)
    case (false, false): code = byte(source.base, slot * source.stride + channel / 2) &>> (channel & 1 == 1 ? 4 : 0)
    case (true, true):
        let words = (slot >> 3) * source.stride + (place >> 2) * 4 * TokenLayout.padded(source.channels)
        code = byte(source.base, words + 4 * channel + (place & 3))
    case (false, true):
        code = byte(source.base, (slot >> 3) * source.stride + 4 * channel + (place >> 1)) &>> (place & 1 == 1 ? 4 : 0)
    }
    if source.format == .int4 { code &= 0xf }
    let (scale, offset) = (widenHalf(source.scales![slot]), widenHalf(source.offsets![slot]))
    return source.offsetKind == .minimum ? Float(code) * scale + offset : (Float(code) - offset) * scale
}

@_transparent
private func byte(_ base: UnsafeMutableRawPointer, _ offset: Int) -> UInt8 {
    base.load(fromByteOffset: offset, as: UInt8.self)
}
