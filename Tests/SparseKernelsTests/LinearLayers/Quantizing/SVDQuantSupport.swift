import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport

// Shared by the suites of SVDQuant's quantiser: layers with outliers, matrices for the oracle, and recorded cases.

/// A layer as in the paper: a weight with few dominant directions, and activations with outlier channels.
struct OutlierLayer {
    let weight: Tensor<Float>
    let bias: Tensor<Float>
    let inputs: Tensor<Float>

    /// - Parameters:
    ///   - decay: the decay of the dominant directions, whose number is a sixteenth of the smaller extent.
    ///   - outliers: the number of channels whose activations are 30 times as large.
    init(_ outFeatures: Int, _ inFeatures: Int, tokens: Int, seed: UInt64, outliers: Int = 12) throws {
        let directions = max(1, min(outFeatures, inFeatures) / 16)
        let left = try Tensor<Float>.normal([outFeatures, directions], seed: seed)
        let right = try Tensor<Float>.normal([directions, inFeatures], seed: seed + 1)
        var weight = try Tensor<Float>.normal([outFeatures, inFeatures], seed: seed + 2, scale: 0.02)
        for n in 0..<outFeatures {
            for k in 0..<inFeatures {
                var sum: Float = 0
                for d in 0..<directions {
                    sum += left[flat: n * directions + d] * right[flat: d * inFeatures + k] / Float(d + 1)
                }
                weight[flat: n * inFeatures + k] += 0.1 * sum
            }
        }
        self.weight = weight
        bias = try .normal([outFeatures], seed: seed + 3)
        var inputs = try Tensor<Float>.normal([tokens, inFeatures], seed: seed + 4)
        for outlier in 0..<min(outliers, inFeatures) {
            let k = outlier * inFeatures / min(outliers, inFeatures)
            for m in 0..<tokens { inputs[flat: m * inFeatures + k] *= 30 }
        }
        self.inputs = inputs
    }
}

extension Tensor<Float> {
    /// The rows of a matrix, for the oracle.
    var rows: [[Double]] {
        let (values, columns) = (elements, shape[1])
        return (0..<shape[0]).map { row in values[row * columns..<(row + 1) * columns].map(Double.init) }
    }

    /// Creates a matrix from rows.
    init(rows: [[Double]]) throws { try self.init([rows.count, rows[0].count], rows.flatMap { $0.map(Float.init) }) }
}

/// x · Wᵀ + b in `Double`.
func exactLayer(_ weight: Tensor<Float>, _ inputs: Tensor<Float>, bias: Tensor<Float>? = nil) -> [[Double]] {
    ReferenceSVDQuant.product(inputs.rows, ReferenceSVDQuant.transposed(weight.rows)).map { row in
        row.indices.map { row[$0] + Double(bias?[flat: $0] ?? 0) }
    }
}

/// The Frobenius norm of `actual` − `expected`, relative to that of `expected`.
func relativeDistance(_ actual: [[Double]], _ expected: [[Double]]) -> Double {
    (ReferenceSVDQuant.squaredDistance(actual, expected) / energy(of: expected)).squareRoot()
}

/// The square of the Frobenius norm.
func energy(of rows: [[Double]]) -> Double { rows.reduce(0) { $0 + $1.reduce(0) { $0 + $1 * $1 } } }

/// The oracle's rounding to a 16-bit type.
func rounding(to type: ElementType) -> ReferenceSVDQuant.Rounding {
    switch type {
    case .bfloat16: { Double(BFloat16(Float($0)).floatValue) }
    case .float16: { Double(Tensor<Float>.half(Float($0))) }
    default: { Double(Float($0)) }
    }
}

extension Tensor<Float> {
    /// The nearest half-precision value, as a file of that type would store it.
    static func half(_ value: Float) -> Float {
        #if os(macOS) && arch(x86_64)
            value
        #else
            Float(Float16(value))
        #endif
    }
}

/// A recorded `svdquant.linear`.
struct RecordedSplit {
    struct Parameters: Decodable {
        let alpha: Double
        let beta: Double?
        let dtype: String
        let rank: Int
        let shift: Float
        let errorHistory: [Double]
        let iterations: Int

        enum CodingKeys: String, CodingKey {
            case alpha, beta, dtype, rank, shift
            case errorHistory = "error_history"
            case iterations = "low_rank_iterations_run"
        }
    }

    let file: SafetensorsFile
    let parameters: Parameters
    let type: ElementType

    static let paths = TestData.externalFiles(in: "goldens/svdquant", prefix: "l")

    init(_ path: String) throws {
        file = try SafetensorsFile(path: path)
        parameters = try JSONDecoder().decode(Parameters.self, from: Data((file.metadata["params"] ?? "").utf8))
        type = parameters.dtype == "bfloat16" ? .bfloat16 : .float16
    }

    subscript(name: String) -> Tensor<Float> {
        get throws { try file.floatTensor(name) }
    }

    var candidate: SmoothingCandidate { .init(alpha: parameters.alpha, beta: parameters.beta ?? 0) }
    var activation: ActivationFormat { parameters.shift == 0 ? .int4 : .uint4(shift: parameters.shift) }
}
