import DraftAttention
import Foundation
import SparseKernelsReference
import TestSupport
import Testing

@Suite("DraftAttention")
struct DraftAttentionTests {
    /// Operands whose tokens are alike in patches of the frame, so that windows differ.
    struct Operands {
        let geometry: VideoGeometry
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>

        init(_ geometry: VideoGeometry, queryHeads: Int = 2, kvHeads: Int = 2, headDim: Int = 12, valueDim: Int = 12) throws {
            self.geometry = geometry
            shape = try AttentionShape(
                queryLength: geometry.tokens, keyLength: geometry.tokens, queryHeads: queryHeads, kvHeads: kvHeads,
                headDim: headDim, valueDim: valueDim)
            func rows(_ heads: Int, _ seed: UInt64) throws -> Tensor<Float> {
                let noise = try Tensor<Float>.normal([heads, geometry.tokens, headDim], seed: seed)
                let topics = try Tensor<Float>.normal([heads * 8, headDim], seed: seed + 1)
                return try Tensor([heads, geometry.tokens, headDim]) { index in
                    let (row, channel) = (index / headDim, index % headDim)
                    let (head, token) = (row / geometry.tokens, row % geometry.tokens)
                    let place = max(0, token - geometry.video.lowerBound)
                    let topic = (place / geometry.width / 2 * 3 + place % geometry.width / 3) % 8
                    return noise[flat: index] / 2 + 1.5 * topics[flat: (head * 8 + topic) * headDim + channel]
                }
            }
            query = try rows(queryHeads, 1)
            key = try rows(kvHeads, 3)
            value = try Tensor<Float>.normal([kvHeads, geometry.tokens, valueDim], seed: 5)
        }
    }

    /// Geometries that windows of 2 × 4 divide and do not divide, with text before, after, padded, and none.
    static let geometries = try! [
        VideoGeometry(frames: 2, height: 4, width: 8),
        VideoGeometry(frames: 3, height: 5, width: 7, textTokens: 11, textPlacement: .after),
        VideoGeometry(frames: 2, height: 3, width: 9, textTokens: 13, textPlacement: .before),
        VideoGeometry(frames: 2, height: 4, width: 6, textTokens: 20, textPlacement: .after, promptTokens: 9),
        VideoGeometry(frames: 1, height: 1, width: 1, textTokens: 3, textPlacement: .before, promptTokens: 0),
    ]
    static let small = DraftAttentionConfiguration(sparsity: 0.7, windowHeight: 2, windowWidth: 4)

    /// The window of every token, or −1 for prompt and −2 for padding, from the coordinates of tokens.
    static func windows(_ geometry: VideoGeometry, height: Int = 2, width: Int = 4) -> [Int] {
        let columns = (geometry.width + width - 1) / width
        let rows = (geometry.height + height - 1) / height
        return (0..<geometry.tokens).map { token in
            if geometry.prompt.contains(token) { return -1 }
            if geometry.padding.contains(token) { return -2 }
            let place = token - geometry.video.lowerBound
            let (frame, y, x) = (
                place / (geometry.height * geometry.width), place / geometry.width % geometry.height, place % geometry.width
            )
            return (frame * rows + y / height) * columns + x / width
        }
    }

    /// The draft map of a head in `Double`.
    static func map(_ operands: Operands, head: Int) -> [[Double]] {
        let windows = windows(operands.geometry)
        let count = windows.max()! + 1
        let dim = operands.shape.headDim
        func means(_ rows: [[Double]]) -> [[Double]] {
            (0..<count).map { window in
                let members = windows.indices.filter { windows[$0] == window }
                return (0..<dim).map { c in members.reduce(0) { $0 + rows[$1][c] } / Double(members.count) }
            }
        }
        let query = means(operands.query.rows(ofHead: head))
        let key = means(operands.key.rows(ofHead: head / operands.shape.queryHeadsPerKVHead))
        return query.map { q in
            let scores = key.map { k in zip(q, k).reduce(0) { $0 + $1.0 * $1.1 } / Double(dim).squareRoot() }
            let weights = scores.map { exp($0 - scores.max()!) }
            return weights.map { $0 / weights.reduce(0, +) }
        }
    }

    @Test("windows number the tokens of a frame, smaller at its edges, and text stays", arguments: geometries)
    func windows(_ geometry: VideoGeometry) throws {
        let windows = try DraftWindows(geometry, height: 2, width: 4)
        let expected = Self.windows(geometry)
        #expect(windows.count == expected.max()! + 1)
        #expect(windows.sizes == (0..<windows.count).map { window in expected.filter { $0 == window }.count })
        // A stable sort by window: inside a window tokens keep their order, which is rows, then columns.
        let video = geometry.video.sorted { (expected[$0], $0) < (expected[$1], $1) }
        let before = Array(0..<geometry.video.lowerBound)
        let order = before + video + Array(geometry.video.upperBound..<geometry.tokens)
        #expect(try windows.order().order(head: 0).map { Int($0) } == order)
    }

    @Test("the draft map is the softmax of pooled rows", arguments: geometries, InstructionSet.available)
    func draftMap(_ geometry: VideoGeometry, _ set: InstructionSet) throws {
        let operands = try Operands(geometry, queryHeads: 4, kvHeads: 2)
        let draft = try DraftAttentionVideo(operands.shape, geometry: geometry, Self.small, instructionSet: set)
        let map = try draft.draftMap(query: operands.query, key: operands.key)
        for head in 0..<4 {
            for (row, expected) in Self.map(operands, head: head).enumerated() {
                for (column, value) in expected.enumerated() {
                    #expect(abs(Double(map[head, row, column]) - value) < 2e-6)
                }
            }
        }
    }

    @Test("the largest entries are kept, and one in every row")
    func selection() throws {
        let grid = try BlockGrid(queryLength: 3, keyLength: 3, queryBlockSize: 1, keyBlockSize: 1, isCausal: false)
        let values: [Float] = [0.9, 0.05, 0.05, 0.4, 0.4, 0.2, 0.3, 0.3, 0.4]
        func kept(_ sparsity: Double, _ values: [Float] = values, released: Bool = false) throws -> [UInt8] {
            try DraftSelection(sparsity: sparsity, isReleased: released)(
                BlockScores(grid: grid, values: Tensor([1, 3, 3], values))
            ).elements
        }
        #expect(try kept(0) == [1, 1, 1, 1, 1, 1, 1, 1, 1])
        // 4 of 9 entries remain: 0.9 and the three of 0.4.
        #expect(try kept(0.6) == [1, 0, 0, 1, 1, 0, 0, 0, 1])
        // Of equal entries the first ones; the last row keeps its maximum beyond the budget.
        #expect(try kept(0.7) == [1, 0, 0, 1, 1, 0, 0, 0, 1])
        #expect(try kept(0.8) == [1, 0, 0, 1, 0, 0, 0, 0, 1])
        #expect(try kept(1) == [1, 0, 0, 1, 0, 0, 0, 0, 1])
        // Released: one entry more, ties, empty rows. The 7th smallest is 0.4, and the 8th as well.
        #expect(try kept(0.8, released: true) == [1, 0, 0, 1, 1, 0, 0, 0, 1])
        #expect(try kept(0.99, released: true) == [1, 0, 0, 1, 1, 0, 0, 0, 1])
        #expect(try kept(0, released: true) == [1, 1, 1, 1, 1, 1, 1, 1, 1])
        #expect(try kept(1, released: true) == [0, 0, 0, 0, 0, 0, 0, 0, 0])
        let rows: [Float] = [0.8, 0.1, 0.1, .nan, .nan, .nan, 0.3, 0.3, 0.4]
        // A row with a NaN is kept and counts no more: 2 of the other 6 entries remain.
        #expect(try kept(0.7, rows) == [1, 0, 0, 1, 1, 1, 0, 0, 1])
        // Released: NaN is above all numbers in the order and not kept. The 4th smallest is 0.3; the 7th is NaN.
        #expect(try kept(0.5, rows, released: true) == [1, 0, 0, 0, 0, 0, 1, 1, 1])
        #expect(try kept(0.7, rows, released: true) == [1, 0, 0, 0, 0, 0, 0, 0, 0])
        #expect(try kept(0.8, rows, released: true) == [0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    @Test("the released count is that of double precision", arguments: [(0.043, 100, 430), (0.5, 12, 72), (0.9, 12, 129)])
    func releasedCount(_ sparsity: Double, _ windows: Int, _ cut: Int) throws {
        let grid = try BlockGrid(
            queryLength: windows, keyLength: windows, queryBlockSize: 1, keyBlockSize: 1, isCausal: false)
        // Distinct values in an arbitrary order.
        let count = windows * windows
        let map = try BlockScores(grid: grid, values: Tensor([1, windows, windows]) { Float($0 * 7919 % count) })
        let kept = try DraftSelection(sparsity: sparsity, isReleased: true)(map).elements
        #expect(kept.reduce(0) { $0 + Int($1) } == count - Int((1.0 - (1 - sparsity)) * Double(count)) + 1)
        #expect(abs(Int((1.0 - (1 - sparsity)) * Double(count)) - cut) <= 1)
    }

    @Test("density falls as sparsity rises, and masks are nested", arguments: geometries)
    func monotone(_ geometry: VideoGeometry) throws {
        let operands = try Operands(geometry)
        var before: BlockMask?
        for sparsity in [0, 0.2, 0.5, 0.8, 0.95, 1] {
            var configuration = Self.small
            configuration.sparsity = sparsity
            let draft = try DraftAttentionVideo(operands.shape, geometry: geometry, configuration)
            let mask = try draft.select(query: operands.query, key: operands.key)
            if let before {
                for head in 0..<mask.heads {
                    for row in 0..<mask.grid.blockRows {
                        #expect(Set(mask.columns(head: head, row: row)).isSubset(of: before.columns(head: head, row: row)))
                    }
                }
            } else if geometry.padding.isEmpty {
                #expect(mask.density == 1)
            }
            before = mask
        }
    }

    @Test("attention is exact over the kept windows, with dense text", arguments: geometries, InstructionSet.available)
    func attention(_ geometry: VideoGeometry, _ set: InstructionSet) throws {
        let operands = try Operands(geometry, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 5)
        let draft = try DraftAttentionVideo(operands.shape, geometry: geometry, Self.small, instructionSet: set)
        let map = try draft.draftMap(query: operands.query, key: operands.key)
        let kept = try DraftSelection(sparsity: 0.7)(map)
        let result = try draft(query: operands.query, key: operands.key, value: operands.value)
        let windows = Self.windows(geometry)
        let reference = ReferenceAttention(operands.shape)
        for head in 0..<4 {
            for token in 0..<geometry.tokens {
                let row = try reference.row(
                    head: head, token: token, query: operands.query, key: operands.key, value: operands.value,
                    hides: { key in
                        let (a, b) = (windows[token], windows[key])
                        if a == -2 || b == -2 { return a != b }
                        if a == -1 || b == -1 { return false }
                        return kept[flat: (head * draft.windows.count + a) * draft.windows.count + b] == 0
                    })
                let bound = AttentionErrorBound(row, headDim: operands.shape.headDim)
                for (channel, expected) in row.output.enumerated() {
                    let actual = Double(result.state.output[flat: (head * geometry.tokens + token) * 5 + channel])
                    #expect(abs(actual - expected) <= bound.output)
                }
                let actual = Double(result.state.logSumExp[flat: head * geometry.tokens + token])
                #expect(abs(actual - row.logSumExp) <= bound.logSumExp)
            }
        }
    }

    @Test("the full budget is dense attention, and outputs stay in the hull of the values")
    func dense() throws {
        let geometry = Self.geometries[1]
        let operands = try Operands(geometry)
        var configuration = Self.small
        configuration.sparsity = 0
        let full = try DraftAttentionVideo(operands.shape, geometry: geometry, configuration)(
            query: operands.query, key: operands.key, value: operands.value)
        let dense = try DenseAttention(operands.shape, mask: .full)(
            query: operands.query, key: operands.key, value: operands.value)
        for index in 0..<dense.output.count {
            #expect(abs(full.state.output[flat: index] - dense.output[flat: index]) < 5e-6)
        }
        let sparse = try DraftAttentionVideo(operands.shape, geometry: geometry, Self.small)(
            query: operands.query, key: operands.key, value: operands.value)
        #expect(sparse.mask.density < 1)
        let (least, most) = (operands.value.elements.min()!, operands.value.elements.max()!)
        #expect(sparse.state.output.elements.allSatisfy { $0 >= least - 1e-6 && $0 <= most + 1e-6 })
    }

    @Test("threads, layouts and 16-bit elements give the same bits", arguments: InstructionSet.available)
    func bits(_ set: InstructionSet) throws {
        let geometry = Self.geometries[3]
        let operands = try Operands(geometry)
        let half: Tensor<BFloat16> = operands.query.converted()
        let query: Tensor<Float> = half.converted()
        let draft = try DraftAttentionVideo(operands.shape, geometry: geometry, Self.small, instructionSet: set)
        let expected = try draft(query: query, key: operands.key, value: operands.value, on: .serial)
        for threads in [2, 7] {
            let result = try draft(
                query: half, key: operands.key, value: operands.value, on: WorkerPool(threads: threads))
            #expect(result.state == expected.state && result.mask == expected.mask)
        }
        let (heads, tokens, channels) = (2, geometry.tokens, 12)
        let other = try Tensor<Float>([tokens, heads, channels]) { index in
            query[flat: (index / channels % heads * tokens + index / channels / heads) * channels + index % channels]
        }
        let map = try draft.draftMap(query: other.view(layout: .nhd), key: operands.key.view())
        #expect(try draft.mask(map) == expected.mask)
    }

    @Test("a NaN reaches the rows that see it, and nothing traps")
    func notANumber() throws {
        let geometry = Self.geometries[1]
        let operands = try Operands(geometry)
        for released in [false, true] {
            var configuration = Self.small
            configuration.isReleased = released
            let draft = try DraftAttentionVideo(operands.shape, geometry: geometry, configuration)
            var query = operands.query
            query[flat: 5 * 12 + 3] = .nan
            let result = try draft(query: query, key: operands.key, value: operands.value)
            let window = Self.windows(geometry)[5]
            for token in 0..<geometry.tokens where token != 5 {
                #expect(result.state.output[flat: token * 12].isFinite)
            }
            #expect(result.mask.columns(head: 0, row: window).count >= (released ? 2 : draft.windows.count))
            var key = operands.key
            key[flat: 7] = .infinity
            #expect(throws: Never.self) { try draft(query: operands.query, key: key, value: operands.value) }
        }
    }

    @Test("windows as large as a frame or a token")
    func extremeWindows() throws {
        let geometry = Self.geometries[2]
        let operands = try Operands(geometry)
        for (height, width, count) in [(1, 1, 54), (.max, .max, 2), (3, 1, 18)] {
            let draft = try DraftAttentionVideo(
                operands.shape, geometry: geometry, .init(sparsity: 0.5, windowHeight: height, windowWidth: width))
            #expect(draft.windows.count == count)
            let result = try draft(query: operands.query, key: operands.key, value: operands.value)
            #expect(result.mask.density <= 1 && result.state.output.elements.allSatisfy(\.isFinite))
        }
    }

    @Test("bad settings and operands are errors that name them")
    func errors() throws {
        let operands = try Operands(Self.geometries[1])
        let (shape, geometry) = (operands.shape, operands.geometry)
        for sparsity in [-0.1, 1.1, .nan] {
            expectError(.invalidArgument, "sparsity") {
                _ = try DraftAttentionVideo(shape, geometry: geometry, .init(sparsity: sparsity))
            }
        }
        expectError(.invalidArgument, "windowHeight") {
            _ = try DraftAttentionVideo(shape, geometry: geometry, .init(windowHeight: 0))
        }
        expectError(.invalidArgument, "windowWidth") {
            _ = try DraftAttentionVideo(shape, geometry: geometry, .init(windowWidth: -1))
        }
        expectError(.invalidShape, "queryLength") { _ = try DraftAttentionVideo(shape, geometry: Self.geometries[0]) }
        let draft = try DraftAttentionVideo(shape, geometry: geometry, Self.small)
        expectError(.invalidShape, "query") {
            _ = try draft.select(query: Tensor<Float>(zeros: [2, 3, 12]), key: operands.key)
        }
        expectError(.invalidShape, "key") {
            _ = try draft.select(query: operands.query, key: Tensor<Float>(zeros: [2, 3, 12]))
        }
        let grid = try BlockGrid(queryLength: 3, keyLength: 3, queryBlockSize: 1, keyBlockSize: 1, isCausal: false)
        expectError(.invalidShape, "map") { _ = try draft.mask(BlockScores(grid: grid, values: Tensor(zeros: [1, 3, 3]))) }
        let few = try Tensor<Float>(zeros: [1, 3, 4])
        expectError(.invalidShape, "operand") { _ = try draft.windows.means(few.view()) }
    }
}
