import Foundation
import KernelInterface
import SparseKernels
import SparseKernelsReference
import Testing

/// Aligned memory for the floats of kernels.
final class AlignedFloats {
    let pointer: UnsafeMutablePointer<Float>
    let count: Int

    init(_ count: Int, filledWith value: Float = 0) {
        self.count = count
        let memory = UnsafeMutableRawPointer.allocate(byteCount: max(1, count) * 4, alignment: 64)
        pointer = memory.bindMemory(to: Float.self, capacity: count)
        pointer.initialize(repeating: value, count: count)
    }

    deinit { UnsafeMutableRawPointer(pointer).deallocate() }
}

@Suite("Token kernels")
struct TokenKernelTests {
    /// Head dimensions on both sides of every vector length, and the two of most models.
    static let headDims = [2, 8, 40, 64, 72, 80, 96, 128, 256]
    /// Tokens around the kernels' step of 128.
    static let counts = [1, 7, 127, 128, 129, 513]
    static let canary: Float = -12345.5

    /// A test's call: rows of queries against a list of slots.
    struct Call {
        var pool: TokenPool
        var slots: [Int32]
        var query: Tensor<Float>
        var visible: [Int32]?
        var softmaxScale: Float
        var logitsSoftCap: Float = 0

        var rows: Int { query.shape[0] }
        var headDim: Int { query.shape[1] }
        var stride: Int { TokenLayout.padded(pool.storage.configuration.valueDim) }
        func visibleCount(_ row: Int) -> Int { visible.map { Int($0[row]) } ?? slots.count }

        /// Attends in parts that end at `cuts`, and merges them.
        func run(
            _ set: InstructionSet, cuts: [Int] = [], rows range: Range<Int>? = nil
        ) -> (output: [[Float]], logSumExp: [Float]) {
            let range = range ?? 0..<rows
            let ends = cuts.filter { $0 < slots.count } + [slots.count]
            let recordStride = stride + 2 + 5
            let records = AlignedFloats(ends.count * range.count * recordStride, filledWith: TokenKernelTests.canary)
            let valueDim = pool.storage.configuration.valueDim
            let scratchBytes = TokenScratch(headDim: headDim, valueDim: valueDim, rows: range.count).byteCount
            let scratch = AlignedFloats(scratchBytes / 4, filledWith: .nan)
            query.elements.withUnsafeBufferPointer { query in
                slots.withUnsafeBufferPointer { slots in
                    var begin = 0
                    for (piece, end) in ends.enumerated() {
                        let seen = (visible ?? Array(repeating: Int32(slots.count), count: rows))[range].map {
                            max(0, min(Int32(end), $0) - Int32(begin))
                        }
                        seen.withUnsafeBufferPointer { seen in
                            var arguments = AttendTokensArguments(
                                key: pool.key, value: pool.value, slots: slots.baseAddress! + begin, count: end - begin,
                                query: query.baseAddress! + range.lowerBound * headDim, queryStride: headDim, rows: range.count,
                                visible: visible == nil ? nil : seen.baseAddress!, softmaxScale: softmaxScale,
                                logitsSoftCap: logitsSoftCap, records: records.pointer + piece * range.count * recordStride,
                                recordStride: recordStride, scratch: UnsafeMutableRawPointer(scratch.pointer))
                            set.kernels.attendTokens(&arguments)
                        }
                        begin = end
                    }
                }
            }
            for record in 0..<ends.count * range.count {
                for index in stride + 2..<recordStride {
                    #expect(records.pointer[record * recordStride + index] == TokenKernelTests.canary)
                }
            }
            var output: [[Float]] = []
            var logSumExp: [Float] = []
            for row in 0..<range.count {
                let indices = (0..<ends.count).map { Int32($0 * range.count + row) }
                let (o, lse) = TokenKernelTests.merge(
                    records, recordStride: recordStride, indices, valueDim: valueDim, as: Float.self, set)
                output.append(o)
                logSumExp.append(lse)
            }
            return (output, logSumExp)
        }
    }

    static func merge<O: AttentionElement>(
        _ records: AlignedFloats, recordStride: Int, _ indices: [Int32], valueDim: Int, as type: O.Type, _ set: InstructionSet
    ) -> ([O], Float) {
        var output = [O](repeating: O(Self.canary), count: valueDim + 3)
        var logSumExp: Float = .nan
        let scratch = AlignedFloats(TokenLayout.padded(valueDim), filledWith: .nan)
        output.withUnsafeMutableBufferPointer { output in
            (indices + [0]).withUnsafeBufferPointer { padded in
                withUnsafeMutablePointer(to: &logSumExp) { logSumExp in
                    var arguments = MergeTokensArguments(
                        records: UnsafePointer(records.pointer), recordStride: recordStride, indices: padded.baseAddress!,
                        count: indices.count, valueDim: valueDim, output: UnsafeMutableRawPointer(output.baseAddress!),
                        outputType: TokenPool.storageType(O.self), logSumExp: logSumExp, scratch: scratch.pointer)
                    set.kernels.mergeTokens(&arguments)
                }
            }
        }
        for index in valueDim..<valueDim + 3 { #expect(output[index].floatValue == O(Self.canary).floatValue) }
        return (Array(output.prefix(valueDim)), logSumExp)
    }

    /// The exact result of a row and the largest permitted error.
    struct Expected {
        var row: ReferenceAttention.Row
        var output: Double
        var logSumExp: Double
    }

    static func expected(_ call: Call) -> [Expected] {
        let keys = TokenPool.rows(call.pool.key, call.slots, isValue: false)
        let values = TokenPool.rows(call.pool.value, call.slots, isValue: true)
        let cap: Float? = call.logitsSoftCap > 0 ? call.logitsSoftCap : nil
        let scale = Double(call.softmaxScale)
        let unit = TokenErrorBound.scoreUnit(headDim: call.headDim)
        return call.query.rows().enumerated().map { index, query in
            let seen = Array(keys.prefix(call.visibleCount(index)))
            let scores = ReferencePagedAttention.scores(
                query: query, keys: seen, softmaxScale: scale, logitsSoftCap: cap.map { Double($0) })
            let bounds = TokenErrorBound.scores(
                query: query, scale: scale, key: call.pool.key, keys: seen, slots: call.slots)
            let row = ReferenceAttention.Row(
                head: index, valueDim: call.pool.value.channels, scores: scores, magnitudes: bounds.map { $0 / unit }
            ) { values[$0][$1] }
            let bound = AttentionErrorBound(row, headDim: call.headDim, logitsSoftCap: cap)
            let coding = TokenErrorBound.values(
                scores: scores, logSumExp: row.logSumExp, value: call.pool.value, values: values, slots: call.slots)
            return Expected(row: row, output: bound.output + coding, logSumExp: bound.logSumExp)
        }
    }

    static func compare(_ result: (output: [[Float]], logSumExp: [Float]), _ expected: [Expected], _ label: String) {
        var worst = (excess: 0.0, text: "")
        for (index, exact) in expected.enumerated() {
            let (row, lse) = (exact.row, Double(result.logSumExp[index]))
            if row.logSumExp == -.infinity ? lse != -.infinity : !(abs(lse - row.logSumExp) <= exact.logSumExp) {
                worst = (.infinity, "LSE of row \(index): \(lse), expected \(row.logSumExp) ± \(exact.logSumExp)")
            }
            for (channel, value) in row.output.enumerated() {
                let actual = Double(result.output[index][channel])
                let excess = abs(actual - value) - exact.output
                if !(excess <= worst.excess) {
                    worst = (excess, "output (\(index), \(channel)): \(actual), expected \(value) ± \(exact.output)")
                }
            }
        }
        #expect(worst.text.isEmpty, "\(label): \(worst.text)")
    }

    @Test("attention over slots agrees with the oracle", arguments: KVFormat.allCases)
    func attend(_ format: KVFormat) throws {
        for (d, headDim) in Self.headDims.enumerated() {
            let valueDim = Self.headDims[(d + 4) % Self.headDims.count]
            // Every other head dimension has values of another format than keys.
            let formats = KVFormat.allCases
            let valueFormat = d % 2 == 0 ? format : formats[(formats.firstIndex(of: format)! + 3) % formats.count]
            let pool = try TokenPool(
                normal: format, valueFormat: valueFormat, headDim: headDim, valueDim: valueDim, tokens: 2 * 513 + 32,
                seed: UInt64(headDim), set: .portable)
            for (c, count) in Self.counts.enumerated() where (c + d) % 2 == 0 {
                // There are many rows when tokens are few, to limit the work of the oracle.
                let rows = count > 200 ? (d + c) % 3 + 1 : (d + 2 * c) % 9 + 1
                let pattern = TokenPool.Pattern.allCases[(d + c) % 3]
                let slots = TokenPool.slots(pattern, count: count, capacity: pool.capacity, seed: UInt64(d * 10 + c))
                var call = Call(
                    pool: pool, slots: slots,
                    query: try .normal([rows, headDim], seed: UInt64(100 * d + c), scale: c % 3 == 0 ? 3 : 1),
                    softmaxScale: 1 / Float(headDim).squareRoot())
                if c / 2 == 1 { call.visible = (0..<rows).map { Int32(max(0, count - rows + 1 + $0)) } }
                if d % 3 == 2 { call.logitsSoftCap = 5 }
                let expected = Self.expected(call)
                for set in InstructionSet.available {
                    let label =
                        "\(set), \(headDim) × \(valueDim), \(valueFormat) values, \(count) tokens \(pattern), \(rows) rows"
                    Self.compare(call.run(set), expected, label)
                    Self.compare(call.run(set, cuts: [count / 3, count / 2 + 1]), expected, label + ", in pieces")
                }
            }
        }
    }

    @Test("scores agree with the oracle", arguments: KVFormat.allCases)
    func score(_ format: KVFormat) throws {
        for (d, headDim) in (Self.headDims + [7, 33]).enumerated() {
            let pool = try TokenPool(
                normal: format, headDim: headDim, tokens: 2 * 513 + 32, seed: UInt64(headDim), set: .portable)
            for (c, count) in Self.counts.enumerated() {
                let rows = count > 200 ? (d + c) % 3 + 1 : (2 * d + c) % 9 + 1
                let pattern = TokenPool.Pattern.allCases[(d + c + 1) % 3]
                let slots = TokenPool.slots(pattern, count: count, capacity: pool.capacity, seed: UInt64(d + c))
                let query = try Tensor<Float>.normal([rows, headDim], seed: UInt64(d + 10 * c))
                let keys = TokenPool.rows(pool.key, slots, isValue: false)
                let bounds = query.rows().map {
                    TokenErrorBound.scores(query: $0, scale: 0.25, key: pool.key, keys: keys, slots: slots)
                }
                let exact = query.rows().map { ReferencePagedAttention.scores(query: $0, keys: keys, softmaxScale: 0.25) }
                for set in InstructionSet.available {
                    let scores = Self.scores(pool.key, slots, query, scale: 0.25, set)
                    var worst = (excess: 0.0, text: "")
                    for row in 0..<rows {
                        for token in 0..<count {
                            let (actual, bound) = (Double(scores[row][token]), bounds[row][token])
                            let excess = abs(actual - exact[row][token]) - bound
                            if !(excess <= worst.excess) {
                                worst = (excess, "(\(row), \(token)): \(actual), expected \(exact[row][token]) ± \(bound)")
                            }
                        }
                    }
                    #expect(worst.text.isEmpty, "\(set), \(headDim) channels, \(count) tokens \(pattern): \(worst.text)")
                }
            }
        }
    }

    /// The scores of the rows of `query`. Checks that memory between the rows of scores is unchanged.
    static func scores(
        _ key: TokenOperand, _ slots: [Int32], _ query: Tensor<Float>, scale: Float, _ set: InstructionSet
    ) -> [[Float]] {
        let (rows, headDim) = (query.shape[0], query.shape[1])
        let stride = slots.count + 3
        let scores = AlignedFloats(rows * stride, filledWith: Self.canary)
        let scratch = AlignedFloats(
            TokenScratch(headDim: headDim, valueDim: 1, rows: rows).byteCount / 4, filledWith: .nan)
        query.elements.withUnsafeBufferPointer { query in
            slots.withUnsafeBufferPointer { slots in
                var arguments = ScoreTokensArguments(
                    key: key, slots: slots.baseAddress!, count: slots.count, query: query.baseAddress!, queryStride: headDim,
                    rows: rows, scale: scale, scores: scores.pointer, scoreStride: stride,
                    scratch: UnsafeMutableRawPointer(scratch.pointer))
                set.kernels.scoreTokens(&arguments)
            }
        }
        return (0..<rows).map { row in
            for index in slots.count..<stride { #expect(scores.pointer[row * stride + index] == Self.canary) }
            return (0..<slots.count).map { scores.pointer[row * stride + $0] }
        }
    }

    @Test("tokens that return to the next page of the pool have their own scales", arguments: [KVFormat.int8, .int4])
    func returningLists(_ format: KVFormat) throws {
        // The page table is [0, 3, 1]: the first and the sixteenth slot differ by 15, and those between are elsewhere.
        let slots: [Int32] = [15, 49, 50, 53, 57, 60] + [17, 18, 20, 21, 22, 24, 25, 27, 29, 30]
        let pool = try TokenPool(format: format, headDim: 40, tokens: 64, set: .portable)
        // Scales differ from slot to slot.
        let keys = try Tensor<Float>.normal([64, 40], seed: 3)
        let values = try Tensor<Float>.normal([64, 40], seed: 4)
        func spread(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            try Tensor(tensor.shape) { tensor[flat: $0] * Float(1 + $0 / 40 % 7) }
        }
        pool.write(try spread(keys), try spread(values), slot: 0)
        let call = Call(
            pool: pool, slots: slots, query: try .normal([2, 40], seed: 5, scale: 0.3), softmaxScale: 0.2)
        let expected = Self.expected(call)
        for set in InstructionSet.available { Self.compare(call.run(set), expected, "\(set)") }
    }

    @Test("a row has the same bits alone, and whatever its neighbours hold", arguments: KVFormat.allCases)
    func rowsAreIndependent(_ format: KVFormat) throws {
        let pool = try TokenPool(normal: format, headDim: 72, tokens: 400, seed: 8, set: .portable)
        let slots = TokenPool.slots(.gathered, count: 150, capacity: pool.capacity, seed: 1)
        var call = Call(pool: pool, slots: slots, query: try .normal([9, 72], seed: 2), softmaxScale: 0.1)
        var spoiled = call
        spoiled.query[flat: 72 + 5] = .nan
        spoiled.query[flat: 3 * 72] = .infinity
        call.visible = (0..<9).map { $0 == 6 ? 0 : 150 }
        spoiled.visible = call.visible
        for set in InstructionSet.available {
            let together = call.run(set)
            let beside = spoiled.run(set)
            for row in 0..<9 {
                let alone = call.run(set, rows: row..<row + 1)
                #expect(alone.output[0].map(\.bitPattern) == together.output[row].map(\.bitPattern), "\(set), row \(row)")
                #expect(alone.logSumExp[0] == together.logSumExp[row])
                if row == 1 || row == 3 {
                    #expect(beside.output[row].allSatisfy { $0.isNaN }, "\(set), row \(row)")
                } else {
                    #expect(
                        beside.output[row].map(\.bitPattern) == together.output[row].map(\.bitPattern), "\(set), row \(row)")
                }
            }
            // Row 6 sees nothing.
            #expect(together.output[6].allSatisfy { $0 == 0 } && together.logSumExp[6] == -.infinity)
        }
    }

    @Test("merging: output types, order of records, and records of nothing", arguments: InstructionSet.available)
    func merge(_ set: InstructionSet) throws {
        let (valueDim, stride) = (21, TokenLayout.padded(21) + 2)
        let records = AlignedFloats(4 * stride)
        let sums = try Tensor<Float>.normal([4, stride], seed: 6).elements
        for index in 0..<4 * stride { records.pointer[index] = sums[index] }
        let states: [(m: Float, l: Float)] = [(0.5, 2), (-.infinity, 0), (3, 1.5), (-200, 1)]
        for (index, state) in states.enumerated() {
            records.pointer[index * stride + stride - 2] = state.m
            records.pointer[index * stride + stride - 1] = state.l
        }
        // This is a possible result of a chunk without visible keys.
        records.pointer[stride] = .nan
        let weights = states.map { $0.m == -.infinity ? 0 : exp(Double($0.m) - 3) }
        let total = zip(weights, states).reduce(0) { $0 + $1.0 * Double($1.1.l) }
        let (output, logSumExp) = Self.merge(
            records, recordStride: stride, [0, 1, 2, 3], valueDim: valueDim, as: Float.self, set)
        // The error of the exponential is at most 2e-7·(1 + |x|/2); each record rounds a product and a sum.
        #expect(abs(Double(logSumExp) - (3 + log(total))) <= 1e-6)
        for channel in 0..<valueDim {
            let terms = [0, 2, 3].map { weights[$0] * Double(records.pointer[$0 * stride + channel]) / total }
            let magnitude = terms.reduce(0) { $0 + abs($1) }
            #expect(abs(Double(output[channel]) - terms.reduce(0, +)) <= 1e-6 * magnitude)
        }
        let halves = Self.merge(
            records, recordStride: stride, [0, 1, 2, 3], valueDim: valueDim, as: BFloat16.self, set
        ).0
        #expect(halves.map(\.bitPattern) == output.map { BFloat16($0).bitPattern })
        let single = Self.merge(records, recordStride: stride, [1], valueDim: valueDim, as: Float.self, set)
        #expect(single.0.allSatisfy { $0 == 0 } && single.1 == -.infinity)
        let none = Self.merge(records, recordStride: stride, [], valueDim: valueDim, as: Float.self, set)
        #expect(none.0.allSatisfy { $0 == 0 } && none.1 == -.infinity)
    }
}
