internal import SparseKernels

/// The position embeddings of all scales: a row per cell of each scale's square grid.
///
/// Those of a high resolution are the table of the low resolution, resized bicubically with antialiasing, plus the scale's own residual.
/// The grid of a picture that is not square is the top left part of the square one. So the sums are made once, when the encoder is made,
/// and cost as much memory as the residuals.
///
/// - Source: `resample_abs_pos_embed`, `selected_pos_embed` and `tokenize_high_res` of the released code.
struct PS3Positions: Sendable {
    /// `[cells of the square grid, width]` per scale, low resolution first.
    let tables: [Tensor<Float>]
    /// The side of each square grid.
    let sides: [Int]

    init(
        _ weights: PS3Weights, _ scales: PS3Scales, width: Int, instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try require(
            weights.positionResiduals.isEmpty || weights.positionResiduals.count == scales.highScales, .invalidShape,
            "positionResiduals", expected: "none, or \(scales.highScales)", actual: "\(weights.positionResiduals.count)")
        let low = scales.squareGrid(0)
        try Self.validate(weights.positions, cells: low.count, width: width, named: "positions")
        let table = try Tensor([low.count, width], weights.positions.elements)
        var (tables, sides) = ([table], [low.rows])
        for scale in 1...scales.highScales {
            let target = scales.squareGrid(scale)
            let resize = try ImageResize(low, to: target, filter: .bicubic, antialias: true, instructionSet: instructionSet)
            var sum = try Tensor<Float>(zeros: [target.count, width])
            try resize.run(tokens: table.matrixView(), into: sum.mutableMatrixView(), on: pool)
            if !weights.positionResiduals.isEmpty {
                let residual = weights.positionResiduals[scale - 1]
                try Self.validate(
                    residual, cells: target.count, width: width, named: "positionResiduals[\(scale - 1)]")
                sum.addRows((0..<Int32(target.count)).map { $0 }, of: residual, firstRow: 0, on: pool)
            }
            tables.append(sum)
            sides.append(target.rows)
        }
        self.tables = tables
        self.sides = sides
    }

    /// Throws unless a tensor is a table of so many cells, with or without a leading axis of 1.
    private static func validate(
        _ tensor: Tensor<Float>, cells: Int, width: Int, named name: String
    ) throws(SparseKernelsError) {
        try require(
            tensor.shape == [cells, width] || tensor.shape == [1, cells, width], .invalidShape, name,
            expected: "\([cells, width])", actual: "\(tensor.shape)")
        try tensor.requireFinite(named: name)
    }

    /// Adds the positions of some cells of a scale to tokens.
    ///
    /// - Parameters:
    ///   - cells: of the picture's grid, one per token.
    ///   - grid: the picture's grid at the scale.
    ///   - tokens: `[tokens, width]`.
    ///   - firstRow: the token of the first cell.
    func add(
        _ cells: [Int32], scale: Int, grid: GridSize, to tokens: inout Tensor<Float>, firstRow: Int, on pool: WorkerPool
    ) {
        let (side, columns) = (sides[scale], grid.columns)
        let rows =
            side == columns
            ? cells
            : cells.map {
                let (row, column) = Int($0).quotientAndRemainder(dividingBy: columns)
                return Int32(truncatingIfNeeded: row * side + column)
            }
        tokens.addRows(rows, of: tables[scale], firstRow: firstRow, on: pool)
    }
}

extension Tensor where Element == Float {
    /// Copies adjacent elements of another tensor. Both have them.
    mutating func copy(_ count: Int, from other: Tensor<Float>, at source: Int, to position: Int) {
        let target = uniqueAddress() + position
        other.span.withUnsafeBufferPointer { target.update(from: $0.baseAddress! + source, count: count) }
    }

    /// Row `firstRow` + i of a matrix += row `rows[i]` of a table of as many columns, which may have a leading axis of 1.
    mutating func addRows(_ rows: [Int32], of table: Tensor<Float>, firstRow: Int, on pool: WorkerPool) {
        let columns = shape[1]
        if rows.isEmpty { return }
        let lines = RowAddresses(source: table.span.withUnsafeBufferPointer { $0.baseAddress! }, target: uniqueAddress())
        // Each range writes its own rows, and both tensors outlive the call.
        withExtendedLifetime(table) {
            pool.forEachRange(of: rows.count, workPerItem: 12 * columns) { range in
                for index in range {
                    addRow(
                        lines.source + Int(rows[index]) * columns, to: lines.target + (firstRow + index) * columns,
                        count: columns)
                }
            }
        }
    }
}

/// Vector by vector, because models are debugged, too, and single elements take long then.
private func addRow(_ source: UnsafePointer<Float>, to target: UnsafeMutablePointer<Float>, count: Int) {
    var index = 0
    while index + 16 <= count {
        let a = UnsafeRawPointer(target + index).loadUnaligned(as: SIMD16<Float>.self)
        let b = UnsafeRawPointer(source + index).loadUnaligned(as: SIMD16<Float>.self)
        UnsafeMutableRawPointer(target + index).storeBytes(of: a + b, as: SIMD16<Float>.self)
        index += 16
    }
    while index < count {
        target[index] += source[index]
        index += 1
    }
}

/// Memory that ranges of a call share, each its own part of the target.
private struct RowAddresses: @unchecked Sendable {
    let source: UnsafePointer<Float>
    let target: UnsafeMutablePointer<Float>
}
