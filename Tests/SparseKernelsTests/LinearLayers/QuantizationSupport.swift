import Foundation
import SparseKernels
import SparseKernelsReference

// What the suites of quantised weights share.

extension WeightFormat {
    /// Every format that kernels are built for.
    static let all: [WeightFormat] = {
        let sizes: [Int?] = [nil] + groupSizes
        // The sizes are those of the list that the initialiser checks.
        return [Code.int4, .uint4, .int8].flatMap { code in sizes.map { try! WeightFormat(code, groupSize: $0) } } + [.nvfp4]
    }()
}

extension Tensor<Float> {
    /// Normal values by Box and Muller: unlike `normal`, with the tails that the extremes of large groups come from.
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
