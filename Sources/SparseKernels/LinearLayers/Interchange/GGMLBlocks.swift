/// A weight in blocks of 32 as in ggml and GGUF files, `Q4_0`, `Q4_1` or `Q8_0`, byte for byte.
///
/// Docs/Layouts/GGML.md describes the bytes. Blocks are independent, and a row is its blocks one after the other.
///
/// - Source: ggml, `ggml-common.h` (blocks) and `ggml-quants.c` (rules); the `gguf` Python package, for the recorded cases.
public struct GGMLBlocks: Sendable {
    /// The contents of a block.
    public enum Kind: String, Hashable, Sendable, CaseIterable {
        // The names are ggml's.
        // swift-format-ignore: AlwaysUseLowerCamelCase
        /// Scale d in F16, then 16 bytes of codes 0…15: value d · (code − 8).
        case q4_0 = "Q4_0"
        // swift-format-ignore: AlwaysUseLowerCamelCase
        /// Scale d and minimum m in F16, then 16 bytes of codes 0…15: value d · code + m.
        case q4_1 = "Q4_1"
        // swift-format-ignore: AlwaysUseLowerCamelCase
        /// Scale d in F16, then 32 signed bytes: value d · code.
        case q8_0 = "Q8_0"

        /// Bytes per block.
        public var byteCount: Int {
            switch self {
            case .q4_0: 18
            case .q4_1: 20
            case .q8_0: 34
            }
        }

        /// The format of a `QuantizedWeight` with the same values.
        public var format: WeightFormat {
            get throws(SparseKernelsError) {
                try WeightFormat(self == .q4_0 ? .int4 : self == .q4_1 ? .uint4 : .int8, groupSize: GGMLBlocks.blockSize)
            }
        }

        /// Bytes before the codes.
        var headerByteCount: Int { self == .q4_1 ? 4 : 2 }
    }

    /// Weights per block.
    public static let blockSize = 32

    public let kind: Kind
    public let inFeatures: Int
    /// `[outFeatures, inFeatures / 32 · byteCount]`.
    public let bytes: Tensor<UInt8>

    public var outFeatures: Int { bytes.shape[0] }
    /// Blocks per row.
    public var blocks: Int { inFeatures / Self.blockSize }

    /// Makes blocks from the bytes of a file.
    /// - Throws: `.invalidShape` unless `inFeatures` is a multiple of 32 and there are as many bytes as it needs.
    public init(_ kind: Kind, inFeatures: Int, bytes: Tensor<UInt8>) throws(SparseKernelsError) {
        try Self.checkColumns("inFeatures", inFeatures)
        try require(
            bytes.shape.count == 2 && bytes.shape[0] >= 1
                && bytes.shape[1] == inFeatures / Self.blockSize * kind.byteCount, .invalidShape, "bytes",
            expected:
                "[outFeatures, \(inFeatures / Self.blockSize * kind.byteCount)] for \(inFeatures) columns of \(kind.rawValue)",
            actual: "\(bytes.shape)")
        self.kind = kind
        self.inFeatures = inFeatures
        self.bytes = bytes
    }

    /// Converts a weight of the kind's format to blocks.
    ///
    /// - Parameters:
    ///   - weight: `int4`, `uint4` or `int8` in groups of 32, for `Q4_0`, `Q4_1` or `Q8_0`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for another format, for channel scales, or for a scale or offset that is not exact in F16;
    ///   `.invalidShape` unless `inFeatures` is a multiple of 32.
    public init(_ weight: QuantizedWeight, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        var kind: Kind?
        for candidate in Kind.allCases where try candidate.format == weight.format { kind = candidate }
        guard let kind, weight.channelScales == nil, kind == .q4_1 || weight.offsets == nil else {
            throw SparseKernelsError(
                .invalidArgument, "weight",
                expected: "of int4 or int8 without offsets, or of uint4, in groups of 32 and without channel scales",
                actual: "\(weight.format)\(weight.offsets == nil ? "" : " with offsets")")
        }
        try Self.checkColumns("weight.inFeatures", weight.inFeatures)
        for numbers in [weight.scales, weight.offsets].compactMap({ $0 }) {
            let bad = numbers.elements.firstIndex { roundedToHalf($0) != $0 }
            try require(
                bad == nil, .invalidArgument, "weight", expected: "of scales and offsets that F16 holds exactly",
                actual: "\(bad.map { numbers[flat: $0] } ?? 0)")
        }
        let (integers, scales, offsets) = (try weight.integers(on: pool), weight.scales.elements, weight.offsets?.elements)
        let blocks = weight.groups
        self.kind = kind
        inFeatures = weight.inFeatures
        bytes = try Self.filled(kind, rows: weight.outFeatures, blocks: blocks, on: pool) { row, block, bytes in
            let index = row * blocks + block
            // Subtraction, unlike negation, gives the minimum +0 where there is no offset.
            Self.write(half: scales[index], to: bytes)
            if kind == .q4_1 { Self.write(half: 0 - (offsets?[index] ?? 0), to: bytes + 2) }
            integers.span.withUnsafeBufferPointer { integers in
                let codes = integers.baseAddress! + index * Self.blockSize
                Self.write(codes: { Int(codes[$0]) + (kind == .q4_0 ? 8 : 0) }, kind, to: bytes)
            }
        }
    }

    /// Converts to a weight in the kind's format, whose values are exactly those of ggml.
    /// - Throws: `.invalidArgument` for a scale or offset that is not finite.
    /// - Complexity: O(outFeatures · inFeatures), with one byte per element of temporary memory.
    public func quantizedWeight(on pool: WorkerPool = .shared) throws(SparseKernelsError) -> QuantizedWeight {
        let (kind, blocks) = (kind, blocks)
        var integers = try Tensor<Int8>(zeros: [outFeatures, inFeatures])
        var scales = try Tensor<Float>(zeros: [outFeatures, blocks])
        var offsets = kind == .q4_1 ? try Tensor<Float>(zeros: [outFeatures, blocks]) : nil
        nonisolated(unsafe) let (source, codes) = (bytes.address, integers.mutableAddress())
        nonisolated(unsafe) let (steps, minima) = (scales.mutableAddress(), offsets?.mutableAddress())
        pool.forEachRowRange(outFeatures, workPerRow: inFeatures) { rows, _ in
            for index in rows.lowerBound * blocks..<rows.upperBound * blocks {
                let bytes = source + index * kind.byteCount
                steps[index] = Self.half(at: bytes)
                minima?[index] = -Self.half(at: bytes + 2)
                Self.read(kind, bytes + kind.headerByteCount, into: codes + index * Self.blockSize)
            }
        }
        return try QuantizedWeight(format: kind.format, integers: integers, scales: scales, offsets: offsets, on: pool)
    }
}

// MARK: - Bytes

extension GGMLBlocks {
    static func checkColumns(_ name: String, _ columns: Int) throws(SparseKernelsError) {
        try require(
            columns >= 1 && columns < 1 << 31 && columns % blockSize == 0, .invalidShape, name,
            expected: "a multiple of 32, ggml's blocks", actual: "\(columns)")
    }

    /// Makes the bytes of a weight whose blocks `write` fills, with rows in parallel.
    static func filled(
        _ kind: Kind, rows: Int, blocks: Int, on pool: WorkerPool,
        _ write: @Sendable (_ row: Int, _ block: Int, UnsafeMutablePointer<UInt8>) -> Void
    ) throws(SparseKernelsError) -> Tensor<UInt8> {
        var bytes = try Tensor<UInt8>(zeros: [rows, blocks * kind.byteCount])
        nonisolated(unsafe) let target = bytes.mutableAddress()
        pool.forEachRowRange(rows, workPerRow: 8 * blocks * blockSize) { range, _ in
            for row in range {
                for block in 0..<blocks { write(row, block, target + (row * blocks + block) * kind.byteCount) }
            }
        }
        return bytes
    }

    static func write(half value: Float, to bytes: UnsafeMutablePointer<UInt8>) {
        let bits = halfBitPattern(value)
        bytes[0] = UInt8(truncatingIfNeeded: bits)
        bytes[1] = UInt8(truncatingIfNeeded: bits >> 8)
    }

    private static func half(at bytes: UnsafePointer<UInt8>) -> Float {
        floatValue(ofHalf: UInt16(bytes[0]) | UInt16(bytes[1]) << 8)
    }

    /// Writes the codes of a block after its header. Nibbles j and j + 16 share byte j.
    @inline(__always)
    static func write(codes: (Int) -> Int, _ kind: Kind, to block: UnsafeMutablePointer<UInt8>) {
        let bytes = block + kind.headerByteCount
        if kind == .q8_0 {
            for index in 0..<blockSize { bytes[index] = UInt8(truncatingIfNeeded: codes(index)) }
        } else {
            for index in 0..<16 { bytes[index] = UInt8(truncatingIfNeeded: codes(index) | codes(index + 16) << 4) }
        }
    }

    private static func read(_ kind: Kind, _ bytes: UnsafePointer<UInt8>, into codes: UnsafeMutablePointer<Int8>) {
        switch kind {
        case .q8_0:
            for index in 0..<blockSize { codes[index] = Int8(bitPattern: bytes[index]) }
        case .q4_0, .q4_1:
            let zero: Int8 = kind == .q4_0 ? 8 : 0
            for index in 0..<16 {
                codes[index] = Int8(bytes[index] & 15) - zero
                codes[index + 16] = Int8(bytes[index] >> 4) - zero
            }
        }
    }
}
