/// Rounds the weights of a linear layer to nearest, with scales that cover the range of each group.
///
/// | Codes | Scale | Code |
/// |---|---|---|
/// | `int4`, `int8` | max \|w\| / 7 or / 127, rounded to `scaleType` | w / scale to nearest even, within ±7 or ±127 |
/// | `uint4` | (max − min) / 15 over the group and 0, rounded to `scaleType` | w / scale to nearest even, plus the zero point, within 0…15 |
/// | `fp4` | max \|w\| / 6 / t to E4M3, t = max \|W\| / 6 / 448 of the whole weight rounded to `scaleType` | w / (scale · t) to nearest E2M1, ties toward zero |
///
/// The zero point of `uint4` is −min / scale to nearest even, 0…15, and offset = scale · zero point, which is exact for scales
/// of 16 bits. This is GPTQ's rule, whose range includes 0, so that no zero point is out of range. AWQ's range need not include
/// 0, and a group of one sign far from 0 is then clipped.
///
/// A scale that rounds to 0, for example that of a group of zeros, becomes 1, and its codes are 0. The last group of a row may
/// be short. Codes are computed with the rounded scale, so a weight that is quantised again has the same codes.
///
/// - Results are bitwise equal for every number of threads.
/// - Source: SVDQuant, `deepcompressor/quantizer/impl` (symmetric, E2M1); GPTQ, `quant.py`, `find_params` (asymmetric).
public struct WeightQuantizer: Sendable {
    public let format: WeightFormat
    /// The type to which scales are rounded before codes are computed.
    public let scaleType: ElementType

    /// - Parameters:
    ///   - format: the kind of code and the group size.
    ///   - scaleType: `.float16`, `.bfloat16` or `.float32`. The group scales of `fp4` are always E4M3; the scale of the whole
    ///     weight stays `.float32` where it is below the normal range of the type.
    /// - Throws: `.invalidElementType` for another scale type.
    public init(_ format: WeightFormat, scaleType: ElementType = .float16) throws(SparseKernelsError) {
        try require(
            [.float16, .bfloat16, .float32].contains(scaleType), .invalidElementType, "scaleType",
            expected: "F16, BF16 or F32", actual: scaleType.rawValue)
        self.format = format
        self.scaleType = scaleType
    }

    /// Quantises a weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` "weight" for an element that is not finite, naming its row and column, or for a group whose
    ///   scale is beyond `scaleType`.
    /// - Complexity: O(outFeatures · inFeatures). Scratch: one byte per column for each thread.
    public func callAsFunction(
        _ weight: MatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedWeight {
        try grid(for: weight, on: pool).quantize(weight, on: pool)
    }

    /// Quantises a weight, `[outFeatures, inFeatures]`.
    /// - Throws: the errors of the call with a view, and `.invalidShape` for another rank.
    public func callAsFunction(
        _ weight: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedWeight {
        try self(weight.matrixView(named: "weight"), on: pool)
    }

    /// Computes only the scales and offsets.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of quantising the weight.
    /// - Complexity: O(outFeatures · inFeatures).
    public func grid(
        for weight: MatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> WeightGrid {
        try weight.requireElements(named: "weight")
        let (source, columns, quantizer) = (MatrixRows(weight), weight.columns, self)
        let groups = format.groups(inFeatures: columns)
        var scales = try Tensor<Float>(zeros: [source.rows, groups])
        var offsets = format.code == .uint4 ? try Tensor<Float>(zeros: [source.rows, groups]) : nil
        var maxima = try Tensor<Float>(zeros: [source.rows])
        // Pointers are used only until this call returns, which borrows the view and owns the tensors.
        nonisolated(unsafe) let scaleRows = scales.mutableAddress()
        nonisolated(unsafe) let maximumRows = maxima.mutableAddress()
        nonisolated(unsafe) let offsetRows = offsets?.mutableAddress()
        pool.forEachRowRange(source.rows, workPerRow: columns) { range, _ in
            for row in range {
                quantizer.measure(
                    source[row], columns, scales: scaleRows + row * groups, offsets: offsetRows.map { $0 + row * groups })
                // The largest scale, or one that is not finite.
                maximumRows[row] = largestMagnitude(scaleRows + row * groups, groups)
            }
        }
        try check(weight, largestScales: maxima)
        var channelScales: Tensor<Float>?
        if format.code == .fp4 {
            let tensorScale = tensorScale(forLargest: largestMagnitude(maximumRows, source.rows))
            pool.forEachRowRange(source.rows, workPerRow: 8 * groups) { range, _ in
                for index in range.lowerBound * groups..<range.upperBound * groups {
                    let scale = E4M3(scaleRows[index] / tensorScale).floatValue
                    scaleRows[index] = scale * tensorScale == 0 ? 1 : scale
                }
            }
            channelScales = try Tensor<Float>([source.rows]) { _ in tensorScale }
        }
        return WeightGrid(
            format: format, inFeatures: columns, scales: scales, offsets: offsets, channelScales: channelScales)
    }

    /// Computes only the scales and offsets of a tensor, `[outFeatures, inFeatures]`.
    /// - Throws: the errors of the call with a view, and `.invalidShape` for another rank.
    public func grid(
        for weight: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> WeightGrid {
        try grid(for: weight.matrixView(named: "weight"), on: pool)
    }
}

extension WeightQuantizer {
    /// The integer to which the largest magnitude, or the whole range, is scaled; for E2M1 the value.
    private var levels: Float {
        switch format.code {
        case .int4: 7
        case .uint4: 15
        case .fp4: E2M1.greatestFiniteMagnitude
        case .int8: 127
        }
    }

    /// Computes scales and offsets of the groups of a row; for E2M1 scales before any rounding.
    private func measure(
        _ values: UnsafePointer<Float>, _ count: Int, scales: UnsafeMutablePointer<Float>, offsets: UnsafeMutablePointer<Float>?
    ) {
        let groupSize = format.groupSize ?? count
        var start = 0
        var group = 0
        while start < count {
            let length = min(groupSize, count - start)
            if let offsets {
                let (low, high) = rangeWithZero(values + start, length)
                let scale = nonzero(rounded((high - low) / levels))
                scales[group] = scale
                offsets[group] = scale * Float(roundedToInteger(clamped(-low / scale, 0, levels)))
            } else {
                let scale = largestMagnitude(values + start, length) / levels
                scales[group] = format.code == .fp4 ? scale : nonzero(rounded(scale))
            }
            start += length
            group += 1
        }
    }

    private func nonzero(_ scale: Float) -> Float { scale == 0 ? 1 : scale }

    private func rounded(_ scale: Float) -> Float {
        switch scaleType {
        case .float16: roundedToHalf(scale)
        case .bfloat16: BFloat16(scale).floatValue
        default: scale
        }
    }

    /// The scale of a whole E2M1 weight whose largest group scale is `largest`.
    private func tensorScale(forLargest largest: Float) -> Float {
        let scale = largest / E4M3.greatestFiniteMagnitude
        // A subnormal scale would lose so many bits that the largest weights are clipped.
        return nonzero(scale < (scaleType == .float16 ? 0x1p-14 : .leastNormalMagnitude) ? scale : rounded(scale))
    }

    private func check(_ weight: MatrixView<Float>, largestScales: Tensor<Float>) throws(SparseKernelsError) {
        // In E2M1 weights the scale of the whole weight must fit. A value is at most twice as large as the largest weight.
        let isTensorScale = format.code == .fp4
        for row in 0..<weight.rows {
            let largest = largestScales[flat: row]
            let scale = isTensorScale ? rounded(largest / E4M3.greatestFiniteMagnitude) : largest
            if (scale * levels * (isTensorScale ? E4M3.greatestFiniteMagnitude : 1)).isFinite { continue }
            throw weight.unquantizable(row: row, limit: "small enough for scales in \(scaleType.rawValue)")
        }
    }
}
