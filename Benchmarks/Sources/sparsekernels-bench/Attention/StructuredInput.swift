import SparseKernels
import SparseKernelsReference

/// Queries, keys and values of one head whose attention has the structure of a trained model's on a long text: a sink, a local
/// band, slashes, verticals that hold for some passages, and a diffuse background. A seed makes it reproducible.
///
/// Scores are sums of three parts, each in its own channels:
///
/// * **Verticals** (8 channels, one per topic). Every 768 tokens on average there is a *landmark* of 16…96 tokens, whose keys
///   point more or less along the channel of its topic. The text is cut into *passages* of 200…3000 tokens. The queries of a
///   passage ask for up to four of the seven topics, and all ask for topic 0, that of the first 24 tokens, which are the sink.
/// * **Local band and slashes** (the other channels). The key of token t has the code p(t), a unit vector that turns smoothly
///   from one random direction to the next, every 48 tokens; so p(s)·p(t) is near 1 for neighbours and small otherwise. The
///   query of t has p(t), and the queries of half of the passages also p(t − Δ) with a distance Δ of the passage, up to 3/4 of
///   the tokens before it. The small products of codes of far tokens make an uneven background.
/// * **Noise** in all channels, which changes every score by about 1.
///
/// Values are a vector that all tokens share plus normal deviations of the same size, because trained models' values have a
/// large mean.
///
/// Landmarks, passages, distances and the phase of the code are drawn per token, so nothing is aligned with blocks or strides.
struct StructuredInput {
    let shape: AttentionShape
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>

    private static let topics = 8
    private static let sinkTokens = 24
    /// The standard deviation per channel. With the amplitudes of the structure it makes deviations of about 1 in a score.
    private static let noise: Float = 0.5
    /// Scores above the background, in natural-log units.
    private static let (sinkScore, verticalScore, localScore, slashScore): (Float, Float, Float, Float) = (12, 11.5, 12, 11)

    /// - Throws: `.invalidShape` for sizes that attention does not support, `.invalidArgument` for too few channels.
    init(tokens: Int, headDim: Int, seed: UInt64) throws {
        guard headDim > Self.topics else {
            throw SparseKernelsError(
                .invalidArgument, "headDim", expected: "above the \(Self.topics) topics", actual: "\(headDim)")
        }
        shape = try AttentionShape(queryLength: tokens, keyLength: tokens, queryHeads: 1, kvHeads: 1, headDim: headDim)
        var generator = SplitMix64(seed: seed)
        let code = SmoothCode(tokens: tokens, channels: headDim - Self.topics, turn: 48, using: &generator)
        // A score is q·k/√headDim, so query and key both have the root of √headDim · score.
        let unit = Float(headDim).squareRoot().squareRoot()
        let (topicAmplitude, codeAmplitude) = (Self.verticalScore.squareRoot() * unit, Self.localScore.squareRoot() * unit)
        var query = try Tensor<Float>([1, tokens, headDim]) { _ in generator.normal() * Self.noise }
        var key = try Tensor<Float>([1, tokens, headDim]) { _ in generator.normal() * Self.noise }
        let shared = (0..<headDim).map { _ in generator.normal() }
        value = try Tensor([1, tokens, headDim]) { shared[$0 % headDim] + generator.normal() }

        for token in 0..<tokens {
            for channel in 0..<code.channels {
                key[flat: token * headDim + Self.topics + channel] += codeAmplitude * code[token, channel]
            }
        }
        // Landmarks do not overlap, because two of a topic would add up to one that hides all others.
        var isMarked = [Bool](repeating: false, count: tokens)
        for token in 0..<min(Self.sinkTokens, tokens) {
            key[flat: token * headDim] += topicAmplitude * Self.sinkScore / Self.verticalScore
            isMarked[token] = true
        }
        for _ in 0..<max(1, tokens / 768) {
            let first = Int.random(in: 0..<tokens, using: &generator)
            let length = Int.random(in: 16...96, using: &generator)
            let topic = Int.random(in: 1..<Self.topics, using: &generator)
            let strength = 0.75 + 0.25 * generator.uniform()
            let landmark = first..<min(tokens, first + length)
            if landmark.contains(where: { isMarked[$0] }) { continue }
            for token in landmark {
                key[flat: token * headDim + topic] += strength * topicAmplitude
                isMarked[token] = true
            }
        }

        var start = 0
        while start < tokens {
            let end = min(tokens, start + Int.random(in: 200...3000, using: &generator))
            let asked = Set((0..<4).map { _ in Int.random(in: 1..<Self.topics, using: &generator) }).union([0])
            let distance = Int.random(in: 64...max(64, start * 3 / 4), using: &generator)
            let hasSlash = Bool.random(using: &generator)
            for token in start..<end {
                let row = token * headDim
                for topic in asked { query[flat: row + topic] += topicAmplitude }
                for channel in 0..<code.channels {
                    var direction = code[token, channel]
                    if hasSlash && token >= distance {
                        direction += Self.slashScore / Self.localScore * code[token - distance, channel]
                    }
                    query[flat: row + Self.topics + channel] += codeAmplitude * direction
                }
            }
            start = end
        }
        self.query = query
        self.key = key
    }
}

/// A unit vector per token that turns smoothly: at the knots, which are `turn` tokens apart, it is a random direction, and
/// between them it moves from one to the other.
private struct SmoothCode {
    let channels: Int
    private let turn: Int
    private let phase: Int
    private var knots: [Float] = []

    init(tokens: Int, channels: Int, turn: Int, using generator: inout SplitMix64) {
        self.channels = channels
        self.turn = turn
        phase = Int.random(in: 0..<turn, using: &generator)
        for _ in 0..<tokens / turn + 3 {
            let knot = (0..<channels).map { _ in generator.normal() }
            let length = knot.reduce(0) { $0 + $1 * $1 }.squareRoot()
            knots += knot.map { $0 / length }
        }
    }

    subscript(token: Int, channel: Int) -> Float {
        let position = token + phase
        let (knot, step) = position.quotientAndRemainder(dividingBy: turn)
        let part = Float(step) / Float(turn)
        let sum = (1 - part) * knots[knot * channels + channel] + part * knots[(knot + 1) * channels + channel]
        // Random directions are nearly orthogonal, so this makes the length 1.
        return sum / ((1 - part) * (1 - part) + part * part).squareRoot()
    }
}
