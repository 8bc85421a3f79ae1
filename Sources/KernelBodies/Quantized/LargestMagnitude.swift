// The largest |x| of some rows. Magnitudes are compared as integers, in which NaN is above ∞.

public import KernelInterface

extension Kernels {
    public static func largestMagnitude(_ x: RowOperand, rows: Int, columns: Int) -> Float {
        var largestLanes = IntVector(repeating: 0)
        for row in 0..<rows {
            let base = x.base + row * x.stride * byteCount(x.type)
            var (a, b) = (largestLanes, IntVector(repeating: 0))
            var column = 0
            while column + 2 * laneCount <= columns {
                a = maximum(a, magnitudeBits(loadLanes(base, x.type, column)))
                b = maximum(b, magnitudeBits(loadLanes(base, x.type, column + laneCount)))
                column += 2 * laneCount
            }
            while column < columns {
                let rest = columns - column
                a = maximum(
                    a,
                    magnitudeBits(
                        rest >= laneCount
                            ? loadLanes(base, x.type, column) : loadLastLanes(base, x.type, column, rest, filler: 0)))
                column += laneCount
            }
            largestLanes = maximum(a, b)
        }
        return Float(bitPattern: UInt32(bitPattern: largest(largestLanes)))
    }
}

@_transparent
private func magnitudeBits(_ value: Vector) -> IntVector { unsafeBitCast(value, to: IntVector.self) & 0x7fff_ffff }
