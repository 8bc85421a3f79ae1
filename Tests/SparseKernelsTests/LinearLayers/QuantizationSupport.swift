import Foundation
import SparseKernels
import SparseKernelsReference

// Shared by the suites of quantised weights.

extension WeightFormat {
    /// Every format for which there are kernels.
    static let all: [WeightFormat] = {
        let sizes: [Int?] = [nil] + groupSizes
        // The sizes are those that the initialiser accepts.
        return [Code.int4, .uint4, .int8].flatMap { code in sizes.map { try! WeightFormat(code, groupSize: $0) } } + [.nvfp4]
    }()
}

extension Tensor<Float> {
    /// Normal values by Box and Muller. `normal` lacks their tails, from which the extremes of large groups come.
    static func gaussian(_ shape: [Int], seed: UInt64) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: seed)
        return try Tensor(shape) { _ in
            let radius = (-2 * log(1 - Double(generator.uniform()))).squareRoot()
            return Float(radius * cos(2 * .pi * Double(generator.uniform())))
        }
    }

    /// The Frobenius norm of the difference to `other`, relative to that of `self`.
    func relativeError(of other: Tensor<Float>) -> Double {
        var (error, norm) = (0.0, 0.0)
        for (a, b) in zip(elements, other.elements) {
            error += Double(a - b) * Double(a - b)
            norm += Double(a) * Double(a)
        }
        return (error / norm).squareRoot()
    }
}
