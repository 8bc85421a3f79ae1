import MInference
import SLA
import SpargeAttention
import SparseKernelsReference
import TestSupport
import Testing
import XAttention

@Suite("Façades over the caller's memory")
struct FacadeViewTests {
    /// The properties of a façade's selection, in a comparable form.
    struct Choice: Equatable {
        var patterns: [HeadPattern]
        var density: Double
        var scores: BlockScores?

        init(_ selected: some Sendable) throws {
            switch selected {
            case let selected as MInferencePrefill.Selected:
                (patterns, density) = (selected.patterns, selected.density)
            default:
                let own = selected as? XAttentionPrefill.Selected
                let mask = try #require(
                    own?.mask ?? (selected as? SparseLinearBlocks)?.critical ?? selected as? BlockMask)
                patterns = (0..<mask.heads).map { .blockSparse(mask, head: $0) }
                (density, scores) = (own?.density ?? mask.density, own?.scores)
            }
        }
    }

    /// One case of each façade, with small blocks. The released mode pads 75 and 165 tokens by 15, or not at all.
    enum Case: String, CaseIterable, Sendable {
        case xAttention, xAttentionReleased, xAttentionUnpadded, mInference, sparge, sla

        func facade(_ shape: AttentionShape, _ set: InstructionSet? = nil) throws -> any PredictiveAttention {
            var configuration = XAttentionConfiguration(stride: 5, blockSize: 15, keepsScores: true)
            switch self {
            case .xAttention: break
            case .xAttentionReleased: configuration.mode = .released(chunkSize: 90)
            case .xAttentionUnpadded: configuration.mode = .released(chunkSize: 15)
            case .mInference:
                return try MInferencePrefill(
                    shape,
                    heads: [
                        .verticalSlash(vertical: 31, slash: 60), .blockSparse(topK: 2, blockSize: 16),
                        .aShape(initial: 3, local: 20), .dense,
                    ], forcedDistances: 10, instructionSet: set)
            case .sparge:
                return try SpargeAttentionPrefill(
                    shape, .init(isCausal: true, queryBlockSize: 16, keyBlockSize: 8), heads: [.keepRatio(0.3)],
                    instructionSet: set)
            case .sla:
                let width = shape.valueDim
                return try SparseLinearAttention(
                    shape, .init(queryBlockSize: 16, keyBlockSize: 8),
                    projection: SparseLinearProjection(
                        weight: .normal([width, width], seed: 4), bias: .normal([width], seed: 5)),
                    instructionSet: set)
            }
            return try XAttentionPrefill(shape, configuration, threshold: 0.7, instructionSet: set)
        }
    }

    static func shape() throws -> AttentionShape {
        try AttentionShape(queryLength: 75, keyLength: 165, queryHeads: 4, kvHeads: 2, headDim: 20, valueDim: 12)
    }

    /// Rows `[tokens, heads, channels]` with gaps after every row and token, filled with `filler`.
    struct Strided<Element: AttentionElement> {
        var elements: [Element]
        let geometry: TensorGeometry

        init(heads: Int, tokens: Int, channels: Int, filler: Element) throws {
            let headStride = channels + 3
            geometry = try TensorGeometry(
                heads: heads, tokens: tokens, channels: channels, headStride: headStride,
                tokenStride: heads * headStride + 5)
            elements = Array(repeating: filler, count: tokens * geometry.tokenStride)
        }

        init(_ tensor: Tensor<Element>, filler: Element) throws {
            let (tokens, channels) = (tensor.shape[1], tensor.shape[2])
            try self.init(heads: tensor.shape[0], tokens: tokens, channels: channels, filler: filler)
            for flat in 0..<tensor.count {
                let row = flat / channels
                elements[geometry.offset(head: row / tokens, token: row % tokens) + flat % channels] = tensor[flat: flat]
            }
        }

        /// The view, with other extents on request.
        @_lifetime(borrow self)
        func view(_ change: Change = .none) throws -> TensorView<Element> {
            try TensorView(elements.span, geometry: change.applied(to: geometry))
        }
    }

    enum Change: String, CaseIterable, Sendable {
        case none, heads, tokens, channels

        func applied(to geometry: TensorGeometry) throws -> TensorGeometry {
            try TensorGeometry(
                heads: geometry.heads - (self == .heads ? 1 : 0), tokens: geometry.tokens - (self == .tokens ? 1 : 0),
                channels: geometry.channels - (self == .channels ? 1 : 0), headStride: geometry.headStride,
                tokenStride: geometry.tokenStride)
        }
    }

    struct Operands {
        let shape: AttentionShape
        let query: Tensor<BFloat16>
        let key: Tensor<Float16>
        let value: Tensor<Float16>

        init() throws {
            shape = try FacadeViewTests.shape()
            query = try Tensor<Float>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1, scale: 2)
                .converted()
            key = try Tensor<Float>.normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2, scale: 2).converted()
            value = try Tensor<Float>.normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 3).converted()
        }
    }

    @Test(
        "padded rows of 16-bit elements in the order tokens, heads give the bits of tensors", arguments: Case.allCases,
        InstructionSet.available)
    func bits(_ method: Case, _ set: InstructionSet) throws { try Self.expectSameBits(method.facade(Self.shape(), set)) }

    static func expectSameBits(_ facade: some PredictiveAttention) throws {
        let operands = try Operands()
        let wide: (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>) = (
            operands.query.converted(), operands.key.converted(), operands.value.converted()
        )
        let expected = try facade(query: wide.query, key: wide.key, value: wide.value)
        let choice = try Choice(expected.selected)
        #expect(choice.density < 0.9)
        var reused = try Tensor<Float>(expected.state.output.shape) { _ in .nan }
        #expect(try Choice(facade.run(query: wide.query, key: wide.key, value: wide.value, into: &reused)) == choice)
        #expect(reused == expected.state.output)

        // Gaps of the inputs contain NaN, which reveals reads, and gaps of the output a guard, which reveals writes.
        let query = try Strided(operands.query, filler: BFloat16(Float.nan))
        let key = try Strided(operands.key, filler: .nan)
        let value = try Strided(operands.value, filler: .nan)
        let wanted = try Strided(expected.state.output, filler: 12345.678)
        for pool in [WorkerPool.serial, WorkerPool(threads: 3)] {
            var output = try Strided<Float>(
                heads: operands.shape.queryHeads, tokens: operands.shape.queryLength, channels: operands.shape.valueDim,
                filler: 12345.678)
            var logSumExp = [Float](repeating: .nan, count: expected.state.logSumExp.count)
            let selected = try facade.run(
                query: query.view(), key: key.view(), value: value.view(),
                output: MutableTensorView(output.elements.mutableSpan, geometry: wanted.geometry),
                logSumExp: logSumExp.mutableSpan, on: pool)
            #expect(output.elements.map(\.bitPattern) == wanted.elements.map(\.bitPattern))
            #expect(logSumExp.map(\.bitPattern) == expected.state.logSumExp.elements.map(\.bitPattern))
            #expect(try Choice(selected) == choice)
            #expect(try Choice(facade.select(query: query.view(), key: key.view(), on: pool)) == choice)
        }
        let selected = try facade.select(query: wide.query, key: wide.key)
        #expect(try Choice(selected) == choice)
        let state = try facade.attention(over: selected)(query: wide.query, key: wide.key, value: wide.value)
        #expect(state == expected.state)
        if let prefill = facade as? XAttentionPrefill {
            #expect(try prefill.scores(query: query.view(), key: key.view()) == choice.scores)
        }
    }

    @Test(
        "an operand of other extents is named, and nothing is written", arguments: Case.allCases,
        ["query", "key", "value", "output", "logSumExp"])
    func errors(_ method: Case, _ operand: String) throws { try Self.expectErrors(method.facade(Self.shape()), operand) }

    static func expectErrors(_ facade: some PredictiveAttention, _ operand: String) throws {
        let operands = try Operands()
        let query = try Strided(operands.query, filler: .zero)
        let key = try Strided(operands.key, filler: .zero)
        let value = try Strided(operands.value, filler: .zero)
        for change in Change.allCases where change != .none {
            func changed(_ name: String) -> Change { name == operand ? change : .none }
            var output = try Strided<Float>(
                heads: operands.shape.queryHeads, tokens: operands.shape.queryLength, channels: operands.shape.valueDim,
                filler: 7)
            let rows = operands.shape.queryHeads * operands.shape.queryLength
            var logSumExp = [Float](repeating: 7, count: rows - (operand == "logSumExp" ? 1 : 0))
            let geometry = try changed("output").applied(to: output.geometry)
            expectError(.invalidShape, operand) {
                _ = try facade.run(
                    query: query.view(changed("query")), key: key.view(changed("key")), value: value.view(changed("value")),
                    output: MutableTensorView(output.elements.mutableSpan, geometry: geometry),
                    logSumExp: logSumExp.mutableSpan)
            }
            #expect(output.elements.allSatisfy { $0 == 7 } && logSumExp.allSatisfy { $0 == 7 })
            if operand == "query" || operand == "key" {
                expectError(.invalidShape, operand) {
                    _ = try facade.select(query: query.view(changed("query")), key: key.view(changed("key")), on: .shared)
                }
            }
        }
    }

    @Test("tensors of a rank that is no operand's are named", arguments: Case.allCases)
    func ranks(_ method: Case) throws { try Self.expectRanks(method.facade(Self.shape())) }

    static func expectRanks(_ facade: some PredictiveAttention) throws {
        let operands = try Operands()
        let (query, key) = (operands.query.converted(to: Float.self), operands.key.converted(to: Float.self))
        let value = operands.value.converted(to: Float.self)
        let flat = try Tensor<Float>(zeros: [12])
        expectError(.invalidShape, "query") { _ = try facade(query: flat, key: key, value: value) }
        expectError(.invalidShape, "key") { _ = try facade(query: query, key: flat, value: value) }
        expectError(.invalidShape, "value") { _ = try facade(query: query, key: key, value: flat) }
    }

    @Test("into a tensor that is reused")
    func reusedTensors() throws {
        let shape = try AttentionShape(queryLength: 300, keyLength: 300, queryHeads: 2, kvHeads: 1, headDim: 16)
        let query = try Tensor<Float>.normal([2, 300, 16], seed: 1)
        let key = try Tensor<Float>.normal([1, 300, 16], seed: 2)
        let xattention = try XAttentionPrefill(shape, .init(blockSize: 32, keepsScores: true), threshold: 0.6)
        let minference = try MInferencePrefill(shape, heads: [.verticalSlash(vertical: 40, slash: 110)])
        let sparge = try SpargeAttentionPrefill(shape, .init(isCausal: true, queryBlockSize: 32, keyBlockSize: 32))
        var output = try Tensor<Float>([2, 300, 16]) { _ in .nan }

        let selected = try xattention.run(query: query, key: key, value: key, into: &output)
        let expected = try xattention(query: query, key: key, value: key)
        #expect(output == expected.state.output && selected.mask == expected.mask && selected.scores != nil)
        let patterns = try minference.run(query: query, key: key, value: key, into: &output).patterns
        #expect(output == (try minference(query: query, key: key, value: key)).state.output && patterns.count == 2)
        let mask = try sparge.run(query: query, key: key, value: key, into: &output)
        #expect(output == (try sparge(query: query, key: key, value: key)).state.output && mask.heads == 2)
    }
    /// Dense attention that is causal unless the first value is positive: a selection from values, and another operator.
    struct ByValue: SelectiveAttention {
        let shape: AttentionShape

        func select<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
            query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, on pool: WorkerPool
        ) throws(SparseKernelsError) -> Bool { value[0, 0, 0].floatValue <= 0 }

        func attention(over isCausal: Bool) throws(SparseKernelsError) -> DenseAttention {
            try DenseAttention(shape, mask: isCausal ? .causal : .full)
        }
    }

    @Test("a method may look at the values and bring its own operator", arguments: [1, -1] as [Float])
    func ownMethods(_ first: Float) throws {
        let shape = try AttentionShape(queryLength: 9, keyLength: 9, queryHeads: 2, kvHeads: 1, headDim: 8)
        let query = try Tensor<Float>.normal([2, 9, 8], seed: 1)
        let value = try Tensor<Float>([1, 9, 8]) { $0 == 0 ? first : 1 }
        let result = try ByValue(shape: shape)(query: query, key: value, value: value)
        #expect(result.selected == (first <= 0))
        let dense = try DenseAttention(shape, mask: first > 0 ? .full : .causal)
        #expect(try result.state == dense(query: query, key: value, value: value))
    }
}
