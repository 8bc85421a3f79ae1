import SparseKernels

/// The rotation of keys and values by a Hadamard matrix per head, before they are stored, and of what must match them.
///
/// Scores q·k do not change when both are rotated; neither does the output when values are rotated and it is rotated back. After
/// the rotation, the channels of a head are of similar size and quantise better (Ashkboos et al., QuaRot, arXiv 2404.00456,
/// section 4). Every head has the same matrix, without random signs: a head of queries must have that of its keys.
struct CacheRotation: Sendable {
    private let queriesAndKeys: HadamardRotation?
    private let values: HadamardRotation?
    private let output: HadamardRotation?

    /// - Throws: `.invalidArgument` for a head width without a Hadamard matrix.
    init(_ c: LanguageModelConfiguration, keys: Bool, values rotatesValues: Bool) throws(SparseKernelsError) {
        func rotation(_ heads: Int) throws(SparseKernelsError) -> HadamardRotation {
            try HadamardRotation(count: heads * c.headDim, blockSize: c.headDim)
        }
        queriesAndKeys = keys ? try rotation(c.queryHeads + c.kvHeads) : nil
        values = rotatesValues ? try rotation(c.kvHeads) : nil
        output = rotatesValues ? try rotation(c.queryHeads) : nil
    }

    func rotate(_ heads: inout HeadRows, on pool: WorkerPool) throws(SparseKernelsError) {
        let (rows, width, offset) = (heads.rows, heads.width, heads.valueOffset)
        if let queriesAndKeys {
            try queriesAndKeys.run(
                rows: MutableMatrixView(
                    heads.elements.mutableSpan, rows: rows, columns: queriesAndKeys.count, rowStride: width, named: "keys"),
                on: pool)
        }
        if let values {
            var elements = heads.elements.mutableSpan
            try values.run(
                rows: MutableMatrixView(
                    elements._mutatingExtracting(offset...), rows: rows, columns: values.count, rowStride: width,
                    named: "values"),
                on: pool)
        }
    }

    /// Rotates the first rows of the output of attention back.
    func restore(_ attended: inout Tensor<Float>, rows: Int, on pool: WorkerPool) throws(SparseKernelsError) {
        guard let output else { return }
        try output.run(
            rows: MutableMatrixView(attended.mutableSpan, rows: rows, columns: output.count, named: "output"), inverse: true,
            on: pool)
    }
}
