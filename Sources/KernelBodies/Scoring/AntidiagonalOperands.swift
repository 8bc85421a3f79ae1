// Packing for antidiagonal scoring: query groups become panels with their tokens reversed, and panels become 6-bit codes.

import KernelInterface

/// Packs query groups as a panel [stride·headDim][lanes], with tokens in reverse order. Missing tokens and groups are zero.
@inline(never)
func packGroups(
    _ args: AntidiagonalArguments, row: Int, lanes: Int, staging: UnsafeMutablePointer<Float>,
    into packed: UnsafeMutablePointer<Float>
) {
    let scale = args.keyCodes == nil ? args.scale : 1
    for phase in 0..<args.stride {
        // The first group's token at this position of the reversed row; other groups follow `stride` apart.
        let token = row * args.stride + args.stride - 1 - phase
        let present = maximum(0, (args.queryTokens - token + args.stride - 1) / args.stride)
        let rows = minimum(lanes, minimum(present, args.groups - row))
        let panel = packed + phase * args.headDim * lanes
        if rows < lanes {
            for x in 0..<args.headDim * lanes { panel[x] = 0 }
        }
        if args.query.type == .float32 {
            transpose(
                args.query.base.assumingMemoryBound(to: Float.self) + token * args.query.stride,
                stride: args.stride * args.query.stride, rows: rows, columns: args.headDim, times: scale, into: panel,
                destinationStride: lanes)
        } else {
            for lane in 0..<rows {
                Kernels.stageRows(
                    args.query, first: token + lane * args.stride, count: 1, channels: args.headDim,
                    into: staging + lane * args.headDim)
            }
            transpose(
                staging, stride: args.headDim, rows: rows, columns: args.headDim, times: scale, into: panel,
                destinationStride: lanes)
        }
    }
}

/// Converts a float panel to codes [depth/4][lanes][4]. Each lane also gets a scale and −31·Σ codes.
@inline(never)
func encodePanel(
    _ args: AntidiagonalArguments, _ panel: UnsafePointer<Float>, lanes: Int, into codes: UnsafeMutablePointer<UInt8>,
    scales: UnsafeMutablePointer<Float>, offsets: UnsafeMutablePointer<Int32>
) {
    let depth = args.headDim * args.stride
    let padded = AntidiagonalScratch.codeDepth(headDim: args.headDim, stride: args.stride)
    let limit = splat(Float(codeLimit))
    var lane = 0
    while lane < lanes {
        var top = splat(0)
        for channel in 0..<depth { top = maximum(magnitude(load(panel + channel * lanes + lane)), top) }
        let factor = (limit / top).replacing(with: splat(0), where: top .== splat(0))
        store(top / limit * splat(args.scale), scales + lane)
        var sum = IntVector(repeating: 0)
        var channel = 0
        while channel < padded {
            var bytes = IntVector(repeating: 0)
            for i in 0..<minimum(4, maximum(0, depth - channel)) {
                let code = nearest(load(panel + (channel + i) * lanes + lane) * factor)
                sum = sum &+ code
                bytes = bytes | ((code & 0xff) &<< Int32(truncatingIfNeeded: 8 * i))
            }
            UnsafeMutableRawPointer(codes + channel * lanes + 4 * lane).storeBytes(of: bytes, as: IntVector.self)
            channel += 4
        }
        let offset = IntVector(repeating: 0) &- sum &* Int32(truncatingIfNeeded: codeLimit)
        UnsafeMutableRawPointer(offsets + lane).storeBytes(of: offset, as: IntVector.self)
        lane += laneCount
    }
}
