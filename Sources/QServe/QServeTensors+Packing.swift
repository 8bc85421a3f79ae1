public import SparseKernels

// `qweight` consists of blocks of 32 rows × 32 columns, 512 bytes each, in row-major order. In a block, row 16a + 8b + c and
// column 16d + 4e + f are a nibble of byte (((4c + e)·2 + d)·2 + b)·4 + f, the low one for a = 0: two rows at a distance of 16
// share a byte. (Sources: omniserve's `from_linear`; deepcompressor's packer makes the same bytes.)

/// The byte in a block of column `column` and row `row`, both below 32. Rows `row` and `row ^ 16` share it.
private func byteInBlock(row: Int, column: Int) -> Int {
    let (b, c) = (row / 8 % 2, row % 8)
    let (d, e, f) = (column / 16, column / 4 % 4, column % 4)
    return (((c * 4 + e) * 2 + d) * 2 + b) * 4 + f
}

private let blockBytes = QServeTensors.block * QServeTensors.block / 2

extension QServeTensors {
    // MARK: - Unpacking

    /// Unpacks the logical weight.
    ///
    /// With groups, every s2 · q − zero must fit into a signed byte, as the kernels for such files require.
    ///
    /// - Parameters:
    ///   - order: the packer that made the file; unused per channel.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` naming `s2_scales` for a negative scale, or `s2_zeros` for bytes that do not fit.
    /// - Complexity: O(outFeatures · inFeatures), rows in parallel.
    public func weight(order: Order, on pool: WorkerPool = .shared) throws(SparseKernelsError) -> QuantizedWeight {
        let (rows, rowBytes) = (outFeatures, inFeatures / 2)
        let packed = qweight
        let codes = pool.map(rows, work: rows * inFeatures) { row in
            let source = packed.span
            let stripe = row / Self.block * Self.block * rowBytes
            let shift = row % Self.block < 16 ? 0 : 4
            func code(_ column: Int) -> UInt8 {
                let byte = byteInBlock(row: row % Self.block, column: column % Self.block)
                return UInt8(bitPattern: source[stripe + column / Self.block * blockBytes + byte]) >> shift & 15
            }
            return (0..<rowBytes).map { code(2 * $0) | code(2 * $0 + 1) << 4 }
        }
        let logical = try Tensor([rows, rowBytes], codes.flatMap { $0 })
        guard let s2Scales, let s2Zeros else {
            return try QuantizedWeight(
                format: WeightFormat(.uint4, groupSize: nil), inFeatures: inFeatures, codes: logical,
                scales: Tensor([rows, 1], s1Scales.elements), offsets: Tensor([rows, 1], s1SZeros?.elements ?? []))
        }
        let negative = s2Scales.elements.firstIndex { $0 < 0 }
        try require(
            negative == nil, .invalidArgument, "s2_scales", expected: "0…127",
            actual: negative.map { "\(s2Scales[flat: $0]) at element \($0)" } ?? "")
        let groups = inFeatures / Self.groupSize
        func logicalOrder(_ tensor: Tensor<Int8>, sign: Float) throws(SparseKernelsError) -> Tensor<Float> {
            var values = [Float](repeating: 0, count: rows * groups)
            let source = tensor.span
            for group in 0..<groups {
                for place in 0..<rows {
                    let row = place / Self.block * Self.block + order.channel(at: place % Self.block)
                    values[row * groups + group] = sign * Float(source[group * rows + place])
                }
            }
            return try Tensor([rows, groups], values)
        }
        let weight = try QuantizedWeight(
            format: WeightFormat(.uint4, groupSize: Self.groupSize), inFeatures: inFeatures, codes: logical,
            scales: logicalOrder(s2Scales, sign: 1), offsets: logicalOrder(s2Zeros, sign: -1), channelScales: s1Scales)
        try IntermediateRange(weight, on: pool).require("s2_zeros")
        return weight
    }

    // MARK: - Packing

    /// Packs a weight in the form of `ProgressiveQuantizer`.
    ///
    /// - Parameters:
    ///   - weight: uint4 in groups of 128 with integer scales and offsets and channel scales, or per channel with offsets.
    ///   - order: the packer whose order is used; unused per channel.
    ///   - bias: `[outFeatures]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for a weight of another form, bytes between the levels that do not fit, or scales that fp16
    ///   does not hold exactly; `.invalidShape` for extents that are not multiples of 32 rows and 128 columns (per channel 32),
    ///   or another shape of the bias.
    public init(
        packing weight: QuantizedWeight, order: Order, bias: Tensor<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let isPerChannel = weight.format.groupSize == nil
        let isKnown =
            weight.format.code == .uint4 && weight.offsets != nil
            && (isPerChannel ? weight.channelScales == nil : weight.format.groupSize == Self.groupSize)
        guard isKnown, let offsets = weight.offsets else {
            throw SparseKernelsError(
                .invalidArgument, "weight",
                expected: "uint4 with offsets, in groups of \(Self.groupSize) with channel scales or per channel without",
                actual: "\(weight.format)")
        }
        let (rows, columns) = (weight.outFeatures, weight.inFeatures)
        let unit = isPerChannel ? Self.block : Self.groupSize
        for (name, extent, multiple) in [("weight.outFeatures", rows, Self.block), ("weight.inFeatures", columns, unit)] {
            try require(
                extent % multiple == 0, .invalidShape, name, expected: "a multiple of \(multiple)", actual: "\(extent)")
        }
        if isPerChannel {
            try Self.requireHalf(weight.scales, "weight.scales")
            try Self.requireHalf(offsets, "weight.offsets")
        } else {
            try IntermediateRange(weight, on: pool).require("weight")
            if let scales = weight.channelScales { try Self.requireHalf(scales, "weight.channelScales") }
        }

        let logical = weight.codes
        let stripes = pool.map(rows / Self.block, work: rows * columns) { stripe in
            let source = logical.span
            var bytes = [Int8](repeating: 0, count: Self.block * columns / 2)
            for row in 0..<Self.block {
                let start = (stripe * Self.block + row) * columns / 2
                for column in 0..<columns {
                    let code = source[start + column / 2] >> (column % 2 == 0 ? 0 : 4) & 15
                    let target = column / Self.block * blockBytes + byteInBlock(row: row, column: column % Self.block)
                    bytes[target] |= Int8(bitPattern: row < 16 ? code : code << 4)
                }
            }
            return bytes
        }
        let qweight = try Tensor([rows, columns / 2], stripes.flatMap { $0 })
        guard let channelScales = weight.channelScales else {
            try self.init(
                qweight, Tensor([rows], weight.scales.elements), s1SZeros: Tensor([rows], offsets.elements), bias: bias)
            return
        }
        let groups = weight.groups
        func packedOrder(_ tensor: Tensor<Float>, sign: Float) throws(SparseKernelsError) -> Tensor<Int8> {
            let source = tensor.span
            return try Tensor([groups, rows]) { index in
                let place = index % rows
                let row = place / Self.block * Self.block + order.channel(at: place % Self.block)
                return Int8(sign * source[row * groups + index / rows])
            }
        }
        try self.init(
            qweight, channelScales, s2: (packedOrder(weight.scales, sign: 1), packedOrder(offsets, sign: -1)), bias: bias)
    }

    static func requireHalf(_ tensor: Tensor<Float>, _ name: String) throws(SparseKernelsError) {
        let values = tensor.span
        for index in 0..<values.count where roundedToHalf(values[index]) != values[index] {
            throw SparseKernelsError(
                .invalidArgument, name, expected: "fp16 values", actual: "\(values[index]) at element \(index)")
        }
    }
}
