import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Block pooling")
struct BlockPoolingTests {
    /// The mean in `Double`, and the mean of the magnitudes, to which rounding errors are proportional.
    static func reference<Element: AttentionElement>(
        _ tensor: Tensor<Element>, head: Int, tokens: Range<Int>, channel: Int
    ) -> (mean: Double, magnitude: Double) {
        var (sum, magnitude) = (0.0, 0.0)
        for token in tokens {
            let value = Double(
                tensor[flat: (head * tensor.shape[1] + token) * tensor.shape[2] + channel].floatValue)
            sum += value
            magnitude += abs(value)
        }
        return tokens.isEmpty ? (0, 0) : (sum / Double(tokens.count), magnitude / Double(tokens.count))
    }

    /// Sums of 16 rows are rounded 15 times, relative to the magnitudes, and the result is rounded once more.
    static func expectMeans<Element: AttentionElement>(
        _ type: Element.Type, _ shape: [Int], _ partition: BlockPartition, _ set: InstructionSet
    ) throws {
        let tensor = try Tensor<Element>.normal(shape, seed: 5)
        let means = try BlockPooling.means(tensor, blocks: partition, instructionSet: set)
        #expect(means.shape == [shape[0], partition.count, shape[2]])
        for head in 0..<shape[0] {
            for block in 0..<partition.count {
                for channel in 0..<shape[2] {
                    let expected = reference(tensor, head: head, tokens: partition[block], channel: channel)
                    let actual = Double(means[flat: (head * partition.count + block) * shape[2] + channel])
                    #expect(abs(actual - expected.mean) <= 16 * 0x1p-24 * expected.magnitude)
                }
            }
        }
    }

    @Test("means agree with the oracle for every element type", arguments: InstructionSet.available)
    func means(_ set: InstructionSet) throws {
        for (shape, size) in [([2, 100, 20], 16), ([1, 1, 1], 7), ([3, 64, 64], 64), ([1, 37, 8], 3), ([2, 5, 33], 128)] {
            let partition = try BlockPartition(length: shape[1], blockSize: size)
            try Self.expectMeans(Float.self, shape, partition, set)
            try Self.expectMeans(Float16.self, shape, partition, set)
            try Self.expectMeans(BFloat16.self, shape, partition, set)
        }
    }

    @Test("blocks may have any size, empty ones included")
    func varyingBlocks() throws {
        let partition = try BlockPartition(sizes: [0, 1, 40, 0, 17, 42, 0])
        try Self.expectMeans(Float.self, [2, 100, 12], partition, .portable)
    }

    @Test("layouts and threads do not change a bit")
    func bits() throws {
        let (heads, tokens, channels) = (3, 301, 24)
        let tensor = try Tensor<Float16>.normal([heads, tokens, channels], seed: 9)
        let partition = try BlockPartition(length: tokens, blockSize: 4)
        let expected = try BlockPooling.means(tensor, blocks: partition, instructionSet: .portable, on: .serial)
        for set in InstructionSet.available {
            for threads in [1, 2, 7] {
                let pool = WorkerPool(threads: threads)
                let means = try BlockPooling.means(tensor, blocks: partition, instructionSet: set, on: pool)
                #expect(means.bits == expected.bits)
            }
        }
        let other = try Tensor<Float16>([tokens, heads, channels]) { index in
            let (token, rest) = index.quotientAndRemainder(dividingBy: heads * channels)
            return tensor[flat: (rest / channels * tokens + token) * channels + rest % channels]
        }
        let means = try BlockPooling.means(other.view(layout: .nhd), blocks: partition)
        #expect(means.bits == expected.bits)
    }

    @Test("a partition of another length is an error")
    func lengths() throws {
        let tensor = try Tensor<Float>(zeros: [1, 10, 4])
        let partition = try BlockPartition(length: 11, blockSize: 4)
        let error = #expect(throws: SparseKernelsError.self) { try BlockPooling.means(tensor, blocks: partition) }
        #expect(error?.code == .invalidShape && error?.argument == "blocks.length")
    }
}
