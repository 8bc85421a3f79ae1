import KernelInterface
import SparseKernels
import SparseKernelsReference
import Testing

@Suite("Codes that are fitted to their rows")
struct FittedCodesTests {
    private static func pool(
        _ rows: Tensor<Float>, _ quantization: KVQuantization, _ set: InstructionSet, format: KVFormat = .int4
    ) throws -> TokenPool {
        let pool = try TokenPool(
            format: format, headDim: rows.shape[1], tokens: rows.shape[0], quantization: quantization, set: set)
        pool.write(rows, rows, slot: 0)
        return pool
    }

    private static func squaredErrors(_ pool: TokenPool, _ rows: Tensor<Float>, isValue: Bool) -> [Double] {
        let slots = (0..<rows.shape[0]).map { Int32($0) }
        let stored = TokenPool.rows(isValue ? pool.value : pool.key, slots, isValue: isValue)
        return zip(stored, rows.rows()).map { zip($0, $1).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) } }
    }

    /// Scales, offsets and codes of all rows.
    private static func numbers(_ pool: TokenPool, rows: Int, isValue: Bool) -> [Int] {
        let tokens = isValue ? pool.value : pool.key
        return (0..<rows).flatMap { slot in
            [Int(tokens.scales![slot]), Int(tokens.offsets![slot])]
                + (0..<tokens.channels).map { TokenPool.code(tokens, slot: slot, channel: $0, isValue: isValue) }
        }
    }

    @Test("the squared error of normal rows is nearly the least that is possible", arguments: InstructionSet.available)
    func nearlyLeast(_ set: InstructionSet) throws {
        for channels in [3, 7, 16, 40, 64, 129, 256] {
            let rows = try Tensor<Float>.normal([48, channels], seed: UInt64(channels))
            let pool = try Self.pool(rows, .leastSquares, set)
            let errors = Self.squaredErrors(pool, rows, isValue: false)
            let least = rows.rows().map { ReferenceKVLeastSquares($0, bits: 4).squaredError }
            for (error, least) in zip(errors, least) { #expect(error >= least * 0.98, "\(channels) channels") }
            // Of few channels, one that is cut off or not makes more of a difference.
            if channels >= 16 {
                #expect(errors.reduce(0, +) <= least.reduce(0, +) * (channels < 40 ? 1.1 : 1.05), "\(channels) channels")
            }
            let minimum = Self.squaredErrors(try Self.pool(rows, .minimum, set), rows, isValue: false)
            if channels >= 40 { #expect(errors.reduce(0, +) <= minimum.reduce(0, +) * 0.9, "\(channels) channels") }
        }
    }

    /// The fit takes elements in 4096 steps of the range. Each is off by half a step, in both of the errors that it compares.
    @Test("no row is less exact than above its minimum", arguments: InstructionSet.available)
    func neverWorse(_ set: InstructionSet) throws {
        for (channels, seed) in [(1, 1), (2, 2), (3, 3), (7, 4), (33, 5), (128, 6)] {
            let cube = try QuantizedCacheTests.unlikeRows(tokens: 80, channels: channels, seed: UInt64(seed))
            for rows in [try Tensor([80, channels], cube.elements), try TokenStorageTests.unlikeRows(channels)] {
                let pools = try [KVQuantization.leastSquares, .minimum].map { try Self.pool(rows, $0, set) }
                let fitted = Self.squaredErrors(pools[0], rows, isValue: false)
                let minimum = Self.squaredErrors(pools[1], rows, isValue: false)
                for (slot, row) in rows.rows().enumerated() {
                    let step = (row.max()! - row.min()!) / 4096
                    let bound = minimum[slot].squareRoot() * (1 + 1e-6) + step * Double(channels).squareRoot()
                    #expect(fitted[slot].squareRoot() <= bound, "\(row.prefix(4))")
                }
            }
        }
    }

    @Test("codes are the nearest ones to the stored line", arguments: InstructionSet.available)
    func nearest(_ set: InstructionSet) throws {
        for channels in TokenStorageTests.channelCounts {
            let rows = try Tensor<Float>.normal([16, channels], seed: UInt64(channels))
            let pool = try Self.pool(rows, .leastSquares, set)
            for (slot, row) in rows.rows().enumerated() {
                let (scale, offset) = (TokenPool.scale(pool.key, slot), TokenPool.half(pool.key.offsets![slot]))
                for channel in 0..<channels where scale > 0 {
                    let code = Double(TokenPool.code(pool.key, slot: slot, channel: channel, isValue: false))
                    let quotient = max(0, min(15, (row[channel] - offset) / scale))
                    #expect(abs(code - quotient) <= 0.5 + 0x1p-18, "row \(slot)")
                }
            }
        }
    }

    @Test("the bits are the same on every level, and those of values and of 8 bits do not change")
    func levels() throws {
        for channels in TokenStorageTests.channelCounts {
            for rows in [
                try TokenStorageTests.unlikeRows(channels), try Tensor<Float>.normal([80, channels], seed: UInt64(channels)),
            ] {
                let count = rows.shape[0]
                func numbers(_ quantization: KVQuantization, _ format: KVFormat, _ set: InstructionSet) throws -> [[Int]] {
                    let pool = try Self.pool(rows, quantization, set, format: format)
                    return [false, true].map { Self.numbers(pool, rows: count, isValue: $0) }
                }
                let expected = try numbers(.leastSquares, .int4, .portable)
                for set in InstructionSet.available {
                    let fitted = try numbers(.leastSquares, .int4, set)
                    #expect(fitted == expected, "\(set)")
                    let minimum = try numbers(.minimum, .int4, set)
                    #expect(fitted[1] == minimum[1] && (channels < 16 || fitted[0] != minimum[0]))
                    #expect(try numbers(.leastSquares, .int8, set) == numbers(.minimum, .int8, set))
                }
            }
        }
    }
}
