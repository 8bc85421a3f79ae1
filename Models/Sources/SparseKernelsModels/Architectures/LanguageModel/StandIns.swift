import Foundation
import SparseKernels

// Plain versions of operators that the core is about to have, with its names.

/// The function of a gated MLP.
public struct GatedActivation: Sendable {
    /// f in f(gate) · up.
    public enum Function: String, Hashable, Sendable, CaseIterable {
        case silu, gelu, geluTanh, relu, reluSquared
    }
    let function: Function

    func run(_ gateUp: Tensor<Float>, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool) {
        let d = y.shape[1]
        let source = RowAddress(gateUp), target = MutableRowAddress(&y)
        let function = function
        pool.forEachRange(of: rows, workPerItem: 16 * d) { range in
            for row in range {
                let (x, y) = (source.address(row), target.address(row))
                for i in 0..<d {
                    let g = x[i]
                    let f: Float =
                        switch function {
                        case .silu: g / (1 + exp(-g))
                        case .gelu: 0.5 * g * (1 + erff(g * 0.707_106_78))
                        case .geluTanh: 0.5 * g * (1 + tanhf(0.797_884_56 * (g + 0.044715 * g * g * g)))
                        case .relu: max(g, 0)
                        case .reluSquared: max(g, 0) * max(g, 0)
                        }
                    y[i] = f * x[d + i]
                }
            }
        }
        withExtendedLifetime(gateUp) {}
    }
}

struct RowAddress: @unchecked Sendable {
    let base: UnsafePointer<Float>
    let columns: Int
    init(_ tensor: borrowing Tensor<Float>) {
        base = tensor.span.withUnsafeBufferPointer { $0.baseAddress! }
        columns = tensor.shape.last!
    }
    func address(_ row: Int) -> UnsafePointer<Float> { base + row * columns }
}

struct MutableRowAddress: @unchecked Sendable {
    let base: UnsafeMutablePointer<Float>
    let columns: Int
    init(_ tensor: inout Tensor<Float>) {
        columns = tensor.shape.last!
        var elements = tensor.mutableSpan
        base = elements.withUnsafeMutableBufferPointer { $0.baseAddress! }
    }
    func address(_ row: Int) -> UnsafeMutablePointer<Float> { base + row * columns }
}

struct RMSNorm: Sendable {
    let factors: [Float]
    let epsilon: Float

    init(weight: Tensor<Float>, epsilon: Float, addsOne: Bool = false) {
        factors = weight.elements.map { addsOne ? 1 + $0 : $0 }
        self.epsilon = epsilon
    }

    private func row(_ x: UnsafePointer<Float>, _ y: UnsafeMutablePointer<Float>) {
        var squares: Float = 0
        for i in 0..<factors.count { squares += x[i] * x[i] }
        let factor = 1 / (squares / Float(factors.count) + epsilon).squareRoot()
        for i in 0..<factors.count { y[i] = x[i] * factor * factors[i] }
    }

    func run(_ x: Tensor<Float>, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool) {
        let source = RowAddress(x), target = MutableRowAddress(&y)
        pool.forEachRange(of: rows, workPerItem: 4 * factors.count) { range in
            for i in range { row(source.address(i), target.address(i)) }
        }
        withExtendedLifetime(x) {}
    }

    func run(
        adding x: Tensor<Float>, to residual: inout Tensor<Float>, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool
    ) {
        let source = RowAddress(x), sums = MutableRowAddress(&residual), target = MutableRowAddress(&y)
        pool.forEachRange(of: rows, workPerItem: 4 * factors.count) { range in
            for i in range {
                let (x, sum) = (source.address(i), sums.address(i))
                for k in 0..<factors.count { sum[k] += x[k] }
                row(sum, target.address(i))
            }
        }
        withExtendedLifetime(x) {}
    }

    /// Rows of `factors.count` channels at `offset` of every row.
    func normalize(_ x: inout Tensor<Float>, rows: Int, offset: Int, heads: Int, on pool: WorkerPool) {
        let target = MutableRowAddress(&x)
        pool.forEachRange(of: rows, workPerItem: 4 * heads * factors.count) { range in
            for i in range {
                for head in 0..<heads {
                    let x = target.address(i) + offset + head * factors.count
                    row(x, x)
                }
            }
        }
    }
}

struct RotaryEmbedding: Hashable, Sendable {
    enum Scaling: Hashable, Sendable {
        case none
        case linear(factor: Double)
        case dynamicNTK(factor: Double, originalLength: Int)
        case yarn(
            factor: Double, originalLength: Int, betaFast: Double, betaSlow: Double, attentionFactor: Double?, truncates: Bool)
        case llama3(factor: Double, lowFrequencyFactor: Double, highFrequencyFactor: Double, originalLength: Int)
    }
    let headDim: Int
    let rotatedChannels: Int
    let theta: Double
    let scaling: Scaling

    func table(positions: [Int], length: Int) -> RotaryTable {
        let half = rotatedChannels / 2
        var base = theta
        if case .dynamicNTK(let factor, let original) = scaling, rotatedChannels > 2 {
            let length = Double(max(original, length))
            base *= pow(factor * length / Double(original) - (factor - 1), Double(half) / Double(half - 1))
        }
        var frequencies = (0..<half).map { pow(base, -Double($0) / Double(half)) }
        var attention = 1.0
        switch scaling {
        case .none, .dynamicNTK: break
        case .linear(let factor): frequencies = frequencies.map { $0 / factor }
        case .yarn(let factor, let original, let fast, let slow, let attentionFactor, let truncates):
            func channel(_ rotations: Double) -> Double {
                Double(half) * log(Double(original) / (rotations * 2 * .pi)) / log(theta)
            }
            let low = max(0, truncates ? floor(channel(fast)) : channel(fast))
            let high = min(Double(rotatedChannels - 1), truncates ? ceil(channel(slow)) : channel(slow))
            for i in 0..<half {
                let ramp = min(1, max(0, (Double(i) - low) / (high == low ? 0.001 : high - low)))
                frequencies[i] = frequencies[i] / factor * ramp + frequencies[i] * (1 - ramp)
            }
            attention = attentionFactor ?? (factor > 1 ? 0.1 * log(factor) + 1 : 1)
        case .llama3(let factor, let low, let high, let original):
            frequencies = frequencies.map { frequency in
                let turns = Double(original) * frequency / (2 * .pi)
                if turns < low { return frequency / factor }
                if turns > high { return frequency }
                let smooth = (turns - low) / (high - low)
                return (1 - smooth) * frequency / factor + smooth * frequency
            }
        }
        let angles = positions.flatMap { position in frequencies.map { Double(position) * $0 } }
        return RotaryTable(
            headDim: headDim, half: half, cosines: angles.map { Float(cos($0) * attention) },
            sines: angles.map { Float(sin($0) * attention) })
    }
}

struct RotaryTable: Sendable {
    let headDim: Int
    let half: Int
    let cosines: [Float]
    let sines: [Float]

    /// Rotates the first `heads` heads of every row.
    func rotate(_ x: inout Tensor<Float>, rows: Range<Int>, heads: Int, on pool: WorkerPool) {
        let target = MutableRowAddress(&x)
        pool.forEachRange(of: rows.count, workPerItem: 4 * heads * headDim) { range in
            for row in range {
                for head in 0..<heads {
                    let x = target.address(rows.lowerBound + row) + head * headDim
                    for i in 0..<half {
                        let (cosine, sine) = (cosines[row * half + i], sines[row * half + i])
                        let (a, b) = (x[i], x[i + half])
                        x[i] = a * cosine - b * sine
                        x[i + half] = a * sine + b * cosine
                    }
                }
            }
        }
    }
}

struct FloatLinear: Sendable {
    let weight: Tensor<Float>
    let bias: Tensor<Float>?

    var byteCount: Int { weight.count * 4 + (bias?.count ?? 0) * 4 }
    var outFeatures: Int { weight.shape[0] }

    func run(_ x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool) throws(SparseKernelsError)
    {
        try GEMM(m: x.rows, n: weight.shape[0], k: weight.shape[1], transposesB: true).run(
            a: x, b: weight.matrixView(named: "weight"), c: y, on: pool)
    }
}
