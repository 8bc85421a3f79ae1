import FastDLLM
import Foundation
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Fast-dLLM: rules")
struct CommitRuleTests {
    @Test("a threshold commits what reaches it, and always the best")
    func threshold() {
        let rule = CommitRule.threshold(0.9)
        let selection = rule.select([0.5, 0.9, 0.95, 0.89, 0.99])
        #expect(selection.indices == [4, 2, 1])
        #expect(selection.margin == 0)
        #expect(rule.select([0.2, 0.4, 0.3]).indices == [1])
        #expect(abs(rule.select([0.2, 0.4, 0.3]).margin - 0.1) < 1e-12)
        #expect(rule.select([]).indices.isEmpty)
        #expect(CommitRule.threshold(0).select([0.1, 0.2]).indices == [1, 0])
        #expect(CommitRule.threshold(1).select([1, 0.5, 1]).indices == [0, 2])
    }

    @Test("a factor is the largest n with (n + 1)(1 − c) below it", arguments: [0.7, 1.0, 1.3, 1.9])
    func factor(_ factor: Double) {
        var generator = SplitMix64(seed: 3)
        for round in 0..<200 {
            let count = 1 + round % 9
            let confidences = (0..<count).map { _ in 1 - pow(Double(generator.uniform()), 3) }
            let sorted = confidences.sorted(by: >)
            let formula =
                (1...count).filter { n in (1...n).allSatisfy { Double($0 + 1) * (1 - sorted[$0 - 1]) < factor } }.max() ?? 1
            #expect(CommitRule.factor(factor).select(confidences).indices.count == max(1, formula))
            #expect(CommitRule.factor(factor, form: .released).select(confidences).indices.count == released(sorted, factor))
        }
    }

    /// `get_transfer_index_dynamic`, line by line.
    private func released(_ sorted: [Double], _ factor: Double) -> Int {
        var thresholds = (1...sorted.count).map { 1 - factor / Double($0 + 1) }
        thresholds[0] = -1
        var top = 0
        for i in thresholds.indices {
            top = i
            if sorted[i] < thresholds[i] { break }
        }
        if top == 0 || top == thresholds.count - 1 { top += 1 }
        return top
    }

    @Test("the released list ends with two positions, the paper's with one")
    func endOfList() {
        let unsure = [0.9, 0.1]
        #expect(CommitRule.factor(1).select(unsure).indices == [0])
        #expect(CommitRule.factor(1, form: .released).select(unsure).indices == [0, 1])
        #expect(CommitRule.factor(1).select([0.1]).indices == [0])
        #expect(CommitRule.factor(1, form: .released).select([0.1]).indices == [0])
        #expect(CommitRule.factor(1, form: .released).select([]).indices.isEmpty)
        // (2 + 1)(1 − 2/3) is 1: the formula wants less, the code accepts it.
        let even = [1, 1 - 1.0 / 3, 0.1, 0.1]
        #expect(CommitRule.factor(1, form: .released).select(even).indices == [0, 1])
        #expect(CommitRule.factor(3 * (1 - (1 - 1.0 / 3))).select(even).indices == [0])
    }

    @Test("a schedule spreads positions over steps, first ones first")
    func schedule() throws {
        #expect(try CommitRule.schedule(masked: 10, steps: 4) == [3, 3, 2, 2])
        #expect(try CommitRule.schedule(masked: 2, steps: 4) == [1, 1, 0, 0])
        #expect(try CommitRule.schedule(masked: 0, steps: 1) == [0])
        #expect(CommitRule.select([0.1, 0.7, 0.7, 0.3], count: 2).indices == [1, 2])
        #expect(CommitRule.select([0.1, 0.7, 0.6], count: 9).indices == [1, 2, 0])
        #expect(CommitRule.select([0.1], count: -1).indices.isEmpty)
        expectError(.invalidArgument, "steps", containing: "0") { _ = try CommitRule.schedule(masked: 1, steps: 0) }
        expectError(.invalidArgument, "masked", containing: "-1") { _ = try CommitRule.schedule(masked: -1, steps: 1) }
    }

    @Test("predictions are the softmax of the logits", arguments: [1, 2, 3, 500, 20_000])
    func predictions(_ vocabulary: Int) throws {
        var logits = try Tensor<Float>.normal([5, vocabulary], seed: 4, scale: 8)
        logits[flat: 0] = -.infinity
        if vocabulary == 1 { logits[flat: 0] = 3 }
        var predictions = try MaskedPredictions(logits)
        let single = predictions
        let exact = predictions.exactConfidences()
        for row in 0..<5 {
            let values = (0..<vocabulary).map { Double(logits[row, $0]) }
            let order = values.indices.sorted { values[$0] > values[$1] }
            #expect(predictions.tokens[row] == order[0])
            let sum = values.reduce(0) { $0 + exp($1 - values[order[0]]) }
            #expect(abs(exact[row] - 1 / sum) < 1e-12 && predictions.confidenceErrors[row] == 0)
            #expect(abs(single.confidences[row] - 1 / sum) <= single.confidenceErrors[row])
            let next = order.dropFirst().first.map { values[$0] } ?? -.infinity
            #expect(predictions.tokenMargins[row] == values[order[0]] - next)
        }
    }

    @Test("a mask is never the prediction, and its probability counts")
    func excluded() throws {
        let logits = try Tensor<Float>([2, 4], [1, 5, 3, 2, 0, 0, 9, 1])
        var predictions = try MaskedPredictions(logits, excluding: 2)
        #expect(predictions.tokens == [1, 3])
        #expect(abs(predictions.exactConfidences()[1] - exp(1) / (2 + exp(9) + exp(1))) < 1e-12)
        #expect(predictions.tokenMargins == [3, 1])
        let pair = try MaskedPredictions(Tensor<Float>([1, 2], [1, 5]), excluding: 1)
        #expect(pair.tokens == [0] && pair.tokenMargins == [.infinity])
        expectError(.invalidArgument, "logits", containing: "none in row 0") {
            _ = try MaskedPredictions(Tensor<Float>([1, 1], [1]), excluding: 0)
        }
        #expect(try MaskedPredictions(Tensor<Float>(zeros: [0, 5])).count == 0)
    }

    @Test("logits that are not finite are refused")
    func notFinite() throws {
        for value in [Float.nan, .infinity] {
            expectError(.invalidArgument, "logits", containing: "row 1") {
                _ = try MaskedPredictions(Tensor<Float>([2, 3], [1, 2, 3, 1, value, 2]))
            }
        }
        expectError(.invalidArgument, "logits") { _ = try MaskedPredictions(Tensor<Float>([1, 2], [-.infinity, -.infinity])) }
        expectError(.invalidShape, "logits") { _ = try MaskedPredictions(Tensor<Float>(zeros: [2, 3, 4])) }
    }

    @Test("confidences that single precision cannot tell apart are compared in double")
    func nearTies() throws {
        // 1 − c is 2·10⁻⁹ in one row and 10⁻⁹ in the other; both round to 1.
        let logits = try Tensor<Float>([3, 3], [20, -0.03, -30, 20, -0.73, -30, 1, 1, 1])
        let single = try MaskedPredictions(logits)
        #expect(CommitRule.tokensPerStep(1).select(single, count: 1).indices == [1])
        let threshold = 1 - 1.5e-9
        #expect(CommitRule.threshold(threshold).select(single).indices == [1])
    }
}
