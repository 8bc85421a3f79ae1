import NeighborhoodAttention
import SparseKernelsReference
import TestSupport
import Testing

@Suite("NeighborhoodAttention")
struct NeighborhoodAttentionTests {
    /// Which keys a query sees along an axis, from the words of the definition: the tokens of the dilation group are counted, and
    /// the window is moved until it is inside.
    static func row(_ axis: NeighborhoodAxis, _ query: Int) -> [Bool] {
        let (d, i) = (axis.dilation, query / axis.dilation)
        let count = (axis.length - query % d + d - 1) / d
        let first = i / axis.stride * axis.stride
        var window: Range<Int>
        if axis.isCausal {
            let leader = min(first + axis.stride, count) - 1
            window = max(0, leader - axis.window + 1)..<i + 1
        } else {
            // An incomplete group at the end is led by the last token when its centre would be beyond.
            let leader = min(first + axis.stride / 2, count - 1)
            window = leader - axis.window / 2..<leader - axis.window / 2 + axis.window
            while window.lowerBound < 0 { window = window.lowerBound + 1..<window.upperBound + 1 }
            while window.upperBound > count { window = window.lowerBound - 1..<window.upperBound - 1 }
        }
        var row = [Bool](repeating: false, count: axis.length)
        for j in window { row[j * d + query % d] = true }
        return row
    }

    static func row(_ neighborhood: Neighborhood, _ query: Int) -> [Bool] {
        var (rest, row) = (query, [true])
        for axis in neighborhood.axes.reversed() {
            let own = Self.row(axis, rest % axis.length)
            row = own.flatMap { sees in row.map { sees && $0 } }
            rest /= axis.length
        }
        return row
    }

    @Test("windows of one axis are those of the definition, for every stride and dilation of small axes")
    func axes() throws {
        for length in [1, 2, 5, 7, 9, 13] {
            for dilation in 1...3 {
                for window in 1...length where window * dilation <= length {
                    for stride in 1...window {
                        for isCausal in [false, true] {
                            let axis = try NeighborhoodAxis(
                                length: length, window: window, stride: stride, dilation: dilation, isCausal: isCausal)
                            var pairs = 0
                            for query in 0..<length {
                                let row = Self.row(axis, query)
                                let keys = row.indices.filter { row[$0] }
                                pairs += keys.count
                                #expect(Array(axis.neighbors(of: query)) == keys, "\(axis) \(query)")
                                #expect((0..<length).filter { axis.isNeighbor(query: query, key: $0) } == keys)
                                #expect(isCausal || keys.count == window)
                            }
                            #expect(try Neighborhood([axis]).visiblePairs == pairs)
                        }
                    }
                }
            }
        }
    }

    /// Neighbourhoods of all kinds: strides that fill the window and that do not, even windows, dilation, causal axes.
    static let cases: [@Sendable () throws -> Neighborhood] = [
        { try Neighborhood(size: [1], window: [1]) },
        { try Neighborhood(size: [37], window: [8]) },
        { try Neighborhood(size: [300], window: [64], stride: [64]) },
        { try Neighborhood(size: [301], window: [50], stride: [7], dilation: [3], isCausal: [true]) },
        { try Neighborhood(size: [9, 11], window: [4, 5], stride: [2, 3]) },
        { try Neighborhood(size: [12, 10], window: [3, 2], stride: [2, 1], dilation: [4, 2], isCausal: [false, true]) },
        { try Neighborhood(size: [6, 8, 10], window: [3, 4, 5]) },
        { try Neighborhood(size: [6, 8, 10], window: [4, 6, 6], stride: [4, 2, 2]) },
        {
            try Neighborhood(
                size: [5, 6, 7], window: [2, 3, 3], stride: [1, 2, 3], dilation: [2, 1, 2], isCausal: [true, false, false])
        },
        { try Neighborhood(size: [4, 5, 6], window: [4, 5, 6]) },
    ]

    struct Operands {
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(_ tokens: Int, queryHeads: Int = 2, kvHeads: Int = 1, headDim: Int = 12, valueDim: Int = 20) throws {
            shape = try AttentionShape(
                queryLength: tokens, keyLength: tokens, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
                valueDim: valueDim)
            query = try .normal([queryHeads, tokens, headDim], seed: 1)
            key = try .normal([kvHeads, tokens, headDim], seed: 2)
            value = try .normal([kvHeads, tokens, valueDim], seed: 3)
        }
    }

    /// Rows that attend in several steps are merged, each merge of which adds (δLSE + 4u)·max |v| to the output's error.
    static func expectMatchesOracle(
        _ operands: Operands, _ attention: NeighborhoodAttention, every step: Int = 1, merges: Int = 0,
        row visible: (_ query: Int) -> [Bool]
    ) throws {
        let shape = operands.shape
        let state = try attention(query: operands.query, key: operands.key, value: operands.value)
        let oracle = ReferenceAttention(shape)
        let largest = Double(operands.value.elements.map(abs).max() ?? 0)
        // An expectation for each element would take longer than all else.
        var failures: [String] = []
        for token in stride(from: 0, to: shape.queryLength, by: step) {
            let sees = visible(token)
            for head in 0..<shape.queryHeads {
                let row = try oracle.row(
                    head: head, token: token, query: operands.query, key: operands.key, value: operands.value,
                    hides: { !sees[$0] })
                var bound = AttentionErrorBound(row, headDim: shape.headDim)
                let merging = Double(merges) * (bound.logSumExp + 4 * AttentionErrorBound.unitRoundoff)
                bound.output = bound.output * (merges > 0 ? 2 : 1) + merging * largest
                bound.logSumExp = bound.logSumExp * (merges > 0 ? 2 : 1) + merging
                let error = abs(Double(state.logSumExp[head, token]) - row.logSumExp)
                if !(error <= bound.logSumExp) { failures.append("LSE of \(token): \(error) of \(bound.logSumExp)") }
                for channel in 0..<shape.valueDim {
                    let error = abs(Double(state.output[head, token, channel]) - row.output[channel])
                    if !(error <= bound.output) { failures.append("\(token), \(channel): \(error) of \(bound.output)") }
                }
            }
        }
        #expect(failures.isEmpty, "\(failures.count), such as \(failures.first ?? "")")
    }

    @Test("attention agrees with the oracle", arguments: cases.indices, InstructionSet.available)
    func oracle(_ index: Int, _ set: InstructionSet) throws {
        let neighborhood = try Self.cases[index]()
        let operands = try Operands(neighborhood.tokens)
        let attention = try NeighborhoodAttention(operands.shape, neighborhood, instructionSet: set)
        try Self.expectMatchesOracle(operands, attention) { Self.row(neighborhood, $0) }
        #expect(attention.visiblePairs == 2 * neighborhood.visiblePairs)
        #expect(attention.computedPairs >= attention.visiblePairs)
        let mask = try neighborhood.mask().elements
        #expect(mask.reduce(0) { $0 + Int($1) } == neighborhood.visiblePairs)
        let tokens = neighborhood.tokens
        for query in 0..<tokens {
            #expect(mask[query * tokens..<(query + 1) * tokens].map { $0 == 1 } == Self.row(neighborhood, query))
        }
    }

    @Test("unions of more keys than fit in scratch are attended in steps", arguments: [1, 4])
    func steps(_ queryHeads: Int) throws {
        // Windows of 2100 and 48 · 50 keys.
        let line = try Neighborhood(size: [4300], window: [2100], stride: [3])
        let image = try Neighborhood(size: [50, 60], window: [48, 50], stride: [5, 7], isCausal: [false, true])
        for neighborhood in [line, image] {
            let operands = try Operands(neighborhood.tokens, queryHeads: queryHeads, headDim: 8, valueDim: 8)
            let attention = try NeighborhoodAttention(operands.shape, neighborhood)
            try Self.expectMatchesOracle(operands, attention, every: 397, merges: 2) { Self.row(neighborhood, $0) }
        }
    }

    @Test(
        "video with text: every query sees the prompt, text sees all but padding",
        arguments: [.before, .after] as [VideoGeometry.TextPlacement])
    func text(_ placement: VideoGeometry.TextPlacement) throws {
        for prompt in [5, 0] {
            let geometry = try VideoGeometry(
                frames: 4, height: 5, width: 6, textTokens: 9, textPlacement: placement, promptTokens: prompt)
            let operands = try Operands(geometry.tokens, queryHeads: 4, kvHeads: 2)
            let neighborhood = try Neighborhood(size: [4, 5, 6], window: [2, 3, 4], stride: [1, 2, 2])
            let attention = try NeighborhoodAttention(operands.shape, geometry, window: [2, 3, 4], stride: [1, 2, 2])
            #expect(attention.neighborhood == neighborhood)
            var pairs = 0
            func row(_ query: Int) -> [Bool] {
                let isText = geometry.text.contains(query)
                let video = isText ? [] : Self.row(neighborhood, query - geometry.video.lowerBound)
                return (0..<geometry.tokens).map { key in
                    if geometry.text.contains(key) { return geometry.prompt.contains(key) }
                    return isText || video[key - geometry.video.lowerBound]
                }
            }
            for query in 0..<geometry.tokens { pairs += row(query).count { $0 } }
            #expect(attention.visiblePairs == 4 * pairs)
            #expect(attention.density == Double(pairs) / Double(geometry.tokens * geometry.tokens))
            try Self.expectMatchesOracle(operands, attention, row: row)
        }
    }

    @Test("additional keys are as if they were part of the sequence", arguments: [0, 1, 33])
    func context(_ count: Int) throws {
        let neighborhood = try Neighborhood(size: [9, 11], window: [4, 5], stride: [2, 3])
        let operands = try Operands(99, queryHeads: 4, kvHeads: 2)
        let contextKey = try Tensor<Float>.normal([2, count, 12], seed: 8)
        let contextValue = try Tensor<Float>.normal([2, count, 20], seed: 9)
        let attention = try NeighborhoodAttention(operands.shape, neighborhood)
        let merged = try attention(
            query: operands.query, key: operands.key, value: operands.value, contextKey: contextKey,
            contextValue: contextValue)
        // The same keys before the tokens, as text.
        let geometry = try VideoGeometry(frames: 1, height: 9, width: 11, textTokens: count)
        func joined(_ first: Tensor<Float>, _ second: Tensor<Float>) throws -> Tensor<Float> {
            let (a, b, channels) = (first.shape[1], second.shape[1], first.shape[2])
            return try Tensor([first.shape[0], a + b, channels]) { index in
                let (head, token) = (index / channels / (a + b), index / channels % (a + b))
                return token < a ? first[head, token, index % channels] : second[head, token - a, index % channels]
            }
        }
        let shape = try AttentionShape(
            queryLength: 99 + count, keyLength: 99 + count, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 20)
        let whole = try NeighborhoodAttention(shape, geometry, window: [1, 4, 5], stride: [1, 2, 3])(
            query: joined(Tensor(zeros: [4, count, 12]), operands.query), key: joined(contextKey, operands.key),
            value: joined(contextValue, operands.value))
        for head in 0..<4 {
            for token in 0..<99 {
                #expect(abs(merged.logSumExp[head, token] - whole.logSumExp[head, token + count]) < 2e-6)
                for channel in 0..<20 {
                    #expect(abs(merged.output[head, token, channel] - whole.output[head, token + count, channel]) < 5e-6)
                }
            }
        }
    }

    @Test("windows as long as the axes are dense attention, and wider windows see more")
    func limits() throws {
        let operands = try Operands(120)
        let dense = try DenseAttention(operands.shape)(query: operands.query, key: operands.key, value: operands.value)
        let full = try NeighborhoodAttention(operands.shape, Neighborhood(size: [4, 5, 6], window: [4, 5, 6]))
        let state = try full(query: operands.query, key: operands.key, value: operands.value)
        #expect(full.density == 1 && full.computedPairs == full.visiblePairs)
        #expect(try AttentionComparison(state, with: dense).error < 1e-6)
        var recalls: [Double] = []
        var densities: [Double] = []
        for window in [[1, 1, 1], [2, 2, 2], [2, 3, 4], [4, 4, 5], [4, 5, 6]] {
            let attention = try NeighborhoodAttention(operands.shape, Neighborhood(size: [4, 5, 6], window: window))
            let state = try attention(query: operands.query, key: operands.key, value: operands.value)
            recalls.append(try AttentionComparison(state, with: dense).recall)
            densities.append(attention.density)
        }
        #expect(recalls == recalls.sorted() && densities == densities.sorted())
        let single = try NeighborhoodAttention(operands.shape, Neighborhood(size: [4, 5, 6], window: [1, 1, 1]))
        let output = try single(query: operands.query, key: operands.key, value: operands.value).output
        for token in 0..<120 {
            for channel in 0..<20 { #expect(output[1, token, channel] == operands.value[0, token, channel]) }
        }
    }

    @Test("threads, views, layouts and element types give the same bits")
    func bits() throws {
        let neighborhood = try Neighborhood(size: [6, 8, 10], window: [3, 4, 5], stride: [1, 2, 2], dilation: [2, 1, 2])
        let operands = try Operands(480, queryHeads: 4, kvHeads: 2)
        let attention = try NeighborhoodAttention(operands.shape, neighborhood)
        let serial = try attention(query: operands.query, key: operands.key, value: operands.value, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            #expect(try attention(query: operands.query, key: operands.key, value: operands.value, on: pool) == serial)
        }
        // [tokens, heads, channels], and half precision.
        func swapped(_ x: Tensor<Float>) throws -> Tensor<Float> {
            let (heads, tokens, channels) = (x.shape[0], x.shape[1], x.shape[2])
            return try Tensor([tokens, heads, channels]) {
                x[$0 / channels % heads, $0 / channels / heads, $0 % channels]
            }
        }
        let (query, key, value) = try (swapped(operands.query), swapped(operands.key), swapped(operands.value))
        var output = try Tensor<BFloat16>(zeros: [480, 4, 20])
        var logSumExp = [Float](repeating: .nan, count: 4 * 480)
        try attention.run(
            query: query.view(layout: .nhd), key: key.view(layout: .nhd), value: value.view(layout: .nhd),
            output: output.mutableView(layout: .nhd), logSumExp: logSumExp.mutableSpan)
        #expect(output.bits == (try swapped(serial.output)).converted(to: BFloat16.self).bits)
        #expect(logSumExp == serial.logSumExp.elements)
        let halves: (Tensor<Float16>, Tensor<BFloat16>) = (operands.key.converted(), operands.value.converted())
        let narrow = try attention(query: operands.query, key: halves.0, value: halves.1)
        let wide: (Tensor<Float>, Tensor<Float>) = (halves.0.converted(), halves.1.converted())
        #expect(narrow == (try attention(query: operands.query, key: wide.0, value: wide.1)))
    }

    @Test("values that are not finite reach only the rows that see them")
    func notFinite() throws {
        let neighborhood = try Neighborhood(size: [6, 8, 10], window: [3, 4, 5])
        let operands = try Operands(480)
        var (key, value) = (operands.key, operands.value)
        key[0, 100, 3] = .nan
        value[0, 333, 7] = .infinity
        let output = try NeighborhoodAttention(operands.shape, neighborhood)(
            query: operands.query, key: key, value: value
        ).output
        for token in 0..<480 {
            let row = Self.row(neighborhood, token)
            #expect((0..<20).allSatisfy { output[1, token, $0].isFinite } == !(row[100] || row[333]))
        }
    }

    @Test("plans stay small, and tiles of HunyuanVideo's setting hide nothing")
    func plans() throws {
        let shape = try AttentionShape(
            queryLength: 115_200, keyLength: 115_200, queryHeads: 1, kvHeads: 1, headDim: 128)
        let geometry = try VideoGeometry(frames: 30, height: 48, width: 80)
        let hunyuan = try NeighborhoodAttention(shape, geometry, window: [18, 24, 24], stride: [16, 8, 8])
        #expect(hunyuan.computedPairs == hunyuan.visiblePairs && hunyuan.density == 0.09)
        // With stride 1, tiles see more than twice what a query does only where windows are small.
        let sliding = try NeighborhoodAttention(shape, geometry, window: [18, 24, 24])
        #expect(sliding.density == 0.09 && sliding.computedPairs < 2 * sliding.visiblePairs)
        #expect(max(hunyuan.scratchByteCount, sliding.scratchByteCount) < 10 << 20)
        let flux = try AttentionShape(queryLength: 65_536, keyLength: 65_536, queryHeads: 24, kvHeads: 24, headDim: 128)
        let image = try NeighborhoodAttention(flux, Neighborhood(size: [256, 256], window: [80, 80], stride: [16, 16]))
        #expect(image.computedPairs == image.visiblePairs && abs(image.density - 0.0977) < 1e-4)
    }

    @Test("bad settings and operands are errors that name them")
    func badInput() throws {
        expectError(.invalidShape, "length") { _ = try NeighborhoodAxis(length: 0, window: 1) }
        expectError(.invalidArgument, "window") { _ = try NeighborhoodAxis(length: 5, window: 0) }
        expectError(.invalidArgument, "window") { _ = try NeighborhoodAxis(length: 5, window: 3, dilation: 2) }
        expectError(.invalidArgument, "window") { _ = try NeighborhoodAxis(length: 5, window: 2, dilation: .max) }
        expectError(.invalidArgument, "stride") { _ = try NeighborhoodAxis(length: 5, window: 3, stride: 4) }
        expectError(.invalidArgument, "stride") { _ = try NeighborhoodAxis(length: 5, window: 3, stride: 0) }
        expectError(.invalidArgument, "dilation") { _ = try NeighborhoodAxis(length: 5, window: 3, dilation: 0) }
        expectError(.invalidShape, "axes") { _ = try Neighborhood([]) }
        expectError(.invalidShape, "axes") { _ = try Neighborhood(size: [1 << 40, 1 << 40], window: [1, 1]) }
        expectError(.invalidShape, "window") { _ = try Neighborhood(size: [4, 4], window: [2]) }
        expectError(.invalidShape, "isCausal") { _ = try Neighborhood(size: [4], window: [2], isCausal: [true, true]) }
        let operands = try Operands(12)
        let neighborhood = try Neighborhood(size: [3, 4], window: [2, 2])
        let other = try AttentionShape(queryLength: 13, keyLength: 12, queryHeads: 1, kvHeads: 1, headDim: 8)
        expectError(.invalidShape, "queryLength") { _ = try NeighborhoodAttention(other, neighborhood) }
        expectError(.invalidArgument, "softmaxScale") {
            _ = try NeighborhoodAttention(operands.shape, neighborhood, softmaxScale: .nan)
        }
        let geometry = try VideoGeometry(frames: 1, height: 3, width: 4, textTokens: 1)
        expectError(.invalidShape, "queryLength") {
            _ = try NeighborhoodAttention(operands.shape, geometry, window: [1, 2, 2])
        }
        let attention = try NeighborhoodAttention(operands.shape, neighborhood)
        expectError(.invalidShape, "query") {
            _ = try attention(query: operands.key, key: operands.key, value: operands.value)
        }
        var small = try Tensor<Float>(zeros: [2, 12, 19])
        expectError(.invalidShape, "output") {
            try attention.run(query: operands.query, key: operands.key, value: operands.value, into: &small)
        }
        expectError(.invalidShape, "contextValue") {
            _ = try attention(
                query: operands.query, key: operands.key, value: operands.value, contextKey: operands.key,
                contextValue: operands.key)
        }
    }
}
