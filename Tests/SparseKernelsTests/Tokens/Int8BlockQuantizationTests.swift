import SparseKernels
import SparseKernelsReference
import Testing

@Suite("INT8 block quantisation")
struct Int8BlockQuantizationTests {
    @Test(
        "codes are the nearest, halves away from zero, and scales the largest magnitude over 127",
        arguments: InstructionSet.available)
    func definition(_ set: InstructionSet) throws {
        for (shape, size) in [([2, 100, 20], 16), ([1, 1, 1], 7), ([2, 70, 16], 64), ([1, 37, 8], 3)] {
            let tensor = try Tensor<Float16>.normal(shape, seed: 21, scale: 3)
            let partition = try BlockPartition(length: shape[1], blockSize: size)
            let result = try Int8BlockQuantization(tensor, blocks: partition, instructionSet: set)
            for head in 0..<shape[0] {
                for block in 0..<partition.count {
                    let indices = partition[block].flatMap { token in
                        (0..<shape[2]).map { (head * shape[1] + token) * shape[2] + $0 }
                    }
                    let largest = indices.reduce(0) { max($0, abs(tensor[flat: $1].floatValue)) }
                    let scale = largest / 127 + 1e-7
                    #expect(result.scales[flat: head * partition.count + block] == scale)
                    for index in indices {
                        let quotient = tensor[flat: index].floatValue / scale
                        #expect(Float(result.codes[flat: index]) == quotient.rounded(.toNearestOrAwayFromZero))
                    }
                }
            }
        }
    }

    @Test("the mean is subtracted, rounded to the element type on request")
    func mean() throws {
        let tensor = try Tensor<BFloat16>.normal([2, 33, 6], seed: 8)
        let partition = try BlockPartition(length: 33, blockSize: 16)
        let mean = try Tensor<Float>.normal([2, 1, 6], seed: 9)
        for rounds in [false, true] {
            let result = try Int8BlockQuantization(
                tensor, blocks: partition, subtracting: mean, roundsAsReleased: rounds)
            let differences = try Tensor<Float>(tensor.shape) { index in
                let difference = tensor[flat: index].floatValue - mean[flat: index / 6 / 33 * 6 + index % 6]
                return rounds ? BFloat16(difference).floatValue : difference
            }
            #expect(result == (try Int8BlockQuantization(differences, blocks: partition)))
        }
    }

    @Test("zeros, infinities and NaN give codes, not traps")
    func extremes() throws {
        let partition = try BlockPartition(length: 8, blockSize: 2)
        let tensor = try Tensor<Float>(
            [1, 8, 2], [0, 0, 0, 0, .infinity, 1, -.infinity, 2, .nan, 1, -1, 0.5, 3.4e38, -3.4e38, .leastNonzeroMagnitude, 0])
        let result = try Int8BlockQuantization(tensor, blocks: partition)
        let codes: [Int8] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 127, -127, 63, 127, -127, 0, 0]
        #expect(result.codes.elements == codes)
        let scales: [Float] = [1e-7, .infinity, 1 / 127 + 1e-7, 3.4e38 / 127]
        #expect(result.scales.elements == scales)
    }

    @Test("threads and layouts do not change a bit")
    func bits() throws {
        let tensor = try Tensor<Float>.normal([3, 200, 24], seed: 2)
        let partition = try BlockPartition(length: 200, blockSize: 8)
        let expected = try Int8BlockQuantization(tensor, blocks: partition, on: .serial)
        for threads in [2, 7] {
            #expect(try Int8BlockQuantization(tensor, blocks: partition, on: WorkerPool(threads: threads)) == expected)
        }
        let other = try Tensor<Float>([200, 3, 24]) { index in
            tensor[flat: (index / 24 % 3 * 200 + index / 72) * 24 + index % 24]
        }
        #expect(try Int8BlockQuantization(other.view(layout: .nhd), blocks: partition) == expected)
    }

    @Test("the CUDA rule rounds exact quotients to nearest, halves to even", arguments: InstructionSet.available)
    func halvesToEven(_ set: InstructionSet) throws {
        let tensor = try Tensor<Float16>.normal([2, 70, 12], seed: 31, scale: 3)
        let partition = try BlockPartition(length: 70, blockSize: 32)
        let result = try Int8BlockQuantization(tensor, blocks: partition, rule: .halvesToEven, instructionSet: set)
        let rows = result.dequantized()
        for head in 0..<2 {
            for block in 0..<partition.count {
                let indices = partition[block].flatMap { token in (0..<12).map { (head * 70 + token) * 12 + $0 } }
                let largest = indices.reduce(0) { max($0, Double(abs(tensor[flat: $1].floatValue))) }
                let scale = result.scales[flat: head * partition.count + block]
                #expect(scale == Float(largest) / 127)
                for index in indices {
                    let quotient = Double(tensor[flat: index].floatValue) * 127 / largest
                    #expect(Double(result.codes[flat: index]) == quotient.rounded(.toNearestOrEven))
                    #expect(rows[flat: index] == scale * Float(result.codes[flat: index]))
                }
            }
        }
        // 127 makes the scale 1, so that halves are exact. Zeros and numbers that are not finite give codes, not traps.
        let halves = try Int8BlockQuantization(
            Tensor<Float>([1, 6, 2], [127, 0.5, 1.5, -0.5, -2.5, 2.5, 0, 0, .infinity, 1, .nan, 3]),
            blocks: BlockPartition(sizes: [3, 1, 1, 1]), rule: .halvesToEven)
        #expect(halves.codes.elements == [127, 0, 2, 0, -2, 2, 0, 0, 0, 0, 0, 127])
        #expect(halves.scales.elements == [1, 1e-7 / 127, .infinity, 3 / 127])
    }

    @Test("arguments that disagree are errors that name them")
    func badInput() throws {
        let tensor = try Tensor<Float>(zeros: [2, 10, 4])
        var error = #expect(throws: SparseKernelsError.self) {
            try Int8BlockQuantization(tensor, blocks: BlockPartition(length: 9, blockSize: 4))
        }
        #expect(error?.code == .invalidShape && error?.argument == "blocks.length")
        error = #expect(throws: SparseKernelsError.self) {
            try Int8BlockQuantization(
                tensor, blocks: BlockPartition(length: 10, blockSize: 4), subtracting: Tensor(zeros: [1, 1, 4]))
        }
        #expect(error?.code == .invalidShape && error?.argument == "mean")
        let (codes, scales) = (try Tensor<Int8>(zeros: [2, 10, 4]), try Tensor<Float>(zeros: [2, 3]))
        let partition = try BlockPartition(length: 10, blockSize: 4)
        #expect(try Int8BlockQuantization(partition: partition, codes: codes, scales: scales).dequantized().count == 80)
        error = #expect(throws: SparseKernelsError.self) {
            try Int8BlockQuantization(partition: partition, codes: Tensor(zeros: [2, 9, 4]), scales: scales)
        }
        #expect(error?.code == .invalidShape && error?.argument == "codes")
        error = #expect(throws: SparseKernelsError.self) {
            try Int8BlockQuantization(partition: partition, codes: codes, scales: Tensor(zeros: [1, 3]))
        }
        #expect(error?.code == .invalidShape && error?.argument == "scales")
    }
}
