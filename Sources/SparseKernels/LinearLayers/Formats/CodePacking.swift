extension WeightFormat {
    /// Bytes per stored row.
    public func bytesPerRow(inFeatures: Int) -> Int { paddedInFeatures(inFeatures) * code.bits / 8 }
}

extension WeightFormat.Code {
    /// The range of the integers that codes stand for. E2M1 does not have all of them.
    public var integers: ClosedRange<Int> {
        switch self {
        case .int4: -8...7
        case .uint4: 0...15
        case .fp4: -12...12
        case .int8: -128...127
        }
    }

    /// Whether a code stands for this integer.
    func has(_ integer: Int) -> Bool {
        self == .fp4 ? E2M1.code(ofDoubledValue: integer) != nil : integers.contains(integer)
    }

    /// Stores a row of integers. In a row of odd length the last nibble is 0.
    func pack(_ integers: UnsafePointer<Int8>, _ count: Int, into bytes: UnsafeMutablePointer<UInt8>) {
        switch self {
        case .int8:
            for index in 0..<count { bytes[index] = UInt8(bitPattern: integers[index]) }
        case .int4, .uint4:
            packPairs(integers, count, into: bytes) { UInt8(bitPattern: $0) & 15 }
        case .fp4:
            packPairs(integers, count, into: bytes) { integer in
                let doubled = UInt8(integer.magnitude)
                let index = doubled <= 4 ? doubled : doubled == 6 ? 5 : doubled == 8 ? 6 : 7
                return index | (integer < 0 ? 8 : 0)
            }
        }
    }

    /// Reads a row of integers back.
    func unpack(_ bytes: UnsafePointer<UInt8>, _ count: Int, into integers: UnsafeMutablePointer<Int8>) {
        switch self {
        case .int8:
            for index in 0..<count { integers[index] = Int8(bitPattern: bytes[index]) }
        case .int4:
            unpackPairs(bytes, count, into: integers) { Int8(bitPattern: $0 ^ 8) &- 8 }
        case .uint4:
            unpackPairs(bytes, count, into: integers) { Int8(bitPattern: $0) }
        case .fp4:
            unpackPairs(bytes, count, into: integers) { nibble in
                // 0…4 stay the same; 5, 6 and 7 become 6, 8 and 12.
                let index = nibble & 7
                let doubled = Int8(bitPattern: index <= 4 ? index : index == 7 ? 12 : 2 &* index &- 4)
                return nibble & 8 == 0 ? doubled : 0 &- doubled
            }
        }
    }

    @inline(__always)
    private func packPairs(
        _ integers: UnsafePointer<Int8>, _ count: Int, into bytes: UnsafeMutablePointer<UInt8>, _ nibble: (Int8) -> UInt8
    ) {
        for pair in 0..<count / 2 {
            bytes[pair] = nibble(integers[2 &* pair]) | nibble(integers[2 &* pair &+ 1]) << 4
        }
        if count % 2 == 1 { bytes[count / 2] = nibble(integers[count - 1]) }
    }

    @inline(__always)
    private func unpackPairs(
        _ bytes: UnsafePointer<UInt8>, _ count: Int, into integers: UnsafeMutablePointer<Int8>, _ integer: (UInt8) -> Int8
    ) {
        for pair in 0..<count / 2 {
            integers[2 &* pair] = integer(bytes[pair] & 15)
            integers[2 &* pair &+ 1] = integer(bytes[pair] >> 4)
        }
        if count % 2 == 1 { integers[count - 1] = integer(bytes[count / 2] & 15) }
    }
}

extension QuantizedWeight {
    /// Makes a weight from given codes.
    ///
    /// - Parameters:
    ///   - format: the kind of code and the group size.
    ///   - integers: `[outFeatures, inFeatures]`, the codes' integers: −8…7, 0…15, −128…127, or twice the value for E2M1.
    ///   - scales: `[outFeatures, groups]`.
    ///   - offsets: `[outFeatures, groups]`, subtracted from scale · code; nil means none.
    ///   - channelScales: `[outFeatures]`; nil means 1.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for tensors that disagree; `.invalidArgument` for an integer without a code, naming its row
    ///   and column, and for a scale or offset that is not finite.
    /// - Complexity: O(outFeatures · inFeatures).
    public init(
        format: WeightFormat, integers: Tensor<Int8>, scales: Tensor<Float>, offsets: Tensor<Float>? = nil,
        channelScales: Tensor<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            integers.shape.count == 2 && integers.shape.allSatisfy { $0 >= 1 }, .invalidShape, "integers",
            expected: "[outFeatures, inFeatures]", actual: "\(integers.shape)")
        let (rows, columns, code) = (integers.shape[0], integers.shape[1], format.code)
        let bytesPerRow = format.bytesPerRow(inFeatures: columns)
        var codes = try Tensor<UInt8>(zeros: [rows, bytesPerRow])
        var isBad = [Bool](repeating: false, count: rows)
        let table = (-128...127).map { code.has($0) }
        nonisolated(unsafe) let (bytes, source) = (codes.mutableAddress(), integers.address)
        isBad.withUnsafeMutableBufferPointer { isBad in
            nonisolated(unsafe) let isBad = isBad
            pool.forEachRowRange(rows, workPerRow: 2 * columns) { range, _ in
                for row in range {
                    let integers = source + row * columns
                    var bad = false
                    for column in 0..<columns where !table[Int(integers[column]) + 128] { bad = true }
                    isBad[row] = bad
                    if !bad { code.pack(integers, columns, into: bytes + row * bytesPerRow) }
                }
            }
        }
        if let row = isBad.firstIndex(of: true) {
            let column = (0..<columns).first { !code.has(Int(integers[flat: row * columns + $0])) } ?? 0
            throw SparseKernelsError(
                .invalidArgument, "integers", expected: "codes of \(code.rawValue)",
                actual: "\(integers[flat: row * columns + column]) in row \(row), column \(column)")
        }
        try self.init(
            format: format, inFeatures: columns, codes: codes, scales: scales, offsets: offsets, channelScales: channelScales)
    }

    /// Makes a weight from codes on a grid.
    /// - Throws: the errors of `init(format:integers:scales:offsets:channelScales:on:)`.
    public init(grid: WeightGrid, integers: Tensor<Int8>, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        try self.init(
            format: grid.format, integers: integers, scales: grid.scales, offsets: grid.offsets,
            channelScales: grid.channelScales, on: pool)
    }

    /// The integers that the codes stand for, `[outFeatures, inFeatures]`; for E2M1 twice the value.
    /// - Throws: `.invalidShape` for a size that overflows.
    /// - Complexity: O(outFeatures · inFeatures).
    public func integers(on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Tensor<Int8> {
        let (code, columns, bytesPerRow) = (format.code, inFeatures, codes.shape[1])
        var integers = try Tensor<Int8>(zeros: [outFeatures, columns])
        nonisolated(unsafe) let (target, bytes) = (integers.mutableAddress(), codes.address)
        pool.forEachRowRange(outFeatures, workPerRow: columns) { range, _ in
            for row in range { code.unpack(bytes + row * bytesPerRow, columns, into: target + row * columns) }
        }
        return integers
    }

    /// The weight as floating-point values, `[outFeatures, inFeatures]`: `value(row:column:)` of every element, bit for bit.
    /// - Throws: `.invalidShape` for a size that overflows.
    /// - Complexity: O(outFeatures · inFeatures). Scratch: one byte per column for each thread.
    public func dequantized(on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Tensor<Float> {
        let (code, columns, bytesPerRow) = (format.code, inFeatures, codes.shape[1])
        let groupSize = format.groupSize ?? columns
        let grid = GridRows(kind: code, scales: scales, offsets: offsets, channelScales: channelScales)
        var values = try Tensor<Float>(zeros: [outFeatures, columns])
        nonisolated(unsafe) let (target, bytes) = (values.mutableAddress(), codes.address)
        pool.forEachRowRange(outFeatures, workPerRow: 2 * columns, scratchByteCount: columns) { range, scratch in
            let integers = scratch.bindMemory(to: Int8.self, capacity: columns)
            for row in range {
                code.unpack(bytes + row * bytesPerRow, columns, into: integers)
                for (group, start) in stride(from: 0, to: columns, by: groupSize).enumerated() {
                    grid.group(group, row: row).dequantize(
                        integers + start, min(groupSize, columns - start), into: target + row * columns + start)
                }
            }
        }
        return values
    }
}
