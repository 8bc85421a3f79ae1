// Vectors of channels of the selective scan, which may be its last ones, and step sizes.

import KernelInterface

/// A vector of channels of a row, and 0 in lanes beyond the last of `rest` channels.
@_transparent
func scanLanes(_ operand: RowOperand, _ row: Int, _ channel: Int, _ rest: Int) -> Vector {
    let base = operand.base + row * operand.stride * byteCount(operand.type)
    return loadPart(base, operand.type, channel, channel + rest)
}

/// Stores those lanes of a vector that are channels.
@_transparent
func storeScanLanes(_ value: Vector, _ target: RowTarget, _ row: Int, _ channel: Int, _ rest: Int) {
    let base = target.base + row * target.stride * byteCount(target.type)
    storePart(value, base, target.type, channel, channel + rest)
}

/// Δ of a biased number.
@_transparent
func stepSize(_ args: ScanArguments, _ value: Vector) -> Vector {
    args.appliesSoftplus
        ? softplus(positive: maximum(splat(0), value), power: exp(negativeMagnitude(value))) : value
}

/// Whether the exponents of some channel leave −125…125, with the largest |Δ| and the fastest |decay| of every channel.
@_transparent
func needsLimits(_ largest: Vector, _ fastest: UnsafePointer<Float>) -> Bool {
    signBits(splat(125) - largest * load(fastest)) != 0
}

/// A vector of an array that may be absent, which means zeros.
@_transparent
func lanesOrZero(_ array: UnsafePointer<Float>?, _ channel: Int) -> Vector {
    if let array { return load(array + channel) }
    return splat(0)
}
