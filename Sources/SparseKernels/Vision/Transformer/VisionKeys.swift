/// The keys and values of a layer's attention for the tokens of some pictures.
///
/// A pass writes them, and later passes of other tokens through the same layer read them as a prefix of their own keys: the
/// low-resolution tokens of a picture, to which tokens of high resolution attend. Passes and prompts may share them.
public struct VisionKeys: Sendable {
    /// `[pictures · heads, tokens, headDim]`.
    public private(set) var keys: Tensor<Float>
    /// `[pictures · heads, tokens, headDim]`.
    public private(set) var values: Tensor<Float>
    public private(set) var pictures: Int

    /// No keys yet, for a pass to fill.
    public init() {
        // An extent of 0 cannot overflow.
        keys = try! Tensor(zeros: [0, 0, 0])
        values = try! Tensor(zeros: [0, 0, 0])
        pictures = 0
    }

    /// - Parameters:
    ///   - keys: `[pictures · heads, tokens, headDim]`.
    ///   - values: as many.
    ///   - pictures: at least 1.
    /// - Throws: `.invalidShape` for another rank, values of other extents than the keys, or heads that are no multiple of
    ///   `pictures`.
    public init(keys: Tensor<Float>, values: Tensor<Float>, pictures: Int = 1) throws(SparseKernelsError) {
        try require(pictures >= 1, .invalidShape, "pictures", expected: "at least 1", actual: "\(pictures)")
        try require(
            keys.shape.count == 3 && keys.shape[0].isMultiple(of: pictures), .invalidShape, "keys",
            expected: "[\(pictures) · heads, tokens, headDim]", actual: "\(keys.shape)")
        try require(
            values.shape == keys.shape, .invalidShape, "values", expected: "\(keys.shape), as the keys",
            actual: "\(values.shape)")
        self.keys = keys
        self.values = values
        self.pictures = pictures
    }

    /// Tokens of each picture.
    public var tokens: Int { keys.shape[1] }

    /// Bytes of keys and values.
    public var byteCount: Int { (keys.count + values.count) * MemoryLayout<Float>.size }

    /// Throws `.invalidShape` unless they belong to a layer of this configuration, and to one picture or as many as there are.
    func validate(_ c: VisionLayerConfiguration, pictures count: Int) throws(SparseKernelsError) {
        try require(
            pictures == 1 || pictures == count, .invalidShape, "prefix.pictures", expected: "1, or \(count)",
            actual: "\(pictures)")
        try require(
            keys.shape[0] == pictures * c.heads && keys.shape[2] == c.headDim, .invalidShape, "prefix.keys",
            expected: "[\(pictures) · \(c.heads) heads, tokens, \(c.headDim)]", actual: "\(keys.shape)")
    }

    /// Makes room for the keys of a pass. Memory of the same extents is used again.
    mutating func prepare(pictures: Int, tokens: Int, _ c: VisionLayerConfiguration) throws(SparseKernelsError) {
        let fits = keys.shape[0] == pictures * c.heads && keys.shape[1] == tokens && keys.shape[2] == c.headDim
        if !fits {
            keys = try Tensor(zeros: [pictures * c.heads, tokens, c.headDim])
            values = try Tensor(zeros: [pictures * c.heads, tokens, c.headDim])
        }
        self.pictures = pictures
    }

    /// The addresses of keys and values to write, for a call that returns before they are used again.
    mutating func addresses() -> (keys: UnsafeMutablePointer<Float>, values: UnsafeMutablePointer<Float>) {
        (keys.uniqueAddress(), values.uniqueAddress())
    }
}
