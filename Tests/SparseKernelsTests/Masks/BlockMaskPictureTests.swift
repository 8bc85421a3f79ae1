import Foundation
import SparseKernels
import Testing

#if canImport(FoundationXML)
    import FoundationXML
#endif

@Suite("Pictures of block masks")
struct BlockMaskPictureTests {
    // MARK: - Terminal

    private func lines(_ mask: BlockMask, maximumWidth: Int = 64, head: Int = 0) -> [String] {
        mask.description(maximumWidth: maximumWidth, head: head).split(separator: "\n", omittingEmptySubsequences: false)
            .map(String.init)
    }

    @Test("a small mask is drawn block by block")
    func small() throws {
        let grid = try BlockGrid(queryLength: 256, keyLength: 384, queryBlockSize: 64, keyBlockSize: 64, isCausal: true)
        let mask = try BlockMask.streaming(grid, sinkBlocks: 1, localBlocks: 2)
        #expect(
            mask.description == """
                1 head, 4 × 6 blocks of 64 × 64 tokens, causal, density 0.667
                ██████
                ██··████
                ██····████
                ██······████
                """)
        let open = try BlockGrid(
            query: BlockPartition(sizes: [3, 0, 4]), key: BlockPartition(sizes: [5, 5]), isCausal: false)
        let heads = try BlockMask(grid: open, heads: 2) { head, row, column in head == 1 && row == 2 && column == 0 }
        #expect(
            heads.description(head: 1) == """
                2 heads, 3 × 2 blocks of varying sizes over 7 × 10 tokens, not causal, density 0.125; head 1, density 0.25
                ····

                ██··
                """)
    }

    @Test("a grid that fits once but not twice has one character per block")
    func narrow() throws {
        let grid = try BlockGrid(queryLength: 5, keyLength: 5, queryBlockSize: 1, keyBlockSize: 1, isCausal: true)
        let mask = try BlockMask.slidingWindow(grid, tokens: 2)
        #expect(lines(mask, maximumWidth: 10)[5] == "······████")
        #expect(lines(mask, maximumWidth: 9)[5] == "···██" && lines(mask, maximumWidth: 9).count == 6)
    }

    @Test("a large grid is reduced to densities, at any width", arguments: [1, 2, 7, 16, 64, 0, -5])
    func reduced(_ maximumWidth: Int) throws {
        let width = max(1, maximumWidth)
        for (rows, columns) in [(100, 100), (300, 5), (1, 300), (129, 128)] {
            for isCausal in [false, true] where !isCausal || rows <= columns {
                let grid = try BlockGrid(
                    queryLength: rows, keyLength: columns, queryBlockSize: 1, keyBlockSize: 1, isCausal: isCausal)
                let picture = lines(.full(grid), maximumWidth: maximumWidth).dropFirst()
                #expect(!picture.isEmpty && picture.count <= max(width, rows <= width ? rows : 1))
                for line in picture { #expect(line.count <= width && Set(line) == ["█"]) }
                let none = lines(try BlockMask(grid: grid) { _, _, _ in false }, maximumWidth: maximumWidth).dropFirst()
                #expect(none.map(\.count) == picture.map(\.count) && Set(none.joined()) == ["·"])
            }
        }
    }

    @Test("shades stand for thirds of the reachable blocks of a cell")
    func shades() throws {
        // Cells have 3 columns × 6 rows. The first keeps 1 block, and then 6, 7, 12, 13, 17, 18 and 0 of 18.
        let counts = [1, 6, 7, 12, 13, 17, 18, 0]
        let grid = try BlockGrid(queryLength: 6, keyLength: 24, queryBlockSize: 1, keyBlockSize: 1, isCausal: false)
        let mask = try BlockMask(grid: grid) { _, row, column in row * 3 + column % 3 < counts[column / 3] }
        #expect(lines(mask, maximumWidth: 8).dropFirst() == ["░░▒▒▓▓█·"])
    }

    @Test("unreachable blocks are left out although they are listed")
    func unreachable() throws {
        let grid = try BlockGrid(queryLength: 2, keyLength: 2, queryBlockSize: 1, keyBlockSize: 1, isCausal: true)
        let mask = try BlockMask(grid: grid, heads: 1, rowOffsets: [0, 2, 3], columnIndices: [0, 1, 1])
        #expect(lines(mask).dropFirst() == ["██", "··██"])
        #expect(try rectangles(mask.svg()).kept.count == 2)
    }

    @Test("every grid has a picture", arguments: GridCase.all)
    func everyGrid(_ grid: GridCase) throws {
        let mask = try BlockMaskTests.listed(grid.grid())
        for head in 0..<2 {
            let picture = lines(mask, head: head).dropFirst()
            #expect(picture.count == mask.grid.blockRows)
            let characters = picture.joined()
            #expect(characters.count == 2 * mask.grid.reachableBlocks)
            #expect(characters.count { $0 == "█" } == 2 * mask.nonzeroBlocks(head: head))
        }
    }

    @Test("a head that the mask does not have traps")
    func outside() async {
        await #expect(processExitsWith: .failure) {
            _ = BlockMask.full(try BlockGrid(queryLength: 4, keyLength: 4, isCausal: true)).svg(head: 1)
        }
    }

    // MARK: - SVG

    struct Rectangle: Equatable {
        var x, y, width, height: Double
    }

    /// Reads the picture with an XML parser, which refuses text that is not well formed.
    private final class Reader: NSObject, XMLParserDelegate {
        var group = ""
        var rectangles: [String: [Rectangle]] = [:]
        var viewBox: [Double] = []
        var title = ""
        private var isInTitle = false

        func parser(
            _ parser: XMLParser, didStartElement name: String, namespaceURI: String?, qualifiedName: String?,
            attributes: [String: String]
        ) {
            func number(_ key: String) -> Double { attributes[key].flatMap(Double.init) ?? 0 }
            switch name {
            case "svg": viewBox = attributes["viewBox"]?.split(separator: " ").compactMap { Double($0) } ?? []
            case "title": isInTitle = true
            case "g": group = attributes["class"] ?? ""
            case "rect":
                rectangles[group, default: []].append(
                    Rectangle(x: number("x"), y: number("y"), width: number("width"), height: number("height")))
            default: break
            }
        }

        func parser(
            _ parser: XMLParser, didEndElement name: String, namespaceURI: String?, qualifiedName: String?
        ) {
            if name == "g" { group = "" }
            if name == "title" { isInTitle = false }
        }

        func parser(_ parser: XMLParser, foundCharacters string: String) { if isInTitle { title += string } }
    }

    private func read(_ svg: String) throws -> Reader {
        let (parser, reader) = (XMLParser(data: Data(svg.utf8)), Reader())
        parser.delegate = reader
        try #require(parser.parse(), "\(String(describing: parser.parserError))")
        return reader
    }

    private func rectangles(_ svg: String) throws -> (kept: [Rectangle], unreachable: [Rectangle], viewBox: [Double]) {
        let reader = try read(svg)
        return (reader.rectangles["kept"] ?? [], reader.rectangles["unreachable"] ?? [], reader.viewBox)
    }

    @Test("a picture has one rectangle per run of kept blocks, where the tokens are", arguments: GridCase.all)
    func svg(_ grid: GridCase) throws {
        let mask = try BlockMaskTests.listed(grid.grid())
        for head in 0..<2 {
            let (kept, unreachable, viewBox) = try rectangles(mask.svg(head: head))
            // Tokens per unit of each axis, which is the block size or the mean one.
            func unit(_ partition: BlockPartition) -> Double {
                partition.blockSize.map { Double($0) } ?? Double(partition.length) / Double(partition.count)
            }
            let (x, y) = (unit(mask.grid.key), unit(mask.grid.query))
            var expected: [Rectangle] = []
            var hidden = 0
            for row in 0..<mask.grid.blockRows where !mask.grid.query[row].isEmpty {
                let rows = mask.grid.query[row]
                let reachable = mask.grid.reachableColumns(ofRow: row)
                var run: Range<Int>?
                for column in 0...reachable.upperBound {
                    if column < reachable.upperBound && mask[head, row, column] {
                        run = (run?.lowerBound ?? column)..<column + 1
                    } else if let columns = run {
                        let keys =
                            mask.grid.key[columns.lowerBound].lowerBound..<mask.grid.key[columns.upperBound - 1].upperBound
                        if !keys.isEmpty {
                            expected.append(
                                Rectangle(
                                    x: Double(keys.lowerBound) / x, y: Double(rows.lowerBound) / y,
                                    width: Double(keys.count) / x,
                                    height: Double(rows.count) / y))
                        }
                        run = nil
                    }
                }
                hidden += mask.grid.key[reachable.upperBound - 1].upperBound < mask.grid.key.length ? 1 : 0
            }
            #expect(kept.count == expected.count && unreachable.count == hidden)
            // Edges are rounded to thousandths.
            for (a, b) in zip(kept, expected) {
                for (p, q) in [(a.x, b.x), (a.y, b.y), (a.width, b.width), (a.height, b.height)] {
                    #expect(abs(p - q) < 0.0011)
                }
            }
            #expect(viewBox.count == 4 && abs(viewBox[2] - Double(mask.grid.key.length) / x) < 0.0011)
            #expect(abs(viewBox[3] - Double(mask.grid.query.length) / y) < 0.0011)
        }
    }

    @Test("the title has the numbers, and no grid lines where there are too many blocks")
    func title() throws {
        let grid = try BlockGrid(queryLength: 65, keyLength: 65, queryBlockSize: 1, keyBlockSize: 1, isCausal: true)
        let svg = BlockMask.full(grid).svg()
        #expect(try read(svg).title == "65 × 65 blocks of 1 × 1 tokens, causal, density 1.0")
        #expect(!svg.contains("<path"))
        let two = try BlockMask(stacking: [
            .full(BlockGrid(queryLength: 129, keyLength: 300, isCausal: false)),
            .full(BlockGrid(queryLength: 129, keyLength: 300, isCausal: false)),
        ]).svg(head: 1)
        #expect(try read(two).title == "2 × 3 blocks of 128 × 128 tokens, not causal, head 1 of 2, density 1.0")
        #expect(two.contains("<path") && two.contains("viewBox=\"0 0 2.344 1.008\""))
    }
}
