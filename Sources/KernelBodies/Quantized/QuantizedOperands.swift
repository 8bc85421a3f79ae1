// Conversions around a quantised product: codes to float weights, scales to floats, and rows of sums to the output.
//
// These functions take no structs declared in bodies: one that several files share would emit weak functions.

import KernelInterface

/// Converts numbers of any storage type to floats. `count` is a multiple of `laneCount`.
@inline(never)
func widen(
    _ source: UnsafeRawPointer, _ type: StorageType, from first: Int, count: Int, into target: UnsafeMutablePointer<Float>
) {
    var x = 0
    switch type {
    case .float32:
        let source = source.assumingMemoryBound(to: Float.self) + first
        while x < count {
            store(load(source + x), target + x)
            x += laneCount
        }
    case .float16:
        let source = source.assumingMemoryBound(to: UInt16.self) + first
        while x < count {
            store(loadHalf(source + x), target + x)
            x += laneCount
        }
    case .bfloat16:
        let source = source.assumingMemoryBound(to: UInt16.self) + first
        while x < count {
            store(loadBFloat16(source + x), target + x)
            x += laneCount
        }
    }
}

/// Converts weights that are numbers to floats. `count` is a multiple of `laneCount`.
///
/// The weights of later steps are asked for meanwhile, so that memory is not idle while rows are multiplied with these.
@inline(never)
func widenWeights(
    _ source: UnsafeRawPointer, _ type: WeightType, from first: Int, count: Int, into target: UnsafeMutablePointer<Float>
) {
    let ahead = QuantizedScratch.bytesAhead
    var x = 0
    switch type {
    case .float32: widen(source, .float32, from: first, count: count, into: target)
    case .float16:
        let source = source.assumingMemoryBound(to: UInt16.self) + first
        while x < count {
            store(loadHalf(source + x), target + x)
            prefetch((UnsafeRawPointer(source + x) + ahead).assumingMemoryBound(to: Float.self))
            x += laneCount
        }
    case .bfloat16:
        let source = source.assumingMemoryBound(to: UInt16.self) + first
        while x < count {
            store(loadBFloat16(source + x), target + x)
            prefetch((UnsafeRawPointer(source + x) + ahead).assumingMemoryBound(to: Float.self))
            x += laneCount
        }
    case .e4m3:
        while x < count {
            store(loadE4M3(source + first + x), target + x)
            prefetch((source + first + x + ahead).assumingMemoryBound(to: Float.self))
            x += laneCount
        }
    case .e5m2:
        while x < count {
            store(loadE5M2(source + first + x), target + x)
            prefetch((source + first + x + ahead).assumingMemoryBound(to: Float.self))
            x += laneCount
        }
    }
}

/// Bytes of one weight.
@_transparent
func byteCount(_ type: WeightType) -> Int {
    switch type {
    case .float32: 4
    case .float16, .bfloat16: 2
    case .e4m3, .e5m2: 1
    }
}

/// Expands the codes of `channels` channels to weights [channels][lanes]: code · scale − offset.
@inline(never)
func expandWeights(
    _ args: QuantizedProductArguments, channel: Int, channels: Int, scales: UnsafePointer<Float>,
    offsets: UnsafePointer<Float>?,
    lanes: Int, into target: UnsafeMutablePointer<Float>
) {
    let bytes = 4 * laneCount
    var first = 0
    while first < channels {
        let group = first / args.groupSize * lanes
        for vector in 0..<lanes / laneCount {
            let lane = vector * laneCount
            let scale = load(scales + group + lane)
            var offset = splat(0)
            if let offsets { offset = load(offsets + group + lane) }
            var step = 0
            while step < 8 {
                var codes: CodeVector
                if args.isByte {
                    codes = (args.panel + (channel + first + step) * lanes + vector * bytes).loadUnaligned(as: CodeVector.self)
                } else {
                    let packed = (args.panel + (channel + first) * lanes / 2 + vector * bytes).loadUnaligned(
                        as: CodeVector.self)
                    codes = lookUp(step == 0 ? nibblesInBytes(packed).low : nibblesInBytes(packed).high, args.table)
                }
                var word = byteSums(codes)
                for i in 0..<4 {
                    // Shifting the lowest byte to the top and back extends its sign.
                    let value = multiplyAdd(floats((word &<< 24) &>> 24), scale, splat(0) - offset)
                    store(value, target + (first + step + i) * lanes + lane)
                    word = word &>> 8
                }
                step += 4
            }
        }
        first += 8
    }
}

/// C = C · channel scale + bias + low · up.
@_transparent
func finishSums(
    _ args: QuantizedProductArguments, _ c: UnsafeMutablePointer<Float>, up: UnsafePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    if args.channelScales == nil && args.bias == nil && args.low == nil { return }
    // `map` is avoided here: optional rows would emit outlined copies, which are weak symbols.
    var factor = splatRow(1)
    if let scales = args.channelScales { factor = loadRow(scales, width: width) }
    var bias = splatRow(0)
    if let given = args.bias { bias = loadRow(given, width: width) }
    for row in 0..<args.rows {
        let line = c + row * lanes
        store(multiplyAdd(loadRow(line, width: width), factor, bias), line, width: width)
    }
    guard let low = args.low else { return }
    var row = 0
    while row < args.rows {
        var tile = zeroTile()
        let rows = rowPointers(low + row * args.lowStride, stride: args.lowStride, count: args.rows - row)
        accumulate(&tile, rows, step: 1, panel: up, depth: args.rank, width: width)
        add(&tile, c + row * lanes, stride: lanes, width: width)
        store(tile, c + row * lanes, stride: lanes, width: width)
        row += tileRows
    }
}

/// Applies the output function to the sums and writes them in the output's type, without lanes past the last column.
@inline(never)
func writeRows(_ args: QuantizedProductArguments, _ c: UnsafeMutablePointer<Float>, lanes: Int) {
    for row in 0..<args.rows {
        let line = c + row * lanes
        switch args.function {
        case .none: break
        case .gelu:
            for x in 0..<lanes / laneCount { store(geluTanh(load(line + x * laneCount)), line + x * laneCount) }
        case .silu:
            for x in 0..<lanes / laneCount { store(silu(load(line + x * laneCount)), line + x * laneCount) }
        case .geluErf:
            for x in 0..<lanes / laneCount { store(gelu(load(line + x * laneCount)), line + x * laneCount) }
        }
        var column = 0
        switch args.yType {
        case .float32:
            let y = args.y.assumingMemoryBound(to: Float.self) + row * args.yStride
            while column + laneCount <= args.columns {
                store(load(line + column), y + column)
                column += laneCount
            }
            while column < args.columns {
                y[column] = line[column]
                column += 1
            }
        case .float16:
            let y = args.y.assumingMemoryBound(to: UInt16.self) + row * args.yStride
            while column + laneCount <= args.columns {
                storeLowHalves(halfBits(load(line + column)), y + column)
                column += laneCount
            }
            while column < args.columns {
                y[column] = narrowToHalf(line[column])
                column += 1
            }
        case .bfloat16:
            let y = args.y.assumingMemoryBound(to: UInt16.self) + row * args.yStride
            while column + laneCount <= args.columns {
                storeLowHalves(bfloat16Bits(load(line + column)), y + column)
                column += laneCount
            }
            while column < args.columns {
                y[column] = narrowToBFloat16(line[column])
                column += 1
            }
        }
    }
}
