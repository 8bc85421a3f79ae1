public import SparseKernels
public import SparseKernelsModels

/// A text cut into windows, some of which are held out.
///
/// A window has `length` tokens. The target of a token is the one behind it. Only the last `scored` tokens of a window have targets
/// that count; what is before them is context. So a model learns from tokens that see `length − scored` others or more, and is
/// measured on such tokens. Windows share no target.
///
/// The windows that are held out are spread evenly over the text. The others come in an order that follows from the seed and the
/// number of the pass over them, so that any step can be made again from its number alone.
public struct TrainingWindows: Sendable {
    /// Tokens of a window.
    public let length: Int
    /// Tokens at its end that count.
    public let scored: Int
    public let seed: UInt64
    /// The first tokens of the windows that are trained on, in the order of the text.
    public let training: [Int]
    /// The first tokens of the windows that are held out.
    public let validation: [Int]
    /// Tells texts and cuts apart.
    public let digest: String
    private let tokens: [Int]

    /// - Parameters:
    ///   - corpus: the text.
    ///   - length: tokens of a window, 2 or more.
    ///   - scored: how many of them count, 1 to `length`.
    ///   - validation: windows that are held out.
    ///   - seed: of the order.
    /// - Throws: `.invalidArgument` for such numbers out of range, and for a text with too few windows: one more than are held out.
    public init(
        _ corpus: TextCorpus, length: Int = 512, scored: Int = 128, validation: Int = 32, seed: UInt64 = 1
    ) throws(SparseKernelsError) {
        guard length >= 2, (1...length).contains(scored), validation >= 0 else {
            throw SparseKernelsError(
                .invalidArgument, "windows",
                expected: "of 2 tokens or more, of which 1 to all count, and 0 or more held out",
                actual: "\(length) tokens, \(scored) of which count, \(validation) held out")
        }
        let count = max(0, (corpus.tokens.count - 1) / length)
        guard count > validation else {
            throw SparseKernelsError(
                .invalidArgument, "text",
                expected:
                    "of \((validation + 1) * length + 1) tokens or more: \(validation) windows to hold out, and one to train on",
                actual: "\(corpus.tokens.count) tokens")
        }
        (self.length, self.scored, self.seed, tokens) = (length, scored, seed, corpus.tokens)
        var (training, held): ([Int], [Int]) = ([], [])
        for index in 0..<count {
            // Window `index` is held out if it is the last of its part.
            let isHeld = validation > 0 && (index + 1) * validation / count > index * validation / count
            if isHeld { held.append(index * length) } else { training.append(index * length) }
        }
        (self.training, self.validation) = (training, held)
        var digest = RunDigest()
        digest.add("\(length) \(scored) \(validation)")
        for token in corpus.tokens { digest.add(UInt64(bitPattern: Int64(token))) }
        self.digest = digest.text
    }

    /// The order of a pass over the windows: positions in `training`.
    public func order(pass: Int) -> [Int] {
        var generator = SplitMix64(seed: seed &+ UInt64(pass) &* 0x9E37_79B9_7F4A_7C15)
        var order = Array(training.indices)
        // Lemire's method without the rejection, whose bias is below 2⁻³² for any text that fits into memory.
        for i in stride(from: order.count - 1, to: 0, by: -1) {
            order.swapAt(i, Int(generator.next().multipliedFullWidth(by: UInt64(i + 1)).high))
        }
        return order
    }

    /// The windows of a step.
    /// - Complexity: O(windows of the text).
    public func batch(step: Int, size: Int) -> TrainingBatch {
        var starts: [Int] = []
        var (pass, current) = (-1, [Int]())
        for number in step * size..<(step + 1) * size {
            if number / training.count != pass {
                pass = number / training.count
                current = order(pass: pass)
            }
            starts.append(training[current[number % training.count]])
        }
        return batch(starts)
    }

    /// The windows that are held out, `size` at a time.
    public func validationBatches(size: Int) -> [TrainingBatch] {
        stride(from: 0, to: validation.count, by: size).map { batch(Array(validation[$0..<min($0 + size, validation.count)])) }
    }

    private func batch(_ starts: [Int]) -> TrainingBatch {
        var batch = TrainingBatch(length: length)
        for start in starts {
            let window = start..<start + length
            let context = window.lowerBound..<window.upperBound - scored
            batch.append(
                tokens[window],
                targets: Array(repeating: TrainingBatch.ignored, count: context.count)
                    + tokens[context.upperBound + 1..<window.upperBound + 1])
        }
        return batch
    }
}

/// Sequences of one length, one behind the other.
public struct TrainingBatch: Hashable, Sendable {
    /// The target of tokens that do not count.
    public static let ignored = -100
    /// Tokens of a sequence.
    public let length: Int
    public private(set) var tokens: [Int] = []
    /// What each token is to be followed by, or `ignored`.
    public private(set) var targets: [Int] = []

    public init(length: Int) { self.length = length }

    public var sequences: Int { length == 0 ? 0 : tokens.count / length }

    /// The rows whose target counts, ascending.
    public var scoredRows: [Int] { targets.indices.filter { targets[$0] != Self.ignored } }

    /// The targets sequence by sequence.
    public var labels: [[Int]] { (0..<sequences).map { Array(targets[$0 * length..<($0 + 1) * length]) } }

    /// Adds a sequence.
    public mutating func append(_ tokens: some Collection<Int>, targets: some Collection<Int>) {
        precondition(
            tokens.count == length && targets.count == length,
            "\(tokens.count) tokens and \(targets.count) targets, not \(length)")
        self.tokens += tokens
        self.targets += targets
    }
}
