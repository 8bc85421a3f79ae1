import SpargeAttention
import SparseKernelsReference
import TestSupport
import Testing

/// Tokens that are similar in runs: one direction of random strength per 16 tokens, plus noise and a common offset.
func tokensInRuns(_ shape: [Int], seed: UInt64) throws -> Tensor<Float> {
    let (tokens, channels) = (shape[1], shape[2])
    let noise = try Tensor<Float>.normal(shape, seed: seed)
    let runs = (tokens + 15) / 16
    let directions = try Tensor<Float>.normal([shape[0], runs, channels], seed: seed + 1)
    var generator = SplitMix64(seed: seed + 2)
    let strengths = (0..<shape[0] * runs).map { _ in 2 * generator.uniform() }
    return try Tensor(shape) { index in
        let (head, token, channel) = (index / channels / tokens, index / channels % tokens, index % channels)
        let run = head * runs + token / 16
        return noise[flat: index] / 2 + strengths[run] * directions[flat: run * channels + channel] + 0.5
    }
}

@Suite("Self-similarity")
struct SelfSimilarityTests {
    /// The error of a difference to a mean is at most 20u of the largest element X: 16 roundings of the mean (`BlockPooling`),
    /// and those of the difference and the block mean. That of a direction is 20u·X·√d/‖y‖, that of the mean cosine twice that,
    /// rounded.
    static func expectSummary<Element: AttentionElement>(
        _ tensor: Tensor<Element>, _ partition: BlockPartition, smooth: Bool, _ set: InstructionSet
    ) throws {
        let (heads, channels) = (tensor.shape[0], tensor.shape[2])
        let mean = smooth ? try SelfSimilarity.tokenMean(tensor, instructionSet: set) : nil
        let summary = try SelfSimilarity.summary(tensor, blocks: partition, subtracting: mean, instructionSet: set)
        #expect(summary.means.shape == [heads, partition.count, channels])
        #expect(summary.similarities.shape == [heads, partition.count])
        let largest = Double(tensor.elements.reduce(0) { max($0, abs($1.floatValue)) })
        let error = 20 * 0x1p-24 * largest
        for head in 0..<heads {
            let centre = smooth ? ReferenceBlockPrediction.tokenMean(try tensor.view(), head: head) : nil
            let blocks = ReferenceBlockPrediction.blocks(
                try tensor.view(), head: head, partition: partition, subtracting: centre)
            for (index, block) in blocks.enumerated() {
                for channel in 0..<channels {
                    let actual = Double(summary.means[flat: (head * partition.count + index) * channels + channel])
                    #expect(abs(actual - block.mean[channel]) <= error)
                }
                let actual = Double(summary.similarities[flat: head * partition.count + index])
                if partition[index].isEmpty {
                    #expect(actual.isNaN)
                    continue
                }
                var shortest = Double.infinity
                for token in partition[index] {
                    let square = (0..<channels).reduce(0.0) { sum, channel in
                        let value = Double(tensor[flat: (head * tensor.shape[1] + token) * channels + channel].floatValue)
                        let difference = value - (centre?[channel] ?? 0)
                        return sum + difference * difference
                    }
                    if square > 0 { shortest = min(shortest, square.squareRoot()) }
                }
                #expect(
                    abs(actual - block.similarity)
                        <= 2 * error * Double(channels).squareRoot() / shortest + 2 * 0x1p-24 * abs(block.similarity))
            }
        }
    }

    @Test("means and similarities agree with the oracle for every element type", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        for (shape, size) in [([2, 100, 20], 16), ([1, 1, 4], 7), ([2, 70, 16], 64), ([1, 37, 8], 3), ([2, 5, 33], 128)] {
            let partition = try BlockPartition(length: shape[1], blockSize: size)
            let tensor = try tokensInRuns(shape, seed: 11)
            // One token minus its own mean consists of rounding errors only.
            for smooth in shape[1] == 1 ? [false] : [false, true] {
                try Self.expectSummary(tensor, partition, smooth: smooth, set)
                try Self.expectSummary(tensor.converted(to: Float16.self), partition, smooth: smooth, set)
                try Self.expectSummary(tensor.converted(to: BFloat16.self), partition, smooth: smooth, set)
            }
        }
    }

    @Test("blocks may have any size, empty ones included")
    func varyingBlocks() throws {
        let partition = try BlockPartition(sizes: [0, 1, 40, 0, 17, 42, 0])
        try Self.expectSummary(tokensInRuns([2, 100, 12], seed: 3), partition, smooth: true, .portable)
    }

    @Test("layouts, levels and threads do not change a bit")
    func bits() throws {
        let (heads, tokens, channels) = (3, 301, 24)
        let tensor = try tokensInRuns([heads, tokens, channels], seed: 9).converted(to: BFloat16.self)
        let partition = try BlockPartition(length: tokens, blockSize: 8)
        let mean = try SelfSimilarity.tokenMean(tensor)
        let expected = try SelfSimilarity.summary(
            tensor, blocks: partition, subtracting: mean, instructionSet: .portable, on: .serial)
        for set in InstructionSet.available {
            for threads in [1, 2, 7] {
                let summary = try SelfSimilarity.summary(
                    tensor, blocks: partition, subtracting: mean, instructionSet: set, on: WorkerPool(threads: threads))
                #expect(summary.means.elements.map(\.bitPattern) == expected.means.elements.map(\.bitPattern))
                #expect(summary.similarities.elements.map(\.bitPattern) == expected.similarities.elements.map(\.bitPattern))
            }
        }
        let other = try Tensor<BFloat16>([tokens, heads, channels]) { index in
            let (token, rest) = index.quotientAndRemainder(dividingBy: heads * channels)
            return tensor[flat: (rest / channels * tokens + token) * channels + rest % channels]
        }
        let summary = try SelfSimilarity.summary(other.view(layout: .nhd), blocks: partition, subtracting: mean)
        #expect(summary == expected)
    }

    @Test("equal tokens are 1 alike, opposite ones 0, zeros 0")
    func knownValues() throws {
        let partition = try BlockPartition(length: 6, blockSize: 2)
        let tensor = try Tensor<Float>([1, 6, 2], [3, 4, 3, 4, 1, 2, -1, -2, 0, 0, 0, 0])
        let summary = try SelfSimilarity.summary(tensor, blocks: partition)
        #expect(summary.means.elements == [3, 4, 0, 0, 0, 0])
        // 0.6² + 0.8², doubled and squared, divided by 4. Unit rows are in `Double` and rounded once.
        #expect(summary.similarities.elements == [1, 0, 0])
    }

    @Test("values that are not finite make their own block NaN, and huge ones do not")
    func nonFinite() throws {
        let partition = try BlockPartition(length: 8, blockSize: 2)
        let tensor = try Tensor<Float>([1, 8, 2], [1, 0, 1, 0, .nan, 0, 1, 0, 1, .infinity, 1, 0, 3e38, 3e38, 3e38, 3e38])
        let similarities = try SelfSimilarity.summary(tensor, blocks: partition).similarities.elements
        #expect(similarities[1].isNaN && similarities[2].isNaN)
        #expect(abs(similarities[0] - 1) < 1e-6 && abs(similarities[3] - 1) < 1e-6)
    }

    @Test("the released rounding leaves ragged blocks and rows of zeros without a similarity")
    func releasedRounding() throws {
        var tensor = try tokensInRuns([1, 20, 8], seed: 4).converted(to: BFloat16.self)
        for channel in 0..<8 { tensor[flat: 8 * 5 + channel] = .zero }
        let partition = try BlockPartition(length: 20, blockSize: 8)
        let summary = try SelfSimilarity.summary(tensor, blocks: partition, roundsAsReleased: true)
        #expect(summary.similarities[flat: 0].isNaN && summary.similarities[flat: 2].isNaN)
        #expect(summary.similarities[flat: 1] > 0)
        #expect(summary.means.elements.allSatisfy { BFloat16($0).floatValue == $0 })
        let mean = try SelfSimilarity.tokenMean(tensor, roundsAsReleased: true)
        #expect(mean.elements.allSatisfy { BFloat16($0).floatValue == $0 })
    }

    @Test("no tokens give no blocks, and a mean of zeros", arguments: InstructionSet.available, [0, 1, 40])
    func noTokens(_ set: InstructionSet, _ tokens: Int) throws {
        let tensor = try tokensInRuns([2, tokens, 12], seed: 5)
        let partition = try BlockPartition(length: tokens, blockSize: 16)
        let summary = try SelfSimilarity.summary(tensor, blocks: partition, instructionSet: set)
        #expect(summary.means.shape == [2, partition.count, 12])
        let mean = try SelfSimilarity.tokenMean(tensor, instructionSet: set)
        #expect(mean.shape == [2, 1, 12] && (tokens > 0 || mean.elements.allSatisfy { $0 == 0 }))
    }

    @Test("arguments that disagree are errors that name them")
    func badInput() throws {
        let tensor = try Tensor<Float>(zeros: [2, 10, 4])
        let partition = try BlockPartition(length: 10, blockSize: 4)
        var error = #expect(throws: SparseKernelsError.self) {
            try SelfSimilarity.summary(tensor, blocks: BlockPartition(length: 11, blockSize: 4))
        }
        #expect(error?.code == .invalidShape && error?.argument == "blocks.length")
        error = #expect(throws: SparseKernelsError.self) {
            try SelfSimilarity.summary(tensor, blocks: partition, subtracting: Tensor(zeros: [2, 4]))
        }
        #expect(error?.code == .invalidShape && error?.argument == "mean")
        error = #expect(throws: SparseKernelsError.self) {
            try BlockSummary(partition: partition, means: Tensor(zeros: [2, 4, 4]), similarities: Tensor(zeros: [2, 3]))
        }
        #expect(error?.code == .invalidShape && error?.argument == "means")
        error = #expect(throws: SparseKernelsError.self) {
            try BlockSummary(partition: partition, means: Tensor(zeros: [2, 3, 4]), similarities: Tensor(zeros: [3, 2]))
        }
        #expect(error?.code == .invalidShape && error?.argument == "similarities")
    }
}
