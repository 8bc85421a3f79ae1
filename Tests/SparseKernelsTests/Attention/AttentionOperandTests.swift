import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Operands in memory: element types, layouts, strides, alignment and bounds.
@Suite("Attention operands")
struct AttentionOperandTests {
    /// The element types by name, because test arguments must be values.
    enum Storage: String, CaseIterable, Sendable {
        case float32, float16, bfloat16

        var type: any AttentionElement.Type {
            switch self {
            case .float32: Float.self
            case .float16: Float16.self
            case .bfloat16: BFloat16.self
            }
        }
    }

    // MARK: - Element types

    /// Compares one combination of input types with the oracle, which reads the same rounded inputs, for every output type.
    static func check<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        _: Q.Type, _: K.Type, _: V.Type, _ attention: DenseAttention
    ) throws {
        let shape = attention.shape
        let query = try Tensor<Q>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 21)
        let key = try Tensor<K>.normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 22)
        let value = try Tensor<V>.normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 23)
        let rows = try referenceRows(
            ReferenceAttention(shape, mask: attention.mask), query: query, key: key, value: value)
        func expect<O: AttentionElement>(_: O.Type) throws {
            let result = try attend(attention, query: query, key: key, value: value, as: O.self)
            expectMatches(
                result.output, result.logSumExp, rows, headDim: shape.headDim, "\(Q.self) \(K.self) \(V.self) → \(O.self)")
        }
        try expect(Float.self)
        try expect(Float16.self)
        try expect(BFloat16.self)
    }

    /// Widths of 19 and 21 leave a tail after whole vectors on every level, which is converted element by element.
    @Test("all combinations of element types agree with the oracle", arguments: InstructionSet.available, Storage.allCases)
    func elementTypes(_ set: InstructionSet, _ query: Storage) throws {
        let shape = try AttentionShape(
            queryLength: 13, keyLength: 17, queryHeads: 1, kvHeads: 1, headDim: 19, valueDim: 21)
        let attention = try DenseAttention(shape, mask: .causal, instructionSet: set)
        for key in Storage.allCases {
            for value in Storage.allCases { try Self.check(query.type, key.type, value.type, attention) }
        }
    }

    /// More keys than one step stages.
    @Test("16-bit keys and values are staged block by block", arguments: InstructionSet.available)
    func stagedBlocks(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 5, keyLength: 263, queryHeads: 2, kvHeads: 2, headDim: 8, valueDim: 16)
        let attention = try DenseAttention(shape, mask: .full, instructionSet: set)
        try Self.check(Float.self, Float16.self, BFloat16.self, attention)
        try Self.check(BFloat16.self, BFloat16.self, Float16.self, attention)
    }

    @Test("a staged operand gives the bits that its widened copy gives", arguments: InstructionSet.available)
    func stagingIsExact(_ set: InstructionSet) throws {
        let (query, key, value) = try Self.operands()
        let half = (key: key.converted(to: Float16.self), value: value.converted(to: BFloat16.self))
        let attention = try DenseAttention(Self.shape(), mask: .causal, instructionSet: set)
        let staged = try attention(query: query, key: half.key, value: half.value)
        let widened = try attention(
            query: query, key: half.key.converted(to: Float.self), value: half.value.converted(to: Float.self))
        #expect(staged.output.bits == widened.output.bits)
        #expect(staged.logSumExp.bits == widened.logSumExp.bits)
    }

    // MARK: - Layouts and strides

    /// Two panels and a ragged one on every level, two steps of keys, and channels past whole tiles.
    static func shape() throws -> AttentionShape {
        try AttentionShape(queryLength: 101, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 18, valueDim: 11)
    }

    static func operands() throws -> (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>) {
        let shape = try shape()
        return try (
            .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 31),
            .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 32),
            .normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 33)
        )
    }

    /// The placement of the rows of an operand in a larger buffer.
    struct Placement: Sendable, CustomTestStringConvertible {
        var name: String
        /// Elements before the view, so that its base has only the alignment of an element.
        var offset = 0
        /// Elements between rows, and between the rows of one head or token and the next.
        var rowGap = 0
        var outerGap = 0
        var layout = TensorLayout.hnd
        var testDescription: String { name }

        func geometry(heads: Int, tokens: Int, channels: Int) throws -> TensorGeometry {
            let row = channels + rowGap
            switch layout {
            case .hnd:
                return try TensorGeometry(
                    heads: heads, tokens: tokens, channels: channels, headStride: tokens * row + outerGap, tokenStride: row)
            case .nhd:
                return try TensorGeometry(
                    heads: heads, tokens: tokens, channels: channels, headStride: row, tokenStride: heads * row + outerGap)
            }
        }

        static let all = [
            Placement(name: "adjacent"),
            Placement(name: "one float off alignment", offset: 1),
            Placement(name: "padded heads", offset: 3, outerGap: 5),
            Placement(name: "padded tokens", offset: 1, rowGap: 3),
            Placement(name: "padded both ways", offset: 7, rowGap: 1, outerGap: 13),
            Placement(name: "rows far apart", rowGap: 46),
            Placement(name: "nhd", layout: .nhd),
            Placement(name: "nhd, padded", offset: 5, rowGap: 2, outerGap: 9, layout: .nhd),
        ]
    }

    /// A buffer full of `filler` that contains the tensor's rows.
    struct Buffer {
        var elements: [Float]
        let geometry: TensorGeometry
        let offset: Int

        init(_ tensor: Tensor<Float>, _ placement: Placement, filler: Float) throws {
            let (heads, tokens, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
            geometry = try placement.geometry(heads: heads, tokens: tokens, channels: channels)
            offset = placement.offset
            let last = geometry.offset(head: heads - 1, token: tokens - 1) + channels
            elements = Array(repeating: filler, count: offset + last + 16)
            for index in 0..<tensor.count { elements[position(index)] = tensor[flat: index] }
        }

        /// The index in the buffer of the element at a flat `hnd` position of the tensor.
        func position(_ flat: Int) -> Int {
            let (row, channel) = (flat / geometry.channels, flat % geometry.channels)
            return offset + geometry.offset(head: row / geometry.tokens, token: row % geometry.tokens) + channel
        }
    }

    @Test("any placement gives the bits of adjacent rows", arguments: InstructionSet.available, Placement.all)
    func placements(_ set: InstructionSet, _ placement: Placement) throws {
        let (query, key, value) = try Self.operands()
        let attention = try DenseAttention(Self.shape(), mask: .causal(window: 77), instructionSet: set)
        try Self.expectPlacementKeepsBits(placement, attention, query: query, key: key, value: value)
    }

    /// Gaps of the inputs are NaN, so that reading one shows. Gaps of the output are a guard value, so that writing one shows.
    static func expectPlacementKeepsBits(
        _ placement: Placement, _ attention: some AttentionOperator, query: Tensor<Float>, key: Tensor<Float>,
        value: Tensor<Float>, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let expected = try attention(query: query, key: key, value: value)
        let guardValue: Float = 12345.678
        let q = try Buffer(query, placement, filler: .nan)
        let k = try Buffer(key, placement, filler: .nan)
        let v = try Buffer(value, placement, filler: .nan)
        var o = try Buffer(expected.output, placement, filler: guardValue)
        for index in 0..<expected.output.count { o.elements[o.position(index)] = .nan }
        var logSumExp = Array(repeating: guardValue, count: expected.logSumExp.count)
        let (offset, geometry) = (o.offset, o.geometry)
        try o.elements.withUnsafeMutableBufferPointer { elements in
            try attention.run(
                query: TensorView(q.elements.span.extracting(q.offset...), geometry: q.geometry),
                key: TensorView(k.elements.span.extracting(k.offset...), geometry: k.geometry),
                value: TensorView(v.elements.span.extracting(v.offset...), geometry: v.geometry),
                output: MutableTensorView(elements.extracting(offset...).mutableSpan, geometry: geometry),
                logSumExp: logSumExp.mutableSpan, on: .shared)
        }
        let wanted = try Buffer(expected.output, placement, filler: guardValue)
        #expect(o.elements.map(\.bitPattern) == wanted.elements.map(\.bitPattern), sourceLocation: sourceLocation)
        #expect(logSumExp.map(\.bitPattern) == expected.logSumExp.bits, sourceLocation: sourceLocation)
    }

    @Test("tensors in either layout give the same bits", arguments: InstructionSet.available)
    func layouts(_ set: InstructionSet) throws {
        func transposed(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            let (heads, tokens, channels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
            return try Tensor([tokens, heads, channels]) { flat in
                let (row, channel) = (flat / channels, flat % channels)
                return tensor[flat: (row % heads * tokens + row / heads) * channels + channel]
            }
        }
        let (query, key, value) = try Self.operands()
        let attention = try DenseAttention(Self.shape(), mask: .causal, instructionSet: set)
        let expected = try attention(query: query, key: key, value: value)
        let (q, k, v) = try (transposed(query), transposed(key), transposed(value))
        var output = try Tensor<Float>(zeros: [query.shape[1], query.shape[0], value.shape[2]])
        try attention.run(
            query: q.view(layout: .nhd), key: k.view(layout: .nhd), value: v.view(layout: .nhd),
            output: output.mutableView(layout: .nhd))
        #expect(try output.bits == transposed(expected.output).bits)
    }

    @Test("16-bit output leaves its neighbours alone", arguments: InstructionSet.available)
    func halfOutputStaysInside(_ set: InstructionSet) throws {
        let (query, key, value) = try Self.operands()
        let shape = try Self.shape()
        let attention = try DenseAttention(shape, mask: .causal, instructionSet: set)
        let expected = try attend(attention, query: query, key: key, value: value, as: Float16.self).output
        let placement = Placement(name: "padded", offset: 1, rowGap: 3, outerGap: 2)
        let geometry = try placement.geometry(
            heads: shape.queryHeads, tokens: shape.queryLength, channels: shape.valueDim)
        let count = geometry.offset(head: shape.queryHeads - 1, token: shape.queryLength - 1) + shape.valueDim
        var elements = Array(repeating: Float16(-7), count: 1 + count + 8)
        try elements.withUnsafeMutableBufferPointer { elements in
            try attention.run(
                query: query.view(), key: key.view(), value: value.view(),
                output: MutableTensorView(elements.extracting(1...).mutableSpan, geometry: geometry))
        }
        var wanted = Array(repeating: Float16(-7), count: elements.count)
        for flat in 0..<expected.count {
            let (row, channel) = (flat / shape.valueDim, flat % shape.valueDim)
            let (head, token) = (row / shape.queryLength, row % shape.queryLength)
            wanted[1 + geometry.offset(head: head, token: token) + channel] = expected[flat: flat]
        }
        #expect(elements.map(\.bitPattern) == wanted.map(\.bitPattern))
    }

    // MARK: - Borders

    /// Every operand ends or starts at a page that faults when touched. A fault ends the process, so the test runs in its own.
    @Test("nothing outside the operands is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for set in InstructionSet.available {
                for fencesEnd in [true, false] {
                    try Self.runBetweenFences(Float.self, set, fencesEnd: fencesEnd)
                    try Self.runBetweenFences(Float16.self, set, fencesEnd: fencesEnd)
                    try Self.runBetweenFences(BFloat16.self, set, fencesEnd: fencesEnd)
                }
            }
        }
    }

    static func runBetweenFences<Element: AttentionElement>(
        _: Element.Type, _ set: InstructionSet, fencesEnd: Bool
    ) throws {
        // All extents are odd, so that tails of channels, keys and queries end at the fence.
        for (queries, keys, headDim, valueDim) in [(1, 1, 1, 1), (7, 5, 3, 9), (50, 131, 17, 19), (33, 129, 24, 40)] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: 2, kvHeads: 1, headDim: headDim, valueDim: valueDim)
            let query = try FencedMemory(
                Tensor<Element>.normal([2, queries, headDim], seed: 1).elements, fencesEnd: fencesEnd)
            let key = try FencedMemory(Tensor<Element>.normal([1, keys, headDim], seed: 2).elements, fencesEnd: fencesEnd)
            let value = try FencedMemory(
                Tensor<Element>.normal([1, keys, valueDim], seed: 3).elements, fencesEnd: fencesEnd)
            let bias = try FencedMemory(Tensor<Float>.normal([1, queries, keys], seed: 4).elements, fencesEnd: fencesEnd)
            let output = FencedMemory(
                Array(repeating: Element.zero, count: 2 * queries * valueDim), fencesEnd: fencesEnd)
            let logSumExp = FencedMemory(Array(repeating: Float.nan, count: 2 * queries), fencesEnd: fencesEnd)
            let attention = try DenseAttention(shape, mask: .causal, instructionSet: set)
            try attention.run(
                query: TensorView(query.elements.span, heads: 2, tokens: queries, channels: headDim),
                key: TensorView(key.elements.span, heads: 1, tokens: keys, channels: headDim),
                value: TensorView(value.elements.span, heads: 1, tokens: keys, channels: valueDim),
                bias: TensorView(bias.elements.span, heads: 1, tokens: queries, channels: keys),
                output: MutableTensorView(output.elements.mutableSpan, heads: 2, tokens: queries, channels: valueDim),
                logSumExp: logSumExp.elements.mutableSpan)
            #expect(logSumExp.elements.allSatisfy { !$0.isNaN }, "\(set)")
        }
    }
}
