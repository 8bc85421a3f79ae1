/// The quantised weight of a linear layer, `[outFeatures, inFeatures]`, in a row-major form for all instruction sets.
///
/// This form is stored, exchanged and written to disk. Kernels read a ``PackedWeight`` that is made from it.
public struct QuantizedWeight: Sendable {
    public let format: WeightFormat
    /// Rows, N of the product.
    public let outFeatures: Int
    /// Columns before padding, K of the product.
    public let inFeatures: Int
    /// `[outFeatures, paddedInFeatures · bits / 8]`: bytes, or pairs of nibbles with the even column in the low one. Padding is
    /// 0.
    public let codes: Tensor<UInt8>
    /// `[outFeatures, groups]`: the value of the number 1 in codes, before the channel scale. For E2M1 this is the E4M3 number,
    /// as in ``QuantizedActivations``, and `code(row:column:)` is twice the value.
    public let scales: Tensor<Float>
    /// `[outFeatures, groups]`, subtracted from scale · code; nil means none.
    public let offsets: Tensor<Float>?
    /// `[outFeatures]`, the factors of the rows; nil means 1.
    public let channelScales: Tensor<Float>?

    /// - Throws: `.invalidShape` for tensors that disagree with each other or with the format, `.invalidArgument` for a scale
    ///   or offset that is not finite.
    public init(
        format: WeightFormat, inFeatures: Int, codes: Tensor<UInt8>, scales: Tensor<Float>, offsets: Tensor<Float>? = nil,
        channelScales: Tensor<Float>? = nil
    ) throws(SparseKernelsError) {
        try require(
            codes.shape.count == 2 && codes.shape[0] >= 1, .invalidShape, "codes", expected: "rank 2, [outFeatures, bytes]",
            actual: "\(codes.shape)")
        try require(
            inFeatures >= 1 && inFeatures < 1 << 31, .invalidShape, "inFeatures", expected: "1 to 2³¹ − 1",
            actual: "\(inFeatures)")
        let rows = codes.shape[0]
        let bytes = format.paddedInFeatures(inFeatures) * format.code.bits / 8
        try require(
            codes.shape[1] == bytes, .invalidShape, "codes",
            expected: "\([rows, bytes]) for \(inFeatures) columns of \(format)",
            actual: "\(codes.shape)")
        let groups = [rows, format.groups(inFeatures: inFeatures)]
        try Self.check("scales", scales, groups)
        if let offsets { try Self.check("offsets", offsets, groups) }
        if let channelScales { try Self.check("channelScales", channelScales, [rows]) }
        self.format = format
        self.outFeatures = rows
        self.inFeatures = inFeatures
        self.codes = codes
        self.scales = scales
        self.offsets = offsets
        self.channelScales = channelScales
    }

    /// Columns per stored row.
    public var paddedInFeatures: Int { format.paddedInFeatures(inFeatures) }
    /// Groups per row.
    public var groups: Int { scales.shape[1] }

    /// The integer that the code of an element stands for; for E2M1 twice its value, −12…12.
    public func code(row: Int, column: Int) -> Int {
        precondition(
            row >= 0 && row < outFeatures && column >= 0 && column < paddedInFeatures,
            "index (\(row), \(column)) outside \(outFeatures) × \(paddedInFeatures)")
        if format.code == .int8 { return Int(Int8(bitPattern: codes[flat: row * codes.shape[1] + column])) }
        let byte = codes[flat: row * codes.shape[1] + column / 2]
        let nibble = Int(column % 2 == 0 ? byte & 15 : byte >> 4)
        return format.code.value(ofNibble: nibble)
    }

    /// The value of an element.
    public func value(row: Int, column: Int) -> Float {
        let group = row * groups + (format.groupSize.map { column / $0 } ?? 0)
        let step = format.code == .fp4 ? scales[flat: group] / 2 : scales[flat: group]
        let value = step * Float(code(row: row, column: column)) - (offsets?[flat: group] ?? 0)
        return value * (channelScales?[flat: row] ?? 1)
    }

    private static func check(_ name: String, _ tensor: Tensor<Float>, _ shape: [Int]) throws(SparseKernelsError) {
        try require(tensor.shape == shape, .invalidShape, name, expected: "\(shape)", actual: "\(tensor.shape)")
        try tensor.requireFinite(named: name)
    }
}
