import Foundation
import PyramidDrop
import SparseKernelsReference
import TestSupport
import Testing

@Suite("PyramidDrop")
struct PyramidDropTests {
    @Test("the stages of the paper")
    func configuration() throws {
        let standard = PyramidDropConfiguration.standard
        #expect(
            (0..<32).compactMap { standard.stage(afterLayers: $0).map { index in standard.stages[index].layers } } == [
                8, 16, 24,
            ])
        #expect((0..<3).map { standard.keptTokens(stage: $0, of: 577) } == [288, 144, 72])
        // (8 · 1 + 8 · ½ + 8 · ¼ + 8 · ⅛) / 32
        #expect(standard.meanKept(layers: 32) == 0.46875)
        #expect(standard.meanKept(layers: 8) == 1 && standard.meanKept(layers: 0) == 1)
        #expect(try PyramidDropConfiguration(stages: []).meanKept(layers: 3) == 1)
        expectError(.invalidArgument, "stages[1].layers", containing: "above 8", "8") {
            _ = try PyramidDropConfiguration(stages: [.init(afterLayers: 8, kept: 0.5), .init(afterLayers: 8, kept: 0.25)])
        }
        expectError(.invalidArgument, "stages[0].layers") {
            _ = try PyramidDropConfiguration(stages: [.init(afterLayers: 0, kept: 0.5)])
        }
        expectError(.invalidArgument, "stages[1].kept", containing: "0...0.5", "0.6") {
            _ = try PyramidDropConfiguration(stages: [.init(afterLayers: 8, kept: 0.5), .init(afterLayers: 9, kept: 0.6)])
        }
        for kept in [-0.1, 1.1, .nan] {
            expectError(.invalidArgument, "stages[0].kept") {
                _ = try PyramidDropConfiguration(stages: [.init(afterLayers: 1, kept: kept)])
            }
        }
    }

    /// Ranks by probabilities in `Double`.
    static func expected(
        _ query: Tensor<Float>, _ key: Tensor<Float>, index: Int, first: Int, _ sequence: PyramidDropSequence, count: Int
    ) throws -> (kept: [Int], gap: Double) {
        let (heads, group) = (query.shape[0], query.shape[0] / key.shape[0])
        let channels = query.shape[2]
        var scores = [Double](repeating: 0, count: sequence.length)
        for head in 0..<heads {
            var row: [Double] = []
            for token in 0...sequence.lastInstructionToken {
                var sum = 0.0
                for channel in 0..<channels {
                    sum += Double(query[head, index, channel]) * Double(key[head / group, first + token, channel])
                }
                row.append(sum / Double(channels).squareRoot())
            }
            let maximum = row.max()!
            let weights = row.map { exp($0 - maximum) }
            let total = weights.reduce(0, +)
            for token in row.indices { scores[token] += weights[token] / total / Double(heads) }
        }
        let order = sequence.imageTokens.sorted { scores[$0] == scores[$1] ? $0 < $1 : scores[$0] > scores[$1] }
        let best = Set(order.prefix(count))
        let gap = count == 0 || count == order.count ? 1 : scores[order[count - 1]] - scores[order[count]]
        return ((0..<sequence.length).filter { !sequence.imageTokens.contains($0) || best.contains($0) }, gap)
    }

    @Test("each stage keeps what the last instruction token attends to most", arguments: InstructionSet.available)
    func stages(_ set: InstructionSet) throws {
        let drop = try PyramidDrop(queryHeads: 4, kvHeads: 2, headDim: 16, instructionSet: set)
        var sequences = [
            try PyramidDropSequence(length: 80, imageTokens: 5..<69),
            try PyramidDropSequence(length: 9, imageTokens: 0..<0),
            try PyramidDropSequence(length: 50, imageTokens: 10..<43, lastInstructionToken: 45),
        ]
        for stage in 0..<3 {
            let tokens = sequences.reduce(0) { $0 + $1.length }
            let query = try Tensor<Float>.normal([4, 3, 16], seed: UInt64(stage))
            let key = try Tensor<Float>.normal([2, tokens, 16], seed: UInt64(10 + stage))
            let step = try drop.step(stage: stage, query: query, key: key, sequences: sequences)
            var first = 0
            for (index, sequence) in sequences.enumerated() {
                let count = drop.configuration.keptTokens(stage: stage, of: sequence.promptImageTokens)
                let expected = try Self.expected(query, key, index: index, first: first, sequence, count: count)
                // Probabilities are within 1e-6, so that closer ones could swap.
                #expect(expected.gap > 2e-6)
                #expect(step.compaction.keptTokens(of: index) == expected.kept, "\(set), stage \(stage), sequence \(index)")
                #expect(step.sequences[index].length == expected.kept.count)
                #expect(step.sequences[index].imageTokens.count == count)
                first += sequence.length
            }
            sequences = step.sequences
        }
        // A half, a quarter and an eighth of 64 and of 33; the text stays where it was relative to the pictures.
        #expect(sequences.map(\.imageTokens) == [5..<13, 0..<0, 10..<14])
        #expect(sequences.map(\.lastInstructionToken) == [23, 8, 16])
        #expect(sequences.map(\.length) == [24, 9, 21])
    }

    @Test("equal scores keep the lower tokens, positions are renumbered, threads change nothing")
    func ties() throws {
        let drop = try PyramidDrop(queryHeads: 2, kvHeads: 1, headDim: 8)
        let sequence = try PyramidDropSequence(length: 20, imageTokens: 3..<15)
        let query = try Tensor<Float>(zeros: [2, 1, 8])
        let key = try Tensor<Float>.normal([1, 20, 8], seed: 1)
        for threads in [1, 2, 7] {
            let step = try drop.step(
                stage: 0, query: query, key: key, sequences: [sequence], on: WorkerPool(threads: threads))
            #expect(step.compaction.keptTokens(of: 0) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 18, 19])
            #expect(step.compaction.positions(.renumbered) == Array(0..<14))
        }
        // A sequence that has fewer image tokens than the stage leaves keeps them.
        let step = try drop.step(stage: 1, query: query, key: key, sequences: [sequence])
        let again = try drop.step(
            stage: 0, query: query, key: step.compaction(key), sequences: step.sequences)
        #expect(again.sequences == step.sequences && again.compaction.kept.count == 11)
    }

    @Test("bad input is a typed error")
    func errors() throws {
        expectError(.invalidShape, "length") { _ = try PyramidDropSequence(length: 0, imageTokens: 0..<0) }
        expectError(.invalidArgument, "imageTokens", containing: "4 tokens", "1..<5") {
            _ = try PyramidDropSequence(length: 4, imageTokens: 1..<5)
        }
        expectError(.invalidArgument, "lastInstructionToken") { _ = try PyramidDropSequence(length: 4, imageTokens: 1..<4) }
        expectError(.invalidArgument, "lastInstructionToken") {
            _ = try PyramidDropSequence(length: 4, imageTokens: 1..<2, lastInstructionToken: 4)
        }
        expectError(.invalidShape, "queryHeads") { _ = try PyramidDrop(queryHeads: 3, kvHeads: 2, headDim: 8) }
        expectError(.invalidArgument, "softmaxScale") {
            _ = try PyramidDrop(queryHeads: 2, kvHeads: 2, headDim: 8, softmaxScale: .nan)
        }
        let drop = try PyramidDrop(queryHeads: 2, kvHeads: 1, headDim: 8)
        let sequence = try PyramidDropSequence(length: 20, imageTokens: 3..<15)
        let query = try Tensor<Float>.normal([2, 1, 8], seed: 1)
        var key = try Tensor<Float>.normal([1, 20, 8], seed: 2)
        expectError(.invalidArgument, "stage") { _ = try drop.step(stage: 3, query: query, key: key, sequences: [sequence]) }
        expectError(.invalidShape, "query", containing: "2 × 2 × 8") {
            _ = try drop.step(stage: 0, query: query, key: key, sequences: [sequence, sequence])
        }
        let short = try Tensor<Float>(zeros: [1, 19, 8])
        expectError(.invalidShape, "key", containing: "1 × 20 × 8", "1 × 19 × 8") {
            _ = try drop.step(stage: 0, query: query, key: short, sequences: [sequence])
        }
        key[0, 4, 0] = .nan
        expectError(.invalidArgument, "scores of sequence 0") {
            _ = try drop.step(stage: 0, query: query, key: key, sequences: [sequence])
        }
    }
}
