internal import KernelInterface

extension GEMM {
    /// Bytes of scratch that `multiply` needs.
    package static var taskScratchByteCount: Int { GEMMScratch.byteCount }

    /// Computes C = A·B or A·Bᵀ on the calling thread, for tasks of other calls that hold small products.
    ///
    /// The sum of an element is that of `run`, so results do not depend on how a product is cut into tasks.
    ///
    /// - Parameters:
    ///   - a: `rows` × `depth`, row-major, like the others. Strides count elements.
    ///   - b: `depth` × `columns`, or `columns` × `depth` when `transposesB`.
    ///   - c: `rows` × `columns`, overwritten.
    ///   - scratch: `taskScratchByteCount` bytes, 64-byte aligned.
    ///   - instructionSet: a level that this machine has.
    package static func multiply(
        rows: Int, columns: Int, depth: Int, a: UnsafePointer<Float>, aStride: Int, b: UnsafePointer<Float>, bStride: Int,
        transposesB: Bool, c: UnsafeMutablePointer<Float>, cStride: Int, scratch: UnsafeMutableRawPointer,
        instructionSet: InstructionSet
    ) {
        if depth == 0 {
            for row in 0..<rows { for column in 0..<columns { c[row * cStride + column] = 0 } }
            return
        }
        if columns == 0 { return }
        let kernels = instructionSet.kernels
        for row in stride(from: 0, to: rows, by: GEMMScratch.rowBlock) {
            for column in stride(from: 0, to: columns, by: GEMMScratch.columnBlock) {
                var arguments = GEMMArguments(
                    a: a + row * aStride, aStride: aStride, b: transposesB ? b + column * bStride : b + column,
                    bStride: bStride,
                    bIsTransposed: transposesB, c: c + row * cStride + column, cStride: cStride,
                    rows: min(GEMMScratch.rowBlock, rows - row), columns: min(GEMMScratch.columnBlock, columns - column),
                    depth: depth, scratch: scratch)
                kernels.multiplyBlock(&arguments)
            }
        }
    }
}
