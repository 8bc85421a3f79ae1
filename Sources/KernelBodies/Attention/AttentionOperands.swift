// Packs the queries of a block and writes its output in the caller's layout and type. This happens once per block, so plain
// loops around the vector transposes and conversions suffice.
//
// These functions take no structs declared in bodies: one that several files share would emit weak functions.

import KernelInterface

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// Packs Q as a panel [headDim][lanes], times softmaxScale (or softmaxScale/cap, see `foldsSoftCap`). Missing rows are zero.
@inline(never)
func packQueries(_ args: AttentionArguments, row: Int, lanes: Int, into packed: UnsafeMutablePointer<Float>) {
    let scale = foldsSoftCap(args.logitsSoftCap) ? args.softmaxScale / args.logitsSoftCap : args.softmaxScale
    let rows = minimum(lanes, args.queryRows - row)
    if rows < lanes {
        for x in 0..<lanes * args.headDim { packed[x] = 0 }
    }
    if args.query.type == .float32 {
        let source = args.query.base.assumingMemoryBound(to: Float.self) + row * args.query.stride
        transpose(
            source, stride: args.query.stride, rows: rows, columns: args.headDim, times: scale, into: packed,
            destinationStride: lanes)
    } else {
        for lane in 0..<rows {
            for channel in 0..<args.headDim {
                packed[channel * lanes + lane] = element(args.query, row + lane, channel) * scale
            }
        }
    }
}

/// Writes O/l in the caller's layout and type. A row that saw no key gets 0 and an LSE of −∞.
@inline(never)
func writeOutput(
    _ args: AttentionArguments, row: Int, lanes: Int, accumulator: UnsafeMutablePointer<Float>,
    maxima: UnsafePointer<Float>, sums: UnsafeMutablePointer<Float>
) {
    let rows = minimum(lanes, args.queryRows - row)
    if let logSumExp = args.logSumExp {
        for lane in 0..<rows {
            let lse = Double(maxima[lane]) + log(Double(sums[lane]))
            logSumExp[row + lane] = sums[lane] == 0 ? -.infinity : Float(lse)
        }
    }
    for lane in 0..<lanes { sums[lane] = sums[lane] == 0 ? 0 : 1 / sums[lane] }
    for channel in 0..<args.valueDim {
        for x in 0..<lanes / laneCount {
            let pointer = accumulator + channel * lanes + x * laneCount
            let factor = load(sums + x * laneCount)
            // Selected, because hidden values that are not finite may have left 0·∞ = NaN here, which times 0 stays NaN.
            store((load(pointer) * factor).replacing(with: splat(0), where: factor .== splat(0)), pointer)
        }
    }
    let start = row * args.outputStride
    switch args.outputType {
    case .float32:
        transpose(
            accumulator, stride: lanes, rows: args.valueDim, columns: rows, times: 1,
            into: args.output.assumingMemoryBound(to: Float.self) + start, destinationStride: args.outputStride)
    case .float16:
        let output = args.output.assumingMemoryBound(to: UInt16.self) + start
        for lane in 0..<rows {
            for channel in 0..<args.valueDim {
                output[lane * args.outputStride + channel] = narrowToHalf(accumulator[channel * lanes + lane])
            }
        }
    case .bfloat16:
        let output = args.output.assumingMemoryBound(to: UInt16.self) + start
        for lane in 0..<rows {
            for channel in 0..<args.valueDim {
                output[lane * args.outputStride + channel] = narrowToBFloat16(accumulator[channel * lanes + lane])
            }
        }
    }
}
