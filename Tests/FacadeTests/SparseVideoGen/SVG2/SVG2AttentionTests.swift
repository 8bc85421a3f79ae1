import SparseKernelsReference
import SparseVideoGen
import TestSupport
import Testing

/// SVG2 against an oracle from the labels on, and what a user would state about it.
@Suite("SVG2 attention")
struct SVG2AttentionTests {
    typealias Operands = SVGAttentionTests.Operands

    static let configuration = SVG2Configuration(
        queryClusters: 7, keyClusters: 13, mass: 0.8, minimumKeyRatio: 0.1, initialIterations: 4)

    static func geometries() throws -> [VideoGeometry] {
        [
            try VideoGeometry(frames: 6, height: 3, width: 5),
            try VideoGeometry(frames: 5, height: 4, width: 4, textTokens: 9, promptTokens: 4),
            try VideoGeometry(frames: 5, height: 4, width: 4, textTokens: 9, textPlacement: .after, promptTokens: 4),
            try VideoGeometry(frames: 5, height: 3, width: 3, textTokens: 6, textPlacement: .after),
            try VideoGeometry(frames: 1, height: 5, width: 7, textTokens: 3, promptTokens: 0),
        ]
    }

    static func check<Element: AttentionElement>(
        _ operands: Operands, _ type: Element.Type, _ set: InstructionSet, _ label: String,
        _ configuration: SVG2Configuration = Self.configuration
    ) throws {
        let svg2 = try SVG2Attention(operands.shape, geometry: operands.geometry, configuration, instructionSet: set)
        #expect(svg2.instructionSet == set)
        let (query, key) = (operands.query.converted(to: type), operands.key.converted(to: type))
        let result = try svg2(query: query, key: key, value: operands.value.converted(to: type))
        let oracle = SVG2Oracle(operands, type, selected: result.selected)
        try oracle.expectSelection(mass: configuration.mass, minimumKeyRatio: configuration.minimumKeyRatio, label)
        try oracle.expectOutput(result.state.output, label)
        try expectHull(result.state.output, operands, label)
    }

    /// Outputs are means of values. 16-bit values round to a neighbour.
    static func expectHull(_ output: Tensor<Float>, _ operands: Operands, _ label: String) throws {
        for head in 0..<operands.shape.queryHeads {
            for channel in 0..<operands.shape.valueDim {
                let kvHead = head / operands.shape.queryHeadsPerKVHead
                let values = (0..<operands.shape.keyLength).map { operands.value[kvHead, $0, channel] }
                let (least, most) = (values.min()! - 0.02, values.max()! + 0.02)
                let isInside = (0..<operands.shape.queryLength).allSatisfy { least...most ~= output[head, $0, channel] }
                #expect(isInside, "\(label)")
            }
        }
    }

    @Test("attention is that of the pairs that labels, weights and text give", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        for geometry in try Self.geometries() {
            try Self.check(Operands(geometry, kvHeads: 2), Float.self, set, "\(set) \(geometry)")
        }
        let geometry = try Self.geometries()[1]
        try Self.check(Operands(geometry, kvHeads: 2, group: 3), Float.self, set, "\(set), grouped heads")
        try Self.check(Operands(geometry, kvHeads: 2), Float16.self, set, "\(set), Float16")
        try Self.check(Operands(geometry, kvHeads: 2), BFloat16.self, set, "\(set), BFloat16")
        // As many clusters as tokens, and one.
        for (queries, keys) in [(80, 80), (1, 1), (80, 1), (1, 80)] {
            let configuration = SVG2Configuration(
                queryClusters: queries, keyClusters: keys, initialIterations: 2, initialization: .plusPlus)
            try Self.check(
                Operands(geometry, kvHeads: 1), Float.self, set, "\(set), \(queries) × \(keys) clusters", configuration)
        }
    }

    @Test("clusters are those of k-means over the video's tokens, as the settings say")
    func clusters() throws {
        for geometry in try Self.geometries() {
            let operands = try Operands(geometry, kvHeads: 2)
            for (rounds, method) in [(false, KMeans.Initialization.uniform), (true, .plusPlus)] {
                var configuration = Self.configuration
                (configuration.roundsCentroids, configuration.initialization, configuration.seed) = (rounds, method, 9)
                let (query, key) = (
                    operands.query.converted(to: BFloat16.self), operands.key.converted(to: BFloat16.self)
                )
                let selected = try SVG2Attention(operands.shape, geometry: geometry, configuration)
                    .select(query: query, key: key)
                for (clusters, operand, count, seed) in [
                    (selected.query, query, 7, 9), (selected.key, key, 13, ~9),
                ] as [(Clustering, Tensor<BFloat16>, Int, UInt64)] {
                    let video = try Tensor<BFloat16>([2, geometry.videoTokens, 16]) { index in
                        let (row, channel) = index.quotientAndRemainder(dividingBy: 16)
                        let (head, token) = row.quotientAndRemainder(dividingBy: geometry.videoTokens)
                        return operand[head, geometry.video.lowerBound + token, channel]
                    }
                    let kMeans = try KMeans(heads: 2, points: geometry.videoTokens, channels: 16, clusters: count)
                    let start = try kMeans.initialCentroids(of: video, method, seed: seed)
                    let expected = try kMeans(video, from: start, iterations: 4, roundsCentroids: rounds)
                    #expect(clusters.labels == expected.labels && clusters.centroids == expected.centroids)
                }
                // Orders keep text in place, and list the video by cluster.
                for (order, clusters) in [(selected.queryOrder, selected.query), (selected.keyOrder, selected.key)] {
                    for head in 0..<2 {
                        let tokens = order.order(head: head).map { Int($0) }
                        #expect(geometry.text.allSatisfy { tokens[$0] == $0 })
                        let labels = tokens[geometry.video].map {
                            Int(clusters.labels[head, $0 - geometry.video.lowerBound])
                        }
                        #expect(labels == labels.sorted())
                    }
                }
            }
        }
    }

    @Test("mass 1 is dense attention of prompt and video; padding sees padding", arguments: InstructionSet.available)
    func fullMass(_ set: InstructionSet) throws {
        for geometry in try Self.geometries() {
            let operands = try Operands(geometry, kvHeads: 2, strength: 0.3)
            var configuration = Self.configuration
            configuration.mass = 1
            let svg2 = try SVG2Attention(operands.shape, geometry: geometry, configuration, instructionSet: set)
            let result = try svg2(query: operands.query, key: operands.key, value: operands.value)
            let (padding, rest) = (geometry.padding.count, geometry.tokens - geometry.padding.count)
            let pairs = Double(padding * padding + rest * rest)
            #expect(abs(result.density - pairs / Double(geometry.tokens * geometry.tokens)) < 1e-12)
            let oracle = ReferenceAttention(operands.shape)
            let (query, key) = (operands.query, operands.key)
            for head in 0..<2 {
                for token in 0..<geometry.tokens {
                    let row = try oracle.row(
                        head: head, token: token, query: query, key: key, value: operands.value,
                        hides: { geometry.padding.contains($0) != geometry.padding.contains(token) })
                    let bound = AttentionErrorBound(row, headDim: 16)
                    for (channel, expected) in row.output.enumerated() {
                        #expect(abs(Double(result.state.output[head, token, channel]) - expected) <= bound.output)
                    }
                    #expect(abs(Double(result.state.logSumExp[head, token]) - row.logSumExp) <= bound.logSumExp)
                }
            }
            if padding == 0 {
                let dense = try DenseAttention(operands.shape)(query: query, key: key, value: operands.value)
                #expect(try AttentionComparison(result.state, with: dense).recall > 0.999_99)
            }
        }
    }

    @Test("density grows with mass and with the least number of key clusters")
    func monotone() throws {
        let operands = try Operands(Self.geometries()[2], kvHeads: 2, group: 2)
        func select(_ mass: Double, _ ratio: Double) throws -> SVG2Selection {
            var configuration = Self.configuration
            (configuration.mass, configuration.minimumKeyRatio) = (mass, ratio)
            return try SVG2Attention(operands.shape, geometry: operands.geometry, configuration)
                .select(query: operands.query, key: operands.key)
        }
        func expectGrowing(_ selections: [SVG2Selection]) {
            for (a, b) in zip(selections, selections.dropFirst()) {
                #expect((0..<4).allSatisfy { a.density(head: $0) <= b.density(head: $0) })
                #expect(a.query.labels == b.query.labels && a.key.labels == b.key.labels)
            }
            #expect(selections.last!.density > selections[0].density)
        }
        expectGrowing(try [1e-9, 0.2, 0.5, 0.8, 0.9, 0.99, 1].map { try select($0, 0) })
        let ratios = [0, 0.1, 0.16, 0.5, 0.99, 1]
        let selections = try ratios.map { try select(0.3, $0) }
        expectGrowing(selections)
        for (ratio, selected) in zip(ratios, selections) {
            let kept = SVG2Oracle(operands, Float.self, selected: selected).kept
            let least = max(1, Int(ratio * 13))
            #expect(kept.joined().allSatisfy { $0.count >= least }, "\(ratio)")
            if ratio == 1 { #expect(kept.joined().allSatisfy { $0.count == 13 }) }
        }
        // Five of fifty are a tenth.
        let configuration = SVG2Configuration(queryClusters: 9, keyClusters: 50, mass: 1e-9, initialIterations: 2)
        let tenth = try SVG2Attention(operands.shape, geometry: operands.geometry, configuration)
            .select(query: operands.query, key: operands.key)
        #expect(SVG2Oracle(operands, Float.self, selected: tenth).kept.joined().allSatisfy { $0.count == 5 })
    }

    @Test("the scale of the scores is that of attention")
    func scale() throws {
        let operands = try Operands(Self.geometries()[0], kvHeads: 2)
        for scale in [0, 0.1, 1, -0.5] as [Float] {
            var configuration = Self.configuration
            configuration.modifiers = ScoreModifiers(softmaxScale: scale, logitsSoftCap: 1000)
            let svg2 = try SVG2Attention(operands.shape, geometry: operands.geometry, configuration)
            let selected = try svg2.select(query: operands.query, key: operands.key)
            try SVG2Oracle(operands, Float.self, selected: selected).expectSelection(
                mass: 0.8, minimumKeyRatio: 0.1, softmaxScale: Double(scale), "scale \(scale)")
        }
    }

    @Test("any number of threads, and views of any layout, give the same bits; seeds give the same clusters")
    func threadsAndLayouts() throws {
        let operands = try Operands(Self.geometries()[1], kvHeads: 2, group: 2)
        let svg2 = try SVG2Attention(operands.shape, geometry: operands.geometry, Self.configuration)
        let results = try [1, 2, 7].map { threads in
            try svg2(query: operands.query, key: operands.key, value: operands.value, on: WorkerPool(threads: threads))
        }
        func expectEqual(_ a: SVG2Selection, _ b: SVG2Selection) {
            #expect(a.query.labels == b.query.labels && a.query.centroids == b.query.centroids)
            #expect(a.key.labels == b.key.labels && a.key.centroids == b.key.centroids)
            #expect(a.masks == b.masks && a.queryOrder == b.queryOrder && a.keyOrder == b.keyOrder)
        }
        for result in results.dropFirst() {
            #expect(result.state == results[0].state)
            expectEqual(result.selected, results[0].selected)
        }
        func tokensOutermost(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            let (heads, tokens, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
            return try Tensor([tokens, heads, channels]) { index in
                tensor[index / channels % heads, index / channels / heads, index % channels]
            }
        }
        let (query, key) = (try tokensOutermost(operands.query), try tokensOutermost(operands.key))
        let value = try tokensOutermost(operands.value)
        var output = try Tensor<Float>(zeros: [operands.shape.queryLength, 4, 13])
        var state = SVG2State()
        let selected = try svg2.run(
            query: query.view(layout: .nhd), key: key.view(layout: .nhd), value: value.view(layout: .nhd),
            output: output.mutableView(layout: .nhd), state: &state)
        expectEqual(selected, results[0].selected)
        #expect(try tokensOutermost(results[0].state.output) == output)

        var other = Self.configuration
        other.seed = 1
        let another = try SVG2Attention(operands.shape, geometry: operands.geometry, other)
            .select(query: operands.query, key: operands.key)
        #expect(another.query.labels != selected.query.labels && another.key.labels != selected.key.labels)
    }

    @Test("given clusters and lists give the same selection; lists that do not fit are errors")
    func stages() throws {
        let operands = try Operands(Self.geometries()[2], kvHeads: 2, group: 2)
        let svg2 = try SVG2Attention(operands.shape, geometry: operands.geometry, Self.configuration)
        let selected = try svg2.select(query: operands.query, key: operands.key)
        let again = try svg2.select(query: selected.query, key: selected.key)
        #expect(again.masks == selected.masks)
        var kept = SVG2Oracle(operands, Float.self, selected: selected).kept
        let (query, key) = (selected.query, selected.key)
        #expect(try svg2.selection(query: query, key: key, keeping: kept).masks == selected.masks)
        // A list may be empty: then the video's queries see text only.
        kept[1][2] = []
        let sparse = try svg2.selection(query: query, key: key, keeping: kept)
        let state = try svg2.attention(over: sparse)(query: operands.query, key: operands.key, value: operands.value)
        try SVG2Oracle(operands, Float.self, selected: sparse).expectOutput(state.output, "an empty list")

        expectError(.invalidShape, "kept") { _ = try svg2.selection(query: query, key: key, keeping: []) }
        for list in [[3, 3], [4, 2], [-1], [13]] {
            kept[1][2] = list
            expectError(.invalidArgument, "kept[1][2]") { _ = try svg2.selection(query: query, key: key, keeping: kept) }
        }
        kept[1].removeLast()
        expectError(.invalidShape, "kept[1]") { _ = try svg2.selection(query: query, key: key, keeping: kept) }
        // Clusters of the wrong side, and of other numbers.
        expectError(.invalidShape, "query") { _ = try svg2.select(query: key, key: key) }
        expectError(.invalidShape, "key") { _ = try svg2.selection(query: query, key: query, keeping: kept) }
        var other = Self.configuration
        other.keyClusters = 12
        let fewer = try SVG2Attention(operands.shape, geometry: operands.geometry, other)
        expectError(.invalidShape, "key") { _ = try fewer.select(query: query, key: key) }
        let single = try Operands(Self.geometries()[2], kvHeads: 1)
        let small = try SVG2Attention(single.shape, geometry: single.geometry, Self.configuration)
        expectError(.invalidShape, "selected") { _ = try small.attention(over: selected) }
    }

    @Test("settings and shapes out of their domains are errors that name them")
    func badInput() throws {
        let operands = try Operands(Self.geometries()[1], kvHeads: 2)
        let (shape, geometry) = (operands.shape, operands.geometry)
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, _ change: (inout SVG2Configuration) -> Void
        ) {
            var configuration = Self.configuration
            change(&configuration)
            expectError(code, argument) { _ = try SVG2Attention(shape, geometry: geometry, configuration) }
        }
        for clusters in [0, -1, 81, Int.max, Int.min] {
            expect(.invalidShape, "queryClusters") { $0.queryClusters = clusters }
            expect(.invalidShape, "keyClusters") { $0.keyClusters = clusters }
        }
        for mass in [0, -0.1, 1.000_001, .nan, .infinity] as [Double] {
            expect(.invalidArgument, "mass") { $0.mass = mass }
        }
        for ratio in [-0.1, 1.1, .nan, -.infinity] as [Double] {
            expect(.invalidArgument, "minimumKeyRatio") { $0.minimumKeyRatio = ratio }
        }
        for iterations in [0, -3] {
            expect(.invalidArgument, "initialIterations") { $0.initialIterations = iterations }
            expect(.invalidArgument, "stepIterations") { $0.stepIterations = iterations }
        }
        expect(.invalidArgument, "softmaxScale") { $0.modifiers.softmaxScale = .nan }
        expect(.invalidArgument, "logitsSoftCap") { $0.modifiers.logitsSoftCap = 0 }
        expect(.invalidArgument, "modifiers.aliBiSlopes") { $0.modifiers.aliBiSlopes = [1, 1] }
        let longer = try AttentionShape(queryLength: 90, keyLength: 89, queryHeads: 2, kvHeads: 2, headDim: 16)
        expectError(.invalidShape, "queryLength") { _ = try SVG2Attention(longer, geometry: geometry, Self.configuration) }
        let svg2 = try SVG2Attention(shape, geometry: geometry, Self.configuration)
        expectError(.invalidShape, "key") { _ = try svg2.select(query: operands.query, key: operands.value) }
        expectError(.invalidShape, "value") {
            _ = try svg2(query: operands.query, key: operands.key, value: operands.key)
        }
    }
}
