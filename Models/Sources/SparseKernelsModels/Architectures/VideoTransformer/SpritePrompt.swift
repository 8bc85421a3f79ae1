public import SparseKernels

/// A prompt of `video-dit`: one to three moving sprites before a background.
///
/// The model has no words, only ids. On a command line a sprite is `circle,red,x=3,y=2,right`: a shape and a colour; the place
/// `x=0…7`, `y=0…7` from the upper left corner, 3 unless given; and the speed, `left`, `right`, `up` or `down`, with `=1…3` after
/// it for other than 2, still unless given. A background is `texture=0…3,colour=0…3`, 0 unless given.
public struct SpritePrompt: Hashable, Sendable {
    public enum Shape: String, Hashable, Sendable, CaseIterable { case circle, square, diamond }
    public enum Colour: String, Hashable, Sendable, CaseIterable { case red, green, blue, yellow, magenta, cyan, white }

    public struct Sprite: Hashable, Sendable {
        public var shape: Shape
        public var colour: Colour
        /// The place in the first frame, in eighths of the frame: 0…7.
        public var x: Int
        public var y: Int
        /// The speed to the right and down, −3…3.
        public var rightward: Int
        public var downward: Int

        public init(_ shape: Shape, _ colour: Colour, x: Int = 3, y: Int = 3, rightward: Int = 0, downward: Int = 0) {
            self.shape = shape
            self.colour = colour
            self.x = x
            self.y = y
            self.rightward = rightward
            self.downward = downward
        }
    }

    /// 0…3 both.
    public let texture: Int
    public let backgroundColour: Int
    public let sprites: [Sprite]

    /// Ids of a prompt.
    public static let tokenCount = 32
    public static let maximumSprites = 3

    /// - Throws: `.invalidArgument` for no sprites or more than three, and numbers outside their ranges.
    public init(sprites: [Sprite], texture: Int = 0, backgroundColour: Int = 0) throws(SparseKernelsError) {
        try Self.check("sprites", sprites.count, 1...Self.maximumSprites)
        try Self.check("texture", texture, 0...3)
        try Self.check("background colour", backgroundColour, 0...3)
        for sprite in sprites {
            try Self.check("x", sprite.x, 0...7)
            try Self.check("y", sprite.y, 0...7)
            try Self.check("speed to the right", sprite.rightward, -3...3)
            try Self.check("speed down", sprite.downward, -3...3)
        }
        self.sprites = sprites
        self.texture = texture
        self.backgroundColour = backgroundColour
    }

    /// A random prompt, the same for a seed on every platform.
    public init(seed: UInt64) {
        // Seeds next to each other would else begin alike.
        var generator = SplitMix64(seed: seed ^ 0x5350_5249_5445)
        func draw(_ range: ClosedRange<Int>) -> Int {
            range.lowerBound + (Int(generator.next() >> 32) * range.count) >> 32
        }
        texture = draw(0...3)
        backgroundColour = draw(0...3)
        sprites = (0..<draw(1...Self.maximumSprites)).map { _ in
            Sprite(
                Shape.allCases[draw(0...2)], Colour.allCases[draw(0...6)], x: draw(0...7), y: draw(0...7),
                rightward: draw(-3...3), downward: draw(-3...3))
        }
    }

    private static func check(_ name: String, _ value: Int, _ range: ClosedRange<Int>) throws(SparseKernelsError) {
        guard range.contains(value) else {
            throw SparseKernelsError(
                .invalidArgument, name, expected: "\(range.lowerBound) to \(range.upperBound)", actual: "\(value)")
        }
    }

    /// The 32 ids.
    public var tokens: [Int] {
        var tokens = [1 + texture, 5 + backgroundColour, 9 + sprites.count]
        for sprite in sprites {
            tokens += [
                13 + Shape.allCases.firstIndex(of: sprite.shape)!, 16 + Colour.allCases.firstIndex(of: sprite.colour)!,
                23 + sprite.x, 31 + sprite.y, 39 + 3 + sprite.rightward, 46 + 3 + sprite.downward,
            ]
        }
        return tokens + [Int](repeating: 0, count: Self.tokenCount - tokens.count)
    }
}

// MARK: - Text

extension SpritePrompt.Sprite {
    /// Reads a sprite such as `circle,red,x=3,y=2,right`. Order does not matter.
    /// - Throws: `.invalidArgument` that quotes the part that is wrong, or says what is missing.
    public init(_ text: String) throws(SparseKernelsError) {
        var (shape, colour): (SpritePrompt.Shape?, SpritePrompt.Colour?) = (nil, nil)
        var (x, y, rightward, downward): (Int?, Int?, Int?, Int?) = (nil, nil, nil, nil)
        func failure(_ expected: String, _ actual: String) -> SparseKernelsError {
            SparseKernelsError(.invalidArgument, "sprite \"\(text.prefix(80))\"", expected: expected, actual: actual)
        }
        func set<Value>(_ place: inout Value?, _ value: Value, _ part: Substring) throws(SparseKernelsError) {
            guard place == nil else { throw failure("one of each kind", "\"\(part)\" as a second one") }
            place = value
        }
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            let name = pair[0].lowercased().filter { $0 != " " }
            func number(_ range: ClosedRange<Int>, default standard: Int? = nil) throws(SparseKernelsError) -> Int {
                let value = pair.count == 2 ? Int(pair[1]) : standard
                guard let value, range.contains(value) else {
                    throw failure("\(name)=\(range.lowerBound)…\(range.upperBound)", "\"\(part)\"")
                }
                return value
            }
            switch name {
            case "x": try set(&x, number(0...7), part)
            case "y": try set(&y, number(0...7), part)
            case "right": try set(&rightward, number(0...3, default: 2), part)
            case "left": try set(&rightward, -number(0...3, default: 2), part)
            case "down": try set(&downward, number(0...3, default: 2), part)
            case "up": try set(&downward, -number(0...3, default: 2), part)
            default:
                guard pair.count == 1 else {
                    throw failure("x=, y=, left, right, up, down, a shape or a colour", "\"\(part)\"")
                }
                if let value = SpritePrompt.Shape(rawValue: name) {
                    try set(&shape, value, part)
                } else if let value = SpritePrompt.Colour(rawValue: name) {
                    try set(&colour, value, part)
                } else {
                    let words = SpritePrompt.Shape.allCases.map(\.rawValue) + SpritePrompt.Colour.allCases.map(\.rawValue)
                    throw failure("one of \(words.joined(separator: ", ")), x=, y=, left, right, up, down", "\"\(part)\"")
                }
            }
        }
        guard let shape, let colour else {
            throw failure("a shape and a colour", shape == nil ? "no shape" : "no colour")
        }
        self.init(shape, colour, x: x ?? 3, y: y ?? 3, rightward: rightward ?? 0, downward: downward ?? 0)
    }
}

extension SpritePrompt {
    /// Reads sprites, and a background such as `texture=1,colour=2`.
    /// - Throws: `.invalidArgument` that quotes the part that is wrong.
    public init(sprites: [String], background: String = "") throws(SparseKernelsError) {
        var (texture, colour): (Int?, Int?) = (nil, nil)
        for part in background.split(separator: ",", omittingEmptySubsequences: true) {
            let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let value = pair.count == 2 ? Int(pair[1]) : nil
            let name = pair[0].lowercased().filter { $0 != " " }
            let isTexture = name == "texture"
            guard isTexture || name == "colour" || name == "color", let value, (0...3).contains(value),
                (isTexture ? texture : colour) == nil
            else {
                throw SparseKernelsError(
                    .invalidArgument, "background \"\(background.prefix(80))\"", expected: "texture=0…3,colour=0…3",
                    actual: "\"\(part)\"")
            }
            if isTexture { texture = value } else { colour = value }
        }
        var parsed: [Sprite] = []
        for sprite in sprites { parsed.append(try Sprite(sprite)) }
        try self.init(sprites: parsed, texture: texture ?? 0, backgroundColour: colour ?? 0)
    }
}

extension SpritePrompt.Sprite: CustomStringConvertible {
    /// The form that `init(_:)` reads.
    public var description: String {
        var parts = [shape.rawValue, colour.rawValue, "x=\(x)", "y=\(y)"]
        for (speed, names) in [(rightward, ("left", "right")), (downward, ("up", "down"))] where speed != 0 {
            parts.append("\(speed < 0 ? names.0 : names.1)\(abs(speed) == 2 ? "" : "=\(abs(speed))")")
        }
        return parts.joined(separator: ",")
    }
}

extension SpritePrompt: CustomStringConvertible {
    /// The options of the command line.
    public var description: String {
        sprites.map { "--sprite \($0) " }.joined() + "--background texture=\(texture),colour=\(backgroundColour)"
    }
}
