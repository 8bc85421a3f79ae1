/// The rounding loop of GPTQ over all rows of a weight. Columns are in the order in which they are rounded.
struct GPTQRows {
    let grid: WeightGrid
    /// The index in the weight of each column.
    let order: [Int]
    /// U, upper triangular, `[inFeatures, inFeatures]`, of the columns in `order`.
    let factor: Tensor<Float>
    let blockSize: Int

    func quantize(
        _ weight: Tensor<Float>, isDead: [Bool], on pool: WorkerPool
    ) throws(SparseKernelsError) -> QuantizedWeight {
        let (rows, columns, order) = (weight.shape[0], weight.shape[1], order)
        var values = try Tensor<Float>(zeros: [rows, columns])
        values.updateRows(on: pool) { row, target in
            weight.span.withUnsafeBufferPointer { source in
                let source = source.baseAddress! + row * columns
                for k in 0..<columns { target[k] = isDead[order[k]] ? 0 : source[order[k]] }
            }
        }
        var codes = try Tensor<Int8>(zeros: [rows, columns])
        for start in stride(from: 0, to: columns, by: blockSize) {
            let end = min(columns, start + blockSize)
            round(start..<end, of: &values, into: &codes, on: pool)
            if end < columns { try carry(start..<end, through: &values, on: pool) }
        }
        return try QuantizedWeight(grid: grid, integers: codes, on: pool)
    }

    /// Rounds the columns of a block, row by row, and replaces their values by their errors.
    private func round(
        _ block: Range<Int>, of values: inout Tensor<Float>, into codes: inout Tensor<Int8>, on pool: WorkerPool
    ) {
        let (grid, order, factor, columns) = (grid, order, factor, order.count)
        let groupSize = grid.format.groupSize ?? columns
        // A task writes the codes of its own row, and the storage outlives the call.
        nonisolated(unsafe) let codes = codes.mutableAddress()
        values.updateRows(work: block.count / 2, on: pool) { row, values in
            factor.span.withUnsafeBufferPointer { factor in
                let codes = codes + row * columns
                for i in block {
                    let place = order[i]
                    let group = grid.rows.group(place / groupSize, row: row)
                    let code = group.code(values[i])
                    codes[place] = Int8(truncatingIfNeeded: code)
                    let line = factor.baseAddress! + i * columns
                    let error = (values[i] - group.value(ofCode: code)) / line[i]
                    values[i] = error
                    for j in i + 1..<block.upperBound { values[j] -= error * line[j] }
                }
            }
        }
    }

    /// Subtracts the effect of a block's errors from all columns after it.
    private func carry(_ block: Range<Int>, through values: inout Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError)
    {
        let (rows, columns) = (values.shape[0], values.shape[1])
        let (end, rest) = (block.upperBound, columns - block.upperBound)
        var product = try Tensor<Float>(zeros: [rows, rest])
        try GEMM(m: rows, n: rest, k: block.count).run(
            a: MatrixView(values.span.extracting(block.lowerBound...), rows: rows, columns: block.count, rowStride: columns),
            b: MatrixView(
                factor.span.extracting((block.lowerBound * columns + end)...), rows: block.count, columns: rest,
                rowStride: columns),
            c: product.mutableMatrixView(), on: pool)
        let carried = product
        values.updateRows(on: pool) { row, values in
            carried.span.withUnsafeBufferPointer { carried in
                let carried = carried.baseAddress! + row * rest
                for k in 0..<rest { values[end + k] -= carried[k] }
            }
        }
    }
}
