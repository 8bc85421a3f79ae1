/// The axes of the tokens of a video.
public enum VideoAxis: String, Hashable, Sendable, Codable, CaseIterable {
    case frame, height, width
}

/// The tokens of a video transformer's joint attention: frames × height × width video tokens, and text before or after them.
///
/// Video tokens are frame-major, as patch embeddings make them: token (f, y, x) is the (f · height + y) · width + x-th one of
/// the video. Text may be padded to a fixed number of tokens, with the prompt first and padding behind it.
///
/// ```swift
/// let hunyuan = try VideoGeometry(frames: 33, height: 45, width: 80, textTokens: 256, textPlacement: .after, promptTokens: 31)
/// ```
public struct VideoGeometry: Hashable, Sendable {
    /// Where text tokens stand in the sequence.
    public enum TextPlacement: String, Hashable, Sendable, Codable {
        /// Text comes first, as in CogVideoX.
        case before
        /// Text comes last, as in HunyuanVideo.
        case after
    }

    /// Frames of the latent video.
    public let frames: Int
    /// Rows of tokens in a frame.
    public let height: Int
    /// Tokens in a row of a frame.
    public let width: Int
    /// Text tokens, padding included; 0 where text has an attention of its own, as in Wan.
    public let textTokens: Int
    public let textPlacement: TextPlacement
    /// Text tokens that are not padding. They are the first of the text.
    public let promptTokens: Int

    /// - Parameters:
    ///   - frames: at least 1, as `height` and `width`.
    ///   - textTokens: at least 0.
    ///   - promptTokens: 0…`textTokens`; nil means all of them.
    /// - Throws: `.invalidShape` naming the extent that is out of range, or for 2³¹ tokens or more.
    public init(
        frames: Int, height: Int, width: Int, textTokens: Int = 0, textPlacement: TextPlacement = .before,
        promptTokens: Int? = nil
    ) throws(SparseKernelsError) {
        for (name, extent) in [("frames", frames), ("height", height), ("width", width)] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        try require(textTokens >= 0, .invalidShape, "textTokens", expected: "at least 0", actual: "\(textTokens)")
        let prompt = promptTokens ?? textTokens
        try require(
            prompt >= 0 && prompt <= textTokens, .invalidShape, "promptTokens",
            expected: "from 0 to textTokens (\(textTokens))", actual: "\(prompt)")
        var count = (partialValue: frames, overflow: false)
        for extent in [height, width] where !count.overflow {
            count = count.partialValue.multipliedReportingOverflow(by: extent)
        }
        if !count.overflow { count = count.partialValue.addingReportingOverflow(textTokens) }
        try require(
            !count.overflow && count.partialValue <= Int(Int32.max), .invalidShape, "geometry",
            expected: "fewer than 2³¹ tokens", actual: "\(frames) · \(height) · \(width) + \(textTokens)")
        self.frames = frames
        self.height = height
        self.width = width
        self.textTokens = textTokens
        self.textPlacement = textPlacement
        self.promptTokens = prompt
    }

    /// A geometry for methods that do not look inside frames; each frame is one row of tokens.
    /// - Throws: as the other initialiser.
    public init(
        frames: Int, tokensPerFrame: Int, textTokens: Int = 0, textPlacement: TextPlacement = .before,
        promptTokens: Int? = nil
    ) throws(SparseKernelsError) {
        try require(
            tokensPerFrame >= 1, .invalidShape, "tokensPerFrame", expected: "at least 1", actual: "\(tokensPerFrame)")
        try self.init(
            frames: frames, height: 1, width: tokensPerFrame, textTokens: textTokens, textPlacement: textPlacement,
            promptTokens: promptTokens)
    }

    public var tokensPerFrame: Int { height * width }
    public var videoTokens: Int { frames * tokensPerFrame }
    /// All tokens of the sequence.
    public var tokens: Int { videoTokens + textTokens }

    /// The video's tokens in the sequence.
    public var video: Range<Int> {
        let first = textPlacement == .before ? textTokens : 0
        return first..<first + videoTokens
    }

    /// The text's tokens in the sequence, padding included.
    public var text: Range<Int> {
        let first = textPlacement == .before ? 0 : videoTokens
        return first..<first + textTokens
    }

    /// The text's tokens in the sequence without padding.
    public var prompt: Range<Int> { text.lowerBound..<text.lowerBound + promptTokens }

    /// The padding of the text.
    public var padding: Range<Int> { prompt.upperBound..<text.upperBound }

    /// Throws `.invalidShape` unless queries and keys of a shape are the tokens of this geometry.
    public func check(_ shape: AttentionShape) throws(SparseKernelsError) {
        for (name, length) in [("queryLength", shape.queryLength), ("keyLength", shape.keyLength)] {
            try require(
                length == tokens, .invalidShape, name,
                expected: "\(frames) frames · \(tokensPerFrame) tokens + \(textTokens) text tokens = \(tokens)",
                actual: "\(length)")
        }
    }

    /// The order of tokens in which the given axes follow each other from the slowest to the fastest. Text stays in its place.
    ///
    /// `[.height, .width, .frame]` makes the tokens at one place of all frames adjacent: the token-major order of Sparse
    /// VideoGen's temporal heads. `[.frame, .height, .width]` changes nothing.
    /// - Throws: `.invalidArgument` unless each axis is there once.
    public func axisOrder(_ axes: [VideoAxis]) throws(SparseKernelsError) -> Permutation {
        try require(
            axes.count == 3 && Set(axes).count == 3, .invalidArgument, "axes", expected: "frame, height and width, each once",
            actual: "\(axes.map(\.rawValue))")
        let extents = axes.map { $0 == .frame ? frames : $0 == .height ? height : width }
        let strides = axes.map { $0 == .frame ? tokensPerFrame : $0 == .height ? width : 1 }
        var order: [Int32] = []
        order.reserveCapacity(tokens)
        order.append(contentsOf: (0..<video.lowerBound).map { Int32($0) })
        for a in 0..<extents[0] {
            for b in 0..<extents[1] {
                let first = video.lowerBound + a * strides[0] + b * strides[1]
                for c in 0..<extents[2] { order.append(Int32(first + c * strides[2])) }
            }
        }
        order.append(contentsOf: (video.upperBound..<tokens).map { Int32($0) })
        return Permutation(unchecked: order, heads: 1, length: tokens)
    }
}

extension VideoGeometry: Codable {
    private enum CodingKeys: String, CodingKey {
        case frames, height, width, textTokens, textPlacement, promptTokens
    }

    /// Decodes and checks a geometry.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        try self.init(
            frames: values.decode(Int.self, forKey: .frames), height: values.decode(Int.self, forKey: .height),
            width: values.decode(Int.self, forKey: .width), textTokens: values.decode(Int.self, forKey: .textTokens),
            textPlacement: values.decode(TextPlacement.self, forKey: .textPlacement),
            promptTokens: values.decode(Int.self, forKey: .promptTokens))
    }
}
