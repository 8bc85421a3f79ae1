import Foundation
import SparseKernels
import SparseKernelsReference
import Testing

/// Properties of a quantised cache that do not depend on how it computes: stored rows are near the given rows, and attention
/// over stored rows is a weighted mean of stored rows.
@Suite("Quantised caches")
struct QuantizedCacheTests {
    static let formats = [KVFormat.int8, .int4]

    /// Rows of one head that have little in common: offsets and ranges of every size in one step, constant rows, zeros of both
    /// signs, subnormal numbers, and the largest half-precision numbers.
    static func unlikeRows(tokens: Int, channels: Int, seed: UInt64) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: seed)
        let kinds: [(base: Float, range: Float)] = [
            (0, 1), (300, 1), (-300, 0.5), (1000, 1), (250, 1), (0, 1e-6), (1e-6, 1e-7), (60000, 5504), (-65504, 131_008),
            (65504, 0), (-0.0, 0), (0, 0), (3, 0), (60, 0), (-0.1, 0), (0x1p-24, 0x1p-24), (1e-30, 1e-30), (5, 1e-3),
        ]
        var elements: [Float] = []
        for token in 0..<tokens {
            let kind = kinds[(token + Int(seed)) % kinds.count]
            for _ in 0..<channels { elements.append(kind.base + kind.range * Float(generator.uniform())) }
        }
        return try Tensor([1, tokens, channels], elements)
    }

    static func cache(
        keys: Tensor<Float>, values: Tensor<Float>, keyFormat: KVFormat = .float32, valueFormat: KVFormat,
        quantization: KVQuantization = .minimum, _ set: InstructionSet
    ) throws -> (PagedKVCache, PagedKVCache.SequenceID) {
        let configuration = try KVCacheConfiguration(
            kvHeads: 1, headDim: keys.shape[2], valueDim: values.shape[2], pageSize: 16,
            pageCapacity: keys.shape[1] / 16 + 2, format: keyFormat, valueFormat: valueFormat, quantization: quantization)
        let cache = try PagedKVCache(configuration, instructionSet: set)
        let sequence = cache.makeSequence()
        try cache.append(key: keys.view(), value: values.view(), to: sequence)
        return (cache, sequence)
    }

    // MARK: - Rows

    /// The bound is half a step of the row's range, which the rounding of the minimum widens, or of half precision below 2⁻¹⁴.
    @Test("a stored element is within half a step of its row", arguments: formats, InstructionSet.available)
    func halfAStep(_ format: KVFormat, _ set: InstructionSet) throws {
        let limit: Float = format == .int8 ? 255 : 15
        for (channels, seed) in [(1, 1), (2, 2), (7, 3), (33, 4), (128, 5)] {
            let rows = try Self.unlikeRows(tokens: 72, channels: channels, seed: UInt64(seed))
            let (cache, sequence) = try Self.cache(keys: rows, values: rows, keyFormat: format, valueFormat: format, set)
            for stored in [try cache.keys(of: sequence), try cache.values(of: sequence)] {
                for token in 0..<72 {
                    let row = (0..<channels).map { rows[flat: token * channels + $0] }
                    let least = row.min()!
                    // The minimum and the step are each rounded once to their types.
                    let offset = max(0x1p-24, abs(least) * 0x1p-10)
                    let range = (row.max()! - least + offset) / limit
                    let step = range + max(0x1p-24, range * 0x1p-10)
                    for channel in 0..<channels {
                        let error = abs(stored[flat: token * channels + channel] - row[channel])
                        #expect(error <= step / 2 * (1 + 0x1p-20) + abs(row[channel]) * 0x1p-23, "\(row.prefix(4)), \(error)")
                    }
                }
            }
        }
    }

    @Test("8 bits are not worse than 4 for rows of any offset", arguments: InstructionSet.available)
    func moreBits(_ set: InstructionSet) throws {
        for (base, range) in [(300, 1), (1000, 1), (-300, 0.5), (0, 1e-6), (100, 1), (0, 1), (-2, 4), (60000, 3)]
            as [(Float, Float)]
        {
            let rows = try Tensor<Float>([1, 1, 128]) { base + range * Float($0) / 127 }
            let worst = try Self.formats.map { format in
                let (cache, sequence) = try Self.cache(keys: rows, values: rows, keyFormat: format, valueFormat: format, set)
                return zip(rows.elements, try cache.keys(of: sequence).elements).map { abs($0 - $1) }.max()!
            }
            #expect(worst[0] <= worst[1], "\(base)…\(base + range): \(worst)")
        }
    }

    // MARK: - Attention

    /// The bounds are the least and the largest stored row, plus half a code step of each row times its weight, plus roundings
    /// of the weighted sum in single precision.
    @Test(
        "attention over stored rows lies within them", arguments: formats,
        KVQuantization.allCases)
    func convexity(_ format: KVFormat, _ quantization: KVQuantization) throws {
        for set in InstructionSet.available {
            for (tokens, channels, seed) in [(2, 2, 1), (5, 17, 2), (64, 32, 3), (128, 8, 4), (200, 128, 5), (300, 3, 6)] {
                let rows = try Self.unlikeRows(tokens: tokens, channels: channels, seed: UInt64(seed))
                for scale: Float in [0, 0.5, 4] {
                    let keys = try Tensor<Float>.normal([1, tokens, 4], seed: UInt64(seed + 10))
                    let query = try Tensor<Float>.normal([2, 1, 4], seed: UInt64(seed + 20), scale: scale)
                    try Self.expectMean(
                        query: query, keys: keys, values: rows, format: format, quantization: quantization, set)
                }
            }
        }
    }

    static func expectMean(
        query: Tensor<Float>, keys: Tensor<Float>, values: Tensor<Float>, format: KVFormat, quantization: KVQuantization,
        _ set: InstructionSet
    ) throws {
        let (tokens, channels) = (values.shape[1], values.shape[2])
        let (cache, sequence) = try cache(
            keys: keys, values: values, valueFormat: format, quantization: quantization, set)
        let output = try PagedAttention(
            queryHeads: query.shape[0], configuration: cache.configuration, instructionSet: set)(
                query: query, cache: cache, sequences: [sequence]
            ).output
        let stored = try cache.values(of: sequence)
        let limit = format == .int8 ? 255.0 : 15
        for head in 0..<query.shape[0] {
            let row = ReferencePagedAttention().row(
                query: query.rows(ofHead: head)[0], keys: keys.rows(ofHead: 0), values: stored.rows(ofHead: 0),
                positions: Array(0..<tokens))
            let scores = ReferencePagedAttention.scores(
                query: query.rows(ofHead: head)[0], keys: keys.rows(ofHead: 0),
                softmaxScale: 1 / Double(keys.shape[2]).squareRoot())
            var (halfSteps, magnitude) = (0.0, 0.0)
            for token in 0..<tokens {
                let elements = (0..<channels).map { Double(stored[flat: token * channels + $0]) }
                let weight = exp(scores[token] - row.logSumExp)
                let largest = elements.reduce(0) { max($0, abs($1)) }
                // The published rule stores rows far from 0 as one value, in steps of 2⁻¹⁴ of it.
                let collapsed = quantization == .zeroPoint ? largest * 0x1p-14 : 0
                halfSteps += weight * max((elements.max()! - elements.min()!) / limit, collapsed) / 2
                magnitude += weight * largest
            }
            // Weights are exponentials in single precision, with relative errors up to 10⁻⁶ at these scores.
            let rounding = 2e-6 * magnitude
            for channel in 0..<channels {
                let column = (0..<tokens).map { Double(stored[flat: $0 * channels + channel]) }
                let actual = Double(output[flat: head * channels + channel])
                #expect(actual >= column.min()! - halfSteps - rounding && actual <= column.max()! + halfSteps + rounding)
                #expect(abs(actual - row.output[channel]) <= halfSteps + rounding, "\(set), \(tokens) × \(channels)")
            }
        }
    }

    /// The result is as exact as without that row. Weights of 64 rows of range r ≈ 5.5 are multiples of δ = r/255/64/32767.
    /// Their errors of δ/√12, times codes within 128 ± 46, are 1.1·10⁻⁶ in all. Six times that is allowed. In 4 bits δ·codes is
    /// the same.
    @Test("a constant row does not blur the others", arguments: formats, InstructionSet.available)
    func constantRow(_ format: KVFormat, _ set: InstructionSet) throws {
        for constant: Float in [0, 3, 60, -1000, 65504] {
            let normal = try Tensor<Float>.normal([1, 64, 32], seed: 6)
            let values = try Tensor<Float>([1, 64, 32]) { $0 / 32 == 5 ? constant : normal[flat: $0] }
            let keys = try Tensor<Float>(zeros: [1, 64, 4])
            let (cache, sequence) = try Self.cache(keys: keys, values: values, valueFormat: format, set)
            let output = try PagedAttention(queryHeads: 1, configuration: cache.configuration, instructionSet: set)(
                query: Tensor<Float>(zeros: [1, 1, 4]), cache: cache, sequences: [sequence]
            ).output
            let stored = try cache.values(of: sequence)
            for channel in 0..<32 {
                let mean = (0..<64).reduce(0.0) { $0 + Double(stored[flat: $1 * 32 + channel]) } / 64
                let error = abs(mean - Double(output[flat: channel]))
                #expect(error <= 6.6e-6 + 0x1p-21 * Double(abs(constant)) / 64, "\(constant): \(error)")
            }
        }
    }

    @Test("keys far from 0 score as exactly as others", arguments: formats, InstructionSet.available)
    func distantKeys(_ format: KVFormat, _ set: InstructionSet) throws {
        let channels = 64
        let noise = try Tensor<Float>.normal([1, 40, channels], seed: 3)
        let query = try Tensor<Float>.normal([1, 1, channels], seed: 4)
        // The query has mean 0, so that the common offset of a key cancels.
        let mean = query.elements.reduce(0, +) / Float(channels)
        let centred = try Tensor<Float>([1, 1, channels]) { query[flat: $0] - mean }
        for offset: Float in [0, 300, -20000] {
            let keys = try Tensor<Float>([1, 40, channels]) { offset + 4 * noise[flat: $0] }
            let (cache, sequence) = try Self.cache(
                keys: keys, values: noise, keyFormat: format, valueFormat: .float32, set)
            let state = try PagedAttention(queryHeads: 1, configuration: cache.configuration, instructionSet: set)(
                query: centred, cache: cache, sequences: [sequence])
            let exact = ReferencePagedAttention().row(
                query: centred.rows(ofHead: 0)[0], keys: try cache.keys(of: sequence).rows(ofHead: 0),
                values: noise.rows(ofHead: 0), positions: Array(0..<40))
            // The roundings of a score are proportional to Σ |q|·|offset| in single precision.
            let bound = 1e-3 + 8 * 0x1p-24 * Double(abs(offset)) * 64 / 8
            #expect(abs(Double(state.logSumExp[flat: 0]) - exact.logSumExp) <= bound, "\(offset)")
        }
    }

    @Test("a soft cap near the largest number caps nothing", arguments: KVFormat.allCases, InstructionSet.available)
    func hugeCap(_ format: KVFormat, _ set: InstructionSet) throws {
        let keys = try Tensor<Float>.normal([1, 150, 40], seed: 1)
        let values = try Tensor<Float>.normal([1, 150, 24], seed: 2)
        let query = try Tensor<Float>.normal([3, 1, 40], seed: 3)
        let (cache, sequence) = try Self.cache(keys: keys, values: values, keyFormat: format, valueFormat: format, set)
        func attend(_ cap: Float?) throws -> AttentionState {
            try PagedAttention(
                queryHeads: 3, configuration: cache.configuration, modifiers: .init(logitsSoftCap: cap), instructionSet: set)(
                    query: query, cache: cache, sequences: [sequence])
        }
        let free = try attend(nil)
        for cap: Float in [1e30, 3e38, .greatestFiniteMagnitude] {
            let capped = try attend(cap)
            for (a, b) in zip(free.output.elements, capped.output.elements) { #expect(abs(a - b) <= 2e-6, "\(cap)") }
            for (a, b) in zip(free.logSumExp.elements, capped.logSumExp.elements) { #expect(abs(a - b) <= 2e-6) }
        }
    }
}
