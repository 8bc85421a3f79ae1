public import SparseKernels
public import SparseKernelsModels

/// A drawn picture for trying how patches are selected: a desk with a map, a letter, a note, a ruler, and much empty wood.
///
/// Its small writing is a few pixels high at 1512 pixels and gone at 378, so that a model which sees the picture at one low resolution
/// cannot read it. All shapes have hard edges and few colours, and the file is small.
public struct DeskScene: Sendable {
    public init() {}

    /// Draws the scene.
    /// - Parameter size: in pixels. Objects keep their shape, and what does not fit is cut off.
    /// - Throws: `.invalidShape` for extents that no picture has.
    public func picture(_ size: GridSize) throws(SparseKernelsError) -> Picture {
        var canvas = try Canvas(size, background: wood)
        drawWood(&canvas)
        drawMap(&canvas, x: 60, y: 60)
        drawLetter(&canvas, x: 600, y: 110)
        drawNote(&canvas, x: 130, y: 640)
        drawRuler(&canvas, x: 420, y: 900)
        drawCup(&canvas, x: 480, y: 700)
        return canvas.picture
    }

    private let wood = Picture.Colour(178, 132, 88)
    private let darkWood = Picture.Colour(168, 122, 80)
    private let paper = Picture.Colour(246, 243, 234)
    private let ink = Picture.Colour(40, 44, 60)
    private let shadow = Picture.Colour(140, 100, 66)

    /// Boards with thin lines between them.
    private func drawWood(_ canvas: inout Canvas) {
        var y = 0.0
        while y < canvas.height {
            canvas.rectangle(0, y, canvas.width, 2, darkWood)
            y += 125
        }
    }

    /// A map of streets with a park, a river, names and numbers of houses.
    private func drawMap(_ canvas: inout Canvas, x: Double, y: Double) {
        let (width, height) = (440.0, 420.0)
        canvas.rectangle(x + 6, y + 6, width, height, shadow)
        canvas.rectangle(x, y, width, height, Picture.Colour(232, 228, 214))
        canvas.rectangle(x + 20, y + 230, 150, 130, Picture.Colour(150, 196, 128))
        let river = Picture.Colour(122, 168, 214)
        for (from, to) in [((0.0, 190.0), (120.0, 200.0)), ((120, 200), (240, 160)), ((240, 160), (440, 175))] {
            canvas.line(from: (x + from.0 + 8, y + from.1), to: (x + min(to.0, 431), y + to.1), thickness: 16, river)
        }
        let road = Picture.Colour(255, 255, 255)
        for offset in [60.0, 180, 300, 390] { canvas.rectangle(x + offset, y + 8, 9, height - 16, road) }
        for offset in [70.0, 130, 215, 300, 370] { canvas.rectangle(x + 8, y + offset, width - 16, 9, road) }
        canvas.line(from: (x + 190, y + 20), to: (x + 420, y + 400), thickness: 7, Picture.Colour(240, 200, 90))
        var random = SplitMix64(seed: 14)
        // Houses, every other one with a number.
        let walls = [Picture.Colour(198, 164, 150), Picture.Colour(176, 170, 190), Picture.Colour(206, 192, 160)]
        for row in 0..<8 {
            for column in 0..<9 {
                let (left, top) = (x + 75 + Double(column) * 40, y + 18 + Double(row) * 50)
                let isPark = left < x + 172 && top > y + 215 && top < y + 360
                if isPark || random.uniform() < 0.2 { continue }
                let side = 10 + Double(random.next() % 8)
                canvas.rectangle(left, top, side + 4, side, walls[Int(random.next() % 3)])
                if (row + column).isMultiple(of: 2) {
                    canvas.text("\(10 + random.next() % 90)", left + 2, top + 2, cell: 0.7, ink)
                }
            }
        }
        for (name, dx, dy) in [
            ("LINDEN PARK", 34.0, 290.0), ("MILL STREET", 200, 72), ("HARBOUR ROAD", 196, 302), ("OLD BRIDGE", 250, 152),
            ("STATION 4", 316, 217), ("SCHOOL LANE", 22, 132),
        ] { canvas.text(name, x + dx, y + dy, cell: 0.95, ink) }
        canvas.text("CITY MAP", x + 300, y + 396, cell: 2, ink)
    }

    /// A letter with a headline and small lines.
    private func drawLetter(_ canvas: inout Canvas, x: Double, y: Double) {
        canvas.rectangle(x + 6, y + 6, 320, 400, shadow)
        canvas.rectangle(x, y, 320, 400, paper)
        canvas.text("MINUTES", x + 30, y + 30, cell: 4, ink)
        canvas.rectangle(x + 30, y + 70, 260, 1.5, ink)
        let lines = [
            "THE MEETING BEGAN AT 9:30 IN ROOM 214.", "PRESENT: SEVEN MEMBERS AND TWO GUESTS.",
            "1. THE BRIDGE IS CLOSED UNTIL 17 MAY.", "2. NEW LAMPS COST 4860 A YEAR LESS.",
            "3. THE LIBRARY OPENS ON SUNDAYS.", "   TEN VOTES WERE FOR IT, TWO AGAINST.",
            "4. TREES IN MILL STREET: 38 PLANTED.", "5. THE BUDGET WAS PUT OFF TO JUNE.", "ANY QUESTIONS? CALL 555-0143.",
        ]
        for (index, line) in lines.enumerated() {
            canvas.text(line, x + 30, y + 90 + Double(index) * 24, cell: 1.1, ink)
        }
        canvas.disc(x + 255, y + 350, radius: 26, Picture.Colour(186, 60, 56))
        canvas.disc(x + 255, y + 350, radius: 20, Picture.Colour(206, 84, 78))
        canvas.text("SEAL", x + 243, y + 346, cell: 1, paper)
    }

    /// A yellow note with a short list.
    private func drawNote(_ canvas: inout Canvas, x: Double, y: Double) {
        canvas.rectangle(x + 5, y + 5, 150, 150, shadow)
        canvas.rectangle(x, y, 150, 150, Picture.Colour(250, 226, 110))
        canvas.text("TODO", x + 14, y + 14, cell: 3, Picture.Colour(60, 70, 140))
        for (index, line) in ["WATER THE PLANTS", "POST LETTER 27", "KEY: BOX 3, LEFT", "BUY TEA + BREAD"].enumerated() {
            canvas.text(line, x + 14, y + 52 + Double(index) * 20, cell: 1.1, Picture.Colour(60, 70, 140))
        }
    }

    /// A ruler of thirty centimetres.
    private func drawRuler(_ canvas: inout Canvas, x: Double, y: Double) {
        canvas.rectangle(x, y, 460, 44, Picture.Colour(214, 216, 222))
        for mark in 0...300 {
            let long = mark % 10 == 0 ? 14.0 : mark % 5 == 0 ? 10 : 6
            canvas.rectangle(x + 8 + Double(mark) * 1.48, y, 0.5, long, ink)
            if mark % 20 == 0 { canvas.text("\(mark / 10)", x + 5 + Double(mark) * 1.48, y + 20, cell: 1, ink) }
        }
    }

    /// A cup from above, with its handle and a rim.
    private func drawCup(_ canvas: inout Canvas, x: Double, y: Double) {
        canvas.disc(x + 8, y + 8, radius: 74, shadow)
        canvas.line(from: (x + 50, y + 40), to: (x + 98, y + 66), thickness: 20, Picture.Colour(88, 120, 168))
        canvas.disc(x, y, radius: 72, Picture.Colour(104, 138, 188))
        canvas.disc(x, y, radius: 60, Picture.Colour(236, 238, 240))
        canvas.disc(x, y, radius: 52, Picture.Colour(92, 58, 38))
    }
}
