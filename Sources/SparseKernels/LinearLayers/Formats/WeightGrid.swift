/// The static grid to which quantisers round: scales, offsets and channel scales of a whole weight, chosen before the codes.
///
/// A round-to-nearest quantiser codes the weight on it in one pass; GPTQ codes column by column and moves the error on.
public struct WeightGrid: Sendable {
    public let format: WeightFormat
    public let inFeatures: Int
    /// `[outFeatures, groups]`.
    public let scales: Tensor<Float>
    /// `[outFeatures, groups]`; nil for symmetric codes.
    public let offsets: Tensor<Float>?
    /// `[outFeatures]`; nil means 1.
    public let channelScales: Tensor<Float>?

    public var outFeatures: Int { scales.shape[0] }
    /// Groups per row.
    public var groups: Int { scales.shape[1] }

    /// The grid of one group.
    public subscript(row: Int, group: Int) -> GroupGrid {
        precondition(
            row >= 0 && row < outFeatures && group >= 0 && group < groups,
            "index (\(row), \(group)) outside \(outFeatures) × \(groups) groups")
        return rows.group(group, row: row)
    }

    /// The code of the grid's value nearest to `value`. `GroupGrid.code(_:)` is faster for many values of one group.
    public func code(_ value: Float, row: Int, group: Int) -> Int { self[row, group].code(value) }

    /// The value of a code.
    public func value(ofCode code: Int, row: Int, group: Int) -> Float { self[row, group].value(ofCode: code) }

    /// Rounds every weight to its group's nearest value.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`, finite. Values beyond the grid become its ends.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` "weight" for another shape than the grid's.
    /// - Complexity: O(outFeatures · inFeatures). Scratch: one byte per column for each thread.
    public func quantize(
        _ weight: MatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedWeight {
        try require(
            weight.rows == outFeatures && weight.columns == inFeatures, .invalidShape, "weight",
            expected: "\(outFeatures) × \(inFeatures)", actual: "\(weight.rows) × \(weight.columns)")
        let (source, grid, format, columns) = (MatrixRows(weight), rows, format, inFeatures)
        let bytesPerRow = format.bytesPerRow(inFeatures: columns)
        let groupSize = format.groupSize ?? columns
        var codes = try Tensor<UInt8>(zeros: [outFeatures, bytesPerRow])
        // Pointers are used only until this call returns, which borrows the view and owns the tensors.
        nonisolated(unsafe) let bytes = codes.mutableAddress()
        pool.forEachRowRange(outFeatures, workPerRow: 2 * columns, scratchByteCount: columns) { range, scratch in
            let integers = scratch.bindMemory(to: Int8.self, capacity: columns)
            for row in range {
                for (group, start) in stride(from: 0, to: columns, by: groupSize).enumerated() {
                    grid.group(group, row: row).quantize(
                        source[row] + start, min(groupSize, columns - start), into: integers + start)
                }
                format.code.pack(integers, columns, into: bytes + row * bytesPerRow)
            }
        }
        return try QuantizedWeight(
            format: format, inFeatures: columns, codes: codes, scales: scales, offsets: offsets, channelScales: channelScales)
    }

    /// Rounds every weight of a tensor, `[outFeatures, inFeatures]`, to its group's nearest value.
    /// - Throws: the errors of the call with a view, and `.invalidShape` for another rank.
    public func quantize(
        _ weight: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedWeight {
        try quantize(weight.matrixView(named: "weight"), on: pool)
    }

    var rows: GridRows {
        GridRows(kind: format.code, scales: scales, offsets: offsets, channelScales: channelScales)
    }
}
