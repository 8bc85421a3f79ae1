import KernelInterface
import SparseKernels
import SparseKernelsReference

/// The tokens of one head in the memory of a cache, and the values stored there, read byte by byte as Docs/Layouts describes.
final class TokenPool {
    let storage: KVStorage
    let capacity: Int
    private let scratch: UnsafeMutableRawPointer

    static let pageSize = 16

    init(
        format: KVFormat, valueFormat: KVFormat? = nil, headDim: Int, valueDim: Int? = nil, tokens: Int,
        quantization: KVQuantization = .minimum, metadata: PageMetadata? = nil, set: InstructionSet
    ) throws {
        let configuration = try KVCacheConfiguration(
            kvHeads: 1, headDim: headDim, valueDim: valueDim, pageSize: Self.pageSize,
            pageCapacity: (tokens + Self.pageSize - 1) / Self.pageSize, format: format, valueFormat: valueFormat,
            quantization: quantization, metadata: metadata)
        storage = try KVStorage(configuration, kernels: set.kernels)
        capacity = configuration.tokenCapacity
        scratch = .allocate(byteCount: KVStorage.scratchByteCount(configuration), alignment: 64)
    }

    deinit { scratch.deallocate() }

    var key: TokenOperand { storage.keyOperand(layer: 0, head: 0) }
    var value: TokenOperand { storage.valueOperand(layer: 0, head: 0) }

    /// Fills every slot with normal values.
    convenience init(
        normal format: KVFormat, valueFormat: KVFormat? = nil, headDim: Int, valueDim: Int? = nil, tokens: Int, seed: UInt64,
        quantization: KVQuantization = .minimum, metadata: PageMetadata? = nil, set: InstructionSet
    ) throws {
        try self.init(
            format: format, valueFormat: valueFormat, headDim: headDim, valueDim: valueDim, tokens: tokens,
            quantization: quantization, metadata: metadata, set: set)
        let (headDim, valueDim) = (storage.configuration.headDim, storage.configuration.valueDim)
        write(
            try Tensor<Float>.normal([capacity, headDim], seed: seed),
            try Tensor<Float>.normal([capacity, valueDim], seed: seed &+ 1), slot: 0)
    }

    /// Writes rows to adjacent slots.
    func write<K: AttentionElement, V: AttentionElement>(_ keys: Tensor<K>, _ values: Tensor<V>, slot: Int) {
        keys.elements.withUnsafeBufferPointer { key in
            values.elements.withUnsafeBufferPointer { value in
                storage.write(
                    layer: 0, head: 0, slot: slot, count: keys.shape[0],
                    key: RowOperand(base: key.baseAddress!, stride: keys.shape[1], type: Self.storageType(K.self)), firstKey: 0,
                    value: RowOperand(base: value.baseAddress!, stride: values.shape[1], type: Self.storageType(V.self)),
                    firstValue: 0, scratch: scratch)
            }
        }
    }

    /// Computes the metadata of a page from its first `filled` tokens.
    func summarise(page: Int, filled: Int) {
        storage.summarise(layer: 0, head: 0, page: page, tokens: 0..<filled, filled: filled, scratch: scratch)
    }

    static func storageType<Element: AttentionElement>(_ type: Element.Type) -> StorageType {
        switch Element.elementType {
        case .float16: .float16
        case .bfloat16: .bfloat16
        default: .float32
        }
    }

    // MARK: - Reading memory

    /// The code of a channel.
    static func code(_ tokens: TokenOperand, slot: Int, channel: Int, isValue: Bool) -> Int {
        func byte(_ offset: Int) -> Int { Int(tokens.base.load(fromByteOffset: offset, as: UInt8.self)) }
        let isByte = tokens.format == .int8
        if !isValue {
            let row = slot * tokens.stride
            return isByte ? byte(row + channel) : byte(row + channel / 2) >> (channel % 2 * 4) & 15
        }
        // Eight slots are one group. INT4 has one word per channel, and INT8 two rows of such words.
        let group = slot / 8 * tokens.stride
        if isByte {
            let padded = (tokens.channels + 15) / 16 * 16
            return byte(group + slot % 8 / 4 * 4 * padded + 4 * channel + slot % 4)
        }
        return byte(group + 4 * channel + slot % 8 / 2) >> (slot % 2 * 4) & 15
    }

    static func half(_ bits: UInt16) -> Double {
        let magnitude = Double(bits & 0x3ff)
        let exponent = Int(bits >> 10 & 31)
        let value =
            exponent == 0
            ? magnitude * 0x1p-24 : Double(sign: .plus, exponent: exponent - 25, significand: 1024 + magnitude)
        return bits >> 15 == 0 ? value : -value
    }

    /// The exact value of a channel.
    static func value(_ tokens: TokenOperand, slot: Int, channel: Int, isValue: Bool) -> Double {
        let row = tokens.base + slot * tokens.stride
        switch tokens.format {
        case .float32: return Double(row.load(fromByteOffset: 4 * channel, as: Float.self))
        case .float16: return half(row.load(fromByteOffset: 2 * channel, as: UInt16.self))
        case .bfloat16:
            return Double(BFloat16(bitPattern: row.load(fromByteOffset: 2 * channel, as: UInt16.self)).floatValue)
        case .int8, .int4:
            let code = code(tokens, slot: slot, channel: channel, isValue: isValue)
            return scale(tokens, slot) * Double(code) + value(ofCode: 0, tokens, slot)
        }
    }

    /// The scale s of a slot.
    static func scale(_ tokens: TokenOperand, _ slot: Int) -> Double { half(tokens.scales![slot]) }

    /// The value of a slot's code.
    static func value(ofCode code: Int, _ tokens: TokenOperand, _ slot: Int) -> Double {
        let (scale, offset) = (scale(tokens, slot), half(tokens.offsets![slot]))
        return tokens.offsetKind == .minimum ? scale * Double(code) + offset : scale * (Double(code) - offset)
    }

    /// The exact rows of a list of slots.
    static func rows(_ tokens: TokenOperand, _ slots: [Int32], isValue: Bool) -> [[Double]] {
        slots.map { slot in
            (0..<tokens.channels).map { value(tokens, slot: Int(slot), channel: $0, isValue: isValue) }
        }
    }

    // MARK: - Lists of slots

    /// The arrangement of a list of slots in the pool.
    enum Pattern: CaseIterable {
        /// Adjacent slots, from the middle of a page on.
        case adjacent
        /// Whole pages in random order, the last one cut.
        case pages
        /// Scattered tokens: ascending within a page, with pages in random order.
        case gathered
    }

    /// Lists `count` different slots of a pool of at least `2·count + 32`.
    static func slots(_ pattern: Pattern, count: Int, capacity: Int, seed: UInt64) -> [Int32] {
        if pattern == .adjacent { return (0..<count).map { Int32($0 + 3) } }
        var generator = SplitMix64(seed: seed)
        var pages = Array(0..<capacity / pageSize)
        for last in stride(from: pages.count - 1, to: 0, by: -1) {
            pages.swapAt(last, Int(generator.next() % UInt64(last + 1)))
        }
        var slots: [Int32] = []
        for page in pages {
            for offset in 0..<pageSize where pattern == .pages || generator.uniform() < 0.6 {
                slots.append(Int32(page * pageSize + offset))
            }
        }
        return Array(slots.prefix(count))
    }
}
