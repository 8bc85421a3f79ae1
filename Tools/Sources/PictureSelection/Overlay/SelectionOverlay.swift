public import SparseKernels
public import SparseKernelsModels

/// What a model selects, drawn over its picture.
public enum SelectionOverlay {
    /// A score map as colours over a picture, in twelve steps: dark blue for the lowest score, through green, to yellow for the highest.
    ///
    /// - Parameters:
    ///   - scores: a number for every cell of the grid, in raster order. Numbers that are not finite stay without colour.
    ///   - grid: cells that cover the picture evenly.
    ///   - share: of the colour, 0…1.
    /// - Throws: `.invalidShape` for another number of scores or no cells, `.invalidArgument` for another share.
    public static func heat(
        _ scores: [Float], grid: GridSize, over picture: Picture, share: Float = 0.6
    ) throws(SparseKernelsError) -> Picture {
        try check(grid, cells: scores.count, "scores")
        guard (0...1).contains(share) else {
            throw SparseKernelsError(.invalidArgument, "share", expected: "0 to 1", actual: "\(share)")
        }
        var result = picture.rgb()
        let finite = scores.filter(\.isFinite)
        guard let least = finite.min(), let most = finite.max() else { return result }
        let colours = scores.map { score in
            // Few colours make small files, and the steps are seen as lines of equal scores.
            score.isFinite ? colour(most > least ? ((score - least) / (most - least) * 11.999).rounded(.down) / 11 : 0.5) : nil
        }
        let size = picture.size
        for row in 0..<size.rows {
            let first = row * grid.rows / size.rows * grid.columns
            for column in 0..<size.columns {
                guard let colour = colours[first + column * grid.columns / size.columns] else { continue }
                result[row, column] = result[row, column].mixed(with: colour, share: share)
            }
        }
        return result
    }

    /// The colour of a number from 0 to 1.
    static func colour(_ value: Float) -> Picture.Colour {
        let stops = [
            Picture.Colour(44, 20, 84), Picture.Colour(50, 86, 140), Picture.Colour(32, 144, 140),
            Picture.Colour(104, 198, 98), Picture.Colour(252, 230, 60),
        ]
        let place = max(0, min(1, value)) * Float(stops.count - 1)
        let index = min(stops.count - 2, Int(place))
        return stops[index].mixed(with: stops[index + 1], share: place - Float(index))
    }

    /// Frames around cells. The other cells are darkened, so that what is selected stands out.
    ///
    /// - Parameters:
    ///   - cells: numbers in raster order, ascending or not.
    ///   - grid: cells that cover the picture evenly.
    ///   - colour: of the frames.
    ///   - darkening: of the other cells, 0…1; 0 leaves them.
    /// - Throws: `.invalidShape` for no cells in the grid, `.invalidArgument` for a cell outside it.
    public static func frames(
        around cells: [Int32], grid: GridSize, over picture: Picture, colour: Picture.Colour, darkening: Float = 0
    ) throws(SparseKernelsError) -> Picture {
        try check(grid, cells: grid.rows * grid.columns, "cells")
        var isSelected = [Bool](repeating: false, count: grid.count)
        for cell in cells {
            guard cell >= 0, Int(cell) < grid.count else {
                throw SparseKernelsError(
                    .invalidArgument, "cells", expected: "numbers from 0 to \(grid.count - 1)", actual: "\(cell)")
            }
            isSelected[Int(cell)] = true
        }
        var result = picture.rgb()
        let size = picture.size
        let black = Picture.Colour(0, 0, 0)
        /// The cell of a pixel; nil outside the picture.
        func cell(_ row: Int, _ column: Int) -> Int? {
            guard row >= 0, row < size.rows, column >= 0, column < size.columns else { return nil }
            return row * grid.rows / size.rows * grid.columns + column * grid.columns / size.columns
        }
        for row in 0..<size.rows {
            for column in 0..<size.columns {
                let own = cell(row, column)!
                if !isSelected[own] {
                    if darkening > 0 { result[row, column] = result[row, column].mixed(with: black, share: darkening) }
                    continue
                }
                // The frame is the last pixel of a cell beside another one, above, below, left and right of it.
                let neighbours = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
                if neighbours.contains(where: { cell($0.0, $0.1) != own }) { result[row, column] = colour }
            }
        }
        return result
    }

    private static func check(_ grid: GridSize, cells: Int, _ argument: String) throws(SparseKernelsError) {
        guard grid.rows >= 1, grid.columns >= 1, grid.rows <= 1 << 20, grid.columns <= 1 << 20 else {
            throw SparseKernelsError(.invalidShape, "grid", expected: "at least 1 × 1", actual: "\(grid)")
        }
        guard cells == grid.count else {
            throw SparseKernelsError(
                .invalidShape, argument, expected: "\(grid.count) for \(grid) cells", actual: "\(cells)")
        }
    }
}
