public import SparseKernels

/// The resolutions at which PS3 looks at a picture, from low to high.
///
/// Scale 0 is the low resolution: the whole picture as a square, whatever its shape. The others are high resolutions, which keep the
/// aspect of the picture; only some of their patches are encoded.
///
/// ```swift
/// let scales = try PS3Scales([378, 756, 1512, 3780])
/// try scales.grid(2, of: GridSize(rows: 1080, columns: 1920))   // 60 × 108 patches of the picture at scale 1512
/// ```
public struct PS3Scales: Hashable, Sendable {
    /// The longer side of the picture at each scale, in pixels, ascending.
    public let sides: [Int]
    /// The side of a patch in pixels.
    public let patch: Int

    /// The largest side. Below it no number of pixels or patches comes near an overflow.
    public static let largestSide = 1 << 20

    /// - Parameters:
    ///   - sides: two or more multiples of the first one, ascending; the first is a multiple of `patch`.
    ///   - patch: the side of a patch, at least 1.
    /// - Throws: `.invalidArgument` for scales that are too few, out of order, no multiples or above `largestSide`.
    public init(_ sides: [Int], patch: Int = 14) throws(SparseKernelsError) {
        try require(patch >= 1, .invalidArgument, "patch", expected: "at least 1", actual: "\(patch)")
        try require(
            sides.count >= 2, .invalidArgument, "scales", expected: "a low resolution and one or more high ones",
            actual: "\(sides)")
        try require(
            sides[0] >= patch && sides[0] % patch == 0 && sides[sides.count - 1] <= Self.largestSide, .invalidArgument,
            "scales", expected: "from a multiple of the patch (\(patch)) to at most \(Self.largestSide)", actual: "\(sides)")
        for index in 1..<sides.count {
            try require(
                sides[index] > sides[index - 1] && sides[index] % sides[0] == 0, .invalidArgument, "scales",
                expected: "ascending multiples of \(sides[0])", actual: "\(sides)")
        }
        self.sides = sides
        self.patch = patch
    }

    /// The number of high-resolution scales, which are 1…`highScales`.
    public var highScales: Int { sides.count - 1 }

    /// The patches of a square picture at a scale, which position tables cover.
    public func squareGrid(_ scale: Int) -> GridSize { GridSize(side: sides[scale] / patch) }

    /// The patches of a square picture at all high-resolution scales.
    public var highPatches: Int {
        var count = 0
        for scale in 1..<sides.count { count += squareGrid(scale).count }
        return count
    }

    /// The pixels to which a picture is resized at a scale.
    ///
    /// Scale 0 is square. At scale i with z = side i / side 0, the longer side of the picture becomes side i, and the shorter one
    /// max(⌊⌊side 0 / longer · shorter⌋ / patch⌋, 1) · patch · z. The quotient is in double precision and in this order, as the released
    /// code has it: rounding makes some square pictures one patch narrower, 155 × 155 and 309 × 309 with side 378.
    ///
    /// - Parameters:
    ///   - scale: 0…`highScales`; anything else traps.
    ///   - picture: the picture in pixels.
    /// - Throws: `.invalidShape` for a picture without pixels.
    public func pixels(_ scale: Int, of picture: GridSize) throws(SparseKernelsError) -> GridSize {
        try picture.validate("picture")
        if scale == 0 { return GridSize(side: sides[0]) }
        let zoom = sides[scale] / sides[0]
        func short(_ longer: Int, _ shorter: Int) -> Int {
            let side = Int(Double(sides[0]) / Double(longer) * Double(shorter))
            return max(side / patch, 1) * patch * zoom
        }
        return picture.rows >= picture.columns
            ? GridSize(rows: sides[scale], columns: short(picture.rows, picture.columns))
            : GridSize(rows: short(picture.columns, picture.rows), columns: sides[scale])
    }

    /// The patches of a picture at a scale.
    ///
    /// - Parameters: those of `pixels`.
    /// - Throws: `.invalidShape` for a picture without pixels.
    public func grid(_ scale: Int, of picture: GridSize) throws(SparseKernelsError) -> GridSize {
        let size = try pixels(scale, of: picture)
        return GridSize(rows: size.rows / patch, columns: size.columns / patch)
    }

    /// The patches of a picture at scales 1…`highScales`.
    /// - Throws: `.invalidShape` for a picture without pixels.
    public func highGrids(of picture: GridSize) throws(SparseKernelsError) -> [GridSize] {
        var grids: [GridSize] = []
        for scale in 1...highScales { grids.append(try grid(scale, of: picture)) }
        return grids
    }
}
