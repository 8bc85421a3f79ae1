import PAROAttention
import SparseKernelsReference
import TestSupport
import Testing

@Suite("PAROAttention plans")
struct PAROAttentionPlanTests {
    static let geometry = try! VideoGeometry(frames: 3, height: 4, width: 5, textTokens: 11)

    /// A plan with a different order for each of six heads, and random blocks of 8 tokens.
    static func plan(_ geometry: VideoGeometry = geometry, slots: Int = 1, seed: UInt64 = 1) throws -> PAROAttentionPlan {
        let blocks = try PAROBlocks(geometry, blockSize: 8)
        var generator = SplitMix64(seed: seed)
        let masks = try (0..<slots).map { _ in
            try blocks.mask(
                padding: Tensor([6, blocks.image.count, blocks.image.count]) { _ in generator.next() % 3 == 0 ? 1 : 0 })
        }
        return try PAROAttentionPlan(geometry: geometry, orders: PAROAxisOrder.allCases, masks: masks)
    }

    @Test("orders have the released numbers, and text stays")
    func orders() throws {
        // The new position of token (f, y, x), by the number of the order.
        let geometry = Self.geometry
        let (frames, height, width) = (geometry.frames, geometry.height, geometry.width)
        let positions: [(Int, Int, Int) -> Int] = [
            { f, y, x in (f * height + y) * width + x }, { f, y, x in (f * width + x) * height + y },
            { f, y, x in (y * width + x) * frames + f }, { f, y, x in (y * frames + f) * width + x },
            { f, y, x in (x * height + y) * frames + f }, { f, y, x in (x * frames + f) * height + y },
        ]
        for order in PAROAxisOrder.allCases {
            let permutation = order.permutation(geometry).order(head: 0)
            #expect(permutation.prefix(11).map { Int($0) } == Array(0..<11))
            for f in 0..<frames {
                for y in 0..<height {
                    for x in 0..<width {
                        #expect(
                            Int(permutation[11 + positions[order.rawValue](f, y, x)]) == 11 + (f * height + y) * width + x)
                    }
                }
            }
        }
    }

    @Test("text rows and columns and the last ones are dense")
    func padding() throws {
        for (placement, text, image, count) in [
            (VideoGeometry.TextPlacement.before, 11, 2..<9, 9), (.before, 16, 2..<10, 10), (.before, 0, 0..<8, 8),
            (.after, 11, 0..<7, 9), (.after, 0, 0..<8, 8), (.after, 4, 0..<7, 8),
        ] {
            let geometry = try VideoGeometry(frames: 3, height: 4, width: 5, textTokens: text, textPlacement: placement)
            let blocks = try PAROBlocks(geometry, blockSize: 8)
            #expect(blocks.image == image && blocks.grid.blockRows == count)
            let mask = try blocks.mask(
                padding: Tensor([2, image.count, image.count]) { $0 < image.count * image.count ? 0 : 1 })
            for row in 0..<count {
                for column in 0..<count {
                    let isFree = image.contains(row) && image.contains(column) && row < count - 1 && column < count - 1
                    #expect(mask[0, row, column] == !isFree)
                    #expect(mask[1, row, column])
                }
            }
        }
        // More text than fits in blocks of their own, and a video inside one block.
        let tiny = try PAROBlocks(VideoGeometry(frames: 1, height: 1, width: 2, textTokens: 1), blockSize: 64)
        #expect(tiny.image.isEmpty && tiny.grid.blockRows == 1)
        #expect(try tiny.mask(padding: Tensor(zeros: [1, 0, 0])).density == 1)
        expectError(.invalidShape, "imageMask") { _ = try tiny.mask(padding: Tensor(zeros: [1, 1, 1])) }
        expectError(.invalidShape, "blockSize") { _ = try PAROBlocks(Self.geometry, blockSize: 0) }
    }

    @Test("slots follow the released index", arguments: [1, 7, 10, 30, 50])
    func slots(_ steps: Int) throws {
        var released = 0
        for step in 0..<steps {
            #expect(try PAROAttentionPlan.slot(step: step, of: steps) == released)
            released = Int(Double(step + 1) / Double(steps) * 10)
        }
        #expect(try PAROAttentionPlan.slot(step: steps - 1, of: steps, slots: 1) == 0)
        expectError(.invalidArgument, "step") { _ = try PAROAttentionPlan.slot(step: steps, of: steps) }
        expectError(.invalidArgument, "step") { _ = try PAROAttentionPlan.slot(step: -1, of: steps) }
        expectError(.invalidArgument, "steps") { _ = try PAROAttentionPlan.slot(step: 0, of: 0) }
        expectError(.invalidArgument, "slots") { _ = try PAROAttentionPlan.slot(step: 0, of: 5, slots: 0) }
        #expect(try PAROAttentionPlan.slot(step: .max - 1, of: .max, slots: .max) == .max - 1)
    }

    /// Rows of exact attention over the blocks of a plan, `[heads][tokens]`.
    static func expectExact(
        _ state: AttentionState, _ plan: PAROAttentionPlan, slot: Int, _ shape: AttentionShape, query: Tensor<Float>,
        key: Tensor<Float>, value: Tensor<Float>
    ) throws {
        let reference = ReferenceAttention(shape)
        let mask = plan.masks[slot]
        for head in 0..<shape.queryHeads {
            let position = plan.orders[head].permutation(plan.geometry).inverse.order(head: 0).map { Int($0) }
            for token in 0..<shape.queryLength {
                let row = try reference.row(
                    head: head, token: token, query: query, key: key, value: value,
                    hides: { !mask[head, position[token] / 8, position[$0] / 8] })
                let bound = AttentionErrorBound(row, headDim: shape.headDim)
                for (channel, expected) in row.output.enumerated() {
                    let index = (head * shape.queryLength + token) * shape.valueDim + channel
                    #expect(abs(Double(state.output[flat: index]) - expected) <= bound.output)
                }
            }
        }
    }

    @Test("attention is exact over the blocks of each head's order", arguments: InstructionSet.available)
    func attention(_ set: InstructionSet) throws {
        let plan = try Self.plan(slots: 3)
        #expect(plan.density < 0.8 && plan.density > 0.3)
        let tokens = plan.geometry.tokens
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: 6, kvHeads: 6, headDim: 9, valueDim: 7)
        let query = try Tensor<Float>.normal([6, tokens, 9], seed: 1)
        let key = try Tensor<Float>.normal([6, tokens, 9], seed: 2)
        let value = try Tensor<Float>.normal([6, tokens, 7], seed: 3)
        for slot in 0..<3 {
            let operation = try plan.attention(shape, slot: slot, instructionSet: set)
            let state = try operation(query: query, key: key, value: value, on: .serial)
            try Self.expectExact(state, plan, slot: slot, shape, query: query, key: key, value: value)
            #expect(
                try plan.attention(shape, step: slot * 5, of: 15, instructionSet: set)(
                    query: query, key: key, value: value, on: WorkerPool(threads: 7)) == state)
        }
    }

    @Test("query heads of a KV head share its order")
    func grouped() throws {
        let geometry = Self.geometry
        let blocks = try PAROBlocks(geometry, blockSize: 8)
        let mask = try blocks.mask(padding: Tensor([4, 7, 7]) { $0 * 5 % 3 == 0 ? 1 : 0 })
        let shape = try AttentionShape(
            queryLength: geometry.tokens, keyLength: geometry.tokens, queryHeads: 4, kvHeads: 2, headDim: 8)
        let query = try Tensor<Float>.normal([4, geometry.tokens, 8], seed: 1)
        let key = try Tensor<Float>.normal([2, geometry.tokens, 8], seed: 2)
        let value = try Tensor<Float>.normal([2, geometry.tokens, 8], seed: 3)
        let plan = try PAROAttentionPlan(
            geometry: geometry, orders: [.heightWidthFrame, .heightWidthFrame, .frameWidthHeight, .frameWidthHeight],
            masks: [mask])
        let state = try plan.attention(shape)(query: query, key: key, value: value)
        try Self.expectExact(state, plan, slot: 0, shape, query: query, key: key, value: value)
        let mixed = try PAROAttentionPlan(
            geometry: geometry, orders: [.heightWidthFrame, .frameWidthHeight, .frameWidthHeight, .frameWidthHeight],
            masks: [mask])
        expectError(.invalidArgument, "orders[1]") { _ = try mixed.attention(shape) }
    }

    @Test("codes are those of permuted rows, and their attention is near that of the rows", arguments: InstructionSet.available)
    func codes(_ set: InstructionSet) throws {
        let geometry = Self.geometry
        let plan = try PAROAttentionPlan(
            geometry: geometry, orders: [.widthFrameHeight, .frameHeightWidth],
            masks: [BlockMask(grid: PAROBlocks(geometry).grid, heads: 2) { _, _, _ in true }])
        let query = try Tensor<Float>.normal([2, geometry.tokens, 16], seed: 1)
        let key = try Tensor<Float>.normal([2, geometry.tokens, 16], seed: 2)
        let value = try Tensor<Float>.normal([2, geometry.tokens, 16], seed: 3)
        let codes = try plan.int8Codes(query: query, key: key, instructionSet: set)
        #expect(codes.query.scales.shape == [2, 3] && codes.key.scales.shape == [2, 2])
        for head in 0..<2 {
            let order = plan.orders[head].permutation(geometry).order(head: 0).map { Int($0) }
            for (side, rows, size) in [(codes.query, query, 32), (codes.key, key, 64)] {
                for (position, token) in order.enumerated() {
                    let scale = side.scales[flat: head * side.partition.count + position / size]
                    for channel in 0..<16 {
                        let code = side.codes[flat: (head * geometry.tokens + position) * 16 + channel]
                        let value = rows[flat: (head * geometry.tokens + token) * 16 + channel]
                        #expect(abs(Float(code) * scale - value) <= scale * 0.50001)
                    }
                }
            }
        }
        let shape = try AttentionShape(query: query, key: key, value: value)
        let exact = try plan.attention(shape, instructionSet: set)(query: query, key: key, value: value)
        let state = try plan.attention(of: codes, value: value, instructionSet: set)
        var worst: Float = 0
        for index in 0..<exact.output.count { worst = max(worst, abs(exact.output[flat: index] - state.output[flat: index])) }
        #expect(worst > 0 && worst < 0.05)
        expectError(.invalidShape, "query.partition") { _ = try PAROInt8Codes(query: codes.key, key: codes.key) }
    }

    // MARK: - Errors and files

    @Test("what does not fit is named")
    func errors() throws {
        let plan = try Self.plan()
        let (geometry, mask) = (plan.geometry, plan.masks[0])
        expectError(.invalidShape, "orders") { _ = try PAROAttentionPlan(geometry: geometry, orders: [], masks: [mask]) }
        expectError(.invalidShape, "masks") {
            _ = try PAROAttentionPlan(geometry: geometry, orders: plan.orders, masks: [])
        }
        expectError(.invalidShape, "masks[0].heads") {
            _ = try PAROAttentionPlan(geometry: geometry, orders: [.frameHeightWidth], masks: [mask])
        }
        expectError(.invalidShape, "masks[0]") {
            let other = try VideoGeometry(frames: 3, height: 4, width: 5)
            _ = try PAROAttentionPlan(geometry: other, orders: plan.orders, masks: [mask])
        }
        expectError(.invalidArgument, "masks[1].grid") {
            let other = try PAROBlocks(geometry, blockSize: 16).grid
            _ = try PAROAttentionPlan(
                geometry: geometry, orders: plan.orders, masks: [mask, BlockMask(grid: other, heads: 6) { _, _, _ in true }])
        }
        expectError(.invalidArgument, "masks[0]") {
            let grid = try BlockGrid(
                queryLength: geometry.tokens, keyLength: geometry.tokens, queryBlockSize: 8, keyBlockSize: 8, isCausal: true)
            _ = try PAROAttentionPlan(
                geometry: geometry, orders: plan.orders, masks: [BlockMask(grid: grid, heads: 6) { _, _, _ in true }])
        }
        let tokens = geometry.tokens
        let shape = try AttentionShape(queryLength: tokens, keyLength: tokens, queryHeads: 6, kvHeads: 6, headDim: 8)
        for slot in [-1, 1] { expectError(.invalidArgument, "slot") { _ = try plan.attention(shape, slot: slot) } }
        expectError(.invalidShape, "queryHeads") {
            _ = try plan.attention(
                AttentionShape(queryLength: tokens, keyLength: tokens, queryHeads: 5, kvHeads: 5, headDim: 8))
        }
        expectError(.invalidShape, "keyLength") {
            _ = try plan.attention(
                AttentionShape(queryLength: tokens, keyLength: 3, queryHeads: 6, kvHeads: 6, headDim: 8))
        }
    }

    @Test("a plan is read as it was written")
    func roundTrip() throws {
        let directory = try TemporaryDirectory()
        let path = "\(directory.path)/plan.safetensors"
        for geometry in [
            Self.geometry,
            try VideoGeometry(frames: 2, height: 3, width: 7, textTokens: 9, textPlacement: .after, promptTokens: 4),
        ] {
            for slots in [1, 3] {
                let plan = try Self.plan(geometry, slots: slots)
                try plan.write(to: path)
                #expect(try PAROAttentionPlan(path: path) == plan)
                // The file is also one of the masks of all slots.
                #expect(try BlockMask(path: path).heads == 6 * slots)
            }
        }
        #expect(directory.contents == ["plan.safetensors"])
        expectError(.inputOutput, describing: "missing") { _ = try PAROAttentionPlan(path: "\(directory.path)/missing") }
    }

    @Test("hostile entries are errors of the file")
    func hostileEntries() throws {
        let plan = try Self.plan(slots: 2)
        for (key, values) in [
            ("plan", ["other"]), ("planVersion", ["2"]), ("slots", ["0", "-1", "3", "9223372036854775807", "x"]),
            ("frames", ["0", "4", "9223372036854775807", "1e3"]), ("height", ["-4"]), ("width", ["5.0"]),
            ("textTokens", ["-1", "12"]), ("textPlacement", ["middle"]), ("promptTokens", ["12", "-1"]),
            ("queryLength", ["70"]), ("heads", ["11"]),
        ] {
            for value in values {
                var writer = try plan.safetensors()
                writer.metadata[key] = value
                let file = try SafetensorsFile(bytes: writer.encoded(), named: "plan")
                expectError(.malformedFile, describing: "plan") { _ = try PAROAttentionPlan(file) }
            }
            var writer = try plan.safetensors()
            writer.metadata[key] = nil
            let file = try SafetensorsFile(bytes: writer.encoded(), named: "plan")
            #expect(throws: SparseKernelsError.self) { _ = try PAROAttentionPlan(file) }
        }
        for orders in [[0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, -1], [0, 1], []] as [[Int32]] {
            let file = try SafetensorsFile(bytes: plan.safetensors().encoded(), named: "plan")
            var writer = SafetensorsWriter(metadata: file.metadata)
            for entry in file.tensors where entry.name != "axisOrders" { try writer.add(entry.name, from: file) }
            try writer.add("axisOrders", Tensor([orders.count], orders))
            let other = try SafetensorsFile(bytes: writer.encoded(), named: "plan")
            expectError(.malformedFile, describing: "plan") { _ = try PAROAttentionPlan(other) }
        }
        // A mask without rows, which needs no offsets for any number of heads.
        var empty = SafetensorsWriter(metadata: try plan.safetensors().metadata)
        for axis in ["query", "key"] {
            empty.metadata[axis + "Length"] = "0"
        }
        let many = 1 << 40
        (empty.metadata["heads"], empty.metadata["slots"]) = ("\(many)", "\(many)")
        try empty.add("rowOffsets", Tensor<Int64>([1], [0]))
        try empty.add("columnIndices", Tensor<Int32>([0], []))
        try empty.add("axisOrders", Tensor<Int32>([1], [0]))
        let file = try SafetensorsFile(bytes: empty.encoded(), named: "plan")
        expectError(.malformedFile, describing: "plan") { _ = try PAROAttentionPlan(file) }
    }

    @Test("damaged bytes are errors, or another valid plan")
    func damagedBytes() throws {
        let bytes = try Self.plan(slots: 2).safetensors().encoded()
        var generator = SplitMix64(seed: 9)
        for round in 0..<1000 {
            var damaged = bytes
            for _ in 0...round % 3 {
                damaged[Int(generator.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: generator.next())
            }
            if round % 5 == 0 { damaged.removeLast(Int(generator.next() % UInt64(bytes.count))) }
            // The initialiser throws errors of the package only, as its type says; whatever it accepts is a plan.
            guard let plan = try? PAROAttentionPlan(SafetensorsFile(bytes: damaged)) else { continue }
            #expect(try PAROAttentionPlan(SafetensorsFile(bytes: plan.safetensors().encoded())) == plan)
        }
    }
}
