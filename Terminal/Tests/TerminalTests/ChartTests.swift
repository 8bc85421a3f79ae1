import Foundation
import Testing

@testable import Terminal

#if canImport(FoundationXML)
    import FoundationXML
#endif

@Suite struct ChartTests {
    private static let bars = BarChart(
        title: "Roof <of> \"A & B\"", subtitle: "it's", axisTitle: "percent", categories: ["n4096 h8 d64", "tiny"],
        series: [.init("avx512", [0.912, nil]), .init("portable", [1.004, 0.0005])])
    private static let lines = LineChart(
        title: "Speed-up", xAxis: .init("density", scale: .logarithmic, style: .percent),
        yAxis: .init("speed-up", scale: .logarithmic, style: .times),
        series: [.init("a & b", [(1, 0.95), (0.5, 1.8), (0.05, 14), (0, 20), (.nan, 1)]), .init("b", [])],
        ideal: .init("1 / density") { 1 / $0 })

    /// The contents that a parser finds in the text of a chart; nil if it is not well-formed.
    private func parse(_ svg: String) -> Contents? {
        let contents = Contents()
        let parser = XMLParser(data: Data(svg.utf8))
        parser.delegate = contents
        return parser.parse() ? contents : nil
    }

    @Test func chartsAreWellFormed() throws {
        for svg in [Self.bars.svg(), Self.lines.svg()] {
            let contents = try #require(parse(svg))
            #expect(contents.elements.first == "svg")
            #expect(!svg.contains("nan") && !svg.contains("inf"))
        }
    }

    @Test func anAxisMayBeginAboveZero() throws {
        var chart = LineChart(
            title: "Loss", xAxis: .init("steps"), yAxis: .init("nats"), series: [.init("a", [(0, 1.42), (100, 1.31)])])
        // Ticks of the y axis below all values. Those of the x axis are 0 or far above.
        func hasLowTicks(_ chart: LineChart) throws -> Bool {
            try #require(parse(chart.svg())).texts.contains { text in Double(text).map { $0 > 0 && $0 < 1.25 } ?? false }
        }
        #expect(try hasLowTicks(chart))
        chart.yAxis.includesZero = false
        #expect(try !hasLowTicks(chart))
    }

    @Test func textIsEscaped() throws {
        let contents = try #require(parse(Self.bars.svg()))
        #expect(contents.texts.contains("Roof <of> \"A & B\""))
        #expect(contents.texts.contains("it's"))
        #expect(SVGCanvas.escape("<a&\"b'\u{1}>é") == "&lt;a&amp;&quot;b&#39; &gt;é")
    }

    @Test func outputIsDeterministic() {
        #expect(Self.bars.svg() == Self.bars.svg())
        #expect(Self.lines.svg() == Self.lines.svg())
    }

    @Test func cellsOfBranchesAreDrawnBesideTheirTree() throws {
        let chart = CellChart(
            title: "Pages", keys: ["shared", "own"],
            rows: [
                .init("root", cells: [.filled(series: 0), .filled(series: 0)], note: "2 pages"),
                .init("child", parent: 0, cells: [.outlined(series: 0), .empty, .filled(series: 1)]),
            ])
        let contents = try #require(parse(chart.svg()))
        #expect(["root", "child", "2 pages", "shared", "own"].allSatisfy(contents.texts.contains))
        // The ground, two keys, three filled cells, and two rectangles for an outlined one.
        #expect(contents.elements.count { $0 == "rect" } == 1 + 2 + 3 + 2)
        #expect(contents.elements.count { $0 == "line" } == 2)
        // Many columns become bars.
        let wide = CellChart(
            title: "", keys: [], rows: [.init("", cells: Array(repeating: .filled(series: 0), count: 4000))])
        #expect(try #require(parse(wide.svg())).elements.count { $0 == "rect" } == 2)
        _ = try #require(parse(CellChart(title: "", keys: [], rows: []).svg()))
    }

    @Test func nothingToShowIsStillAChart() throws {
        _ = try #require(parse(BarChart(title: "", categories: [], series: []).svg()))
        _ = try #require(parse(LineChart(title: "", xAxis: .init("x"), yAxis: .init("y"), series: []).svg()))
        let point = LineChart(title: "", xAxis: .init("x"), yAxis: .init("y"), series: [.init("a", [(5, 5)])])
        _ = try #require(parse(point.svg()))
    }

    @Test func bothScalesEncloseTheirValuesWithRoundTicks() {
        let linear = ChartAxis(values: [3, 97], scale: .linear, includingZero: true)
        #expect(linear.ticks == [0, 20, 40, 60, 80, 100])
        let logarithmic = ChartAxis(values: [0.03, 0.9, 0, -1, .nan], scale: .logarithmic)
        #expect(logarithmic.ticks.map { AxisStyle.percent.text($0) } == ["2 %", "5 %", "10 %", "20 %", "50 %", "100 %"])
        #expect(ChartAxis(values: [1e-6, 1e6], scale: .logarithmic).ticks.count == 13)
        for scale in [AxisScale.linear, .logarithmic] {
            for value in [1e-9, 0.2, 1, 3, 1e9] {
                let axis = ChartAxis(values: [value, value * 7], scale: scale)
                #expect(axis.range.contains(value) && axis.range.contains(value * 7), "\(scale) \(value)")
                #expect((2...20).contains(axis.ticks.count))
            }
        }
    }
}

private final class Contents: NSObject, XMLParserDelegate {
    var elements: [String] = []
    var texts: [String] = []
    private var text = ""

    func parser(
        _ parser: XMLParser, didStartElement elementName: String, namespaceURI: String?, qualifiedName: String?,
        attributes: [String: String] = [:]
    ) {
        elements.append(elementName)
        text = ""
    }

    func parser(_ parser: XMLParser, foundCharacters string: String) {
        text += string
    }

    func parser(_ parser: XMLParser, didEndElement elementName: String, namespaceURI: String?, qualifiedName: String?) {
        texts.append(text)
        text = ""
    }
}
