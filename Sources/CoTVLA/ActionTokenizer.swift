public import SparseKernels

/// Actions as tokens of a language model: a bin per number, and a token of the vocabulary per bin.
///
/// ```swift
/// let bins = try ActionBins(percentilesOf: demonstrations)                  // [n, 7]
/// let tokenizer = try ActionTokenizer(bins, leastUsedOf: counts)            // of 32000 tokens
/// let tokens = try tokenizer.tokens(of: actions)
/// let again = try tokenizer.actions(of: tokens)                             // within half a bin
/// ```
public struct ActionTokenizer: Hashable, Sendable {
    public let bins: ActionBins
    /// The token of every bin, the same for all dimensions.
    public let vocabulary: [Int32]
    private let binOfToken: [Int32: Int32]

    /// - Parameters:
    ///   - bins: the bins.
    ///   - vocabulary: the token of every bin.
    /// - Throws: `.invalidShape` unless there is one token per bin; `.invalidArgument` for a negative token or one that is there twice.
    public init(_ bins: ActionBins, vocabulary: [Int32]) throws(SparseKernelsError) {
        try require(
            vocabulary.count == bins.count, .invalidShape, "vocabulary", expected: "\(bins.count) tokens, one per bin",
            actual: "\(vocabulary.count)")
        var binOfToken: [Int32: Int32] = [:]
        for (bin, token) in vocabulary.enumerated() {
            try require(
                token >= 0 && binOfToken[token] == nil, .invalidArgument, "vocabulary[\(bin)]",
                expected: "0 or more, and not named before", actual: "\(token)")
            binOfToken[token] = Int32(bin)
        }
        self.bins = bins
        self.vocabulary = vocabulary
        self.binOfToken = binOfToken
    }

    /// Takes the tokens that a corpus uses least, ascending; of equally rare ones those at the end of the vocabulary, where vocabularies
    /// have their rare entries.
    ///
    /// - Parameters:
    ///   - bins: the bins.
    ///   - counts: how often each token of the vocabulary is used.
    /// - Throws: `.invalidShape` for fewer tokens than bins.
    public init(_ bins: ActionBins, leastUsedOf counts: [Int]) throws(SparseKernelsError) {
        try require(
            counts.count >= bins.count && counts.count <= Int(Int32.max), .invalidShape, "counts",
            expected: "at least \(bins.count) tokens", actual: "\(counts.count)")
        let rarest = counts.indices.sorted { counts[$0] == counts[$1] ? $0 > $1 : counts[$0] < counts[$1] }
        try self.init(bins, vocabulary: rarest.prefix(bins.count).sorted().map { Int32($0) })
    }

    /// The tokens of actions `[…, dimensions]`, in their order.
    /// - Throws: the errors of ``ActionBins/bins(of:)``.
    public func tokens(of actions: Tensor<Float>) throws(SparseKernelsError) -> [Int32] {
        try bins.bins(of: actions).map { vocabulary[Int($0)] }
    }

    /// The actions of tokens, `[actions, dimensions]`.
    /// - Throws: `.invalidArgument` for a token that stands for no bin, `.invalidShape` for tokens that are not whole actions.
    public func actions(of tokens: [Int32]) throws(SparseKernelsError) -> Tensor<Float> {
        var list: [Int32] = []
        for (index, token) in tokens.enumerated() {
            guard let bin = binOfToken[token] else {
                throw SparseKernelsError(
                    .invalidArgument, "tokens[\(index)]", expected: "a token of an action", actual: "\(token)")
            }
            list.append(bin)
        }
        return try bins.actions(of: list)
    }

    /// The tokens with the highest logits among those of actions, one per row; of equal ones that of the lowest bin.
    ///
    /// - Parameter logits: `[rows, vocabulary of the model]`.
    /// - Throws: `.invalidShape` for another rank or a vocabulary without these tokens, `.invalidArgument` for a NaN among their logits.
    public func likeliestTokens(_ logits: Tensor<Float>) throws(SparseKernelsError) -> [Int32] {
        let largest = vocabulary.max() ?? 0
        try require(
            logits.shape.count == 2 && logits.shape[1] > Int(largest), .invalidShape, "logits",
            expected: "[rows, above \(largest)]", actual: "\(logits.shape)")
        let (rows, columns) = (logits.shape[0], logits.shape[1])
        let values = logits.span
        var result: [Int32] = []
        for row in 0..<rows {
            var (best, token) = (-Float.infinity, vocabulary[0])
            for candidate in vocabulary {
                let value = values[row * columns + Int(candidate)]
                try require(
                    !value.isNaN, .invalidArgument, "logits[\(row)]", expected: "numbers", actual: "NaN at token \(candidate)")
                if value > best { (best, token) = (value, candidate) }
            }
            result.append(token)
        }
        return result
    }
}
