import KernelInterface
import SparseKernels
import SparseKernelsReference
import Testing

@Suite("Tokens in the memory of a cache")
struct TokenStorageTests {
    static let channelCounts = [1, 2, 7, 8, 15, 16, 17, 40, 64, 72, 129, 256]

    @Test("float formats round to nearest, from every element type", arguments: InstructionSet.available)
    func floats(_ set: InstructionSet) throws {
        let roundings: [(KVFormat, (Float) -> Float)] = [
            (.float32, { $0 }), (.float16, { roundedToHalf($0) }), (.bfloat16, { BFloat16($0).floatValue }),
        ]
        func check<Source: AttentionElement>(_ type: Source.Type) throws {
            for channels in Self.channelCounts {
                let rows = try Tensor<Source>.normal([16, channels], seed: UInt64(channels))
                for (format, rounded) in roundings {
                    let pool = try TokenPool(format: format, headDim: channels, tokens: 32, set: set)
                    pool.write(rows, rows, slot: 16)
                    let expected = rows.elements.map { Double(rounded($0.floatValue)) }
                    let slots = (16..<32).map { Int32($0) }
                    #expect(Array(TokenPool.rows(pool.key, slots, isValue: false).joined()) == expected, "\(format)")
                    #expect(Array(TokenPool.rows(pool.value, slots, isValue: true).joined()) == expected, "\(format)")
                    #expect(Self.loaded(pool, 16, 16, isValue: false, set) == expected.map { Float($0) })
                    #expect(Self.loaded(pool, 16, 16, isValue: true, set) == expected.map { Float($0) })
                    // Kernels read past the channels of a row, where zeros must be.
                    let padded = TokenLayout.padded(channels)
                    let rest = (channels..<padded).map { TokenPool.value(pool.value, slot: 20, channel: $0, isValue: true) }
                    #expect(rest.allSatisfy { $0 == 0 })
                }
            }
        }
        try check(Float.self)
        try check(BFloat16.self)
        #if !(os(macOS) && arch(x86_64))
            try check(Float16.self)
        #endif
    }

    static func loaded(_ pool: TokenPool, _ slot: Int, _ count: Int, isValue: Bool, _ set: InstructionSet) -> [Float] {
        let tokens = isValue ? pool.value : pool.key
        let rows = AlignedFloats(count * tokens.channels)
        set.kernels.loadTokens(tokens, slot: slot, count: count, into: rows.pointer)
        return Array(UnsafeBufferPointer(start: rows.pointer, count: rows.count))
    }

    /// Scale and zero point are the half-precision numbers nearest to their quotients, unless the `Float` quotient may be on
    /// the other side of a tie: its three roundings are at most 2⁻²² of it. Codes are nearest to x/s + z up to the roundings of
    /// 1/s, the product and the sum.
    @Test("codes follow LServe's rule", arguments: [KVFormat.int8, .int4], InstructionSet.available)
    func zeroPoints(_ format: KVFormat, _ set: InstructionSet) throws {
        let bits = format == .int8 ? 8 : 4
        for channels in Self.channelCounts {
            let pool = try TokenPool(format: format, headDim: channels, tokens: 48, quantization: .zeroPoint, set: set)
            let rows = try Self.unlikeRows(channels)
            pool.write(rows, rows, slot: 0)
            for (slot, row) in rows.rows().enumerated() {
                let oracle = ReferenceKVQuantization(row, bits: bits)
                for (tokens, isValue) in [(pool.key, false), (pool.value, true)] {
                    let (s, z) = (TokenPool.scale(tokens, slot), TokenPool.half(tokens.offsets![slot]))
                    let around = [1 - 0x1p-22, 1, 1 + 0x1p-22]
                    #expect(
                        s == oracle.scale || around.contains { ReferenceKVQuantization.half(oracle.scaleQuotient * $0) == s })
                    #expect(z == oracle.zero || around.contains { ReferenceKVQuantization.half(oracle.zeroQuotient * $0) == z })
                    for channel in 0..<channels {
                        let code = Double(TokenPool.code(tokens, slot: slot, channel: channel, isValue: isValue))
                        let quotient = oracle.codeQuotients[channel]
                        let limit = Double(1 << bits - 1)
                        let nearest = max(0, min(limit, quotient))
                        let rounding = 4 * 0x1p-24 * (abs(quotient - z) + abs(quotient))
                        #expect(abs(code - nearest) <= 0.5 + rounding || s != oracle.scale || z != oracle.zero)
                    }
                }
                let exact = (0..<channels).map {
                    // (code − zero)·scale, with both operations rounded to Float.
                    let code = Float(TokenPool.code(pool.value, slot: slot, channel: $0, isValue: true))
                    return (code - Float(TokenPool.half(pool.value.offsets![slot])))
                        * Float(TokenPool.half(pool.value.scales![slot]))
                }
                #expect(Self.loaded(pool, slot, 1, isValue: true, set) == exact)
                #expect(Self.loaded(pool, slot, 1, isValue: false, set) == exact)
            }
        }
    }

    /// Rows around different centres. The last ones have equal channels.
    static func unlikeRows(_ channels: Int) throws -> Tensor<Float> {
        let noise = try Tensor<Float>.normal([48, channels], seed: UInt64(channels))
        return try Tensor<Float>([48, channels]) {
            let row = $0 / channels
            return row >= 40 ? [0, 1, -2.5, 70000, 1e-9, 0.1, -3, 60000][row - 40] : noise[flat: $0] + Float(row % 5) - 2
        }
    }

    /// Minimum and scale are the next halves below and above, up to the rounding of the scale's `Float` quotient.
    @Test("codes count steps above the minimum", arguments: [KVFormat.int8, .int4], InstructionSet.available)
    func minima(_ format: KVFormat, _ set: InstructionSet) throws {
        let bits = format == .int8 ? 8 : 4
        for channels in Self.channelCounts {
            let pool = try TokenPool(format: format, headDim: channels, tokens: 48, set: set)
            let rows = try Self.unlikeRows(channels)
            pool.write(rows, rows, slot: 0)
            for (slot, row) in rows.rows().enumerated() {
                let oracle = ReferenceKVMinimum(row, bits: bits)
                for (tokens, isValue) in [(pool.key, false), (pool.value, true)] {
                    let (s, m) = (TokenPool.scale(tokens, slot), TokenPool.half(tokens.offsets![slot]))
                    #expect(m == oracle.minimum, "row \(slot)")
                    #expect(abs(s - oracle.scale) <= 0x1p-10 * oracle.scale)
                    for channel in 0..<channels where s == oracle.scale {
                        let code = Double(TokenPool.code(tokens, slot: slot, channel: channel, isValue: isValue))
                        let quotient = max(0, min(Double(1 << bits - 1), oracle.codeQuotients[channel]))
                        #expect(abs(code - quotient) <= 0.5 + 4 * 0x1p-24 * quotient, "row \(slot)")
                    }
                }
                let exact = (0..<channels).map {
                    let code = Float(TokenPool.code(pool.value, slot: slot, channel: $0, isValue: true))
                    return code * Float(TokenPool.scale(pool.value, slot)) + Float(TokenPool.half(pool.value.offsets![slot]))
                }
                #expect(Self.loaded(pool, slot, 1, isValue: true, set) == exact)
                #expect(Self.loaded(pool, slot, 1, isValue: false, set) == exact)
            }
        }
    }

    @Test(
        "rows without a spread keep the half next to their value", arguments: [KVFormat.int8, .int4], InstructionSet.available)
    func constantRows(_ format: KVFormat, _ set: InstructionSet) throws {
        let values: [Float] = [0, 1, -2.5, 0.1, -0.3, 60000, 1e30, -1e30, 0x1p-24, 1e-30]
        let rows = try Tensor<Float>([values.count, 40]) { values[$0 / 40] }
        let pool = try TokenPool(format: format, headDim: 40, tokens: values.count, quantization: .zeroPoint, set: set)
        pool.write(rows, rows, slot: 0)
        for (slot, value) in values.enumerated() {
            let expected = max(-65504, min(65504, roundedToHalf(value)))
            #expect(Self.loaded(pool, slot, 1, isValue: false, set).allSatisfy { $0 == expected }, "\(value)")
            #expect(Self.loaded(pool, slot, 1, isValue: true, set).allSatisfy { $0 == expected }, "\(value)")
        }
    }

    @Test("writing some slots leaves the others alone", arguments: KVFormat.allCases, InstructionSet.available)
    func neighbours(_ format: KVFormat, _ set: InstructionSet) throws {
        let pool = try TokenPool(normal: format, headDim: 17, valueDim: 9, tokens: 48, seed: 4, set: set)
        let all = (0..<48).map { Int32($0) }
        let before = (TokenPool.rows(pool.key, all, isValue: false), TokenPool.rows(pool.value, all, isValue: true))
        pool.write(try Tensor<Float>.normal([6, 17], seed: 9), try Tensor<Float>.normal([6, 9], seed: 10), slot: 21)
        let after = (TokenPool.rows(pool.key, all, isValue: false), TokenPool.rows(pool.value, all, isValue: true))
        for slot in 0..<48 {
            #expect((before.0[slot] == after.0[slot]) == !(21..<27).contains(slot), "key \(slot)")
            #expect((before.1[slot] == after.1[slot]) == !(21..<27).contains(slot), "value \(slot)")
        }
    }

    /// Metadata bound the stored keys by at most one unit in the last place of a half, or two codes of 254 over the row.
    @Test("page metadata bounds the stored keys", arguments: KVFormat.allCases, InstructionSet.available)
    func metadata(_ format: KVFormat, _ set: InstructionSet) throws {
        for metadataFormat in [KVFormat.float32, .float16, .int8] {
            for headDim in [1, 7, 40, 128] {
                let pool = try TokenPool(
                    normal: format, headDim: headDim, tokens: 32, seed: UInt64(headDim),
                    metadata: PageMetadata(.minMax, logicalPageSize: 8, format: metadataFormat), set: set)
                pool.summarise(page: 1, filled: 11)
                let metadata = pool.storage.metadataOperand(layer: 0, head: 0)!
                let keys = TokenPool.rows(pool.key, (16..<27).map { Int32($0) }, isValue: false)
                for (part, tokens) in [(0, 0..<8), (1, 8..<11)] {
                    let exact = ReferencePageSelection(keys: Array(keys[tokens]), pageSize: 8)
                    let row = TokenPool.rows(metadata, [Int32(2 + part)], isValue: false)[0]
                    let bounds = exact.maxima[0] + exact.minima[0]
                    let span = (bounds.max() ?? 0) - (bounds.min() ?? 0)
                    let least = abs(bounds.min() ?? 0)
                    // The error of stored values: codes are decoded to Float before they are compared.
                    let decoding = format.isQuantized ? 0x1p-22 * (span + least) : 0
                    for channel in 0..<2 * headDim {
                        let slack = (row[channel] - bounds[channel]) * (channel < headDim ? 1 : -1)
                        let width =
                            switch metadataFormat {
                            case .float32: 0.0
                            case .float16: 0x1p-10 * abs(bounds[channel]) + 0x1p-24
                            // Two codes of 254, over a range that the rounding of its minimum widens.
                            default: 2.01 / 254 * (span + 0x1p-10 * least + 0x1p-24) + 0x1p-24
                            }
                        #expect(slack >= -decoding && slack <= width + decoding, "\(metadataFormat), channel \(channel)")
                    }
                }
            }
        }
    }

    @Test("means of pages agree with their stored keys", arguments: KVFormat.allCases, InstructionSet.available)
    func means(_ format: KVFormat, _ set: InstructionSet) throws {
        let pool = try TokenPool(
            normal: format, headDim: 40, tokens: 32, seed: 6,
            metadata: PageMetadata(.mean, logicalPageSize: 16, format: .float32), set: set)
        pool.summarise(page: 1, filled: 13)
        let metadata = pool.storage.metadataOperand(layer: 0, head: 0)!
        let keys = TokenPool.rows(pool.key, (16..<29).map { Int32($0) }, isValue: false)
        for channel in 0..<40 {
            let sum = keys.reduce(0) { $0 + $1[channel] }
            let magnitude = keys.reduce(0) { $0 + abs($1[channel]) }
            let mean = TokenPool.value(metadata, slot: 1, channel: channel, isValue: false)
            // 13 decoded rows, 13 sums and a division round.
            #expect(abs(mean - sum / 13) <= 16 * 0x1p-24 * magnitude)
        }
    }
}
