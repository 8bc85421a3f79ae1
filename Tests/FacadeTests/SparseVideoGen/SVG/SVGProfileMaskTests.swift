import SparseVideoGen
import Testing

@Suite("Profile masks of Sparse VideoGen")
struct SVGProfileMaskTests {
    /// The definition, pair by pair.
    static func keeps(_ mask: SVGMask, _ configuration: SVGConfiguration, _ i: Int, _ j: Int) -> Bool {
        let (geometry, kind) = (mask.geometry, mask.kind)
        let (frames, places, video) = (geometry.frames, geometry.tokensPerFrame, geometry.video)
        /// The place of a token of the video in the order of the kind.
        func order(_ token: Int) -> Int {
            let index = token - video.lowerBound
            return kind == .spatial ? index : index % places * frames + index / places
        }
        let isVideo = (video.contains(i), video.contains(j))
        guard let released = configuration.released else {
            let isPadding = (geometry.padding.contains(i), geometry.padding.contains(j))
            if isPadding.0 || isPadding.1 { return isPadding.0 && isPadding.1 }
            if !isVideo.0 || !isVideo.1 { return true }
            if configuration.keepsFirstFrame && kind == .spatial && j < video.lowerBound + places { return true }
            let reach = configuration.profileFrames.map { Int($0 * Double(places)) } ?? mask.width
            return abs(order(i) - order(j)) <= reach
        }
        let alpha = configuration.profileFrames ?? (released == .wan ? 2 : 1.5)
        let width = Int(alpha * Double(places) / 128)
        func band(_ a: Int, _ b: Int) -> Bool { abs(a / 128 - b / 128) < width }
        switch (released, kind) {
        case (.cogVideoX, .spatial):
            let end = (geometry.videoTokens + 127) / 128 * 128
            return !isVideo.0 || !isVideo.1 || (i < end && j < end && band(i, j))
        case (.cogVideoX, .temporal):
            return isVideo.0 && isVideo.1 && band(order(i), order(j))
        case (.hunyuanVideo, _):
            return !isVideo.0 || !isVideo.1 || band(order(i), order(j))
        case (.wan, _):
            return order(j) < places || band(order(i), order(j))
        }
    }

    static func cases() throws -> [(VideoGeometry, SVGConfiguration)] {
        let cog = try VideoGeometry(frames: 4, height: 10, width: 13, textTokens: 26, promptTokens: 20)
        let hunyuan = try VideoGeometry(
            frames: 5, height: 10, width: 13, textTokens: 48, textPlacement: .after, promptTokens: 19)
        let wan = try VideoGeometry(frames: 6, height: 10, width: 13)
        let small = try VideoGeometry(frames: 7, height: 3, width: 3)
        var cases: [(VideoGeometry, SVGConfiguration)] = []
        for alpha in [nil, 0.3, 2.2, 1e9] {
            cases.append((cog, SVGConfiguration(released: .cogVideoX, density: 0.5, profileFrames: alpha)))
            cases.append((hunyuan, SVGConfiguration(released: .hunyuanVideo, density: 0.5, profileFrames: alpha)))
            cases.append((wan, SVGConfiguration(released: .wan, density: 0.5, profileFrames: alpha)))
            cases.append((small, SVGConfiguration(released: .wan, density: 0.5, profileFrames: alpha)))
            for geometry in [cog, hunyuan, small] {
                cases.append((geometry, SVGConfiguration(density: 0.6, keepsFirstFrame: true, profileFrames: alpha)))
            }
        }
        return cases
    }

    @Test("keep what the rules say, as ascending runs that do not touch")
    func runs() throws {
        for (geometry, configuration) in try Self.cases() {
            for kind in SVGHeadKind.allCases {
                let mask = try SVGProfileMask(geometry, kind: kind, configuration)
                let attended = try SVGMask(geometry, kind: kind, configuration)
                var differences = 0
                for row in stride(from: 0, to: geometry.tokens, by: 3) {
                    let runs = mask.runs(of: row)
                    for (run, next) in zip(runs, runs.dropFirst()) { #expect(run.upperBound < next.lowerBound) }
                    var kept = [Bool](repeating: false, count: geometry.tokens)
                    for run in runs {
                        #expect(!run.isEmpty)
                        for key in run { kept[key] = true }
                    }
                    for key in 0..<geometry.tokens
                    where kept[key] != Self.keeps(attended, configuration, row, key) { differences += 1 }
                }
                #expect(differences == 0, "\(geometry) \(configuration) \(kind)")
                let rows = [3, geometry.tokens - 1, 3]
                let list = try mask.keyRuns(rows: rows)
                #expect(list.query.count == 3 && list.keyLength == geometry.tokens)
                for (index, row) in rows.enumerated() { #expect(Array(list.runs(block: index)) == mask.runs(of: row)) }
            }
        }
    }

    @Test("clean masks without a width of their own are the keys of attention")
    func cleanMasks() throws {
        for placement in [VideoGeometry.TextPlacement.before, .after] {
            let geometry = try VideoGeometry(
                frames: 4, height: 3, width: 5, textTokens: 7, textPlacement: placement, promptTokens: 3)
            let configuration = SVGConfiguration(density: 0.55, keepsFirstFrame: true)
            for kind in SVGHeadKind.allCases {
                let mask = try SVGMask(geometry, kind: kind, configuration)
                let profile = try SVGProfileMask(geometry, kind: kind, configuration)
                let order = mask.order?.map { Int($0) } ?? Array(0..<geometry.tokens)
                for (i, query) in order.enumerated() {
                    let kept = Set(profile.runs(of: query).joined())
                    for (j, key) in order.enumerated() { #expect(kept.contains(key) == mask.keeps(query: i, key: j)) }
                }
            }
        }
    }
}
