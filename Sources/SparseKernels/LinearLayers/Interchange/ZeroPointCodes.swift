/// Codes 0…15 with a zero point and a scale per group, row by row. AWQ, GPTQ and ONNX Runtime order them differently.
///
/// The value is scale · (code − zero point). Weights whose zero points are all 8 are `int4` codes without offsets in a
/// `QuantizedWeight`, others `uint4` with offset = scale · zero point.
struct ZeroPointCodes {
    let groupSize: Int?
    /// `[outFeatures, inFeatures]`, 0…15.
    let codes: Tensor<Int8>
    /// `[outFeatures, groups]`, 0…15.
    let zeroPoints: Tensor<Int8>
    /// `[outFeatures, groups]`.
    let scales: Tensor<Float>

    /// The zero point of symmetric codes.
    static let middle: Int8 = 8

    init(groupSize: Int?, codes: Tensor<Int8>, zeroPoints: Tensor<Int8>, scales: Tensor<Float>) {
        self.groupSize = groupSize
        self.codes = codes
        self.zeroPoints = zeroPoints
        self.scales = scales
    }

    /// - Throws: `.invalidArgument` for weights that these formats cannot represent: other codes, channel scales, or offsets
    ///   that are not 0…15 times the scale.
    init(_ weight: QuantizedWeight, on pool: WorkerPool) throws(SparseKernelsError) {
        let isSigned = weight.format.code == .int4
        try require(
            (isSigned && weight.offsets == nil) || weight.format.code == .uint4, .invalidArgument, "weight",
            expected: "of uint4 codes, or of int4 codes without offsets", actual: "\(weight.format)")
        try require(
            weight.channelScales == nil, .invalidArgument, "weight", expected: "without channel scales", actual: "with them")
        groupSize = weight.format.groupSize
        scales = weight.scales
        let groups = weight.groups
        var points = try Tensor<Int8>(zeros: scales.shape)
        for row in 0..<weight.outFeatures {
            for index in row * groups..<(row + 1) * groups {
                let (scale, offset) = (scales[flat: index], weight.offsets?[flat: index] ?? 0)
                let point = GroupGrid(kind: .uint4, scale: scale, offset: offset).zeroPoint
                try require(
                    scale * point == offset, .invalidArgument, "weight",
                    expected: "such that offsets are 0 to 15 times the scale",
                    actual: "\(offset) for scale \(scale) in row \(row), group \(index - row * groups)")
                points[flat: index] = isSigned ? Self.middle : Int8(point)
            }
        }
        zeroPoints = points
        var integers = try weight.integers(on: pool)
        if isSigned { integers.add(Self.middle, on: pool) }
        codes = integers
    }

    /// Converts to a weight, with wide groups as several groups of 128 that repeat their scale.
    /// - Throws: `.invalidArgument` for a scale that is not finite or a group size that no checkpoint has.
    func quantizedWeight(on pool: WorkerPool) throws(SparseKernelsError) -> QuantizedWeight {
        let (stored, columns) = (try StoredGroups(groupSize), codes.shape[1])
        let scales = try stored.expanded(scales, inFeatures: columns)
        if zeroPoints.elements.allSatisfy({ $0 == Self.middle }) {
            var integers = codes
            integers.add(0 - Self.middle, on: pool)
            return try QuantizedWeight(
                format: WeightFormat(.int4, groupSize: stored.kernelSize), integers: integers, scales: scales, on: pool)
        }
        let points = try stored.expanded(zeroPoints, inFeatures: columns).elements
        let steps = scales.elements
        return try QuantizedWeight(
            format: WeightFormat(.uint4, groupSize: stored.kernelSize), integers: codes, scales: scales,
            offsets: Tensor(scales.shape) { steps[$0] * Float(points[$0]) }, on: pool)
    }
}

extension Tensor<Int8> {
    fileprivate mutating func add(_ number: Int8, on pool: WorkerPool) {
        let columns = shape[1]
        nonisolated(unsafe) let elements = mutableAddress()
        pool.forEachRowRange(shape[0], workPerRow: columns) { range, _ in
            for index in range.lowerBound * columns..<range.upperBound * columns { elements[index] &+= number }
        }
    }
}
