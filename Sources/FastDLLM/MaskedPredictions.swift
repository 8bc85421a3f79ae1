internal import Foundation
public import SparseKernels

/// What a model says about masked positions: the token that it would put at each, and its probability.
///
/// ```swift
/// let predictions = try MaskedPredictions(logits)                  // [masked positions, vocabularySize]
/// let selection = CommitRule.threshold(0.9).select(predictions)
/// ```
///
/// One pass over the logits finds the tokens and their confidences in single precision, e^(x − ln Σ eˣ), within
/// ``confidenceErrors``. `CommitRule.select` sums rows that are nearer to a decision than that again in double precision, as
/// the released code does for all rows.
///
/// - Source: `add_gumbel_noise` and `get_transfer_index` of `NVlabs/Fast-dLLM`, `llada/generate.py`.
public struct MaskedPredictions: Sendable {
    /// The token of each row: the largest logit, or the largest one with noise. Of equal ones the lowest.
    public let tokens: [Int]
    /// softmax(logits)[token] of each row, without noise.
    public private(set) var confidences: [Double]
    /// How far each confidence may be from that of exact arithmetic; 0 once it was computed in double precision.
    public private(set) var confidenceErrors: [Double]
    /// The distance of the chosen logit from the next one; infinite where there is no other. With noise, that of the noisy
    /// ones.
    public let tokenMargins: [Double]
    private let logits: Tensor<Float>
    private let maxima: [Float]

    public var count: Int { tokens.count }

    /// Random numbers for tokens: the Gumbel rule, argmax of e^logit / (−ln u)^temperature.
    struct Noise {
        let temperature: Double
        /// The stream of each row. Number k of it belongs to token k.
        let streams: [UInt64]
    }

    /// The most probable tokens of rows of logits.
    ///
    /// - Parameters:
    ///   - logits: `[rows, vocabularySize]`. −∞ excludes a token.
    ///   - excluded: a token that is never chosen, such as the mask; it may be outside the vocabulary.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for another rank or an empty vocabulary; `.invalidArgument` for logits of which one is NaN or
    ///   +∞, or a row without a token to choose; `.unsupportedInstructionSet`.
    /// - Complexity: O(rows · vocabularySize).
    public init(
        _ logits: Tensor<Float>, excluding excluded: Int? = nil, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            logits.shape.count == 2, .invalidShape, "logits", expected: "[rows, vocabularySize]", actual: "\(logits.shape)")
        // Three: the chosen one, the next one, and the excluded one before or between them.
        let statistics = try LogitStatistics(vocabulary: logits.shape[1], topK: 3, instructionSet: instructionSet)
        try self.init(logits, statistics, excluding: excluded, noise: nil, on: pool)
    }

    init(
        _ logits: Tensor<Float>, _ statistics: LogitStatistics, excluding excluded: Int?, noise: Noise?, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let summary = try statistics(logits, on: pool)
        self.logits = logits
        let (rows, width) = (logits.shape[0], logits.shape[1])
        var (tokens, margins): ([Int], [Double]) = ([], [])
        var (confidences, errors, maxima): ([Double], [Double], [Float]) = ([], [], [])
        for row in 0..<rows {
            let largest = summary.maximum(row)
            try require(
                largest < .infinity, .invalidArgument, "logits", expected: "finite or −∞",
                actual: "\(largest) of token \(summary.argmax(row)) in row \(row)")
            let choice: (token: Int?, margin: Double)
            if let noise {
                let elements = logits.span.extracting(row * width..<(row + 1) * width)
                choice = Self.drawn(elements, noise.temperature, noise.streams[row], excluded)
            } else {
                choice = Self.largest(summary, row, excluded)
            }
            guard let token = choice.token else {
                throw SparseKernelsError(
                    .invalidArgument, "logits", expected: "with a token to choose in each row", actual: "none in row \(row)")
            }
            let sum = Double(summary.logSumExp[row])
            tokens.append(token)
            margins.append(choice.margin)
            confidences.append(min(1, exp(Double(logits[row, token]) - sum)))
            // ln Σ eˣ is off by 8·10⁻⁶ at most, as the mean of m − x over the distribution is below ln(2³¹), and is rounded once
            // (see `LogitStatistics`).
            errors.append(1e-5 + 0x1p-23 * abs(sum))
            maxima.append(largest)
        }
        (self.tokens, tokenMargins) = (tokens, margins)
        (self.confidences, confidenceErrors, self.maxima) = (confidences, errors, maxima)
    }

    /// The token with the largest logit, and its distance from the next one.
    private static func largest(_ summary: LogitSummary, _ row: Int, _ excluded: Int?) -> (token: Int?, margin: Double) {
        var token: Int?
        var best = -Double.infinity
        for place in 0..<summary.topK {
            let (index, value) = (Int(summary.topIndices[row, place]), Double(summary.topValues[row, place]))
            if index == excluded || value == -.infinity { continue }
            if token != nil { return (token, best - value) }
            (token, best) = (index, value)
        }
        return (token, .infinity)
    }

    /// The token with the largest logit − temperature · ln(−ln u), and its distance from the next one.
    private static func drawn(
        _ logits: Span<Float>, _ temperature: Double, _ stream: UInt64, _ excluded: Int?
    ) -> (token: Int?, margin: Double) {
        // u is at most 1 − 2⁻⁵⁴, so noise is at most −ln(2⁻⁵⁴) < 38 and few logits need any.
        let most = 38 * temperature
        var token: Int?
        var (best, second) = (-Double.infinity, -Double.infinity)
        for index in logits.indices where index != excluded {
            let logit = Double(logits[index])
            guard logit > -.infinity, logit + most > second else { continue }
            var generator = SplitMix64(seed: stream &+ UInt64(index) &* 0x9e37_79b9_7f4a_7c15)
            let u = (Double(generator.next() >> 11) + 0.5) * 0x1p-53
            let value = logit - temperature * log(-log(u))
            if value > best {
                (token, best, second) = (index, value, best)
            } else {
                second = max(second, value)
            }
        }
        return (token, best - second)
    }

    // MARK: - Double precision

    /// The confidences of all rows in double precision.
    public mutating func exactConfidences() -> [Double] {
        refine(Array(tokens.indices))
        return confidences
    }

    /// Computes the confidences of some rows in double precision.
    /// - Returns: whether one of them was not yet.
    @discardableResult
    mutating func refine(_ rows: [Int]) -> Bool {
        var isNew = false
        for row in rows where confidenceErrors[row] > 0 {
            let (maximum, sum) = sumOfExponentials(row)
            confidences[row] = exp(Double(logits[row, tokens[row]]) - maximum) / sum
            confidenceErrors[row] = 0
            isNew = true
        }
        return isNew
    }

    /// Σ p·ln(p + 10⁻¹⁰) of each row, the negative of its entropy.
    func negativeEntropies() -> [Double] {
        let width = logits.shape[1]
        return tokens.indices.map { row in
            let (maximum, sum) = sumOfExponentials(row)
            var entropy = 0.0
            let elements = logits.span.extracting(row * width..<(row + 1) * width)
            for index in elements.indices {
                let p = exp(Double(elements[index]) - maximum) / sum
                entropy += p * log(p + 1e-10)
            }
            return entropy
        }
    }

    private func sumOfExponentials(_ row: Int) -> (maximum: Double, sum: Double) {
        let width = logits.shape[1]
        let elements = logits.span.extracting(row * width..<(row + 1) * width)
        let maximum = Double(maxima[row])
        var sum = 0.0
        for index in elements.indices { sum += exp(Double(elements[index]) - maximum) }
        return (maximum, sum)
    }
}
