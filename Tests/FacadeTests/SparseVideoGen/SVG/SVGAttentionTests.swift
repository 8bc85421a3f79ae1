import SparseKernelsReference
import SparseVideoGen
import TestSupport
import Testing

@Suite("SVG attention")
struct SVGAttentionTests {
    struct Operands {
        let geometry: VideoGeometry
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        /// Heads are spatial and temporal in turn: tokens of a frame resemble each other, or those of a place.
        init(_ geometry: VideoGeometry, kvHeads: Int = 4, group: Int = 1, headDim: Int = 16, strength: Float = 2) throws {
            self.geometry = geometry
            let tokens = geometry.tokens
            shape = try AttentionShape(
                queryLength: tokens, keyLength: tokens, queryHeads: kvHeads * group, kvHeads: kvHeads, headDim: headDim,
                valueDim: headDim - 3)
            let topics = try Tensor<Float>.normal([2, tokens, headDim], seed: 5)
            func operand(_ heads: Int, _ group: Int, seed: UInt64) throws -> Tensor<Float> {
                let noise = try Tensor<Float>.normal([heads, tokens, headDim], seed: seed)
                return try Tensor([heads, tokens, headDim]) { index in
                    let (head, token) = (index / headDim / tokens, index / headDim % tokens)
                    let kind = head / group % 2
                    guard geometry.video.contains(token) else { return noise[flat: index] }
                    let video = token - geometry.video.lowerBound
                    let topic = kind == 0 ? video / geometry.tokensPerFrame : video % geometry.tokensPerFrame
                    return noise[flat: index] * 0.3 + strength * topics[kind, topic, index % headDim]
                }
            }
            query = try operand(kvHeads * group, group, seed: 1)
            key = try operand(kvHeads, 1, seed: 2)
            value = try .normal([kvHeads, tokens, headDim - 3], seed: 3)
        }
    }

    static func geometries() throws -> [VideoGeometry] {
        [
            try VideoGeometry(frames: 6, height: 3, width: 5),
            try VideoGeometry(frames: 5, height: 4, width: 4, textTokens: 9, promptTokens: 4),
            try VideoGeometry(frames: 5, height: 4, width: 4, textTokens: 9, textPlacement: .after, promptTokens: 4),
            try VideoGeometry(frames: 1, height: 7, width: 9, textTokens: 3),
            try VideoGeometry(frames: 63, height: 1, width: 1),
        ]
    }

    /// Compares every row with the oracle over the pairs of the masks, in the order in which tokens come.
    static func expectMatchesOracle(
        _ output: Tensor<Float>, _ operands: Operands, _ masks: [SVGMask], _ kinds: [SVGHeadKind], _ label: String
    ) throws {
        let (shape, oracle) = (operands.shape, ReferenceAttention(operands.shape))
        var worst = (ratio: 0.0, text: "")
        for head in 0..<shape.queryHeads {
            let mask = masks[kinds[head].rawValue]
            let order = mask.order?.map { Int($0) } ?? Array(0..<shape.queryLength)
            var position = order
            for (index, token) in order.enumerated() { position[token] = index }
            let kvHead = head / shape.queryHeadsPerKVHead
            let (queries, keys, values) = try (
                operands.query.view().rows(head: head), operands.key.view().rows(head: kvHead),
                operands.value.view().rows(head: kvHead)
            )
            for token in 0..<shape.queryLength {
                let row = oracle.row(
                    head: head, token: token, query: queries[token], keys: keys, values: values,
                    hides: { !mask.keeps(query: position[token], key: position[$0]) })
                let bound = AttentionErrorBound(row, headDim: shape.headDim).output
                for (channel, expected) in row.output.enumerated() {
                    let error = abs(Double(output[head, token, channel]) - expected)
                    if !(error <= worst.ratio * bound) {
                        worst = (error / max(bound, 1e-300), "head \(head), token \(token): off by \(error) of \(bound)")
                    }
                }
            }
        }
        #expect(worst.ratio <= 1, "\(label): \(worst.text)")
    }

    @Test("attention is exact over the kept pairs, in heads of both kinds", arguments: InstructionSet.available)
    func attention(_ set: InstructionSet) throws {
        for geometry in try Self.geometries() {
            let operands = try Operands(geometry)
            let configuration = SVGConfiguration(density: 0.6, sampledRows: 16, keepsFirstFrame: geometry.frames > 4)
            let svg = try SVGAttention(operands.shape, geometry: geometry, configuration, instructionSet: set)
            #expect(svg.instructionSet == set)
            for kinds: [SVGHeadKind] in [
                [.spatial, .temporal, .spatial, .temporal], [.spatial, .spatial, .spatial, .spatial],
                [.temporal, .temporal, .temporal, .temporal],
            ] {
                let plan = try svg.attention(patterns: kinds)
                let state = try plan(query: operands.query, key: operands.key, value: operands.value)
                try Self.expectMatchesOracle(state.output, operands, svg.masks, kinds, "\(set) \(geometry) \(kinds)")
            }
        }
    }

    @Test("released rules too", arguments: InstructionSet.available)
    func released(_ set: InstructionSet) throws {
        for (model, text, placement) in [
            (.cogVideoX, 9, .before), (.hunyuanVideo, 9, .after), (.wan, 0, .after),
        ] as [(SVGModel, Int, VideoGeometry.TextPlacement)] {
            let geometry = try VideoGeometry(
                frames: 5, height: 6, width: 7, textTokens: text, textPlacement: placement,
                promptTokens: model == .hunyuanVideo ? 4 : nil)
            for density in [0.3, 0.95] {
                let operands = try Operands(geometry, kvHeads: 2)
                let svg = try SVGAttention(
                    operands.shape, geometry: geometry, SVGConfiguration(released: model, density: density), instructionSet: set
                )
                let kinds: [SVGHeadKind] = [.temporal, .spatial]
                let state = try svg.attention(patterns: kinds)(
                    query: operands.query, key: operands.key, value: operands.value)
                try Self.expectMatchesOracle(state.output, operands, svg.masks, kinds, "\(set) \(model) \(density)")
            }
        }
    }

    @Test("profiling finds the kinds of heads, and results come from them", arguments: InstructionSet.available)
    func findsKinds(_ set: InstructionSet) throws {
        for geometry in try Self.geometries() where geometry.frames > 1 && geometry.tokensPerFrame > 1 {
            let operands = try Operands(geometry)
            let svg = try SVGAttention(
                operands.shape, geometry: geometry, SVGConfiguration(density: 0.5), instructionSet: set)
            let result = try svg(query: operands.query, key: operands.key, value: operands.value)
            #expect(result.patterns == [.spatial, .temporal, .spatial, .temporal])
            #expect(result.errors.shape == [2, 4] && result.sampledRows == svg.sampledRows())
            let state = try svg.attention(patterns: result.patterns)(
                query: operands.query, key: operands.key, value: operands.value)
            #expect(state == result.state)
            // The sampled rows are video, and the errors those of the oracle's masks: the winner's is small.
            #expect(result.sampledRows.allSatisfy { geometry.video.contains($0) })
            for head in 0..<4 { #expect(result.errors[head % 2, head] < result.errors[1 - head % 2, head] / 4) }
        }
    }

    @Test("query heads that share a KV head are of one kind", arguments: InstructionSet.available)
    func groupedHeads(_ set: InstructionSet) throws {
        let operands = try Operands(VideoGeometry(frames: 6, height: 3, width: 5), kvHeads: 2, group: 3)
        let svg = try SVGAttention(
            operands.shape, geometry: operands.geometry, SVGConfiguration(density: 0.5), instructionSet: set)
        let result = try svg(query: operands.query, key: operands.key, value: operands.value)
        #expect(result.patterns == [.spatial, .spatial, .spatial, .temporal, .temporal, .temporal])
        try Self.expectMatchesOracle(result.state.output, operands, svg.masks, result.patterns, "\(set)")
        expectError(.invalidArgument, "patterns[1]") {
            _ = try svg.attention(patterns: [.spatial, .temporal, .spatial, .spatial, .spatial, .spatial])
        }
    }

    @Test("density 1 is dense attention")
    func fullDensity() throws {
        for geometry in try Self.geometries() where geometry.padding.isEmpty {
            let operands = try Operands(geometry, kvHeads: 2)
            let svg = try SVGAttention(operands.shape, geometry: geometry, SVGConfiguration(density: 1))
            let plan = try svg.attention(patterns: [.spatial, .temporal])
            #expect(plan.density == 1)
            let state = try plan(query: operands.query, key: operands.key, value: operands.value)
            let dense = try DenseAttention(operands.shape)(query: operands.query, key: operands.key, value: operands.value)
            #expect(try AttentionComparison(state, with: dense).recall > 0.999_99)
            try Self.expectMatchesOracle(state.output, operands, svg.masks, [.spatial, .temporal], "\(geometry)")
            let result = try svg(query: operands.query, key: operands.key, value: operands.value)
            #expect(result.errors.elements.allSatisfy { $0 == 0 } && result.patterns == [.spatial, .spatial])
        }
    }

    @Test("any number of threads, and views of any layout, give the same bits")
    func threadsAndLayouts() throws {
        let operands = try Operands(VideoGeometry(frames: 5, height: 4, width: 4, textTokens: 9, promptTokens: 4))
        let svg = try SVGAttention(operands.shape, geometry: operands.geometry, SVGConfiguration(density: 0.5))
        let results = try [1, 2, 7].map { threads in
            try svg(query: operands.query, key: operands.key, value: operands.value, on: WorkerPool(threads: threads))
        }
        #expect(results[0].state == results[1].state && results[0].state == results[2].state)
        #expect(results[0].selected == results[1].selected && results[0].selected == results[2].selected)
        func tokensOutermost(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            let (heads, tokens, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
            return try Tensor([tokens, heads, channels]) { index in
                tensor[index / channels % heads, index / channels / heads, index % channels]
            }
        }
        let (query, key) = (try tokensOutermost(operands.query), try tokensOutermost(operands.key))
        let value = try tokensOutermost(operands.value)
        var output = try Tensor<Float>(zeros: [operands.shape.queryLength, 4, 13])
        let selected = try svg.run(
            query: query.view(layout: .nhd), key: key.view(layout: .nhd), value: value.view(layout: .nhd),
            output: output.mutableView(layout: .nhd))
        #expect(selected == results[0].selected)
        #expect(try tokensOutermost(results[0].state.output) == output)
    }

    @Test("plans are kept for combinations of kinds, and do not mix")
    func plans() throws {
        let operands = try Operands(VideoGeometry(frames: 6, height: 3, width: 5))
        let svg = try SVGAttention(operands.shape, geometry: operands.geometry, SVGConfiguration(density: 0.5))
        for combination in (0..<16).map({ $0 * 7 % 16 }) + [0, 15, 5] {
            let kinds = (0..<4).map { SVGHeadKind(rawValue: combination >> $0 & 1)! }
            let fresh = try SVGAttention(operands.shape, geometry: operands.geometry, SVGConfiguration(density: 0.5))
            let (plan, other) = (try svg.attention(patterns: kinds), try fresh.attention(patterns: kinds))
            #expect(plan.query == other.query && plan.key == other.key)
            #expect(plan.attention.visiblePairs == other.attention.visiblePairs)
        }
    }

    // MARK: - Sampling and profiling

    @Test("samples depend on seed and call alone, and stay within their limits")
    func samples() throws {
        let geometry = try VideoGeometry(frames: 50, height: 20, width: 20, textTokens: 30)
        let shape = try AttentionShape(queryLength: 20_030, keyLength: 20_030, queryHeads: 1, kvHeads: 1, headDim: 8)
        func rows(_ configuration: SVGConfiguration, call: Int = 0) throws -> [Int] {
            try SVGAttention(shape, geometry: geometry, configuration).sampledRows(call: call)
        }
        let clean = try rows(SVGConfiguration(sampledRows: 5000))
        #expect(clean.count == 5000 && clean.allSatisfy { geometry.video.contains($0) } && clean.max()! > 19_500)
        #expect(try clean == rows(SVGConfiguration(sampledRows: 5000)))
        #expect(try clean != rows(SVGConfiguration(sampledRows: 5000), call: 1))
        #expect(try clean != rows(SVGConfiguration(sampledRows: 5000, seed: 1)))
        #expect(try rows(SVGConfiguration(sampleLimit: 7)).allSatisfy { 30..<37 ~= $0 })
        let cog = try rows(SVGConfiguration(released: .cogVideoX, sampledRows: 5000))
        #expect(cog.contains { $0 < 30 } && cog.max()! > 19_500)
        #expect(try rows(SVGConfiguration(sampledRows: 64)).count == 64)
        #expect(try Set(rows(SVGConfiguration(sampledRows: .max))).count > 10_000)
        let bare = try VideoGeometry(frames: 50, tokensPerFrame: 400)
        let wan = try AttentionShape(queryLength: 20_000, keyLength: 20_000, queryHeads: 1, kvHeads: 1, headDim: 8)
        let limited = try SVGAttention(wan, geometry: bare, SVGConfiguration(released: .wan, sampledRows: 5000)).sampledRows()
        #expect(limited.max()! < 10_000 && limited.max()! > 9900)
    }

    @Test("a sampled text row makes every head temporal under Cog's rules, and never under the clean ones")
    func textRows() throws {
        let geometry = try VideoGeometry(frames: 4, height: 5, width: 5, textTokens: 6)
        let operands = try Operands(geometry, kvHeads: 2)
        func select(_ released: SVGModel?, _ rows: [Int]) throws -> SVGSelection {
            try SVGAttention(
                operands.shape, geometry: geometry, SVGConfiguration(released: released, density: 0.6, profileFrames: 6)
            ).select(query: operands.query, key: operands.key, value: operands.value, sampledRows: rows)
        }
        let nan = try select(.cogVideoX, [40, 2, 50])
        #expect(nan.patterns == [.temporal, .temporal])
        #expect((0..<2).allSatisfy { nan.errors[1, $0].isNaN && !nan.errors[0, $0].isNaN })
        #expect(try select(.cogVideoX, [40, 50]).errors.elements.allSatisfy { !$0.isNaN })
        #expect(try select(nil, [40, 2, 50]).errors.elements.allSatisfy { !$0.isNaN })
    }

    @Test("errors are those of the oracle; under the clean rules without padding")
    func errors() throws {
        for placement in [VideoGeometry.TextPlacement.before, .after] {
            let geometry = try VideoGeometry(
                frames: 5, height: 4, width: 4, textTokens: 9, textPlacement: placement, promptTokens: 4)
            let operands = try Operands(geometry, kvHeads: 2, strength: 1)
            let svg = try SVGAttention(operands.shape, geometry: geometry, SVGConfiguration(density: 0.5))
            let rows = [geometry.video.lowerBound, geometry.prompt.lowerBound, geometry.video.upperBound - 2, 40, 40]
            let selection = try svg.select(
                query: operands.query, key: operands.key, value: operands.value, sampledRows: rows)
            #expect(selection.sampledRows == rows)
            let oracle = ReferenceAttention(operands.shape)
            for kind in SVGHeadKind.allCases {
                for head in 0..<2 {
                    var (error, bound) = (0.0, 0.0)
                    for token in rows {
                        let kept = Set(svg.profileMasks[kind.rawValue].runs(of: token).joined())
                        let sides = try [true, false].map { isReference in
                            try oracle.row(
                                head: head, token: token, query: operands.query.view(), key: operands.key.view(),
                                value: operands.value.view(),
                                hides: { isReference ? geometry.padding.contains($0) : !kept.contains($0) })
                        }
                        let delta = sides.reduce(0) { $0 + AttentionErrorBound($1, headDim: 16).output }
                        for (a, b) in zip(sides[0].output, sides[1].output) {
                            error += (a - b) * (a - b)
                            bound += (2 * abs(a - b) + delta) * delta
                        }
                    }
                    let count = Double(rows.count * 13)
                    let difference = abs(Double(selection.errors[kind.rawValue, head]) - error / count)
                    #expect(difference <= bound / count + 0x1p-23 * error / count)
                }
            }
        }
    }

    @Test("NaN in an operand makes its head spatial, and leaves the others alone")
    func nonFinite() throws {
        let operands = try Operands(VideoGeometry(frames: 6, height: 3, width: 5))
        for released in [nil, SVGModel.wan] {
            let svg = try SVGAttention(
                operands.shape, geometry: operands.geometry, SVGConfiguration(released: released, density: 0.5))
            let clean = try svg(query: operands.query, key: operands.key, value: operands.value)
            for element in [Float.nan, .infinity, -.infinity] {
                var (key, value) = (operands.key, operands.value)
                for channel in 0..<16 { key[1, 20, channel] = element }
                for channel in 0..<13 { value[3, 20, channel] = element }
                let result = try svg(query: operands.query, key: key, value: value)
                for head in [0, 2] {
                    #expect(result.patterns[head] == clean.patterns[head])
                    #expect(result.errors[0, head] == clean.errors[0, head])
                }
                if element.isNaN { #expect(result.patterns[1] == .spatial && result.patterns[3] == .spatial) }
            }
        }
    }

    @Test("bad shapes, settings and rows are errors that name them")
    func badInput() throws {
        let geometry = try VideoGeometry(frames: 4, height: 5, width: 5)
        let operands = try Operands(geometry, kvHeads: 2)
        let shape = operands.shape
        let other = try AttentionShape(queryLength: 101, keyLength: 101, queryHeads: 2, kvHeads: 2, headDim: 16)
        #expect(throws: SparseKernelsError.self) { try SVGAttention(other, geometry: geometry) }
        for (configuration, argument) in [
            (SVGConfiguration(sampledRows: 0), "sampledRows"), (SVGConfiguration(sampleLimit: 0), "sampleLimit"),
            (SVGConfiguration(density: 0), "density"), (SVGConfiguration(profileFrames: 0), "profileFrames"),
            (SVGConfiguration(profileFrames: .nan), "profileFrames"),
            (SVGConfiguration(modifiers: .init(aliBiSlopes: [1, 1])), "modifiers.aliBiSlopes"),
            (SVGConfiguration(modifiers: .init(softmaxScale: .nan)), "softmaxScale"),
        ] {
            expectError(.invalidArgument, argument) { _ = try SVGAttention(shape, geometry: geometry, configuration) }
        }
        let svg = try SVGAttention(shape, geometry: geometry)
        for rows in [[0, 100], [0, -1]] {
            expectError(.invalidArgument, "sampledRows[1]") {
                _ = try svg.select(query: operands.query, key: operands.key, value: operands.value, sampledRows: rows)
            }
        }
        expectError(.invalidShape, "patterns") { _ = try svg.attention(patterns: [.spatial]) }
        expectError(.invalidShape, "value") {
            _ = try svg(query: operands.query, key: operands.key, value: operands.query)
        }
    }
}
