import SparseVideoGen
import TestSupport
import Testing

@Suite("Masks of Sparse VideoGen")
struct SVGMaskTests {
    /// Every combination of rules and places of text, at sizes off every block edge.
    static func cases() throws -> [(geometry: VideoGeometry, configuration: SVGConfiguration)] {
        let before = try VideoGeometry(frames: 3, height: 5, width: 7, textTokens: 11, promptTokens: 4)
        let after = try VideoGeometry(
            frames: 3, height: 5, width: 7, textTokens: 11, textPlacement: .after, promptTokens: 4)
        let bare = try VideoGeometry(frames: 5, height: 6, width: 23)
        let long = try VideoGeometry(frames: 5, height: 6, width: 23, textTokens: 20, textPlacement: .after, promptTokens: 9)
        let longBefore = try VideoGeometry(frames: 5, height: 6, width: 23, textTokens: 20)
        var cases: [(VideoGeometry, SVGConfiguration)] = []
        let small = try VideoGeometry(frames: 5, height: 4, width: 3)
        for geometry in [before, after, small] {
            for (density, keepsFirstFrame) in [(0.5, false), (0.7, true), (1, false)] {
                cases.append((geometry, SVGConfiguration(density: density, keepsFirstFrame: keepsFirstFrame)))
            }
        }
        for density in [0.4, 0.9] {
            cases.append((longBefore, SVGConfiguration(released: .cogVideoX, density: density)))
            cases.append((before, SVGConfiguration(released: .cogVideoX, density: density)))
            cases.append((long, SVGConfiguration(released: .hunyuanVideo, density: density)))
            cases.append((after, SVGConfiguration(released: .hunyuanVideo, density: density)))
            cases.append((bare, SVGConfiguration(released: .wan, density: density)))
            cases.append((bare, SVGConfiguration(released: .cogVideoX, density: density)))
        }
        return cases
    }

    /// The rule of the table in the documentation, in terms of text, prompt and padding. Positions of padding come last under
    /// the clean rules.
    static func keeps(_ mask: SVGMask, _ configuration: SVGConfiguration, _ i: Int, _ j: Int) -> Bool {
        let geometry = mask.geometry
        let (text, prompt, place) = (geometry.textTokens, geometry.promptTokens, geometry.tokensPerFrame)
        let video = geometry.videoTokens
        let distance = abs(i - j)
        switch configuration.released {
        case .cogVideoX:
            return i < text || j < text || distance < mask.width
        case .hunyuanVideo:
            let end = video + prompt
            if i >= end || j >= end { return i >= end && j >= end }
            return distance < mask.width || i >= video || j >= video
        case .wan:
            return distance <= mask.width || j < place
        case nil:
            let end = video + prompt
            if i >= end || j >= end { return i >= end && j >= end }
            let first = geometry.textPlacement == .before ? prompt : 0
            func isVideo(_ position: Int) -> Bool { position >= first && position < first + video }
            let sink = configuration.keepsFirstFrame && mask.kind == .spatial
            return distance <= mask.width || !isVideo(i) || !isVideo(j) || (sink && j < first + place)
        }
    }

    @Test("keep what the rules say, and plans keep as many pairs")
    func pairs() throws {
        for (geometry, configuration) in try Self.cases() {
            let shape = try AttentionShape(
                queryLength: geometry.tokens, keyLength: geometry.tokens, queryHeads: 1, kvHeads: 1, headDim: 4)
            let svg = try SVGAttention(shape, geometry: geometry, configuration)
            for mask in svg.masks {
                var count = 0
                var differences = 0
                for i in 0..<geometry.tokens {
                    for j in 0..<geometry.tokens {
                        let isKept = mask.keeps(query: i, key: j)
                        if isKept { count += 1 }
                        if isKept != Self.keeps(mask, configuration, i, j) { differences += 1 }
                    }
                }
                #expect(differences == 0, "\(geometry) \(configuration) \(mask.kind)")
                #expect(
                    try svg.attention(patterns: [mask.kind]).attention.visiblePairs == count,
                    "\(geometry) \(configuration) \(mask.kind)")
            }
        }
    }

    @Test("clean bands are the widest that the density allows")
    func cleanWidth() throws {
        for (geometry, configuration) in try Self.cases() where configuration.released == nil {
            for kind in SVGHeadKind.allCases {
                let mask = try SVGMask(geometry, kind: kind, configuration)
                let all = geometry.videoTokens + geometry.promptTokens
                func pairs(within width: Int) -> Int {
                    let first = geometry.textPlacement == .before ? geometry.promptTokens : 0
                    let video = first..<first + geometry.videoTokens
                    let sink = configuration.keepsFirstFrame && kind == .spatial ? geometry.tokensPerFrame : 0
                    var count = 0
                    for i in 0..<all {
                        for j in 0..<all
                        where abs(i - j) <= width || !video.contains(i) || !video.contains(j) || j < first + sink {
                            count += 1
                        }
                    }
                    return count
                }
                let limit = configuration.density * Double(all) * Double(all)
                #expect(Double(pairs(within: mask.width)) <= limit)
                if mask.width < geometry.videoTokens - 1 { #expect(Double(pairs(within: mask.width + 1)) > limit) }
                #expect(mask.multiplier == Double(mask.width) / Double(geometry.tokensPerFrame))
            }
        }
    }

    @Test("released widths are those of the published models")
    func releasedWidths() throws {
        for (model, frames, places, text, density, multiplier, width) in [
            (.cogVideoX, 11, 4080, 226, 0.25, 1.41739, 5760), (.hunyuanVideo, 33, 3600, 256, 0.25, 4.34869, 15616),
            (.hunyuanVideo, 33, 1350, 256, 0.25, 4.22843, 5632), (.wan, 21, 3600, 0, 0.25, 2.81347, 10240),
            (.wan, 21, 3600, 0, 0.3, 3.43014, 12416), (.wan, 21, 1560, 0, 0.3, 3.43014, 5376),
        ] as [(SVGModel, Int, Int, Int, Double, Double, Int)] {
            let geometry = try VideoGeometry(
                frames: frames, tokensPerFrame: places, textTokens: text, textPlacement: model == .cogVideoX ? .before : .after)
            let mask = try SVGMask(geometry, kind: .spatial, SVGConfiguration(released: model, density: density))
            #expect(
                abs(mask.multiplier - multiplier) < 1e-5 && mask.width == width, "\(model) \(mask.multiplier) \(mask.width)")
        }
    }

    @Test("more density never keeps less, and density 1 of the clean rules keeps all but padding")
    func monotone() throws {
        let geometry = try VideoGeometry(frames: 4, height: 3, width: 5, textTokens: 6, promptTokens: 2)
        let shape = try AttentionShape(queryLength: 66, keyLength: 66, queryHeads: 1, kvHeads: 1, headDim: 4)
        for released in [nil, SVGModel.cogVideoX] {
            var previous = 0
            for percent in stride(from: 35, through: 100, by: 5) {
                let svg = try SVGAttention(
                    shape, geometry: geometry, SVGConfiguration(released: released, density: Double(percent) / 100))
                let pairs = try svg.attention(patterns: [.temporal]).attention.visiblePairs
                #expect(pairs >= previous)
                previous = pairs
            }
            if released == nil { #expect(previous == 62 * 62 + 4 * 4) }
        }
    }

    @Test("orders are token-major in temporal heads; padding before the video goes to the end under the clean rules")
    func orders() throws {
        for (geometry, configuration) in try Self.cases() {
            let spatial = try SVGMask(geometry, kind: .spatial, configuration).order
            let temporal = try #require(try SVGMask(geometry, kind: .temporal, configuration).order)
            let moves = configuration.released == nil && geometry.textPlacement == .before && !geometry.padding.isEmpty
            func movingPadding(_ order: [Int32]) -> [Int32] {
                guard moves else { return order }
                return order.filter { !geometry.padding.contains(Int($0)) } + geometry.padding.map { Int32($0) }
            }
            let expected = try geometry.axisOrder([.height, .width, .frame])
            #expect(temporal == movingPadding(Array(expected.order(head: 0))))
            #expect(spatial == (moves ? movingPadding((0..<Int32(geometry.tokens)).map { $0 }) : nil))
        }
    }

    @Test("a density that no band can give, and rules that do not fit the geometry, are errors that name them")
    func badInput() throws {
        let text = try VideoGeometry(frames: 3, tokensPerFrame: 10, textTokens: 10)
        let after = try VideoGeometry(frames: 3, tokensPerFrame: 10, textTokens: 10, textPlacement: .after)
        let bare = try VideoGeometry(frames: 3, tokensPerFrame: 10)
        for density in [0, -0.1, 1.1, .nan, .infinity] {
            expectError(.invalidArgument, "density") {
                _ = try SVGMask(bare, kind: .spatial, SVGConfiguration(density: density))
            }
        }
        // 2 · 10 / 40 is the share of text; the clean rules count its corner once, and the diagonal.
        expectError(.invalidArgument, "density", containing: "0.5") {
            _ = try SVGMask(text, kind: .spatial, SVGConfiguration(released: .cogVideoX, density: 0.5))
        }
        #expect(throws: Never.self) { try SVGMask(text, kind: .spatial, SVGConfiguration(released: .cogVideoX, density: 0.51)) }
        let least = Double(40 * 40 - 30 * 29) / 1600
        #expect(try SVGMask(text, kind: .temporal, SVGConfiguration(density: least)).width == 0)
        expectError(.invalidArgument, "density", containing: "\(least)") {
            _ = try SVGMask(text, kind: .temporal, SVGConfiguration(density: least - 0.001))
        }
        expectError(.invalidArgument, "geometry.textPlacement") {
            _ = try SVGMask(after, kind: .spatial, SVGConfiguration(released: .cogVideoX, density: 0.9))
        }
        expectError(.invalidArgument, "geometry.textPlacement") {
            _ = try SVGMask(text, kind: .spatial, SVGConfiguration(released: .hunyuanVideo, density: 0.9))
        }
        expectError(.invalidArgument, "geometry.textTokens") {
            _ = try SVGMask(text, kind: .spatial, SVGConfiguration(released: .wan, density: 0.9))
        }
    }

    @Test("released widths below a block leave text alone")
    func emptyBand() throws {
        let geometry = try VideoGeometry(frames: 3, tokensPerFrame: 10, textTokens: 4)
        let mask = try SVGMask(geometry, kind: .spatial, SVGConfiguration(released: .cogVideoX, density: 0.5))
        #expect(mask.width == 0 && !mask.keeps(query: 20, key: 20) && mask.keeps(query: 20, key: 3))
        let bare = try VideoGeometry(frames: 3, tokensPerFrame: 10)
        let shape = try AttentionShape(queryLength: 30, keyLength: 30, queryHeads: 1, kvHeads: 1, headDim: 4)
        let plan = try SVGAttention(shape, geometry: bare, SVGConfiguration(released: .hunyuanVideo, density: 0.5))
            .attention(patterns: [.temporal])
        #expect(plan.attention.visiblePairs == 0)
        let operand = try Tensor<Float>([1, 30, 4]) { Float($0 % 5) }
        let state = try plan(query: operand, key: operand, value: operand)
        #expect(state.output.elements.allSatisfy { $0 == 0 } && state.logSumExp.elements.allSatisfy { $0 == -.infinity })
    }
}
