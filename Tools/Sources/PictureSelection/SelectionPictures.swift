public import SparseKernels
public import SparseKernelsModels

/// The pictures that show a selection.
public struct SelectionPictures: Sendable {
    /// Pictures and the ends of their names: "scores", and the side of each scale.
    public let all: [(name: String, picture: Picture)]

    /// Draws the score map and the selected patches of every scale over a picture.
    ///
    /// - Parameters:
    ///   - longerSide: of the results, in pixels; a smaller picture keeps its size.
    ///   - box: the region that was looked for, which gets a frame.
    /// - Throws: `.invalidShape` for a side below 1.
    public init(
        _ run: SelectionRun, of model: PS3VisionModel, over picture: Picture, longerSide: Int, box: PictureBox? = nil
    ) throws(SparseKernelsError) {
        guard longerSide >= 1 else {
            throw SparseKernelsError(.invalidShape, "longerSide", expected: "at least 1", actual: "\(longerSide)")
        }
        let long = max(picture.size.rows, picture.size.columns)
        var small = picture.rgb()
        if long > longerSide {
            func scaled(_ extent: Int) -> Int { max(1, extent * longerSide / long) }
            small = try small.resized(to: GridSize(rows: scaled(picture.size.rows), columns: scaled(picture.size.columns)))
        }
        var scores = try SelectionOverlay.heat(run.map.probabilities.elements, grid: run.map.grid, over: small)
        if let box { scores.drawFrame(box, of: picture.size) }
        var all = [("scores", scores)]
        for (index, grid) in run.picture.grids.enumerated() {
            let frames = try SelectionOverlay.frames(
                around: run.selection.cells[index], grid: grid, over: small,
                colour: index.isMultiple(of: 2) ? Picture.Colour(230, 60, 50) : Picture.Colour(40, 90, 220), darkening: 0.5)
            all.append(("\(model.encoder.configuration.scales.sides[index + 1])", frames))
        }
        self.all = all
    }
}

extension Picture {
    /// Draws a frame around a region that is given in pixels of a picture of another size.
    mutating func drawFrame(_ box: PictureBox, of other: GridSize) {
        let white = Colour(255, 255, 255)
        let (top, left) = (box.y * size.rows / other.rows, box.x * size.columns / other.columns)
        let bottom = min(size.rows - 1, (box.y + box.height) * size.rows / other.rows)
        let right = min(size.columns - 1, (box.x + box.width) * size.columns / other.columns)
        for thickness in 0..<2 {
            for column in left...right {
                self[min(top + thickness, bottom), column] = white
                self[max(bottom - thickness, top), column] = white
            }
            for row in top...bottom {
                self[row, min(left + thickness, right)] = white
                self[row, max(right - thickness, left)] = white
            }
        }
    }
}
