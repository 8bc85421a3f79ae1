public import SparseKernels

/// The order of the tensors of a layer in memory for nunchaku's GPU kernels.
///
/// The shapes in a checkpoint are nominal: memory has the order of tensor-core fragments, and reading it as rows and columns
/// gives meaningless values. Packing takes row-major tensors, pads outputs and inputs to multiples of 128 and ranks to
/// multiples of 16, and reorders. Unpacking takes padded tensors and keeps the padding. Docs/Layouts/Nunchaku.md has formulas
/// with pictures.
///
/// - Source: `deepcompressor/backend/nunchaku/utils.py`, `NunchakuWeightPacker`, at commit 69f3473.
public enum NunchakuLayout {
    /// Outputs and inputs are padded to multiples of this.
    public static let featureTile = 128
    /// Ranks are padded to multiples of this.
    public static let rankTile = 16

    // MARK: - Indices

    /// The byte that holds the codes of row n and columns k, k + 1, for even k: the low nibble is column k.
    ///
    /// A 32-bit word has the 8 codes of columns 8·⌊k/8⌋… of a row.
    public static func codeByte(row n: Int, column k: Int, inFeatures: Int) -> Int {
        let tile = (n / 128 * (inFeatures / 64) + k / 64) * 8 + n % 128 / 16
        let word = ((tile * 8 + n % 8) * 4 + k % 32 / 8) * 4 + n % 16 / 8 * 2 + k % 64 / 32
        return 4 * word + k % 8 / 2
    }

    /// The position of element n of a vector: a bias, channel scales, or smoothing factors.
    public static func vectorIndex(_ n: Int) -> Int { n / 16 * 16 + n % 8 / 2 * 4 + n % 16 / 8 * 2 + n % 2 }

    /// The position of the scale of row n and a group of 64 columns.
    public static func scaleIndex(row n: Int, group: Int, groups: Int) -> Int {
        (n / 128 * groups + group) * 128 + vectorIndex(n % 128)
    }

    /// The position of the scale of row n and a group of 16 columns; `groups` is a multiple of 4.
    public static func microScaleIndex(row n: Int, group: Int, groups: Int) -> Int {
        let tile = (n / 128 * (groups / 4) + group / 4) * 8 + n % 8
        return ((tile * 4 + n % 32 / 8) * 4 + n % 128 / 32) * 4 + group % 4
    }

    /// The position of element i, c of the factor `down`.
    public static func downIndex(rank i: Int, input c: Int, ranks: Int) -> Int {
        let tile = c / 16 * (ranks / 16) + i / 16
        return tile * 256 + i % 8 * 32 + c % 8 / 2 * 8 + i % 16 / 8 * 4 + c % 16 / 8 * 2 + c % 2
    }

    /// The position of element c, i of the factor `up`.
    public static func upIndex(output c: Int, rank i: Int, ranks: Int) -> Int {
        let tile = c / 16 * (ranks / 16) + i / 16
        return tile * 256 + c % 8 * 32 + i % 8 / 2 * 8 + c % 16 / 8 * 4 + i % 16 / 8 * 2 + i % 2
    }

    /// The byte that holds a code of a modulation linear (W4A16), and whether it is the high nibble.
    ///
    /// 32 columns of a row are 8 words of 16 bits; word j has columns j, 8 + j, 16 + j and 24 + j, the first in the lowest
    /// nibble. Memory is `[outFeatures / 4][inFeatures / 64][4 rows][16 words]`.
    public static func modulationByte(row n: Int, column k: Int, inFeatures: Int) -> (byte: Int, isHigh: Bool) {
        let word = ((n / 4 * (inFeatures / 64) + k / 64) * 4 + n % 4) * 16 + k % 64 / 32 * 8 + k % 8
        let nibble = k % 32 / 8
        return (2 * word + nibble / 2, nibble % 2 == 1)
    }

    // MARK: - Codes

    /// Packs codes `[outFeatures, inFeatures / 2]`, the even column in the low nibble, to the same shape, padded with code 0.
    /// - Throws: `.invalidShape` unless the tensor is a matrix.
    public static func packedCodes(_ codes: Tensor<UInt8>) throws(SparseKernelsError) -> Tensor<UInt8> {
        let shape = try matrix("codes", codes.shape)
        let (rows, bytes) = (padded(shape.0, featureTile), padded(shape.1, featureTile / 2))
        return try packed(codes, to: [rows, bytes], filling: 0) { codeByte(row: $0, column: 2 * $1, inFeatures: 2 * bytes) }
    }

    /// Reverses `packedCodes`. The result includes the padding.
    /// - Throws: `.invalidShape` unless both extents are whole tiles.
    public static func unpackedCodes(_ codes: Tensor<UInt8>) throws(SparseKernelsError) -> Tensor<UInt8> {
        let shape = try matrix("codes", codes.shape, tiles: (featureTile, featureTile / 2))
        return try unpacked(codes, to: [shape.0, shape.1]) { codeByte(row: $0, column: 2 * $1, inFeatures: 2 * shape.1) }
    }

    // MARK: - Scales

    /// Packs scales `[outFeatures, groups]`, groups of 64, to nominal `[groups, outFeatures]`, padded to an even number of
    /// groups, which is 128 columns.
    /// - Throws: `.invalidShape` unless the tensor is a matrix.
    public static func packedScales<Element: TensorElement>(
        _ scales: Tensor<Element>, filling fill: Element
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let shape = try matrix("scales", scales.shape)
        let (rows, groups) = (padded(shape.0, featureTile), padded(shape.1, featureTile / 64))
        return try packed(scales, to: [groups, rows], filling: fill) { scaleIndex(row: $0, group: $1, groups: groups) }
    }

    /// Reverses `packedScales`. The result includes the padding.
    /// - Throws: `.invalidShape` unless both extents are whole tiles.
    public static func unpackedScales<Element: TensorElement>(
        _ scales: Tensor<Element>
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let (groups, rows) = try matrix("scales", scales.shape, tiles: (featureTile / 64, featureTile))
        return try unpacked(scales, to: [rows, groups]) { scaleIndex(row: $0, group: $1, groups: groups) }
    }

    /// Packs scales `[outFeatures, groups]`, groups of 16, to nominal `[groups, outFeatures]`, padded to a multiple of 4
    /// groups, which is 64 columns.
    /// - Throws: `.invalidShape` unless the tensor is a matrix.
    public static func packedMicroScales<Element: TensorElement>(
        _ scales: Tensor<Element>, filling fill: Element
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let shape = try matrix("scales", scales.shape)
        let (rows, groups) = (padded(shape.0, featureTile), padded(shape.1, 4))
        return try packed(scales, to: [groups, rows], filling: fill) { microScaleIndex(row: $0, group: $1, groups: groups) }
    }

    /// Reverses `packedMicroScales`. The result includes the padding.
    /// - Throws: `.invalidShape` unless both extents are whole tiles.
    public static func unpackedMicroScales<Element: TensorElement>(
        _ scales: Tensor<Element>
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let (groups, rows) = try matrix("scales", scales.shape, tiles: (4, featureTile))
        return try unpacked(scales, to: [rows, groups]) { microScaleIndex(row: $0, group: $1, groups: groups) }
    }

    // MARK: - Vectors

    /// Packs a vector `[features]` to the same shape, padded.
    /// - Throws: `.invalidShape` unless the tensor has one axis.
    public static func packedVector<Element: TensorElement>(
        _ vector: Tensor<Element>, filling fill: Element
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let count = try extent("vector", vector.shape)
        let column = try Tensor([count, 1], vector.elements)
        return try packed(column, to: [padded(count, featureTile)], filling: fill) { n, _ in vectorIndex(n) }
    }

    /// Reverses `packedVector`. The result includes the padding.
    /// - Throws: `.invalidShape` unless the tensor has one axis of whole tiles.
    public static func unpackedVector<Element: TensorElement>(
        _ vector: Tensor<Element>
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let count = try extent("vector", vector.shape, tile: featureTile)
        return try unpacked(vector, to: [count]) { n, _ in vectorIndex(n) }
    }

    // MARK: - Low-rank factors

    /// Packs a factor `[rank, inFeatures]` to nominal `[inFeatures, rank]`, padded with zeros.
    /// - Throws: `.invalidShape` unless the tensor is a matrix.
    public static func packedDown<Element: TensorElement>(
        _ down: Tensor<Element>
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let shape = try matrix("down", down.shape)
        let (ranks, inputs) = (padded(shape.0, rankTile), padded(shape.1, featureTile))
        return try packed(down, to: [inputs, ranks], filling: .zero) { downIndex(rank: $0, input: $1, ranks: ranks) }
    }

    /// Reverses `packedDown`. The result includes the padding.
    /// - Throws: `.invalidShape` unless both extents are whole tiles.
    public static func unpackedDown<Element: TensorElement>(
        _ down: Tensor<Element>
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let (inputs, ranks) = try matrix("down", down.shape, tiles: (featureTile, rankTile))
        return try unpacked(down, to: [ranks, inputs]) { downIndex(rank: $0, input: $1, ranks: ranks) }
    }

    /// Packs a factor `[outFeatures, rank]` to the same shape, padded with zeros.
    /// - Throws: `.invalidShape` unless the tensor is a matrix.
    public static func packedUp<Element: TensorElement>(
        _ up: Tensor<Element>
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let shape = try matrix("up", up.shape)
        let (outputs, ranks) = (padded(shape.0, featureTile), padded(shape.1, rankTile))
        return try packed(up, to: [outputs, ranks], filling: .zero) { upIndex(output: $0, rank: $1, ranks: ranks) }
    }

    /// Reverses `packedUp`. The result includes the padding.
    /// - Throws: `.invalidShape` unless both extents are whole tiles.
    public static func unpackedUp<Element: TensorElement>(
        _ up: Tensor<Element>
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let (outputs, ranks) = try matrix("up", up.shape, tiles: (featureTile, rankTile))
        return try unpacked(up, to: [outputs, ranks]) { upIndex(output: $0, rank: $1, ranks: ranks) }
    }
}

// MARK: - Moving elements

extension NunchakuLayout {
    static func padded(_ extent: Int, _ tile: Int) -> Int { (extent + tile - 1) / tile * tile }

    /// Moves the elements of a matrix to the positions from `index`, and writes `fill` elsewhere.
    private static func packed<Element: TensorElement>(
        _ matrix: Tensor<Element>, to shape: [Int], filling fill: Element, index: (Int, Int) -> Int
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let (rows, columns) = (matrix.shape[0], matrix.shape[1])
        var result = try Tensor<Element>(zeros: shape)
        var target = result.mutableSpan
        if rows * columns < target.count { for i in target.indices { target[i] = fill } }
        let source = matrix.span
        for row in 0..<rows {
            for column in 0..<columns { target[index(row, column)] = source[row * columns + column] }
        }
        return result
    }

    /// Reads the elements of a matrix or vector at the positions from `index`.
    private static func unpacked<Element: TensorElement>(
        _ tensor: Tensor<Element>, to shape: [Int], index: (Int, Int) -> Int
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let (rows, columns) = (shape[0], shape.count == 2 ? shape[1] : 1)
        var result = try Tensor<Element>(zeros: shape)
        var target = result.mutableSpan
        let source = tensor.span
        for row in 0..<rows {
            for column in 0..<columns { target[row * columns + column] = source[index(row, column)] }
        }
        return result
    }

    private static func matrix(
        _ name: String, _ shape: [Int], tiles: (Int, Int) = (1, 1)
    ) throws(SparseKernelsError) -> (Int, Int) {
        try require(
            shape.count == 2 && shape[0] >= 1 && shape[1] >= 1 && shape[0] % tiles.0 == 0 && shape[1] % tiles.1 == 0,
            .invalidShape, name, expected: "a matrix with extents of multiples of \(tiles.0) and \(tiles.1)",
            actual: abbreviated(shape))
        return (shape[0], shape[1])
    }

    private static func extent(_ name: String, _ shape: [Int], tile: Int = 1) throws(SparseKernelsError) -> Int {
        try require(
            shape.count == 1 && shape[0] >= 1 && shape[0] % tile == 0, .invalidShape, name,
            expected: "one axis of a multiple of \(tile)", actual: abbreviated(shape))
        return shape[0]
    }
}

extension Tensor {
    /// A copy of a matrix or vector that is cut or extended at its ends.
    func resized(to newShape: [Int], filling fill: Element = .zero) throws(SparseKernelsError) -> Tensor {
        if newShape == shape { return self }
        let (columns, newColumns) = (shape.count == 2 ? shape[1] : 1, newShape.count == 2 ? newShape[1] : 1)
        let source = span
        return try Tensor(newShape) { index in
            let (row, column) = (index / newColumns, index % newColumns)
            return row < shape[0] && column < columns ? source[row * columns + column] : fill
        }
    }
}

extension Tensor<UInt8> {
    /// Whether rows of nibbles, the even column in the low nibble, are zero outside the given part.
    func hasOnlyZeros(outsideRows rows: Int, nibbles: Int) -> Bool {
        let (bytes, codes) = (shape[1], span)
        for row in 0..<shape[0] {
            let kept = row < rows ? nibbles : 0
            for byte in kept / 2..<bytes {
                let code = codes[row * bytes + byte]
                if (2 * byte < kept ? code >> 4 : code) != 0 { return false }
            }
        }
        return true
    }
}
