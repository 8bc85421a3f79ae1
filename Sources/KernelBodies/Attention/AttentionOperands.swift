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
    var lane = 0
    while lane < rows {
        // Rows of one head, which are equally spaced.
        let head = (row + lane) / args.rowsPerHead
        let token = row + lane - head * args.rowsPerHead
        let run = minimum(rows - lane, args.rowsPerHead - token)
        var query = args.query
        query.base += head * args.queryHeadStride * (query.type == .float32 ? 4 : 2)
        if query.type == .float32 {
            transpose(
                query.base.assumingMemoryBound(to: Float.self) + token * query.stride, stride: query.stride, rows: run,
                columns: args.headDim, times: scale, into: packed + lane, destinationStride: lanes)
        } else {
            for x in 0..<run {
                for channel in 0..<args.headDim {
                    packed[channel * lanes + lane + x] = element(query, token + x, channel) * scale
                }
            }
        }
        lane += run
    }
}

/// Writes O/l in the caller's layout and type. A row that saw no key gets 0 and an LSE of −∞.
@inline(never)
func writeOutput(
    _ args: AttentionArguments, row: Int, lanes: Int, accumulator: UnsafeMutablePointer<Float>,
    maxima: UnsafePointer<Float>, sums: UnsafeMutablePointer<Float>
) {
    let rows = minimum(lanes, args.queryRows - row)
    if args.writesRecords {
        writeRecords(args, row: row, lanes: lanes, accumulator: accumulator, maxima: maxima, sums: sums)
        return
    }
    if let logSumExp = args.logSumExp {
        for lane in 0..<rows {
            let head = (row + lane) / args.rowsPerHead
            let lse = Double(maxima[lane]) + log(Double(sums[lane]))
            logSumExp[head * args.logSumExpHeadStride + row + lane - head * args.rowsPerHead] =
                sums[lane] == 0 ? -.infinity : Float(lse)
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
    var lane = 0
    while lane < rows {
        let head = (row + lane) / args.rowsPerHead
        let token = row + lane - head * args.rowsPerHead
        let run = minimum(rows - lane, args.rowsPerHead - token)
        writeRows(
            args, accumulator + lane, stride: lanes, rows: run, at: head * args.outputHeadStride + token * args.outputStride)
        lane += run
    }
}

/// Writes columns of the accumulator as rows of the output.
@inline(never)
private func writeRows(
    _ args: AttentionArguments, _ accumulator: UnsafePointer<Float>, stride: Int, rows: Int, at start: Int
) {
    switch args.outputType {
    case .float32:
        transpose(
            accumulator, stride: stride, rows: args.valueDim, columns: rows, times: 1,
            into: args.output.assumingMemoryBound(to: Float.self) + start, destinationStride: args.outputStride)
    case .float16:
        let output = args.output.assumingMemoryBound(to: UInt16.self) + start
        for lane in 0..<rows {
            for channel in 0..<args.valueDim {
                output[lane * args.outputStride + channel] = narrowToHalf(accumulator[channel * stride + lane])
            }
        }
    case .bfloat16:
        let output = args.output.assumingMemoryBound(to: UInt16.self) + start
        for lane in 0..<rows {
            for channel in 0..<args.valueDim {
                output[lane * args.outputStride + channel] = narrowToBFloat16(accumulator[channel * stride + lane])
            }
        }
    }
}

/// Writes O, m and l of every row, for a merge with those of other keys.
@inline(never)
private func writeRecords(
    _ args: AttentionArguments, row: Int, lanes: Int, accumulator: UnsafePointer<Float>, maxima: UnsafePointer<Float>,
    sums: UnsafePointer<Float>
) {
    let output = args.output.assumingMemoryBound(to: Float.self)
    let padded = TokenLayout.padded(args.valueDim)
    for lane in 0..<minimum(lanes, args.queryRows - row) {
        let head = (row + lane) / args.rowsPerHead
        let token = row + lane - head * args.rowsPerHead
        let record = output + head * args.outputHeadStride + token * args.outputStride
        for channel in 0..<args.valueDim { record[channel] = accumulator[channel * lanes + lane] }
        for channel in args.valueDim..<padded { record[channel] = 0 }
        record[padded] = maxima[lane]
        record[padded + 1] = sums[lane]
    }
}
