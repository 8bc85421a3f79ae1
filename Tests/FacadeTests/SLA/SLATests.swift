import SLA
import SparseKernelsReference
import TestSupport
import Testing

@Suite("SLA")
struct SLATests {
    struct Operands {
        let shape: AttentionShape
        let query: Tensor<Float>
        let key: Tensor<Float>
        let value: Tensor<Float>
        let projection: SparseLinearProjection

        init(
            queryLength: Int = 75, keyLength: Int = 165, queryHeads: Int = 4, kvHeads: Int = 2, headDim: Int = 12,
            valueDim: Int = 20
        ) throws {
            shape = try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
                valueDim: valueDim)
            query = try .normal([queryHeads, queryLength, headDim], seed: 1)
            key = try .normal([kvHeads, keyLength, headDim], seed: 2)
            value = try .normal([kvHeads, keyLength, valueDim], seed: 3)
            projection = try SparseLinearProjection(
                weight: .normal([valueDim, valueDim], seed: 4, scale: 0.3), bias: .normal([valueDim], seed: 5))
        }

        func sla(
            _ rule: SparseLinearRule, _ map: LinearFeatureMap = .softmax, projected: Bool = true, _ set: InstructionSet? = nil
        ) throws -> SparseLinearAttention {
            try SparseLinearAttention(
                shape, .init(rule: rule, featureMap: map, queryBlockSize: 16, keyBlockSize: 8),
                projection: projected ? projection : nil, instructionSet: set)
        }
    }

    static let rules: [SparseLinearRule] = [
        .threeClasses(critical: 0.2, negligible: 0.3), .releasedSLA1(topK: 0.3), .releasedMain(topK: 0.3),
    ]

    /// Exact branch, linear branch and their sum against `Double`. The projection adds Σ|W|·(error of o_l) and the rounding of
    /// its own sum.
    static func expectMatchesOracle(_ operands: Operands, _ sla: SparseLinearAttention, _ label: String) throws {
        let shape = operands.shape
        let blocks = try sla.select(query: operands.query, key: operands.key)
        let attention = try sla.attention(over: blocks)
        let linear = try attention.linear(query: operands.query, key: operands.key, value: operands.value)
        let state = try attention(query: operands.query, key: operands.key, value: operands.value)
        let seesAll = sla.configuration.rule.linearSeesAllTokens
        let oracle = ReferenceSparseLinear(
            shape: shape, map: sla.configuration.featureMap, epsilon: seesAll ? Double(Float(1e-5)) : 0,
            sees: { seesAll || blocks[$0, $1 / 16, $2 / 8] == .marginal }, query: operands.query, key: operands.key,
            value: operands.value)
        let softmax = ReferenceAttention(shape)
        let width = shape.valueDim
        // An expectation for each element would take longer than all else.
        var failures: [String] = []
        func check(_ name: String, _ actual: Float, _ expected: Double, _ bound: Double) {
            let error = abs(Double(actual) - expected)
            if !(actual.isInfinite && Double(actual) == expected) && !(error <= bound) {
                failures.append("\(name): \(error) of \(bound)")
            }
        }
        for head in 0..<shape.queryHeads {
            for token in stride(from: 0, to: shape.queryLength, by: 3) {
                let exact = try softmax.row(
                    head: head, token: token, query: operands.query, key: operands.key, value: operands.value,
                    hides: { blocks[head, token / 16, $0 / 8] != .critical })
                let bound = AttentionErrorBound(exact, headDim: shape.headDim)
                let row = oracle.row(head: head, token: token)
                for channel in 0..<width {
                    check("linear \(token), \(channel)", linear[head, token, channel], row.output[channel], row.bound)
                    var (sum, magnitude, gain) = (Double(operands.projection.bias[flat: channel]), 0.0, 0.0)
                    for other in 0..<width {
                        let weight = Double(operands.projection.weight[channel, other])
                        sum += weight * row.output[other]
                        magnitude += abs(weight * row.output[other])
                        gain += abs(weight)
                    }
                    let expected = exact.output[channel] + sum
                    let error =
                        bound.output + gain * row.bound
                        + AttentionErrorBound.confidence * (Double(width).squareRoot() + 3) * AttentionErrorBound.unitRoundoff
                        * (magnitude + abs(exact.output[channel]) + abs(Double(operands.projection.bias[flat: channel])))
                    check("output \(token), \(channel)", state.output[head, token, channel], expected, error)
                }
                check("LSE \(token)", state.logSumExp[head, token], exact.logSumExp, bound.logSumExp)
            }
        }
        #expect(failures.isEmpty, "\(label): \(failures.count), such as \(failures.first ?? "")")
    }

    @Test("both branches and their sum agree with the oracle", arguments: rules, InstructionSet.available)
    func oracle(_ rule: SparseLinearRule, _ set: InstructionSet) throws {
        let operands = try Operands()
        for map in LinearFeatureMap.allCases {
            try Self.expectMatchesOracle(operands, operands.sla(rule, map, set), "\(rule) \(map) \(set)")
        }
    }

    @Test("odd sizes: one token, one block, ragged ends, one key head, wide heads", arguments: rules)
    func sizes(_ rule: SparseLinearRule) throws {
        for (queryLength, keyLength, headDim, valueDim) in [(1, 1, 1, 1), (17, 7, 3, 5), (5, 130, 130, 64), (33, 64, 64, 7)] {
            let operands = try Operands(
                queryLength: queryLength, keyLength: keyLength, queryHeads: 3, kvHeads: 1, headDim: headDim, valueDim: valueDim)
            try Self.expectMatchesOracle(operands, operands.sla(rule, .elu), "\(queryLength) × \(keyLength) \(rule)")
        }
    }

    @Test("without a projection, or with zeros, it is block-sparse attention bit for bit", arguments: rules)
    func untrained(_ rule: SparseLinearRule) throws {
        let operands = try Operands()
        let zeros = try SparseLinearProjection(weight: Tensor(zeros: [20, 20]), bias: Tensor(zeros: [20]))
        let plain = try operands.sla(rule, projected: false)
        let sla = try SparseLinearAttention(operands.shape, plain.configuration, projection: zeros)
        let blocks = try plain.select(query: operands.query, key: operands.key)
        let expected = try BlockSparseAttention(operands.shape, mask: blocks.critical)(
            query: operands.query, key: operands.key, value: operands.value)
        for sla in [plain, sla] {
            let result = try sla(query: operands.query, key: operands.key, value: operands.value)
            #expect(result.state == expected && result.selected == blocks && result.density == blocks.critical.density)
        }
    }

    @Test("any number of threads gives the same bits, and 16-bit outputs are rounded once", arguments: rules)
    func threads(_ rule: SparseLinearRule) throws {
        let operands = try Operands(queryLength: 300, keyLength: 420, headDim: 64, valueDim: 64)
        let sla = try operands.sla(rule, .relu)
        let serial = try sla(query: operands.query, key: operands.key, value: operands.value, on: .serial)
        for threads in [2, 7] {
            let result = try sla(
                query: operands.query, key: operands.key, value: operands.value, on: WorkerPool(threads: threads))
            #expect(result.state == serial.state && result.selected == serial.selected)
        }
        var output = try Tensor<BFloat16>(zeros: serial.state.output.shape)
        try sla.run(query: operands.query, key: operands.key, value: operands.value, into: &output)
        #expect(output.bits == serial.state.output.converted(to: BFloat16.self).bits)
    }

    @Test("the numbers of blocks are those of the released code, and never 0")
    func counts() throws {
        #expect(SparseLinearRule.releasedMain(topK: 0.29).criticalBlocks(of: 100) == 28)
        #expect(SparseLinearRule.releasedSLA1(topK: 0.6).criticalBlocks(of: 4) == 2)
        #expect(SparseLinearRule.releasedSLA1(topK: 0.1).criticalBlocks(of: 4) == 1)
        #expect(SparseLinearRule.releasedSLA1(topK: 1).criticalBlocks(of: 7) == 7)
        #expect(SparseLinearRule.paper.criticalBlocks(of: 200) == 10)
        #expect(SparseLinearRule.paper.negligibleBlocks(of: 200) == 20)
        #expect(SparseLinearRule.threeClasses(critical: 0.7, negligible: 0.7).negligibleBlocks(of: 10) == 3)
        #expect(SparseLinearRule.threeClasses(critical: 0, negligible: 1).negligibleBlocks(of: 10) == 9)
        let defaults = SparseLinearConfiguration()
        #expect(defaults.rule == .paper && defaults.featureMap == .softmax)
        #expect(defaults.queryBlockSize == 64 && defaults.keyBlockSize == 64)
    }

    @Test("critical blocks have the best scores, negligible ones the worst, and marginal ones lie between")
    func classes() throws {
        let operands = try Operands(queryLength: 160, keyLength: 240)
        let sla = try operands.sla(.threeClasses(critical: 0.2, negligible: 0.3))
        let blocks = try sla.select(query: operands.query, key: operands.key)
        let scores = try sla.scores(query: operands.query.view(), key: operands.key.view())
        let marginal = blocks.marginal
        for head in 0..<4 {
            // The score from its definition. Sums of a few hundred terms leave 1e-5.
            for (row, column) in [(0, 0), (3, 7), (9, 29)] {
                var score = 0.0
                for channel in 0..<12 {
                    func mean(_ x: Tensor<Float>, _ head: Int, _ tokens: Range<Int>) -> Double {
                        tokens.reduce(0) { $0 + Double(x[head, $1, channel]) } / Double(tokens.count)
                    }
                    let key = mean(operands.key, head / 2, column * 8..<column * 8 + 8) - mean(operands.key, head / 2, 0..<240)
                    score += mean(operands.query, head, row * 16..<row * 16 + 16) * key
                }
                #expect(abs(score - Double(scores[head, row, column])) < 1e-5)
            }
            for row in 0..<10 {
                func range(_ kind: SparseLinearClass) -> (least: Float, most: Float, count: Int) {
                    let values = (0..<30).filter { blocks[head, row, $0] == kind }.map { scores[head, row, $0] }
                    return (values.min() ?? 0, values.max() ?? 0, values.count)
                }
                let (best, middle, worst) = (range(.critical), range(.marginal), range(.negligible))
                #expect(best.count == 6 && middle.count == 15 && worst.count == 9)
                #expect(best.least >= middle.most && middle.least >= worst.most)
                #expect(marginal.columns(head: head, row: row).allSatisfy { blocks[head, row, Int($0)] == .marginal })
                #expect(marginal.columns(head: head, row: row).count == 15)
            }
        }
    }

    @Test("released means are rounded to the element type")
    func released() throws {
        let operands = try Operands(queryLength: 50, keyLength: 60)
        let (query, key) = (operands.query.converted(to: BFloat16.self), operands.key.converted(to: BFloat16.self))
        let sla = try operands.sla(.releasedMain(topK: 0.4))
        for means in try [sla.pooledQuery(query.view()), sla.pooledKey(key.view())] {
            #expect(means == means.converted(to: BFloat16.self).converted())
        }
        let clean = try operands.sla(.paper)
        let means = try clean.pooledKey(key.view())
        #expect(means != means.converted(to: BFloat16.self).converted())
    }

    @Test("the linear branch is 0 when every block is exact, and a mean of the marginal values otherwise")
    func hull() throws {
        let operands = try Operands()
        let all = try operands.sla(.releasedSLA1(topK: 1))
        let blocks = try all.select(query: operands.query, key: operands.key)
        #expect(blocks.density == 1 && blocks.marginal.nonzeroBlocks() == 0)
        let none = try all.attention(over: blocks).linear(query: operands.query, key: operands.key, value: operands.value)
        #expect(none.elements.allSatisfy { $0 == 0 })
        let sla = try operands.sla(.paper, .elu)
        let selected = try sla.select(query: operands.query, key: operands.key)
        let linear = try sla.attention(over: selected).linear(
            query: operands.query, key: operands.key, value: operands.value)
        var outside = 0
        for head in 0..<4 {
            for token in stride(from: 0, to: 75, by: 5) {
                let keys = (0..<165).filter { selected[head, token / 16, $0 / 8] == .marginal }
                for channel in 0..<20 {
                    let values = keys.map { operands.value[head / 2, $0, channel] }
                    let mean = linear[head, token, channel]
                    if !(mean >= values.min()! - 1e-5 && mean <= values.max()! + 1e-5) { outside += 1 }
                }
            }
        }
        #expect(outside == 0)
    }

    @Test("values that are not finite reach only the rows that see them")
    func notFinite() throws {
        let operands = try Operands()
        let grid = try operands.sla(.paper).grid
        // Rows of blocks of even number see the last key block linearly; the others skip it.
        let critical = try BlockMask(grid: grid, heads: 4) { _, _, column in column == 0 }
        let negligible = try BlockMask(grid: grid, heads: 4) { _, row, column in row % 2 == 1 && column == 20 }
        let blocks = try SparseLinearBlocks(critical: critical, negligible: negligible)
        for bad: Float in [.nan, .infinity] {
            var value = operands.value
            value[0, 164, 3] = bad
            let output = try operands.sla(.paper).attention(over: blocks)(
                query: operands.query, key: operands.key, value: value
            ).output
            for head in 0..<4 {
                for token in 0..<75 {
                    let sees = head < 2 && token / 16 % 2 == 0
                    let isFinite = (0..<20).allSatisfy { output[head, token, $0].isFinite }
                    #expect(isFinite == !sees)
                }
            }
        }
        // A key that is not finite makes every score of its head NaN, and then every block is critical.
        var key = operands.key
        key[1, 5, 0] = .nan
        let selected = try operands.sla(.paper).select(query: operands.query, key: key)
        #expect(selected.critical.density(head: 3) == 1 && selected.critical.density(head: 0) < 0.2)
    }

    @Test("empty operands")
    func empty() throws {
        for (queryLength, keyLength) in [(0, 9), (9, 0), (0, 0)] {
            let operands = try Operands(queryLength: queryLength, keyLength: keyLength)
            for rule in Self.rules {
                let result = try operands.sla(rule)(query: operands.query, key: operands.key, value: operands.value)
                for head in 0..<4 {
                    for token in 0..<queryLength {
                        // Nothing but the bias of the projection is left.
                        for channel in 0..<20 {
                            #expect(result.state.output[head, token, channel] == operands.projection.bias[flat: channel])
                        }
                        #expect(result.state.logSumExp[head, token] == -.infinity)
                    }
                }
            }
        }
    }

    @Test("bad settings and operands are errors that name them")
    func badInput() throws {
        let operands = try Operands()
        for fraction in [-0.1, 1.5, .nan] {
            expectError(.invalidArgument, "rule.topK") { _ = try operands.sla(.releasedMain(topK: fraction)) }
            expectError(.invalidArgument, "rule.critical") {
                _ = try operands.sla(.threeClasses(critical: fraction, negligible: 0))
            }
            expectError(.invalidArgument, "rule.negligible") {
                _ = try operands.sla(.threeClasses(critical: 0.1, negligible: fraction))
            }
        }
        expectError(.invalidShape, "queryBlockSize") {
            _ = try SparseLinearAttention(operands.shape, .init(queryBlockSize: 0))
        }
        expectError(.invalidArgument, "softmaxScale") {
            _ = try SparseLinearAttention(operands.shape, .init(softmaxScale: .nan))
        }
        expectError(.invalidShape, "weight") {
            _ = try SparseLinearProjection(weight: Tensor(zeros: [3, 4]), bias: Tensor(zeros: [3]))
        }
        expectError(.invalidShape, "bias") {
            _ = try SparseLinearProjection(weight: Tensor(zeros: [3, 3]), bias: Tensor(zeros: [4]))
        }
        let narrow = try SparseLinearProjection(weight: Tensor(zeros: [3, 3]), bias: Tensor(zeros: [3]))
        expectError(.invalidShape, "projection") { _ = try SparseLinearAttention(operands.shape, projection: narrow) }
        let sla = try operands.sla(.paper)
        expectError(.invalidShape, "query") { _ = try sla.select(query: operands.key, key: operands.key) }
        expectError(.invalidShape, "value") {
            _ = try sla(query: operands.query, key: operands.key, value: operands.key)
        }
        let critical = BlockMask.full(sla.grid)
        expectError(.invalidArgument, "negligible") {
            _ = try SparseLinearBlocks(critical: critical, negligible: critical)
        }
        let causal = try BlockGrid(operands.shape, blockSize: 8, isCausal: true)
        expectError(.invalidArgument, "critical") { _ = try SparseLinearBlocks(critical: .full(causal)) }
        let other = try BlockGrid(operands.shape, blockSize: 9, isCausal: false)
        expectError(.invalidShape, "negligible") {
            _ = try SparseLinearBlocks(critical: critical, negligible: .full(other))
        }
    }
}
