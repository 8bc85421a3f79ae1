import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@testable import PictureSelection

@Suite("The drawn scene")
struct DeskSceneTests {
    /// FNV-1a of the bytes, so that a change of the drawing is seen.
    private func digest(_ bytes: [UInt8]) -> UInt64 {
        bytes.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    }

    @Test("a size has the same bytes on every machine")
    func bytes() throws {
        let picture = try DeskScene().picture(GridSize(side: 100))
        #expect(digest(picture.bytes) == DeskSceneTests.digestOfHundred)
        #expect(try DeskScene().picture(GridSize(side: 100)) == picture)
    }

    static let digestOfHundred: UInt64 = 17_510_769_723_275_931_968

    @Test("sizes that are no square keep the shapes, and are cut off")
    func sizes() throws {
        let square = try DeskScene().picture(GridSize(side: 120))
        let wide = try DeskScene().picture(GridSize(rows: 60, columns: 120))
        #expect(wide.bytes == Array(square.bytes[..<wide.bytes.count]))
        #expect(try DeskScene().picture(GridSize(side: 1)).bytes.count == 3)
        #expect(throws: SparseKernelsError.self) { try DeskScene().picture(GridSize(rows: 0, columns: 5)) }
    }

    @Test("writing is there at a high resolution, and the colours fit a palette")
    func writing() throws {
        let picture = try DeskScene().picture(GridSize(rows: 300, columns: 600))
        var colours = Set<Picture.Colour>()
        for row in 0..<300 { for column in 0..<600 { colours.insert(picture[row, column]) } }
        #expect((10...60).contains(colours.count))
        #expect(picture.png().count < 30_000)
    }

    @Test("the picture of the repository is the drawn one")
    func shipped() throws {
        let path = try #require(ModelData.deskPicture)
        let bytes = try contents(ofFile: path)
        #expect(bytes.count < 60_000)
        // Decoding and drawing all of it would take the test seconds; a header says the size.
        #expect(Array(bytes[16..<24]) == [0, 0, 5, 232, 0, 0, 5, 232], "1512 × 1512")
    }

    @Test("every letter that the scene writes has a glyph of seven rows of five cells")
    func glyphs() {
        let box = PixelFont.glyph("€")
        for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-/+? " {
            let glyph = PixelFont.glyph(character)
            #expect(glyph.count == PixelFont.rows && glyph.allSatisfy { $0 < 1 << PixelFont.columns } && glyph != box)
        }
        #expect(PixelFont.glyph("a") == PixelFont.glyph("A"))
    }
}
