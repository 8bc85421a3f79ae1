internal import SparseKernels

/// Sums of rows, vector by vector, in ranges that do not depend on the pool.
enum RowArithmetic {
    /// target ← (target + source) · factor, for the first `count` elements.
    static func add(
        _ source: Tensor<Float>, to target: inout Tensor<Float>, count: Int, factor: Float, _ pool: WorkerPool
    ) {
        source.span.withUnsafeBufferPointer { source in
            var span = target.mutableSpan
            span.withUnsafeMutableBufferPointer { target in
                guard let from = source.baseAddress, let to = target.baseAddress else { return }
                let lines = Addresses(source: from, target: to)
                pool.forEachRange(of: (count + 1023) / 1024, workPerItem: 12 * 1024) { range in
                    let end = min(count, range.upperBound * 1024)
                    sum(lines.source, lines.target, from: range.lowerBound * 1024, to: end, factor)
                }
            }
        }
    }

    private static func sum(
        _ source: UnsafePointer<Float>, _ target: UnsafeMutablePointer<Float>, from start: Int, to end: Int, _ factor: Float
    ) {
        var index = start
        while index + 16 <= end {
            let a = UnsafeRawPointer(target + index).loadUnaligned(as: SIMD16<Float>.self)
            let b = UnsafeRawPointer(source + index).loadUnaligned(as: SIMD16<Float>.self)
            UnsafeMutableRawPointer(target + index).storeBytes(of: (a + b) * factor, as: SIMD16<Float>.self)
            index += 16
        }
        while index < end {
            target[index] = (target[index] + source[index]) * factor
            index += 1
        }
    }
}

/// Memory that tasks of a call share, each its own part of the target.
struct Addresses: @unchecked Sendable {
    let source: UnsafePointer<Float>
    let target: UnsafeMutablePointer<Float>
}
