public import Communication
import Foundation
public import SparseKernels
public import SparseKernelsModels
public import Terminal

/// The speed of prompts and of steps behind texts of several lengths, as llama-bench measures and names it: `pp512` is a prompt of
/// 512 tokens, `tg128` are 128 steps of one sequence, and `@ d8192` says that 8192 tokens are before them.
public struct LanguageBench: Hashable, Sendable {
    public var prompt = 512
    public var steps = 128
    public var depths = [0, 2048, 4096, 8192, 16384, 32768]
    public var repetitions = 5

    public init() {}

    public static var quick: LanguageBench {
        var bench = LanguageBench()
        (bench.prompt, bench.steps, bench.depths, bench.repetitions) = (512, 32, [0, 2048, 4096], 2)
        return bench
    }

    /// A row: tokens per second of several repetitions.
    public struct Row: Codable, Hashable, Sendable {
        public let test: String
        public let depth: Int
        public let tokens: Int
        public let method: String
        public let linear: String
        public let cache: String
        public let threads: Int
        /// The ranks that ran together, of `threads` threads each; nil for one.
        public var ranks: Int?
        /// Seconds of each repetition.
        public let seconds: [Double]

        public var isPrompt: Bool { test.hasPrefix("pp") }
        public var rates: [Double] { seconds.map { Double(tokens) / $0 } }
        public var mean: Double { rates.reduce(0, +) / Double(rates.count) }
        /// The standard deviation of the repetitions; 0 for one.
        public var deviation: Double {
            guard rates.count > 1 else { return 0 }
            return (rates.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(rates.count - 1)).squareRoot()
        }
        public var millisecondsPerToken: Double { seconds.reduce(0, +) / Double(seconds.count * tokens) * 1000 }

        public static func table(methodWidth: Int) -> TextTable {
            TextTable([
                .init("Method", width: max(6, methodWidth), alignment: .left), .init("Linear", width: 8, alignment: .left),
                .init("Cache", width: 9, alignment: .left), .init("Threads", width: 7),
                .init("Test", width: 15, alignment: .left),
                .init("tokens/s", width: 8), .init("± σ", width: 6), .init("ms/", "token", width: 6),
            ])
        }

        public func line(in table: TextTable) -> String {
            table.line([
                method, linear, cache, (ranks.map { "\($0) × " } ?? "") + "\(threads)", test, Format.number(mean),
                Format.number(deviation),
                Format.number(millisecondsPerToken),
            ])
        }
    }

    /// By how many milliseconds a step is slower for 1024 tokens more of context: the slope of the least-squares line through the
    /// rows of steps. nil for fewer than two depths.
    public static func slope(_ rows: [Row]) -> Double? {
        let points = rows.filter { !$0.isPrompt }.map { (Double($0.depth) / 1024, $0.millisecondsPerToken) }
        guard Set(points.map(\.0)).count > 1 else { return nil }
        let count = Double(points.count)
        let (x, y) = (points.reduce(0) { $0 + $1.0 } / count, points.reduce(0) { $0 + $1.1 } / count)
        let products = points.reduce(0) { $0 + ($1.0 - x) * ($1.1 - y) }
        return products / points.reduce(0) { $0 + ($1.0 - x) * ($1.0 - x) }
    }

    /// The names of the tests, in the order in which they run.
    public var tests: [String] {
        depths.flatMap { depth in
            [(prompt, "pp\(prompt)"), (steps, "tg\(steps)")].filter { $0.0 > 0 }.map {
                $0.1 + (depth > 0 ? " @ d\(depth)" : "")
            }
        }
    }

    /// Runs all tests of a method.
    ///
    /// The tokens are those of the text, which is repeated when it is short: what sparse methods do depends on it. Each test runs
    /// once before it is timed.
    ///
    /// - Parameters:
    ///   - communicator: the ranks that run the model together, each in a call of its own; nil for one.
    ///   - began: called with the name of a test, also before the tokens of a depth run.
    ///   - finished: called with each row.
    /// - Throws: `.invalidArgument` for a text without tokens or numbers out of range, and the errors of the session.
    public func run(
        _ model: LanguageModel, _ spec: SessionSpec, text: [Int], communicator: (any Communicator)? = nil,
        pool: WorkerPool = .shared, began: (String) -> Void = { _ in }, finished: (Row) throws(SparseKernelsError) -> Void
    ) throws(SparseKernelsError) {
        guard !text.isEmpty, prompt >= 0, steps >= 0, repetitions >= 1, depths.allSatisfy({ $0 >= 0 && $0 < 1 << 28 }) else {
            throw SparseKernelsError(
                .invalidArgument, "bench", expected: "a text, a repetition or more, and depths of 0 or more",
                actual: "\(text.count) tokens of text, \(repetitions) repetitions, depths \(depths)")
        }
        for depth in depths {
            let capacity = depth + max(prompt, steps) + 1
            let session = try LanguageSession(
                model, try spec.options(context: capacity, sequences: 2), communicator: communicator, on: pool)
            let sequence = session.makeSequence()
            let tokens = (0..<capacity).map { text[$0 % text.count] }
            let suffix = depth > 0 ? " @ d\(depth)" : ""
            if depth > 0 {
                began("\(depth) tokens")
                _ = try session.append([Array(tokens[..<depth])], to: [sequence])
            }
            // Tests run on copies: recurrent states, and LServe's streaming heads, could not be cut to the depth again.
            func row(
                _ name: String, _ count: Int, _ body: (LanguageSession.SequenceID) throws(SparseKernelsError) -> Void
            ) throws(SparseKernelsError) {
                guard count > 0 else { return }
                began(name + suffix)
                var seconds: [Double] = []
                for repetition in 0...repetitions {
                    let copy = try session.fork(sequence)
                    let clock = ContinuousClock()
                    let start = clock.now
                    try body(copy)
                    if repetition > 0 { seconds.append((clock.now - start) / .seconds(1)) }
                    try session.free(copy)
                }
                try finished(
                    Row(
                        test: name + suffix, depth: depth, tokens: count, method: spec.method.description,
                        linear: LinearSpec(model).description, cache: spec.cache.description, threads: pool.threads,
                        ranks: communicator.flatMap { $0.count > 1 ? $0.count : nil }, seconds: seconds))
            }
            try row("pp\(prompt)", prompt) { sequence throws(SparseKernelsError) in
                _ = try session.append([Array(tokens[depth..<depth + prompt])], to: [sequence])
            }
            try row("tg\(steps)", steps) { sequence throws(SparseKernelsError) in
                for step in 0..<steps { _ = try session.append([[tokens[depth + step]]], to: [sequence]) }
            }
        }
    }
}
