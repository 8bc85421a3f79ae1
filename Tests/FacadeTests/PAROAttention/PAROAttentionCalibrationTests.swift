import Foundation
import PAROAttention
import SparseKernelsReference
import TestSupport
import Testing

@Suite("PAROAttention calibration")
struct PAROAttentionCalibrationTests {
    static let geometry = try! VideoGeometry(frames: 4, height: 3, width: 5, textTokens: 6)

    static func shape(_ geometry: VideoGeometry = geometry, queryHeads: Int = 2, kvHeads: Int = 2) throws -> AttentionShape {
        try AttentionShape(
            queryLength: geometry.tokens, keyLength: geometry.tokens, queryHeads: queryHeads, kvHeads: kvHeads, headDim: 8)
    }

    static func operand(_ heads: Int, _ seed: UInt64, _ geometry: VideoGeometry = geometry) throws -> Tensor<Float> {
        try .normal([heads, geometry.tokens, 8], seed: seed, scale: 1.5)
    }

    /// The attention map of a head in `Double`.
    static func map(_ query: Tensor<Float>, _ key: Tensor<Float>, head: Int, kvHead: Int) -> [[Double]] {
        let keys = key.rows(ofHead: kvHead)
        return query.rows(ofHead: head).map { q in
            let scores = keys.map { k in zip(q, k).reduce(0) { $0 + $1.0 * $1.1 } / 8.0.squareRoot() }
            let weights = scores.map { exp($0 - scores.max()!) }
            let total = weights.reduce(0, +)
            return weights.map { $0 / total }
        }
    }

    /// The entries of a block in an order, with the block's queries.
    static func blocks(
        _ map: [[Double]], _ order: PAROAxisOrder, _ geometry: VideoGeometry, size: Int, row: Int, column: Int
    ) -> (entries: [Double], queries: Int) {
        let tokens = order.permutation(geometry).order(head: 0).map { Int($0) }
        let rows = tokens[row * size..<min(tokens.count, (row + 1) * size)]
        let columns = tokens[column * size..<min(tokens.count, (column + 1) * size)]
        return (rows.flatMap { i in columns.map { map[i][$0] } }, rows.count)
    }

    @Test("masses and scores are those of the attention map in each order", arguments: InstructionSet.available)
    func masses(_ set: InstructionSet) throws {
        let geometry = Self.geometry
        let shape = try Self.shape(queryHeads: 4)
        var calibration = try PAROAttentionCalibration(
            shape, geometry: geometry, .init(blockSize: 7, emptyMass: 0.5), instructionSet: set)
        let samples = try [1, 2].map { (query: try Self.operand(4, $0), key: try Self.operand(2, $0 + 10)) }
        for sample in samples { try calibration.add(query: sample.query, key: sample.key) }
        #expect(calibration.samples == [2])
        let (count, image) = (10, 1..<10)
        #expect(calibration.blocks.grid.blockRows == count && calibration.blocks.image == image)
        for head in 0..<4 {
            let maps = samples.map { Self.map($0.query, $0.key, head: head, kvHead: head / 2) }
            for (score, order) in zip(try calibration.scores(head: head), PAROAxisOrder.allCases) {
                let masses = try calibration.masses(head: head, order: order)
                var (ratios, empty) = (0.0, 0)
                for row in 0..<count {
                    #expect(abs(masses[row * count..<(row + 1) * count].reduce(0, +) - 1) < 1e-6)
                    for column in 0..<count {
                        var mass = 0.0
                        for map in maps {
                            let block = Self.blocks(map, order, geometry, size: 7, row: row, column: column)
                            mass += block.entries.reduce(0, +) / Double(block.queries) / 2
                            if row >= 1 && column >= 1 && row < 9 && column < 9 {
                                ratios += block.entries.max()! * Double(block.entries.count) / block.entries.reduce(0, +) / 2
                            }
                        }
                        #expect(abs(masses[row * count + column] - mass) < 2e-6)
                        let uniform = Double(min(7, geometry.tokens - column * 7)) / Double(geometry.tokens)
                        if row >= 1 && column >= 1 && row < 9 && column < 9 && mass < 0.5 * uniform { empty += 1 }
                    }
                }
                #expect(score.order == order && score.sparsity == Double(empty) / 64)
                #expect(abs(score.incoherence - ratios / 64) < 1e-4 * score.incoherence)
            }
        }
    }

    /// Operands whose tokens attend to those with the same coordinates on some axes.
    static func aligned(_ geometry: VideoGeometry, _ code: (_ frame: Int, _ y: Int, _ x: Int) -> Int) throws -> Tensor<Float> {
        try Tensor([1, geometry.tokens, 16]) { index in
            let place = index / 16 - geometry.video.lowerBound
            if place < 0 { return 0 }
            let (f, y, x) = (place / geometry.tokensPerFrame, place / geometry.width % geometry.height, place % geometry.width)
            // Directions of different codes are nearly orthogonal.
            var generator = SplitMix64(seed: UInt64(code(f, y, x)))
            let directions = (0..<16).map { _ in generator.normal() }
            return directions[index % 16] * 2
        }
    }

    @Test("heads that look along an axis get an order in which that axis is adjacent")
    func choosesOrders() throws {
        let geometry = try VideoGeometry(frames: 8, height: 6, width: 6, textTokens: 5)
        let cases: [(Set<PAROAxisOrder>, (Int, Int, Int) -> Int)] = [
            ([.heightWidthFrame, .widthHeightFrame], { _, y, x in y * 6 + x }),
            ([.frameWidthHeight, .widthFrameHeight], { f, _, x in f * 6 + x }),
            ([.frameHeightWidth, .heightFrameWidth], { f, y, _ in f * 6 + y }),
        ]
        for (expected, code) in cases {
            let rows = try Self.aligned(geometry, code)
            let shape = try AttentionShape(query: rows, key: rows, value: rows)
            var calibration = try PAROAttentionCalibration(shape, geometry: geometry, .init(blockSize: 16))
            try calibration.add(query: rows, key: rows)
            let order = try calibration.orders()[0]
            #expect(expected.contains(order))
            let plan = try calibration.plan([.mass(0.9)])
            #expect(plan.orders == [order] && plan.density < 0.6)
            // The plan keeps what it was made for: most of the mass of attention.
            let state = try plan.attention(shape)(query: rows, key: rows, value: rows)
            let dense = try DenseAttention(shape, mask: .full)(query: rows, key: rows, value: rows)
            #expect(try AttentionComparison(state, with: dense).recall > 0.85)
        }
    }

    @Test("budgets keep their fraction, the heaviest blocks, and more blocks with more budget")
    func budgets() throws {
        var calibration = try PAROAttentionCalibration(Self.shape(), geometry: Self.geometry, .init(blockSize: 7))
        try calibration.add(query: Self.operand(2, 1), key: Self.operand(2, 2))
        let orders = try calibration.orders()
        for head in 0..<2 {
            let masses = try calibration.masses(head: head, order: orders[head])
            func kept(_ plan: PAROAttentionPlan) -> [(Int, Int)] {
                (1..<9).flatMap { row in (1..<9).filter { plan.masks[0][head, row, $0] }.map { (row, $0) } }
            }
            var before = 0
            for density in [0, 0.125, 0.3, 0.6, 1] {
                let plan = try calibration.plan([.density(density)])
                let blocks = kept(plan)
                let wanted = Int((density * 64).rounded(.up))
                #expect(blocks.count >= max(8, wanted) && blocks.count <= wanted + 8 && blocks.count >= before)
                before = blocks.count
                // A dropped block is not heavier than one that was kept for its mass.
                let heaviest = (1..<9).map { row in (1..<9).map { masses[row * 10 + $0] }.max()! }
                let floor = blocks.filter { masses[$0.0 * 10 + $0.1] < heaviest[$0.0 - 1] }.map { masses[$0.0 * 10 + $0.1] }
                    .min()
                let dropped = (1..<9).flatMap { row in
                    (1..<9).filter { !plan.masks[0][head, row, $0] }.map { masses[row * 10 + $0] }
                }.max()
                if let floor, let dropped { #expect(dropped <= floor) }
            }
            #expect(before == 64)
            for mass in [0.3, 0.7, 0.9, 1] {
                let plan = try calibration.plan([.density(0), .mass(mass)].reversed())
                let all = (0..<100).filter { head == 0 && plan.masks[0][head, $0 / 10, $0 % 10] }
                if head == 0 { #expect(all.reduce(0) { $0 + masses[$1] } >= mass * 10 - 1e-9) }
            }
        }
    }

    @Test("slots have masks of their own and one order")
    func slots() throws {
        var calibration = try PAROAttentionCalibration(Self.shape(), geometry: Self.geometry, .init(blockSize: 7), slots: 2)
        try calibration.add(query: Self.operand(2, 1), key: Self.operand(2, 2), slot: 0)
        expectError(.invalidArgument, "slot") { _ = try calibration.plan([.density(0.3)]) }
        try calibration.add(query: Self.operand(2, 3), key: Self.operand(2, 4), slot: 1)
        let plan = try calibration.plan([.density(0.3)])
        #expect(plan.masks.count == 2 && plan.masks[0] != plan.masks[1])
        // Known orders give the same masks with less memory.
        var second = try PAROAttentionCalibration(
            Self.shape(), geometry: Self.geometry, .init(blockSize: 7), orders: plan.orders, slots: 2)
        try second.add(query: Self.operand(2, 1), key: Self.operand(2, 2), slot: 0)
        try second.add(query: Self.operand(2, 3), key: Self.operand(2, 4), slot: 1)
        #expect(try second.plan([.density(0.3)]) == plan)
    }

    @Test("threads, layouts and 16-bit elements give the same bits")
    func bits() throws {
        let query: Tensor<Float16> = try Self.operand(2, 1).converted()
        let key: Tensor<Float16> = try Self.operand(2, 2).converted()
        let wide: (query: Tensor<Float>, key: Tensor<Float>) = (query.converted(), key.converted())
        func masses(_ pool: WorkerPool, wide isWide: Bool) throws -> [Double] {
            var calibration = try PAROAttentionCalibration(Self.shape(), geometry: Self.geometry, .init(blockSize: 7))
            if isWide {
                try calibration.add(query: wide.query, key: wide.key, on: pool)
            } else {
                try calibration.add(query: query, key: key, on: pool)
            }
            return try PAROAxisOrder.allCases.flatMap { try calibration.masses(head: 1, order: $0) }
        }
        let expected = try masses(.serial, wide: true)
        for threads in [2, 7] { #expect(try masses(WorkerPool(threads: threads), wide: false) == expected) }
    }

    @Test("samples that are not finite are refused whole, and bad arguments are named")
    func errors() throws {
        let (shape, geometry) = (try Self.shape(), Self.geometry)
        var calibration = try PAROAttentionCalibration(shape, geometry: geometry, .init(blockSize: 7))
        let (query, key) = (try Self.operand(2, 1), try Self.operand(2, 2))
        for value in [Float.nan, .infinity] {
            var damaged = query
            damaged[flat: (geometry.tokens + 9) * 8] = value
            expectError(.invalidArgument, "query") { try calibration.add(query: damaged, key: key) }
            damaged = key
            damaged[flat: 3] = value
            expectError(.invalidArgument, "query") { try calibration.add(query: query, key: damaged) }
        }
        #expect(calibration.samples == [0])
        expectError(.invalidArgument, "slot") { try calibration.add(query: query, key: key, slot: 1) }
        expectError(.invalidShape, "key") { try calibration.add(query: query, key: Tensor<Float>(zeros: [2, 3, 8])) }
        expectError(.invalidArgument, "slot") { _ = try calibration.scores(head: 0) }
        try calibration.add(query: query, key: key)
        expectError(.invalidArgument, "head") { _ = try calibration.scores(head: 2) }
        expectError(.invalidShape, "budgets") { _ = try calibration.plan([]) }
        for budget in [PAROBlockBudget.density(1.1), .mass(-1), .mass(.nan)] {
            expectError(.invalidArgument, "budgets[0]") { _ = try calibration.plan([budget]) }
        }
        for (argument, configuration) in [
            ("blockSize", PAROAttentionCalibration.Configuration(blockSize: 0)), ("emptyMass", .init(emptyMass: -1)),
            ("sparsityWeight", .init(sparsityWeight: 2)), ("softmaxScale", .init(softmaxScale: .nan)),
        ] {
            expectError(argument == "blockSize" ? .invalidShape : .invalidArgument, argument) {
                _ = try PAROAttentionCalibration(shape, geometry: geometry, configuration)
            }
        }
        expectError(.invalidArgument, "slots") { _ = try PAROAttentionCalibration(shape, geometry: geometry, slots: 0) }
        expectError(.invalidShape, "orders") {
            _ = try PAROAttentionCalibration(shape, geometry: geometry, orders: [.frameHeightWidth])
        }
        expectError(.invalidArgument, "orders[1]") {
            _ = try PAROAttentionCalibration(
                Self.shape(kvHeads: 1), geometry: geometry, orders: [.frameHeightWidth, .frameWidthHeight])
        }
    }
}
