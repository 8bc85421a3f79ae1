import SparseKernels
import SparseKernelsModels
import Testing

@testable import PictureSelection

@Suite("Selections over pictures")
struct SelectionOverlayTests {
    private let grey = Picture.Colour(100, 100, 100)
    private let red = Picture.Colour(255, 0, 0)

    private func plain(_ rows: Int, _ columns: Int) throws -> Picture {
        try Picture(GridSize(rows: rows, columns: columns), filledWith: grey)
    }

    @Test("scores become colours of their cells, from the lowest to the highest")
    func heat() throws {
        let picture = try plain(4, 6)
        let grid = GridSize(rows: 2, columns: 3)
        let heat = try SelectionOverlay.heat([0, 1, 2, 3, .nan, 10], grid: grid, over: picture, share: 1)
        #expect(heat[0, 0] == SelectionOverlay.colour(0) && heat[1, 1] == heat[0, 0])
        #expect(heat[3, 5] == SelectionOverlay.colour(1) && heat[2, 3] == grey, "a cell without a number keeps its colour")
        #expect(heat[0, 2] != heat[0, 0] && heat[0, 4] != heat[0, 2])
        let none = try SelectionOverlay.heat([Float](repeating: .nan, count: 6), grid: grid, over: picture)
        #expect(none == picture)
        let equal = try SelectionOverlay.heat([Float](repeating: 3, count: 6), grid: grid, over: picture)
        #expect(equal[0, 0] == equal[3, 5] && equal[0, 0] != grey)
        #expect(try SelectionOverlay.heat([0, 1, 2, 3, 4, 5], grid: grid, over: picture, share: 0) == picture)
    }

    @Test("frames go around selected cells, and the others are darkened")
    func frames() throws {
        let picture = try plain(6, 6)
        let grid = GridSize(side: 2)
        let framed = try SelectionOverlay.frames(around: [1], grid: grid, over: picture, colour: red, darkening: 0.5)
        #expect(framed[0, 0] == Picture.Colour(50, 50, 50) && framed[5, 5] == framed[0, 0])
        for place in [(0, 3), (0, 5), (2, 3), (1, 3), (2, 5), (0, 4)] { #expect(framed[place.0, place.1] == red) }
        #expect(framed[1, 4] == grey)
        let none = try SelectionOverlay.frames(around: [], grid: grid, over: picture, colour: red)
        #expect(none == picture)
        // More cells than pixels: every pixel belongs to one cell.
        let fine = try SelectionOverlay.frames(around: [0], grid: GridSize(side: 12), over: picture, colour: red)
        #expect(fine[0, 0] == red && fine[0, 1] == grey)
    }

    @Test("what does not fit is refused")
    func errors() throws {
        let picture = try plain(3, 3)
        for (argument, body) in [
            ("scores", { try SelectionOverlay.heat([1, 2], grid: GridSize(side: 2), over: picture) }),
            ("grid", { try SelectionOverlay.heat([], grid: GridSize(rows: 0, columns: 2), over: picture) }),
            ("share", { try SelectionOverlay.heat([1], grid: GridSize(side: 1), over: picture, share: 2) }),
            ("cells", { try SelectionOverlay.frames(around: [4], grid: GridSize(side: 2), over: picture, colour: red) }),
            ("cells", { try SelectionOverlay.frames(around: [-1], grid: GridSize(side: 2), over: picture, colour: red) }),
        ] as [(String, () throws -> Picture)] {
            let error = #expect(throws: SparseKernelsError.self) { try body() }
            #expect(error?.argument == argument)
        }
    }
}
