import SparseVideoGen
import TestSupport
import Testing

/// Clusters that carry over from step to step.
@Suite("SVG2 state")
struct SVG2StateTests {
    typealias Operands = SVGAttentionTests.Operands

    static func operands(_ geometry: VideoGeometry? = nil) throws -> Operands {
        try Operands(geometry ?? SVG2AttentionTests.geometries()[2], kvHeads: 2)
    }

    static func svg2(_ operands: Operands, initial: Int = 1, step: Int = 2) throws -> SVG2Attention {
        try SVG2Attention(
            operands.shape, geometry: operands.geometry,
            SVG2Configuration(queryClusters: 9, keyClusters: 14, initialIterations: initial, stepIterations: step, seed: 3))
    }

    static func expectEqual(_ a: SVG2Centroids?, _ b: SVG2Centroids?, isEqual: Bool = true) {
        #expect((a?.query == b?.query && a?.key == b?.key) == isEqual)
    }

    @Test("a step starts from the centroids of the step before, and clusters get no worse")
    func steps() throws {
        let operands = try Self.operands()
        let svg2 = try Self.svg2(operands)
        var state = SVG2State()
        let first = try svg2.select(query: operands.query, key: operands.key, continuing: &state)
        #expect(first.query.iterations == 1 && first.key.iterations == 1)
        Self.expectEqual(state[layer: 0, pass: 0], first.centroids(operands.geometry))
        // Without a state, the same; with one, two more iterations.
        let alone = try svg2.select(query: operands.query, key: operands.key)
        #expect(alone.query.labels == first.query.labels && alone.masks == first.masks)
        var last = first
        for step in 1..<4 {
            let next = try svg2.select(query: operands.query, key: operands.key, continuing: &state)
            #expect((1...2).contains(next.query.iterations) && (1...2).contains(next.key.iterations))
            for head in 0..<2 {
                for (a, b) in [(last.query, next.query), (last.key, next.key)] {
                    #expect(b.inertia(head: head) <= a.inertia(head: head) * (1 + 1e-5))
                }
            }
            if step == 1 {
                #expect(next.query.iterations == 2 && next.key.iterations == 2)
                #expect(next.query.inertia(head: 0) < last.query.inertia(head: 0))
            }
            last = next
        }
        // As many iterations in one go have the same labels.
        let whole = try Self.svg2(operands, initial: 3).select(query: operands.query, key: operands.key)
        var short = SVG2State()
        _ = try svg2.select(query: operands.query, key: operands.key, continuing: &short)
        let third = try svg2.select(query: operands.query, key: operands.key, continuing: &short)
        #expect(whole.query.labels == third.query.labels && whole.key.centroids == third.key.centroids)
    }

    @Test("layers are apart; passes share centroids, or are apart")
    func slots() throws {
        let operands = try Self.operands()
        let svg2 = try Self.svg2(operands)
        func select(_ state: inout SVG2State, layer: Int = 0, pass: Int = 0) throws -> SVG2Selection {
            try svg2.select(
                query: operands.query, key: operands.key, continuing: &state, layer: layer, pass: pass)
        }
        for guidance in SVG2State.Guidance.allCases {
            var state = SVG2State(guidance: guidance)
            #expect(state.count == 0 && state.byteCount == 0 && state[layer: 0, pass: 0] == nil)
            #expect(try select(&state).query.iterations == 1)
            #expect(try select(&state, pass: 1).query.iterations == (guidance == .shared ? 2 : 1))
            #expect(try select(&state, layer: 5).query.iterations == 1)
            let count = guidance == .shared ? 2 : 3
            #expect(state.count == count && state.byteCount == count * 2 * (9 + 14) * 16 * 4)
            Self.expectEqual(
                state[layer: 0, pass: 0], state[layer: 0, pass: 1])
            #expect(state[layer: 1, pass: 0] == nil && state[layer: -1, pass: 7] == nil)

            // A new video.
            state.reset()
            #expect(state.count == 0 && state.guidance == guidance)
            let again = try select(&state)
            #expect(again.query.iterations == 1)
            #expect(try again.masks == svg2.select(query: operands.query, key: operands.key).masks)
            // States are values.
            var copy = state
            _ = try select(&copy)
            Self.expectEqual(copy[layer: 0, pass: 0], state[layer: 0, pass: 0], isEqual: false)
            state[layer: 0, pass: 0] = nil
            #expect(state.count == 0 && copy.count == 1)
        }
    }

    @Test("tracking is the clustering of selecting")
    func tracking() throws {
        let operands = try Self.operands()
        let svg2 = try Self.svg2(operands)
        var (tracked, selected) = (SVG2State(), SVG2State())
        for step in 0..<3 {
            let key = step == 1 ? operands.query : operands.key
            try svg2.track(query: operands.query, key: key, in: &tracked, layer: 4)
            _ = try svg2.select(query: operands.query, key: key, continuing: &selected, layer: 4)
            Self.expectEqual(tracked[layer: 4, pass: 0], selected[layer: 4, pass: 0])
        }
        #expect(tracked.count == 1)
    }

    @Test("a call with a state is selecting and attending")
    func run() throws {
        let operands = try Self.operands()
        let svg2 = try Self.svg2(operands)
        var (state, other) = (SVG2State(), SVG2State())
        var output = try Tensor<Float>(zeros: [2, operands.shape.queryLength, 13])
        for _ in 0..<2 {
            let selected = try svg2.run(
                query: operands.query, key: operands.key, value: operands.value, into: &output, state: &state, layer: 2)
            let expected = try svg2.select(
                query: operands.query, key: operands.key, continuing: &other, layer: 2)
            #expect(selected.masks == expected.masks)
            let attended = try svg2.attention(over: expected)(
                query: operands.query, key: operands.key, value: operands.value)
            #expect(attended.output == output)
        }
    }

    @Test("a state of another video or model is an error, and nothing changes")
    func otherStates() throws {
        let operands = try Self.operands()
        let svg2 = try Self.svg2(operands)
        var state = SVG2State()
        try svg2.track(query: operands.query, key: operands.key, in: &state)
        let before = state[layer: 0, pass: 0]
        var output = try Tensor<Float>([2, operands.shape.queryLength, 13]) { _ in 7 }

        // As many tokens in other frames; other numbers of clusters.
        let turned = try VideoGeometry(
            frames: 4, height: 5, width: 4, textTokens: 9, textPlacement: .after, promptTokens: 4)
        let others = try [
            SVG2Attention(operands.shape, geometry: turned, svg2.configuration),
            SVG2Attention(
                operands.shape, geometry: operands.geometry, SVG2Configuration(queryClusters: 8, keyClusters: 14)),
            SVG2Attention(
                operands.shape, geometry: operands.geometry, SVG2Configuration(queryClusters: 9, keyClusters: 15)),
        ]
        for other in others {
            expectError(.invalidShape, "state") {
                try other.run(
                    query: operands.query, key: operands.key, value: operands.value, into: &output, state: &state)
            }
            expectError(.invalidShape, "state") {
                _ = try other.select(query: operands.query, key: operands.key, continuing: &state)
            }
            expectError(.invalidShape, "state") {
                try other.track(query: operands.query, key: operands.key, in: &state)
            }
        }
        // An operand that does not fit is found before clusters change.
        expectError(.invalidShape, "value") {
            try svg2.run(query: operands.query, key: operands.key, value: operands.key, into: &output, state: &state)
        }
        #expect(state.count == 1 && output.elements.allSatisfy { $0 == 7 })
        Self.expectEqual(state[layer: 0, pass: 0], before)
        // Another layer has no centroids yet, so any attention may start there.
        _ = try others[0].select(query: operands.query, key: operands.key, continuing: &state, layer: 1)
    }

    @Test("prompts of other lengths continue the same clusters")
    func prompts() throws {
        let operands = try Self.operands()
        let svg2 = try Self.svg2(operands)
        var state = SVG2State()
        try svg2.track(query: operands.query, key: operands.key, in: &state)
        let longer = try VideoGeometry(
            frames: 5, height: 4, width: 4, textTokens: 9, textPlacement: .after, promptTokens: 8)
        let other = try SVG2Attention(operands.shape, geometry: longer, svg2.configuration)
        let selected = try other.select(
            query: operands.query, key: operands.key, continuing: &state, pass: 1)
        #expect(selected.query.iterations == 2)
    }
}
