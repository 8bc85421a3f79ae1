import PS3
import SparseKernelsReference
import TestSupport
import Testing

@Suite("PS3: scales and budgets")
struct PS3RulesTests {
    @Test("the short side is cut to patches at low resolution, then enlarged")
    func sizes() throws {
        let scales = try PS3Scales([378, 756, 1512, 3780])
        func size(_ rows: Int, _ columns: Int, _ scale: Int) throws -> [Int] {
            let picture = GridSize(rows: rows, columns: columns)
            let (pixels, grid) = try (scales.pixels(scale, of: picture), scales.grid(scale, of: picture))
            return [pixels.rows, pixels.columns, grid.rows, grid.columns]
        }
        #expect(try size(1000, 1000, 3) == [3780, 3780, 270, 270])
        #expect(try size(1080, 1920, 0) == [378, 378, 27, 27])
        // 378 / 1920 · 1080 = 212.6, which are 15 patches.
        #expect(try size(1080, 1920, 1) == [15 * 14 * 2, 756, 30, 54])
        #expect(try size(1920, 1080, 3) == [3780, 15 * 14 * 10, 270, 150])
        #expect(try size(1, 100_000, 2) == [56, 1512, 4, 108])
        // Rounding makes these squares a patch narrower.
        #expect(try size(155, 155, 1) == [756, 728, 54, 52])
        #expect(try size(309, 309, 1) == [756, 728, 54, 52])
        #expect(scales.highPatches == 54 * 54 + 108 * 108 + 270 * 270)
        #expect(try scales.highGrids(of: GridSize(side: 50)).map(\.rows) == [54, 108, 270])
    }

    @Test("scales out of order, no multiples, too few, and pictures without pixels are refused")
    func scaleErrors() {
        for sides in [[], [378], [378, 378], [756, 378], [378, 1512, 756], [378, 800], [380, 760], [7, 14], [0, 14]] {
            expectError(.invalidArgument, "scales", containing: "\(sides)") { _ = try PS3Scales(sides) }
        }
        expectError(.invalidArgument, "scales", containing: "\(PS3Scales.largestSide)") { _ = try PS3Scales([14, 14 << 30]) }
        expectError(.invalidArgument, "patch", containing: "0") { _ = try PS3Scales([14, 28], patch: 0) }
        for picture in [GridSize(rows: 0, columns: 5), GridSize(rows: 5, columns: 0), GridSize(rows: -1, columns: -1)] {
            expectError(.invalidShape, "picture", containing: "\(picture)") {
                _ = try PS3Scales([14, 28]).grid(1, of: picture)
            }
        }
    }

    @Test("budgets are in proportion to pixels, and what is left goes to the last scale")
    func budgets() throws {
        let two = try PS3Scales([378, 756, 1512])
        let three = try PS3Scales([378, 756, 1512, 3780])
        #expect(try PS3Budget(1280, two).perScale == [256, 1024])
        #expect(try PS3Budget(2560, three).perScale == [85, 341, 2134])
        #expect(try PS3Budget(1, three).perScale == [0, 0, 1])
        for total in [1, 2, 77, 1000, 14_580] {
            let budget = try PS3Budget(total, two)
            #expect(budget.total == total && budget.perScale.reduce(0, +) == total)
        }
        let budget = try PS3Budget(2560, three)
        #expect(try budget.reduced(to: 100).perScale == [3, 13, 84])
        #expect(try budget.reduced(to: 2560) == budget)
        #expect(try budget.limited(toFirst: 1).perScale == [2560, 0, 0])
        #expect(try budget.limited(toFirst: 2).perScale == [510, 2050, 0])
        #expect(try budget.limited(toFirst: 3) == budget)
    }

    @Test("a budget of 0 or larger than the patches is refused")
    func budgetErrors() throws {
        let scales = try PS3Scales([28, 56, 112])
        #expect(scales.highPatches == 80)
        for total in [0, -1, 81, Int.max] {
            expectError(.invalidArgument, "budget", containing: "80", "\(total)") { _ = try PS3Budget(total, scales) }
        }
        expectError(.invalidShape, "budget", containing: "2", "3") { _ = try PS3Budget(perScale: [1, 2, 3], scales) }
        expectError(.invalidArgument, "budget[0]", containing: "16", "17") { _ = try PS3Budget(perScale: [17, 2], scales) }
        expectError(.invalidArgument, "budget[1]", containing: "-2") { _ = try PS3Budget(perScale: [17 - 1, -2], scales) }
        expectError(.invalidArgument, "budget", containing: "at least 1") { _ = try PS3Budget(perScale: [0, 0], scales) }
        let budget = try PS3Budget(20, scales)
        for tokens in [0, 21] {
            expectError(.invalidArgument, "tokens", containing: "20", "\(tokens)") { _ = try budget.reduced(to: tokens) }
        }
        for first in [0, 3] {
            expectError(.invalidArgument, "firstScales", containing: "1 to 2") { _ = try budget.limited(toFirst: first) }
        }
        let last = try PS3Budget(perScale: [0, 5], scales)
        expectError(.invalidArgument, "firstScales", containing: "[0, 5]") { _ = try last.limited(toFirst: 1) }
    }
}

@Suite("PS3: score maps and selection")
struct PS3SelectionTests {
    /// A map of some grid with few values, so that many are equal.
    static func map(_ rows: Int, _ columns: Int, seed: UInt64) throws -> Tensor<Float> {
        let noise = try Tensor<Float>.normal([rows, columns], seed: seed)
        return try Tensor([rows, columns]) { Float(Int(noise[flat: $0] * 4)) / 64 + 0.5 }
    }

    @Test("probabilities are those of the formula", arguments: InstructionSet.available)
    func formula(_ set: InstructionSet) throws {
        let cosines = try Tensor<Float>([3, 4]) { Float($0) / 6 - 1 }
        let plain = try PS3ScoreMap(cosines: cosines, instructionSet: set).probabilities
        for cell in 0..<12 {
            let logit = 5 * (Double(cell) / 6 - 1)
            #expect(abs(Double(plain[flat: cell]) - 1 / (1 + Self.exponential(-logit))) < 1e-6)
        }
        // Cells of 2 × 2 and more: the largest cosine of a window counts, at a grid that does not divide, too.
        for (rows, columns) in [(6, 8), (7, 9), (3, 4), (2, 2)] {
            let detail = try Tensor<Float>.normal([rows, columns], seed: 5, scale: 0.3)
            let both = try PS3ScoreMap(cosines: cosines, detail: detail, instructionSet: set).probabilities
            for cell in 0..<12 {
                let (row, column) = (cell / 4, cell % 4)
                var largest = -Float.infinity
                for r in row * rows / 3..<((row + 1) * rows + 2) / 3 {
                    for c in column * columns / 4..<((column + 1) * columns + 3) / 4 { largest = max(largest, detail[r, c]) }
                }
                let logit = 5 * (Double(cosines[row, column]) + Double(largest)) / 2
                #expect(abs(Double(both[row, column]) - 1 / (1 + Self.exponential(-logit))) < 1e-6, "\(rows) × \(columns)")
            }
        }
        // Logits are clamped.
        let far = try PS3ScoreMap(cosines: Tensor([1, 2], [-40, 40])).probabilities
        #expect(abs(far[flat: 0] - 4.539787e-5) < 1e-9 && abs(far[flat: 1] - 0.9999546) < 1e-6)
    }

    /// e^x by its series after halving, so that no other library is needed.
    static func exponential(_ x: Double) -> Double {
        var (sum, term) = (1.0, 1.0)
        for n in 1..<30 {
            term *= x / 64 / Double(n)
            sum += term
        }
        for _ in 0..<6 { sum *= sum }
        return sum
    }

    @Test("a map is resized without interpolation, and smoothed to 6 × 6 areas")
    func resizing() throws {
        let map = try PS3ScoreMap(probabilities: Self.map(4, 4, seed: 1))
        let large = try map.resized(to: GridSize(rows: 8, columns: 12))
        for row in 0..<8 { for column in 0..<12 { #expect(large[row, column] == map.probabilities[row / 2, column / 3]) } }
        let smooth = try map.resized(to: GridSize(rows: 12, columns: 12), smooths: true)
        // Areas of 2 × 2 patches, whose values are equal where the areas lie inside a cell of the map.
        for row in 0..<12 { for column in 0..<12 { #expect(smooth[row, column] == smooth[row / 2 * 2, column / 2 * 2]) } }
        #expect(smooth[0, 0] == map.probabilities[0, 0])
        // One patch per side is a map, too.
        #expect(try map.resized(to: GridSize(rows: 1, columns: 1), smooths: true).count == 1)
    }

    @Test("passes are a stable sort in parts, none selected twice, surplus moving on")
    func passes() throws {
        let scales = try PS3Scales([70, 140, 280])
        let picture = GridSize(rows: 60, columns: 140)
        let map = try PS3ScoreMap(probabilities: Self.map(5, 5, seed: 2))
        var selector = try PS3Selector(map, scales, picture: picture)
        #expect(selector.grids == [GridSize(rows: 4, columns: 10), GridSize(rows: 8, columns: 20)])
        #expect(selector.remaining == 200 && selector.cellCount == 200)
        let budget = try PS3Budget(75, scales)
        #expect(budget.perScale == [15, 60])
        var seen: [Set<Int32>] = [[], []]
        var counts: [[Int]] = []
        while selector.remaining > 0 {
            let selection = try selector.next(budget)
            counts.append(selection.perScale)
            for scale in 0..<2 {
                let cells = selection.cells[scale]
                #expect(cells == cells.sorted() && seen[scale].isDisjoint(with: cells))
                seen[scale].formUnion(cells)
                // What is taken so far is the head of a stable sort.
                let scores = selector.maps[scale]
                let order = (0..<scores.count).sorted { (scores[flat: $0], $1) > (scores[flat: $1], $0) }
                #expect(Set(order.prefix(seen[scale].count).map(Int32.init)) == seen[scale])
            }
        }
        #expect(counts == [[15, 60], [15, 60], [10, 40]])
        #expect(selector.selected.count == 200)
        #expect(try selector.next(budget).count == 0)
        // All of a pass to the first scale: 40 patches there, and the rest moves on.
        var first = try PS3Selector(map, scales, picture: picture)
        #expect(try first.next(budget.limited(toFirst: 1)).perScale == [40, 35])
        #expect(try first.next(budget.limited(toFirst: 1)).perScale == [0, 75])
    }

    @Test("equal scores are taken by lower cells")
    func ties() throws {
        var selector = try PS3Selector(maps: [Tensor([2, 3]) { _ in 0.5 }, Tensor([1, 4], [0.1, 0.9, 0.1, 0.9])])
        let budget = try PS3Budget(perScale: [2, 3], PS3Scales([28, 56, 112]))
        #expect(try selector.next(budget).cells == [[0, 1], [0, 1, 3]])
        #expect(try selector.next(budget).cells == [[2, 3], [2]])
        #expect(try selector.next(budget).cells == [[4, 5], []])
    }

    @Test("scores that are NaN or infinite are refused, and maps without cells")
    func errors() throws {
        for bad in [Float.nan, .infinity] {
            let map = try Tensor<Float>([1, 3], [0, bad, 1])
            expectError(.invalidArgument, "probabilities", containing: "\(bad)", "element 1") {
                _ = try PS3ScoreMap(probabilities: map)
            }
            expectError(.invalidArgument, "cosines", containing: "\(bad)") { _ = try PS3ScoreMap(cosines: map) }
            expectError(.invalidArgument, "detail", containing: "\(bad)") {
                _ = try PS3ScoreMap(cosines: Tensor([1, 1], [0]), detail: map)
            }
            expectError(.invalidArgument, "maps[1]", containing: "\(bad)") {
                _ = try PS3Selector(maps: [Tensor([1, 1], [0]), map])
            }
        }
        expectError(.invalidShape, "probabilities", containing: "[0, 3]") {
            _ = try PS3ScoreMap(probabilities: Tensor(zeros: [0, 3]))
        }
        expectError(.invalidShape, "cosines", containing: "[3]") { _ = try PS3ScoreMap(cosines: Tensor(zeros: [3])) }
        expectError(.invalidShape, "maps", containing: "none") { _ = try PS3Selector(maps: []) }
        expectError(.invalidShape, "maps[0]", containing: "[0, 1]") { _ = try PS3Selector(maps: [Tensor(zeros: [0, 1])]) }
        var selector = try PS3Selector(maps: [Tensor([1, 1], [0])])
        expectError(.invalidShape, "budget", containing: "1 scales", "2") {
            _ = try selector.next(PS3Budget(2, PS3Scales([14, 28, 56])))
        }
        expectError(.invalidArgument, "cells[1][2]", containing: "more than 4", "4") {
            _ = try PS3Selection(cells: [[], [1, 4, 4]])
        }
        expectError(.invalidArgument, "cells[0][0]", containing: "-1") { _ = try PS3Selection(cells: [[-1]]) }
    }
}
