public import SparseKernels
public import SparseKernelsModels

/// Shapes without soft edges on a picture, whose longer side has 1000 units.
///
/// Only sums, products and comparisons decide which pixels are painted, so that a drawing has the same bytes on every machine.
struct Canvas {
    private(set) var picture: Picture
    /// Pixels of a unit.
    let scale: Double

    init(_ size: GridSize, background: Picture.Colour) throws(SparseKernelsError) {
        picture = try Picture(size, filledWith: background)
        scale = Double(max(size.rows, size.columns)) / 1000
    }

    /// Units from left to right and from top to bottom.
    var width: Double { Double(picture.size.columns) / scale }
    var height: Double { Double(picture.size.rows) / scale }

    /// The pixels whose middle is between two places of an axis.
    private func pixels(_ from: Double, _ to: Double, of count: Int) -> Range<Int> {
        let first = max(0, min(Double(count), (from * scale - 0.5).rounded(.up)))
        let end = max(first, min(Double(count), (to * scale - 0.5).rounded(.up)))
        return Int(first)..<Int(end)
    }

    /// Paints the pixels of a rectangle for which `isInside` holds, in units of their middles.
    private mutating func paint(
        _ x: Double, _ y: Double, _ width: Double, _ height: Double, _ colour: Picture.Colour,
        where isInside: (Double, Double) -> Bool
    ) {
        let columns = pixels(x, x + width, of: picture.size.columns)
        for row in pixels(y, y + height, of: picture.size.rows) {
            let middle = (Double(row) + 0.5) / scale
            for column in columns where isInside((Double(column) + 0.5) / scale, middle) { picture[row, column] = colour }
        }
    }

    mutating func rectangle(_ x: Double, _ y: Double, _ width: Double, _ height: Double, _ colour: Picture.Colour) {
        paint(x, y, width, height, colour) { _, _ in true }
    }

    mutating func disc(_ x: Double, _ y: Double, radius: Double, _ colour: Picture.Colour) {
        paint(x - radius, y - radius, 2 * radius, 2 * radius, colour) { px, py in
            (px - x) * (px - x) + (py - y) * (py - y) < radius * radius
        }
    }

    /// A line with round ends.
    mutating func line(
        from a: (x: Double, y: Double), to b: (x: Double, y: Double), thickness: Double, _ colour: Picture.Colour
    ) {
        let (dx, dy, radius) = (b.x - a.x, b.y - a.y, thickness / 2)
        let square = dx * dx + dy * dy
        paint(min(a.x, b.x) - radius, min(a.y, b.y) - radius, abs(dx) + thickness, abs(dy) + thickness, colour) { px, py in
            let along = square == 0 ? 0 : max(0, min(1, ((px - a.x) * dx + (py - a.y) * dy) / square))
            let (ox, oy) = (px - a.x - along * dx, py - a.y - along * dy)
            return ox * ox + oy * oy < radius * radius
        }
    }

    /// A text whose letters have cells of `cell` units, from its upper left corner on.
    mutating func text(_ text: String, _ x: Double, _ y: Double, cell: Double, _ colour: Picture.Colour) {
        for (index, character) in text.enumerated() {
            let left = x + Double(index * (PixelFont.columns + 1)) * cell
            for (row, bits) in PixelFont.glyph(character).enumerated() {
                for column in 0..<PixelFont.columns where bits >> (PixelFont.columns - 1 - column) & 1 == 1 {
                    rectangle(left + Double(column) * cell, y + Double(row) * cell, cell, cell, colour)
                }
            }
        }
    }
}
