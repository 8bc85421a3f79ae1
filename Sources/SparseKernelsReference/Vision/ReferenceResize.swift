import Foundation
public import SparseKernels

/// Resizing of pictures in `Double`, cell by cell: a double sum over the taps of both axes.
///
/// The place of a cell is computed in `Float`, as PyTorch does it and as the operator's description says; all that follows from it is
/// `Double`.
public struct ReferenceResize {
    public let source: GridSize
    public let target: GridSize
    public let filter: ImageResize.Filter
    public let antialias: Bool

    public init(_ source: GridSize, to target: GridSize, filter: ImageResize.Filter, antialias: Bool = false) {
        self.source = source
        self.target = target
        self.filter = filter
        self.antialias = antialias
    }

    /// A cell of the result, and Σ|weight · x|, to which rounding errors are proportional.
    /// - Parameter x: the elements of the source by row and column.
    public func cell(_ row: Int, _ column: Int, of x: (Int, Int) -> Float) -> (value: Double, magnitude: Double) {
        var (value, magnitude) = (0.0, 0.0)
        let columns = taps(column, from: source.columns, to: target.columns)
        for (sourceRow, rowWeight) in taps(row, from: source.rows, to: target.rows) {
            for (sourceColumn, columnWeight) in columns {
                let term = rowWeight * columnWeight * Double(x(sourceRow, sourceColumn))
                value += term
                magnitude += abs(term)
            }
        }
        return (value, magnitude)
    }

    /// The possible error of a `Float` sum of the taps of a column and then of a row, whose weights are rounded.
    ///
    /// Each axis rounds its weight, its product and its sums: λ·√(taps + 2)·u of the magnitude, and a unit for the rounding that λ does
    /// not describe in sums of one or two terms.
    public func errorBound(_ row: Int, _ column: Int, magnitude: Double) -> Double {
        let rows = taps(row, from: source.rows, to: target.rows).count
        let columns = taps(column, from: source.columns, to: target.columns).count
        let growth = AttentionErrorBound.confidence * (Double(rows + 2).squareRoot() + Double(columns + 2).squareRoot()) + 4
        return growth * AttentionErrorBound.unitRoundoff * magnitude
    }

    /// The cells that make cell `index` of an axis, with their weights. A cell may come twice.
    public func taps(_ index: Int, from n: Int, to m: Int) -> [(cell: Int, weight: Double)] {
        if n == m { return [(index, 1)] }
        let scale = Float(n) / Float(m)
        switch filter {
        case .nearest: return [(min(Int((Float(index) * scale).rounded(.down)), n - 1), 1)]
        case .area:
            let first = Int((Double(index) * Double(n) / Double(m)).rounded(.down))
            let end = Int((Double(index + 1) * Double(n) / Double(m)).rounded(.up))
            return (first..<end).map { ($0, 1 / Double(end - first)) }
        case .bilinear, .bicubic:
            return antialias ? smoothTaps(index, n, scale) : interpolationTaps(index, n, scale)
        }
    }

    private func interpolationTaps(_ index: Int, _ n: Int, _ scale: Float) -> [(cell: Int, weight: Double)] {
        // One rounding of scale · (index + ½) − ½.
        var place = Float(Double(scale) * (Double(index) + 0.5) - 0.5)
        if filter == .bilinear { place = max(0, place) }
        let base = Double(place).rounded(.down)
        let offset = Double(place) - base
        let reach = filter == .bicubic ? -1...2 : 0...1
        return reach.map { step in
            let weight = filter == .bicubic ? Self.cubic(Double(step) - offset, a: -0.75) : 1 - abs(Double(step) - offset)
            return (min(max(Int(base) + step, 0), n - 1), weight)
        }
    }

    private func smoothTaps(_ index: Int, _ n: Int, _ scale: Float) -> [(cell: Int, weight: Double)] {
        let stretch = max(scale, 1)
        let support = (filter == .bicubic ? 2 : 1) * stretch
        let centre = scale * (Float(index) + 0.5)
        let first = max(Int(centre - support + 0.5), 0)
        let end = min(Int(centre + support + 0.5), n)
        let weights = (first..<end).map { cell in
            let distance = Double((Float(cell) - centre + 0.5) * (1 / stretch))
            return filter == .bicubic ? Self.cubic(distance, a: -0.5) : max(0, 1 - abs(distance))
        }
        let sum = weights.reduce(0, +)
        return zip(first..<end, weights).map { ($0, $1 / sum) }
    }

    /// Keys' cubic convolution.
    private static func cubic(_ distance: Double, a: Double) -> Double {
        let x = abs(distance)
        if x < 1 { return (a + 2) * pow(x, 3) - (a + 3) * pow(x, 2) + 1 }
        return x < 2 ? a * pow(x, 3) - 5 * a * pow(x, 2) + 8 * a * x - 4 * a : 0
    }
}
