internal import SparseKernels

/// The tensors of one layer in a nunchaku checkpoint.
struct NunchakuReader {
    let file: SafetensorsFile
    let layer: String
    /// The type of all 16-bit tensors of the layer, and the first tensor with it; nil before the first.
    private var sixteenBit: (type: ElementType, owner: String)?

    init(file: SafetensorsFile, layer: String) {
        self.file = file
        self.layer = layer
    }

    func name(_ suffix: String) -> String { NunchakuNames.of(suffix, in: layer) }

    /// The one of two names that the file has.
    /// - Throws: `.notFound` when it has none, `.malformedFile` when it has both.
    func name(_ names: [String]) throws(SparseKernelsError) -> String {
        let found = names.filter { file[name($0)] != nil }
        try file.requireTensor(
            found.count <= 1, name(names[0]), expected: "absent beside \(quoted(name(names.last ?? "")))", actual: "both")
        // The error for a missing tensor lists existing names.
        return try file.entry(named: name(found.first ?? names[0])).name
    }

    /// Reads a tensor of a given shape and of the layer's 16-bit type.
    mutating func floats(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        let entry = try file.entry(named: name)
        try requireType(entry, [.bfloat16, .float16])
        let (type, owner) = sixteenBit ?? (entry.elementType, name)
        try require(
            entry.elementType == type, .invalidElementType, "\(file.name), tensor \(quoted(name))",
            expected: "\(type.rawValue), as \(quoted(owner))", actual: entry.elementType.rawValue)
        sixteenBit = (type, owner)
        try requireShape(entry, shape)
        return try file.floatTensor(name)
    }

    /// Reads the codes of a matrix of whole tiles: bytes `[outFeatures, inFeatures / 2]`.
    func codes() throws(SparseKernelsError) -> Tensor<UInt8> {
        let entry = try file.entry(named: name(NunchakuNames.codes))
        try requireType(entry, [.int8, .uint8])
        let tile = NunchakuLayout.featureTile
        try file.requireTensor(
            entry.shape.count == 2 && entry.shape.allSatisfy { $0 >= 1 } && entry.shape[0] % tile == 0
                && entry.shape[1] % (tile / 2) == 0,
            entry.name, expected: "[outFeatures, inFeatures / 2], both features multiples of \(tile)",
            actual: abbreviated(entry.shape))
        return try Tensor(entry.shape, file.bytes(entry.name).withUnsafeBytes { Array($0) })
    }

    /// INT4 or FP4, as the scales' type tells. The shape of the scales and the metadata must agree.
    func precision(outFeatures: Int, inFeatures: Int) throws(SparseKernelsError) -> NunchakuPrecision {
        let entry = try file.entry(named: name(NunchakuNames.scales))
        try requireType(entry, [.bfloat16, .float16, .float8E4M3])
        let precision: NunchakuPrecision = entry.elementType == .float8E4M3 ? .fp4 : .int4
        let other: NunchakuPrecision = precision == .fp4 ? .int4 : .fp4
        let shape = [inFeatures / precision.groupSize, outFeatures]
        let hint = entry.shape == [inFeatures / other.groupSize, outFeatures] ? ", the shape of \(other.dtype)" : ""
        try file.requireTensor(
            entry.shape == shape, entry.name,
            expected: "\(shape) for \(precision.dtype), whose scales are \(entry.elementType.rawValue)",
            actual: abbreviated(entry.shape) + hint)
        try NunchakuConfiguration.check(file, is: precision)
        return precision
    }

    /// The rank of the branch whose factor `down` has this name.
    func rank(_ downName: String) throws(SparseKernelsError) -> Int {
        let entry = try file.entry(named: downName)
        let tile = NunchakuLayout.rankTile
        try file.requireTensor(
            entry.shape.count == 2 && (1...LowRankBranch.maximumRank).contains(entry.shape[1]) && entry.shape[1] % tile == 0,
            downName,
            expected: "[inFeatures, rank], the rank a multiple of \(tile) up to \(LowRankBranch.maximumRank)",
            actual: abbreviated(entry.shape))
        return entry.shape[1]
    }

    /// The scales of the rows, `wtscale` · `wcscales`, with 1 for a missing factor; nil for 1 in all rows.
    ///
    /// Scales of FP4 groups are relative to one of the two: without both, weights would be thousands of times too large.
    mutating func channelScales(
        _ outFeatures: Int, _ precision: NunchakuPrecision
    ) throws(SparseKernelsError) -> Tensor<Float>? {
        let (tensorName, channelName) = (name(NunchakuNames.tensorScale), name(NunchakuNames.channelScales))
        try require(
            precision == .int4 || file[tensorName] != nil || file[channelName] != nil, .notFound,
            "\(file.name), tensor \(quoted(tensorName))",
            expected: "in the file, or else \(quoted(channelName)): scales of FP4 weights are relative to one of them",
            actual: "neither of the two")
        var tensorScale: Float = 1
        if let entry = file[tensorName] {
            try requireType(entry, [.float32, .bfloat16, .float16])
            try file.requireTensor(entry.count == 1, entry.name, expected: "one number", actual: abbreviated(entry.shape))
            tensorScale = try file.floatTensor(entry.name)[flat: 0]
            try file.requireTensor(tensorScale.isFinite, entry.name, expected: "finite", actual: "\(tensorScale)")
        }
        if file[channelName] == nil {
            return tensorScale == 1 ? nil : try Tensor([outFeatures]) { _ in tensorScale }
        }
        let scales = try NunchakuLayout.unpackedVector(floats(channelName, [outFeatures]))
        let product = try Tensor([outFeatures]) { tensorScale * scales[flat: $0] }
        return (0..<outFeatures).allSatisfy { product[flat: $0] == 1 } ? nil : product
    }

    func requireType(_ entry: SafetensorsEntry, _ types: [ElementType]) throws(SparseKernelsError) {
        try require(
            types.contains(entry.elementType), .invalidElementType, "\(file.name), tensor \(quoted(entry.name))",
            expected: types.map(\.rawValue).joined(separator: " or "), actual: entry.elementType.rawValue)
    }

    func requireShape(_ entry: SafetensorsEntry, _ shape: [Int]) throws(SparseKernelsError) {
        try file.requireTensor(
            entry.shape == shape, entry.name, expected: "\(shape)", actual: abbreviated(entry.shape))
    }
}
