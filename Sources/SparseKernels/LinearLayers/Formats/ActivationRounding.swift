internal import KernelInterface

/// Quantises and dequantises activations, which gives the values that the integer product of a layer uses for x.
struct ActivationRounding: Sendable {
    let format: ActivationFormat
    /// Channels that share a scale, which are the groups of the weights; nil means weights of whole rows, where it is 128.
    let groupSize: Int?
    /// The type of x in the running layer. Smoothed values and scales are rounded to it.
    let storage: StorageType

    /// Rounds smoothed and shifted values in place by the rules of the kernel, operation by operation.
    func round(_ values: UnsafeMutablePointer<Float>, _ count: Int) {
        if storage != .float32 {
            for i in 0..<count { values[i] = storage.rounded(values[i]) }
        }
        let group = format == .int8PerToken ? count : groupSize ?? PackedLayout.groupOfWholeRows
        for start in stride(from: 0, to: count, by: group) {
            let values = values + start
            let length = min(group, count - start)
            switch format {
            case .float: return
            case .int8PerToken: perToken(values, length)
            case .int8PerGroup: perGroup(values, length, 1 / 127, -127, 127)
            case .int4: perGroup(values, length, 1 / 7, -7, 7)
            case .uint4: perGroup(values, length, 1 / 15, 0, 15)
            case .fp4: nvfp4(values, length)
            }
        }
    }

    private func perToken(_ values: UnsafeMutablePointer<Float>, _ count: Int) {
        let scale = storage.rounded(largestMagnitude(values, count) / 127)
        let isZero = scale < .leastNormalMagnitude
        for i in 0..<count {
            values[i] = isZero ? 0 : clamped(Float(roundedToInteger(values[i] / scale)), -127, 127) * scale
        }
    }

    /// Codes are computed with the scale before it is rounded, and multiplied by the rounded one, as on the GPU.
    private func perGroup(
        _ values: UnsafeMutablePointer<Float>, _ count: Int, _ step: Float, _ low: Float, _ high: Float
    ) {
        let scale = largestMagnitude(values, count) * step
        let isZero = scale < .leastNormalMagnitude
        let stored = isZero ? 0 : storage.rounded(scale)
        let factor = isZero ? 0 : 1 / scale
        for i in 0..<count { values[i] = clamped(Float(roundedToInteger(values[i] * factor)), low, high) * stored }
    }

    private func nvfp4(_ values: UnsafeMutablePointer<Float>, _ count: Int) {
        let quotient = largestMagnitude(values, count) * (1 / E2M1.greatestFiniteMagnitude)
        let isZero = quotient == 0
        let scale = clamped(quotient, E4M3.leastNonzeroMagnitude, E4M3.greatestFiniteMagnitude)
        let (stored, factor) = (E4M3(scale).floatValue, 1 / scale)
        for i in 0..<count {
            values[i] = isZero ? 0 : E2M1.value(ofCode: E2M1.code(for: values[i] * factor, ties: .toEven)) * stored
        }
    }
}

extension StorageType {
    /// The type to which scales, factors and smoothing are rounded.
    init(scaleType: ElementType) throws(SparseKernelsError) {
        switch scaleType {
        case .float32: self = .float32
        case .float16: self = .float16
        case .bfloat16: self = .bfloat16
        default:
            throw SparseKernelsError(
                .invalidElementType, "scaleType", expected: "F16, BF16 or F32", actual: scaleType.rawValue)
        }
    }
}
