internal import SparseKernels

/// The parts of a block between attention and linear layers, each one pass over its operands, parallel over rows.
///
/// A bias that the linear layer before has left out is added here, because a pass of its own would move its output through
/// memory once more. Rows are computed in one order whatever the pool, so results are the same bits for any number of threads.
enum VideoPasses {
    /// LayerNorm without weights, modulated: y = (x − mean) / √(variance + ε) · (1 + scale) + shift, row by row.
    static func modulate(
        _ x: Tensor<Float>, shift: [Float], scale: [Float], into y: inout Tensor<Float>, on pool: WorkerPool
    ) {
        let (rows, d) = (x.shape[0], x.shape[1])
        let epsilon = VideoTransformerConfiguration.layerNormEpsilon
        let factors = scale.map { 1 + $0 }
        let source = Rows(x), target = MutableRows(&y)
        pool.forEachRange(of: rows, workPerItem: 4 * d) { range in
            for row in range {
                let (x, y) = (source.address(row), target.address(row))
                let mean = sum(x, d) { $0 } / Float(d)
                let variance = sum(x, d) { ($0 - mean) * ($0 - mean) } / Float(d)
                let inverse = 1 / (variance + epsilon).squareRoot()
                for i in 0..<d { y[i] = (x[i] - mean) * inverse * factors[i] + shift[i] }
            }
        }
        withExtendedLifetime(x) {}
    }

    /// sum += gate · (x + bias), row by row.
    static func addGated(
        _ x: Tensor<Float>, bias: [Float]?, gate: [Float], to sum: inout Tensor<Float>, on pool: WorkerPool
    ) {
        let (rows, d) = (x.shape[0], x.shape[1])
        let bias = bias ?? [Float](repeating: 0, count: d)
        let source = Rows(x), target = MutableRows(&sum)
        pool.forEachRange(of: rows, workPerItem: 4 * d) { range in
            for row in range {
                let (x, y) = (source.address(row), target.address(row))
                for i in 0..<d { y[i] += gate[i] * (x[i] + bias[i]) }
            }
        }
        withExtendedLifetime(x) {}
    }

    /// x = GELU(x + bias) by the tanh approximation, in place.
    static func gelu(_ x: inout Tensor<Float>, bias: [Float], on pool: WorkerPool) {
        let (rows, d) = (x.shape[0], x.shape[1])
        let target = MutableRows(&x)
        pool.forEachRange(of: rows, workPerItem: 16 * d) { range in
            for row in range {
                let x = target.address(row)
                bias.withUnsafeBufferPointer { bias in
                    for i in stride(from: 0, to: d - d % 8, by: 8) {
                        let values = load8(x + i) + load8(bias.baseAddress! + i)
                        UnsafeMutableRawPointer(x + i).storeBytes(of: geluOf(values), as: SIMD8<Float>.self)
                    }
                    for i in d - d % 8..<d { x[i] = geluOf(SIMD8(repeating: x[i] + bias[i]))[0] }
                }
            }
        }
    }

    /// Splits rows of q, k and v, each head by head, into `[heads, tokens, headDim]`; queries and keys normalised by RMSNorm per
    /// head and rotated.
    static func splitHeads(
        _ qkv: Tensor<Float>, bias: [Float]?, queryNorm: [Float], keyNorm: [Float], epsilon: Float, rotation: VideoRotation,
        into parts: inout (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>), on pool: WorkerPool
    ) {
        let (tokens, headDim, heads) = (qkv.shape[0], 2 * rotation.pairs, parts.query.shape[0])
        let d = heads * headDim
        let bias = bias ?? [Float](repeating: 0, count: 3 * d)
        let source = Rows(qkv)
        let targets = (MutableRows(&parts.query), MutableRows(&parts.key), MutableRows(&parts.value))
        pool.forEachRange(of: tokens, workPerItem: 12 * d) { range in
            for token in range {
                let row = source.address(token)
                for head in 0..<heads {
                    let at = head * headDim
                    let target = head * tokens + token
                    rotate(
                        row + at, bias, at, queryNorm, epsilon, rotation, token, into: targets.0.base + target * headDim)
                    rotate(
                        row + d + at, bias, d + at, keyNorm, epsilon, rotation, token, into: targets.1.base + target * headDim)
                    let value = targets.2.base + target * headDim
                    for i in 0..<headDim { value[i] = row[2 * d + at + i] + bias[2 * d + at + i] }
                }
            }
        }
        withExtendedLifetime(qkv) {}
    }

    @inline(__always)
    private static func rotate(
        _ x: UnsafePointer<Float>, _ bias: [Float], _ at: Int, _ weight: [Float], _ epsilon: Float, _ rotation: VideoRotation,
        _ token: Int, into y: UnsafeMutablePointer<Float>
    ) {
        let pairs = rotation.pairs
        var squares: Float = 0
        for i in 0..<2 * pairs {
            y[i] = x[i] + bias[at + i]
            squares += y[i] * y[i]
        }
        let factor = 1 / (squares / Float(2 * pairs) + epsilon).squareRoot()
        for pair in 0..<pairs {
            let (cosine, sine) = (rotation.cosines[token * pairs + pair], rotation.sines[token * pairs + pair])
            let first = y[2 * pair] * factor * weight[2 * pair]
            let second = y[2 * pair + 1] * factor * weight[2 * pair + 1]
            y[2 * pair] = first * cosine - second * sine
            y[2 * pair + 1] = first * sine + second * cosine
        }
    }

    // MARK: - Arithmetic

    /// The sum of a function of the elements, in eight partial sums, so that the compiler may use vectors.
    @inline(__always)
    private static func sum(
        _ x: UnsafePointer<Float>, _ count: Int, _ term: (SIMD8<Float>) -> SIMD8<Float>
    ) -> Float {
        var sums = SIMD8<Float>.zero
        for i in stride(from: 0, to: count - count % 8, by: 8) { sums += term(load8(x + i)) }
        var total = sums.sum()
        for i in count - count % 8..<count { total += term(SIMD8(repeating: x[i]))[0] }
        return total
    }

    @inline(__always)
    private static func load8(_ address: UnsafePointer<Float>) -> SIMD8<Float> {
        UnsafeRawPointer(address).loadUnaligned(as: SIMD8<Float>.self)
    }

    /// ½ x (1 + tanh u) = x / (1 + e^(−2u)), u = √(2/π) (x + 0.044715 x³). The relative error is below 10⁻⁶; NaN stays NaN.
    @inline(__always)
    static func geluOf(_ x: SIMD8<Float>) -> SIMD8<Float> {
        let inner = x * (1 + 0.044715 * x * x)
        return x / (1 + exponential(-1.595_769_1 * inner))
    }

    /// e^y for |y| ≤ 87, clamped there: 2^k · e^f with |f| ≤ ½ ln 2, and the Taylor series of e^f, whose error is below 10⁻⁷.
    @inline(__always)
    private static func exponential(_ y: SIMD8<Float>) -> SIMD8<Float> {
        let limit = SIMD8<Float>(repeating: 87)
        let y = y.replacing(with: limit, where: y .> limit).replacing(with: -limit, where: y .< -limit)
        // Adding 1.5 · 2²³ leaves the nearest integer in the low bits of the sum.
        let magic: Float = 12_582_912
        let shifted = y * 1.442_695_04 + magic
        let k = shifted - magic
        // ln 2 in two parts, the first with few bits, so that k times it is exact.
        let f = (y - k * 0.693_359_375) + k * 2.121_944_4e-4
        var series = f * (1.0 / 720) + (1.0 / 120)
        series = series * f + (1.0 / 24)
        series = series * f + (1.0 / 6)
        series = series * f + 0.5
        series = series * f + 1
        series = series * f + 1
        let exponent = unsafeBitCast(shifted, to: SIMD8<UInt32>.self) &<< 23
        return unsafeBitCast(unsafeBitCast(series, to: SIMD8<UInt32>.self) &+ exponent, to: SIMD8<Float>.self)
    }

    // MARK: - Addresses

    /// The rows of a matrix for the threads of a pass, which ends before the matrix does.
    private struct Rows: @unchecked Sendable {
        let base: UnsafePointer<Float>
        let columns: Int

        init(_ tensor: borrowing Tensor<Float>) {
            base = tensor.span.withUnsafeBufferPointer { $0.baseAddress! }
            columns = tensor.shape.last!
        }

        func address(_ row: Int) -> UnsafePointer<Float> { base + row * columns }
    }

    /// The rows that a pass writes, each by one thread.
    private struct MutableRows: @unchecked Sendable {
        let base: UnsafeMutablePointer<Float>
        let columns: Int

        init(_ tensor: inout Tensor<Float>) {
            columns = tensor.shape.last!
            var elements = tensor.mutableSpan
            base = elements.withUnsafeMutableBufferPointer { $0.baseAddress! }
        }

        func address(_ row: Int) -> UnsafeMutablePointer<Float> { base + row * columns }
    }
}
