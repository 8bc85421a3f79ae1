internal import Foundation
public import SparseKernels

/// How much each cell of the low-resolution grid is worth a closer look, as probabilities.
///
///     logit = 5 · cosLow                           without detail features
///     logit = 5 · (cosLow + cosHigh) / 2           with them, where cosHigh is the largest cosine in the cell
///     p = 1 / (1 + e^−logit), with the logit clamped to ±10
///
/// Cosines are those of the features of a cell with the prompt. Only the map of the first high-resolution scale is ever used; the maps
/// of all scales are that map, resized without interpolation.
///
/// - Source: PS3 (arXiv 2503.19903), section 3.2; `_calculate_select_probs` of the released code.
public struct PS3ScoreMap: Sendable {
    /// `[rows, columns]` of the low-resolution grid.
    public let probabilities: Tensor<Float>

    /// Takes given scores, such as those of another estimator.
    /// - Throws: `.invalidShape` for another rank or no cells, `.invalidArgument` for a score that is not finite.
    public init(probabilities: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            probabilities.shape.count == 2 && probabilities.count >= 1, .invalidShape, "probabilities",
            expected: "[rows, columns] with cells", actual: "\(probabilities.shape)")
        try probabilities.requireFinite(named: "probabilities")
        self.probabilities = probabilities
    }

    /// Computes the map from cosines.
    ///
    /// - Parameters:
    ///   - cosines: those of the low-resolution features, `[rows, columns]`.
    ///   - detail: those of the detail features on a finer or coarser grid, `[rows, columns]`; nil means none. Each cell of the map takes
    ///     the largest cosine of the cells that it covers, in part or whole.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for another rank or no cells, `.invalidArgument` for a cosine that is not finite.
    public init(
        cosines: Tensor<Float>, detail: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        for (name, map) in [("cosines", cosines), ("detail", detail)] {
            guard let map else { continue }
            try require(
                map.shape.count == 2 && map.count >= 1, .invalidShape, name, expected: "[rows, columns] with cells",
                actual: "\(map.shape)")
            try map.requireFinite(named: name)
        }
        var largest: Tensor<Float>?
        if let detail {
            let pooling = try AdaptivePooling(
                GridSize(rows: detail.shape[0], columns: detail.shape[1]),
                to: GridSize(rows: cosines.shape[0], columns: cosines.shape[1]), .maximum, instructionSet: instructionSet)
            largest = try pooling(Tensor([1] + detail.shape, detail.elements), layout: .planar, on: pool)
        }
        probabilities = try Tensor(cosines.shape) { cell in
            var logit = cosines[flat: cell]
            if let largest { logit = (logit + largest[flat: cell]) / 2 }
            logit = min(max(logit * 5, -10), 10)
            return Float(1 / (1 + exp(-Double(logit))))
        }
    }

    /// The grid of the map.
    public var grid: GridSize { GridSize(rows: probabilities.shape[0], columns: probabilities.shape[1]) }

    /// The cells per side to which smoothing averages a map.
    static let smoothedSide = 6

    /// The map of a scale.
    ///
    /// - Parameters:
    ///   - target: the grid of the scale.
    ///   - smooths: whether the map of the scale is averaged to 6 × 6 areas, so that patches are selected in large regions.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use.
    /// - Returns: `[rows, columns]` of `target`.
    /// - Throws: `.invalidShape` for a grid without cells, `.unsupportedInstructionSet`.
    public func resized(
        to target: GridSize, smooths: Bool = false, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var map = try Tensor([1, grid.rows, grid.columns], probabilities.elements)
        map = try ImageResize(grid, to: target, filter: .nearest, instructionSet: instructionSet)(map, on: pool)
        if smooths {
            let coarse = GridSize(side: Self.smoothedSide)
            map = try ImageResize(target, to: coarse, filter: .area, instructionSet: instructionSet)(map, on: pool)
            map = try ImageResize(coarse, to: target, filter: .nearest, instructionSet: instructionSet)(map, on: pool)
        }
        return try Tensor([target.rows, target.columns], map.elements)
    }
}
