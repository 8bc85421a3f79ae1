// Copies patches of a picture in planes to rows, [channels][p][p]: the rows of A in the product that embeds them. Bytes become
// scale · byte + offset on the way.
//
// A stretch of a patch is p elements, 14 or 16 for most towers. It is copied with the widest vectors that fit, of which the last
// reaches back, so that p = 14 is two vectors of eight.

public import KernelInterface

extension Kernels {
    /// See `PatchArguments`.
    public static func copyPatches(_ arguments: UnsafePointer<PatchArguments>) {
        let args = arguments.pointee
        for index in 0..<args.count {
            var patch = args.first + index
            if let list = args.patches { patch = Int(list[patch]) }
            let (row, column) = (patch / args.gridColumns, patch % args.gridColumns)
            let place = row * args.side * args.rowStride + column * args.side
            let target = args.rows + index * args.stride
            if args.isBytes {
                copyBytes(args, args.picture.assumingMemoryBound(to: UInt8.self) + place, target)
            } else if args.side >= laneCount {
                copyVectors(args, args.picture.assumingMemoryBound(to: Float.self) + place, target)
            } else if args.side >= 8 {
                copyEights(args, args.picture.assumingMemoryBound(to: Float.self) + place, target)
            } else {
                copySingly(args, args.picture.assumingMemoryBound(to: Float.self) + place, target)
            }
        }
    }
}

@inline(never)
private func copyVectors(_ args: PatchArguments, _ source: UnsafePointer<Float>, _ row: UnsafeMutablePointer<Float>) {
    var target = row
    for channel in 0..<args.channels {
        var line = source + channel * args.planeStride
        for _ in 0..<args.side {
            var x = 0
            while x < args.side {
                x = minimum(x, args.side - laneCount)
                store(load(line + x), target + x)
                x += laneCount
            }
            target += args.side
            line += args.rowStride
        }
    }
}

/// Eight to sixteen elements, where vectors are longer.
@inline(never)
private func copyEights(_ args: PatchArguments, _ source: UnsafePointer<Float>, _ row: UnsafeMutablePointer<Float>) {
    var target = UnsafeMutableRawPointer(row)
    let last = (args.side - 8) * 4
    for channel in 0..<args.channels {
        var line = UnsafeRawPointer(source + channel * args.planeStride)
        for _ in 0..<args.side {
            let (head, tail) = (line.loadUnaligned(as: SIMD8<Float>.self), (line + last).loadUnaligned(as: SIMD8<Float>.self))
            target.storeBytes(of: head, as: SIMD8<Float>.self)
            (target + last).storeBytes(of: tail, as: SIMD8<Float>.self)
            target += args.side * 4
            line += args.rowStride * 4
        }
    }
}

@inline(never)
private func copySingly(_ args: PatchArguments, _ source: UnsafePointer<Float>, _ row: UnsafeMutablePointer<Float>) {
    var target = row
    for channel in 0..<args.channels {
        var line = source + channel * args.planeStride
        for _ in 0..<args.side {
            for x in 0..<args.side { target[x] = line[x] }
            target += args.side
            line += args.rowStride
        }
    }
}

@inline(never)
private func copyBytes(_ args: PatchArguments, _ source: UnsafePointer<UInt8>, _ row: UnsafeMutablePointer<Float>) {
    var target = row
    for channel in 0..<args.channels {
        let (scale, offset) = (args.scale[channel], args.offset[channel])
        var line = source + channel * args.planeStride
        for _ in 0..<args.side {
            for x in 0..<args.side { target[x] = scale * Float(line[x]) + offset }
            target += args.side
            line += args.rowStride
        }
    }
}
