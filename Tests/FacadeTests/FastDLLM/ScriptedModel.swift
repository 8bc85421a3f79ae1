import FastDLLM
import Foundation
import SparseKernelsReference

/// A diffusion model that is a table: the logits of a position depend on how many positions of the sequence are filled, as that
/// model remembers them. It keeps what each position was when it last ran, as a cache does, and notes what it was asked.
struct ScriptedModel: DiffusionModel {
    struct Call: Equatable {
        let rows: [Int]
        let running: Range<Int>
        /// What each position was, as far as the model knows.
        let seen: [Int]
    }

    var vocabularySize = 12
    var maskToken = 11
    var capacity = 256
    /// Whether row i predicts position i + 1.
    var shifts = false
    var seed: UInt64 = 1
    /// Scale of the logits: larger ones are more confident.
    var scale = 6.0
    private(set) var calls: [Call] = []
    private var seen: [Int] = []

    init() {}

    func check(_ tokens: [Int]) throws(SparseKernelsError) {
        guard tokens.allSatisfy({ $0 >= 0 && $0 < vocabularySize }) else {
            throw SparseKernelsError(.invalidArgument, "tokens", expected: "0 to 11", actual: "others")
        }
    }

    mutating func logits(
        of rows: [Int], running: Range<Int>, in tokens: [Int], on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        if seen.count != tokens.count { seen = Array(repeating: -1, count: tokens.count) }
        for position in running { seen[position] = tokens[position] }
        calls.append(Call(rows: rows, running: running, seen: seen))
        return try logits(of: rows)
    }

    private func logits(of rows: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        let filled = seen.count { $0 != maskToken }
        var elements: [Float] = []
        for row in rows {
            var generator = SplitMix64(seed: seed &+ UInt64(row * 1009 + filled))
            let weight = Float(scale) * generator.uniform()
            for _ in 0..<vocabularySize { elements.append(weight * generator.normal()) }
        }
        return try Tensor([rows.count, vocabularySize], elements)
    }

    /// The sequence that the released loop makes, written down as plainly as it is there.
    static func expected(
        _ tokens: [Int], from start: Int, block length: Int, cache: FastDLLMConfiguration.Cache, shifts: Bool,
        model: ScriptedModel,
        commit: ([(confidence: Double, position: Int)], _ step: Int) -> Int
    ) throws -> (tokens: [Int], forwards: [[Int]], rows: Int) {
        var (tokens, model) = (tokens, model)
        var (forwards, rows): ([[Int]], Int) = ([], 0)
        for first in stride(from: start, to: tokens.count, by: length) {
            var step = 0
            while tokens[first..<first + length].contains(model.maskToken) {
                let masked = (first..<first + length).filter { tokens[$0] == model.maskToken }
                let running: Range<Int> =
                    step == 0 || cache == .none
                    ? 0..<tokens.count : cache == .prefix ? first..<tokens.count : first..<first + length
                rows += running.count
                let asked = shifts && cache != .none && step == 0 ? [first] : masked
                let logits = try model.logits(of: asked.map { shifts ? $0 - 1 : $0 }, running: running, in: tokens, on: .serial)
                var list: [(confidence: Double, position: Int)] = []
                var best: [Int: Int] = [:]
                for (row, position) in asked.enumerated() {
                    let values = (0..<model.vocabularySize).map { Double(logits[row, $0]) }
                    let token = (0..<model.vocabularySize).filter { $0 != model.maskToken }.max { values[$0] < values[$1] }!
                    let sum = values.reduce(0) { $0 + exp($1 - values[token]) }
                    best[position] = token
                    list.append((1 / sum, position))
                }
                list.sort { $0.confidence > $1.confidence }
                let count = shifts && cache != .none && step == 0 ? 1 : commit(list, step)
                let chosen = list.prefix(count).map(\.position)
                for position in chosen { tokens[position] = best[position]! }
                forwards.append(chosen.sorted())
                step += 1
            }
        }
        return (tokens, forwards, rows)
    }
}
