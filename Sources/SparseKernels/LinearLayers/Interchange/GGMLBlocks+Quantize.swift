extension GGMLBlocks {
    /// Quantises a weight by ggml's own rules, so that the bytes are those of its reference quantiser.
    ///
    /// | Kind | d, before it is rounded to F16 | Code |
    /// |---|---|---|
    /// | `Q4_0` | v / −8, where v is the first of the elements of largest magnitude | min(15, trunc(x / d + 8.5)) |
    /// | `Q4_1` | (max − min) / 15, and m = min | min(15, trunc((x − m) / d + 0.5)) |
    /// | `Q8_0` | max \|x\| / 127 | x / d to nearest, halves away from zero |
    ///
    /// Codes are computed with the d that is not yet rounded, by multiplication with 1 / d in single precision. The product of
    /// `Q4_0` is exact, as in the `gguf` package (for ggml's C code this depends on the compiler). If d = 0, 1 / d is 0.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - kind: the kind of blocks.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` unless the columns are a multiple of 32, `.invalidArgument` for an element that is not finite
    ///   or a block whose d or m is beyond F16.
    /// - Complexity: O(outFeatures · inFeatures).
    public init(
        quantizing weight: MatrixView<Float>, as kind: Kind, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try weight.requireElements(named: "weight")
        try Self.checkColumns("weight.columns", weight.columns)
        let (source, blocks) = (MatrixRows(weight), weight.columns / Self.blockSize)
        var isBad = [Bool](repeating: false, count: weight.rows)
        let bytes = try isBad.withUnsafeMutableBufferPointer { isBad throws(SparseKernelsError) in
            nonisolated(unsafe) let isBad = isBad
            return try Self.filled(kind, rows: source.rows, blocks: blocks, on: pool) { row, block, bytes in
                if !Self.quantize(source[row] + block * Self.blockSize, kind, into: bytes) { isBad[row] = true }
            }
        }
        if let row = isBad.firstIndex(of: true) {
            throw weight.unquantizable(row: row, limit: "small enough for scales in F16")
        }
        try self.init(kind, inFeatures: weight.columns, bytes: bytes)
    }

    /// Quantises a tensor, `[outFeatures, inFeatures]`, by ggml's own rules.
    /// - Throws: the errors of the call with a view, and `.invalidShape` for another rank.
    public init(
        quantizing weight: Tensor<Float>, as kind: Kind, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(quantizing: weight.matrixView(named: "weight"), as: kind, on: pool)
    }

    /// Writes a block. Returns false when F16 cannot represent its scale.
    private static func quantize(_ x: UnsafePointer<Float>, _ kind: Kind, into bytes: UnsafeMutablePointer<UInt8>) -> Bool {
        switch kind {
        case .q4_0:
            var extreme = x[0]
            for index in 1..<blockSize where x[index].magnitude > extreme.magnitude { extreme = x[index] }
            // The comparison above ignores NaN.
            guard largestMagnitude(x, blockSize).isFinite else { return false }
            let d = extreme / -8
            let inverse = Double(d == 0 ? 0 : 1 / d)
            write(half: d, to: bytes)
            write(codes: { truncated(Double(x[$0]) * inverse + 8.5, 0...15) }, kind, to: bytes)
            return roundedToHalf(d).isFinite
        case .q4_1:
            var (low, high) = (x[0], x[0])
            for index in 1..<blockSize {
                low = min(low, x[index])
                high = max(high, x[index])
            }
            guard largestMagnitude(x, blockSize).isFinite else { return false }
            let d = (high - low) / 15
            let inverse = d == 0 ? 0 : 1 / d
            write(half: d, to: bytes)
            write(half: low, to: bytes + 2)
            write(codes: { truncated(Double((x[$0] - low) * inverse + 0.5), 0...15) }, kind, to: bytes)
            return roundedToHalf(d).isFinite && roundedToHalf(low).isFinite
        case .q8_0:
            let d = largestMagnitude(x, blockSize) / 127
            guard d.isFinite else { return false }
            let inverse = d == 0 ? 0 : 1 / d
            write(half: d, to: bytes)
            write(
                codes: { index in
                    let quotient = Double(x[index] * inverse)
                    return truncated(quotient + (quotient < 0 ? -0.5 : 0.5), -127...127)
                }, kind, to: bytes)
            return roundedToHalf(d).isFinite
        }
    }

    /// The integer part within a range. NaN, which is the product of 0 and an infinite 1 / d, gives the lower end.
    private static func truncated(_ value: Double, _ range: ClosedRange<Int>) -> Int {
        value > Double(range.lowerBound) ? Int(min(value, Double(range.upperBound))) : range.lowerBound
    }
}
