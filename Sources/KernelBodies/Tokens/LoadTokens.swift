// Converts stored slots of a cache back to floats. Formats are described in StoreTokens.swift.

public import KernelInterface

extension Kernels {
    /// Writes adjacent slots as adjacent rows of floats.
    @inline(never)
    public static func loadTokens(
        _ source: TokenOperand, slot: Int, count: Int, into target: UnsafeMutablePointer<Float>
    ) {
        let channels = source.channels
        if !source.format.isQuantized {
            let type: StorageType =
                source.format == .float32 ? .float32 : source.format == .float16 ? .float16 : .bfloat16
            let stride = source.stride / (type == .float32 ? 4 : 2)
            Kernels.stageRows(
                RowOperand(base: source.base, stride: stride, type: type), first: slot, count: count, channels: channels,
                into: target)
            return
        }
        for token in 0..<count {
            let place = slot + token
            let scale = widenHalf(source.scales![place])
            let start = widenHalf(source.offsets![place])
            let row = target + token * channels
            let offset = place & 7
            for channel in 0..<channels {
                var code: UInt8
                switch (source.format == .int8, source.isGrouped) {
                case (true, false): code = byte(source.base, place * source.stride + channel)
                case (false, false):
                    code = byte(source.base, place * source.stride + channel / 2) &>> (channel & 1 == 1 ? 4 : 0)
                case (true, true):
                    let words = (place >> 3) * source.stride + (offset >> 2) * 4 * TokenLayout.padded(channels)
                    code = byte(source.base, words + 4 * channel + (offset & 3))
                case (false, true):
                    let words = (place >> 3) * source.stride
                    code = byte(source.base, words + 4 * channel + (offset >> 1)) &>> (offset & 1 == 1 ? 4 : 0)
                }
                if source.format == .int4 { code &= 0xf }
                row[channel] =
                    source.offsetKind == .minimum ? Float(code) * scale + start : (Float(code) - start) * scale
            }
        }
    }
}

@_transparent
private func byte(_ base: UnsafeMutableRawPointer, _ offset: Int) -> UInt8 {
    base.load(fromByteOffset: offset, as: UInt8.self)
}
