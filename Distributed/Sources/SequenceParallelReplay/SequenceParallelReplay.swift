public import GoldenReplay
public import SparseKernels

/// Replays recorded calls of LongVILA's code on several ranks, which are threads, and compares the results.
public enum SequenceParallelReplay {
    typealias Replay = @Sendable (GoldenCase, InstructionSet) throws(SparseKernelsError) -> GoldenResult

    /// The operations that can be replayed.
    public static var operations: [String] { replays.keys.sorted() }

    private static let replays: [String: Replay] = [
        "longvila.attention_2d": replayAttention2D,
        "longvila.reshard": replayReshard,
        "longvila.ring_attention": replayRingAttention,
        "longvila.shard_maps": replayShardMaps,
        "longvila.ulysses": replayUlysses,
    ]

    /// Replays one file.
    /// - Throws: `.notFound` when no replay exists for its operation, and the errors of reading and of the operation.
    public static func run(path: String, instructionSet: InstructionSet) throws(SparseKernelsError) -> GoldenResult {
        let golden = try GoldenCase(path: path)
        guard let replay = replays[golden.operation] else {
            throw SparseKernelsError(
                .notFound, "operation of \(golden.name)", expected: "one of " + operations.joined(separator: ", "),
                actual: golden.operation)
        }
        return try replay(golden, instructionSet)
    }
}

extension GoldenCase {
    /// A recorded list of integers, row by row.
    /// - Throws: `.invalidShape` for another shape than the given one.
    func integers(_ name: String, _ shape: [Int]? = nil) throws(SparseKernelsError) -> [Int] {
        let tensor = try file.tensor(name, as: Int32.self)
        try check(name, tensor.shape, shape ?? tensor.shape)
        return (0..<tensor.count).map { Int(tensor[flat: $0]) }
    }

    func check(_ name: String, _ actual: [Int], _ expected: [Int]) throws(SparseKernelsError) {
        if actual != expected {
            throw SparseKernelsError(.invalidShape, "\(name) of \(self.name)", expected: "\(expected)", actual: "\(actual)")
        }
    }

    /// Throws unless a parameter is in a range, so that a damaged file ends in an error.
    func check(_ name: String, _ value: Int, in range: ClosedRange<Int>) throws(SparseKernelsError) {
        if !range.contains(value) {
            throw SparseKernelsError(
                .malformedFile, "\(name) of \(self.name)", expected: "within \(range)", actual: "\(value)")
        }
    }
}

extension GoldenComparison {
    /// Compares lists of integers exactly, and their lengths.
    mutating func compare(_ name: String, _ actual: [Int], _ expected: [Int]) {
        compare("\(name).count", actual: Double(actual.count), expected: Double(expected.count), bound: 0)
        for (index, pair) in zip(actual, expected).enumerated() {
            compare("\(name)[\(index)]", actual: Double(pair.0), expected: Double(pair.1), bound: 0)
        }
    }
}
