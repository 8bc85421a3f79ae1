import Foundation
import NemotronH
import SparseKernelsReference

/// A Mamba-2 mixer in `Double`, token by token, from its definition.
struct ReferenceMamba2 {
    private let c: Mamba2Configuration
    private let tensors: Mamba2Tensors
    private var noise: UInt64?
    /// The last inputs of the convolution, the oldest first, and the state of each head, `[stateSize][headDim]`.
    private(set) var window: [[Double]]
    private(set) var states: [[Double]]

    init(_ tensors: Mamba2Tensors, _ configuration: Mamba2Configuration, noise: UInt64? = nil) {
        (c, self.tensors, self.noise) = (configuration, tensors, noise.map { $0 &* 0x9E37_79B9_7F4A_7C15 | 1 })
        window = Array(repeating: Array(repeating: 0, count: c.convolvedWidth), count: c.convolutionWidth - 1)
        states = Array(repeating: Array(repeating: 0, count: c.stateSize * c.headDim), count: c.heads)
    }

    /// The outputs of one sequence, and how far those of single precision may be: the largest change that three kinds of noise make,
    /// each of which moves every result by what rounding may, in a random direction.
    static func outputs(
        _ projected: [[Double]], _ tensors: Mamba2Tensors, _ configuration: Mamba2Configuration
    ) -> (rows: [[Double]], tolerance: Double) {
        var exact = ReferenceMamba2(tensors, configuration)
        let rows = projected.map { exact.step($0) }
        var tolerance = 0.0
        for seed: UInt64 in 1...3 {
            var noisy = ReferenceMamba2(tensors, configuration, noise: seed)
            for (row, other) in zip(projected.map({ noisy.step($0) }), rows) {
                for (a, b) in zip(row, other) { tolerance = max(tolerance, abs(a - b)) }
            }
        }
        return (rows, tolerance)
    }

    private mutating func moved(_ value: Double, by size: Double) -> Double {
        guard let state = noise else { return value }
        noise = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return value + (noise! >> 63 == 0 ? size : -size)
    }

    /// The output of the next token, from its row of the first projection.
    mutating func step(_ projected: [Double]) -> [Double] {
        window.append(Array(projected[c.convolvedColumns]))
        let convolved = (0..<c.convolvedWidth).map { channel in
            var sum = tensors.convolutionBias.map { Double($0[flat: channel]) } ?? 0
            var size = abs(sum)
            for tap in 0..<c.convolutionWidth {
                let product = window[tap][channel] * Double(tensors.convolutionWeight[channel, tap])
                sum += product
                size += abs(product)
            }
            return moved(sum / (1 + exp(-sum)), by: 0x1p-20 * size)
        }
        window.removeFirst()
        var y: [Double] = []
        for head in 0..<c.heads {
            let raw = projected[c.timeStepColumns.lowerBound + head] + Double(tensors.timeStepBias[flat: head])
            let dt = min(
                max(log1p(exp(raw)), Double(c.timeStepLimits.lowerBound)), Double(c.timeStepLimits.upperBound))
            let decay = exp(-dt * exp(Double(tensors.aLog[flat: head])))
            let group = head / (c.heads / c.groups)
            let x = Array(convolved[head * c.headDim..<(head + 1) * c.headDim])
            var row = x.map { $0 * Double(tensors.skip[flat: head]) }
            var sizes = row.map(abs)
            for n in 0..<c.stateSize {
                let b = convolved[c.innerWidth + group * c.stateSize + n]
                let q = convolved[c.innerWidth + (c.groups + group) * c.stateSize + n]
                for p in 0..<c.headDim {
                    let (old, new) = (decay * states[head][n * c.headDim + p], dt * b * x[p])
                    let state = moved(old + new, by: 0x1p-21 * (abs(old) + abs(new)))
                    states[head][n * c.headDim + p] = state
                    row[p] += q * state
                    sizes[p] += abs(q * state)
                }
            }
            for (value, size) in zip(row, sizes) { y.append(moved(value, by: 0x1p-20 * size)) }
        }
        let gated = y.indices.map { i in
            let u = y[i] * projected[i] / (1 + exp(-projected[i]))
            return moved(u, by: 0x1p-20 * abs(u))
        }
        let width = c.innerWidth / c.groups
        return (0..<c.groups).flatMap { group in
            let part = gated[group * width..<(group + 1) * width]
            let root = (part.reduce(0) { $0 + $1 * $1 } / Double(width) + Double(c.epsilon)).squareRoot()
            return part.indices.map { i in
                let value = gated[i] / root * Double(tensors.normWeight[flat: i])
                return moved(value, by: 0x1p-21 * abs(value))
            }
        }
    }
}
