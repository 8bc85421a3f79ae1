/// The tensors of ONNX Runtime's `MatMulNBits` with 4 bits: blocks of codes 0…15 in rows, with the smaller k in the low nibble.
///
/// The value is scale · (code − zero point), with zero point 8 where none are stored.
///
/// - Source: ONNX Runtime, contrib operator `com.microsoft.MatMulNBits` (`bits` 4).
public struct MatMulNBitsLayout: Sendable {
    /// K, the columns before padding.
    public let inFeatures: Int
    /// Columns that share a scale: 16, 32, 64 or a multiple of 128. The last block of a row may be filled up.
    public let blockSize: Int
    /// B, `[outFeatures, blocks, blockSize / 2]`.
    public let b: Tensor<UInt8>
    /// `[outFeatures, blocks]`.
    public let scales: Tensor<Float>
    /// `[outFeatures, ⌈blocks / 2⌉]`, with the even block in the low nibble; nil means 8.
    public let zeroPoints: Tensor<UInt8>?

    public var outFeatures: Int { b.shape[0] }

    /// Makes the layout from the tensors of a file. Scales and zero points may also be flat, as some exporters write them.
    /// - Throws: `.invalidShape` naming the tensor that disagrees, `.invalidArgument` for a block size that is not 16, 32, 64
    ///   or a multiple of 128.
    public init(
        inFeatures: Int, blockSize: Int, b: Tensor<UInt8>, scales: Tensor<Float>, zeroPoints: Tensor<UInt8>? = nil
    ) throws(SparseKernelsError) {
        let stored = try StoredGroups(blockSize, named: "blockSize")
        try require(
            inFeatures >= 1 && inFeatures < 1 << 31, .invalidShape, "inFeatures", expected: "1 to 2³¹ − 1",
            actual: "\(inFeatures)")
        let blocks = stored.count(inFeatures: inFeatures)
        try require(
            b.shape.count == 3 && b.shape[0] >= 1 && b.shape[1] == blocks && b.shape[2] == blockSize / 2, .invalidShape, "b",
            expected: "[outFeatures, \(blocks), \(blockSize / 2)]", actual: "\(b.shape)")
        self.inFeatures = inFeatures
        self.blockSize = blockSize
        self.b = b
        self.scales = try Self.shaped(scales, "scales", [b.shape[0], blocks])
        self.zeroPoints = try zeroPoints.map { points throws(SparseKernelsError) in
            try Self.shaped(points, "zeroPoints", [b.shape[0], (blocks + 1) / 2])
        }
    }

    /// Converts a weight to this layout. A weight whose groups were wider than 128 in a file is written with groups of 128.
    ///
    /// - Parameters:
    ///   - weight: `uint4` codes with offsets of 0…15 times the scale, or `int4` codes without offsets, without zero points.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for another weight, or one without groups.
    public init(_ weight: QuantizedWeight, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        guard let size = weight.format.groupSize else {
            throw SparseKernelsError(
                .invalidArgument, "weight", expected: "in groups of input features", actual: "\(weight.format)")
        }
        let codes = try ZeroPointCodes(weight, on: pool)
        let unsigned = try QuantizedWeight(
            format: WeightFormat(.uint4, groupSize: size), integers: codes.codes, scales: codes.scales, on: pool)
        let (rows, blocks) = (weight.outFeatures, weight.groups)
        inFeatures = weight.inFeatures
        blockSize = size
        b = try Tensor([rows, blocks, size / 2], unsigned.codes.elements)
        scales = codes.scales
        if weight.format.code == .int4 {
            zeroPoints = nil
        } else {
            var bytes = try Tensor<UInt8>(zeros: [rows, (blocks + 1) / 2])
            let (points, target) = (codes.zeroPoints.address, bytes.mutableAddress())
            for row in 0..<rows {
                WeightFormat.Code.uint4.pack(points + row * blocks, blocks, into: target + row * ((blocks + 1) / 2))
            }
            zeroPoints = bytes
        }
    }

    /// Converts to a weight: `int4` if every zero point is 8, `uint4` otherwise. Blocks above 128 become groups of 128 with the
    /// same scale, which changes no value.
    /// - Throws: `.invalidArgument` for a scale that is not finite.
    /// - Complexity: O(outFeatures · inFeatures), with one byte per element of temporary memory.
    public func quantizedWeight(on pool: WorkerPool = .shared) throws(SparseKernelsError) -> QuantizedWeight {
        let (rows, columns, rowBytes) = (outFeatures, inFeatures, b.shape[1] * b.shape[2])
        var codes = try Tensor<Int8>(zeros: [rows, columns])
        nonisolated(unsafe) let (source, target) = (b.address, codes.mutableAddress())
        pool.forEachRowRange(rows, workPerRow: columns) { range, _ in
            for row in range {
                WeightFormat.Code.uint4.unpack(source + row * rowBytes, columns, into: target + row * columns)
            }
        }
        let blocks = b.shape[1]
        let points = try Tensor<Int8>([rows, blocks]) { index in
            guard let zeroPoints else { return ZeroPointCodes.middle }
            let (row, block) = (index / blocks, index % blocks)
            let byte = zeroPoints[flat: row * zeroPoints.shape[1] + block / 2]
            return Int8(block % 2 == 0 ? byte & 15 : byte >> 4)
        }
        return try ZeroPointCodes(groupSize: blockSize, codes: codes, zeroPoints: points, scales: scales)
            .quantizedWeight(on: pool)
    }

    private static func shaped<Element>(
        _ tensor: Tensor<Element>, _ name: String, _ shape: [Int]
    ) throws(SparseKernelsError) -> Tensor<Element> {
        if tensor.shape == shape { return tensor }
        try requireShape(name, tensor.shape, [shape[0] * shape[1]])
        return try Tensor(shape, tensor.elements)
    }
}
