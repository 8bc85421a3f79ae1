import PolarSparsity
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Polar Sparsity: fitting and calibrating routers")
struct RouterFittingTests {
    /// y = x · wᵀ + b for rows of x.
    private func targets(_ x: Tensor<Float>, _ w: Tensor<Float>, _ b: [Float]) throws -> Tensor<Float> {
        let (tokens, depth, rows) = (x.shape[0], x.shape[1], w.shape[0])
        return try Tensor([tokens, rows]) { index in
            let (token, row) = (index / rows, index % rows)
            return (0..<depth).reduce(b[row]) { $0 + x[flat: token * depth + $1] * w[flat: row * depth + $1] }
        }
    }

    @Test("a router of heads finds weights and biases that are there")
    func headRouter() throws {
        let x = try Tensor<Float>.normal([200, 9], seed: 1)
        let w = try Tensor<Float>.normal([4, 9], seed: 2)
        let b: [Float] = [3, -2, 0.5, 1]
        let router = try RouterFitting(regularization: 1e-6).headRouter(
            inputs: x, activity: targets(x, w, b))
        for (a, e) in zip(router.weight.elements, w.elements) { #expect(abs(a - e) < 1e-3) }
        for (a, e) in zip(try #require(router.bias).elements, b) { #expect(abs(a - e) < 1e-3) }
    }

    @Test("ridge regression satisfies its normal equations")
    func normalEquations() throws {
        let (tokens, depth, rows) = (60, 7, 3)
        let x = try Tensor<Float>.normal([tokens, depth], seed: 1)
        let y = try Tensor<Float>.normal([tokens, rows], seed: 2)
        // Full rank, so that nothing is cut: W · (XᵀX + λ) = YᵀX.
        let router = try RouterFitting(regularization: 0.1).neuronRouter(
            inputs: x, activity: y, rank: rows)
        func gram(_ i: Int, _ j: Int) -> Double {
            (0..<tokens).reduce(0) { $0 + Double(x[flat: $1 * depth + i]) * Double(x[flat: $1 * depth + j]) }
        }
        let damping = 0.1 * (0..<depth).reduce(0) { $0 + gram($1, $1) } / Double(depth)
        for row in 0..<rows {
            let weight = (0..<depth).map { k in
                (0..<rows).reduce(0) { $0 + Double(router.up[row, $1]) * Double(router.down[$1, k]) }
            }
            for j in 0..<depth {
                let left = (0..<depth).reduce(damping * weight[j]) { $0 + weight[$1] * gram($1, j) }
                let right = (0..<tokens).reduce(0) {
                    $0 + Double(y[flat: $1 * rows + row]) * Double(x[flat: $1 * depth + j])
                }
                #expect(abs(left - right) < 1e-3 * (1 + abs(right)))
            }
        }
    }

    @Test("two factors find a map of low rank, on inputs whose directions differ in size")
    func neuronRouter() throws {
        let normal = try Tensor<Float>.normal([300, 12], seed: 1)
        let x = try Tensor([300, 12]) { normal[flat: $0] * Float(1 << ($0 % 12 % 5)) }
        let (a, b) = try (Tensor<Float>.normal([2, 12], seed: 2), Tensor<Float>.normal([30, 2], seed: 3))
        let y = try targets(targets(x, a, [0, 0]), b, Array(repeating: 0, count: 30))
        let router = try RouterFitting(regularization: 1e-7).neuronRouter(
            inputs: x, activity: y, rank: 2)
        let scores = try router(x)
        let error = zip(scores.elements, y.elements).reduce(0.0) { $0 + Double(($1.0 - $1.1) * ($1.0 - $1.1)) }
        let size = y.elements.reduce(0.0) { $0 + Double($1 * $1) }
        #expect(error < 1e-6 * size)
    }

    @Test(
        "a fitted router finds the active channels of a ReLU layer better than chance, and a calibrated count reaches its recall"
    )
    func reluLayer() throws {
        let up = try Tensor<Float>.normal([64, 16], seed: 1, scale: 0.25)
        let mlp = try PolarMLP(up: up, down: Tensor<Float>.normal([16, 64], seed: 2))
        var workspace = PolarMLP.Workspace()
        // Inputs near a subspace, as hidden states are.
        let basis = try Tensor<Float>.normal([16, 4], seed: 3)
        let x = try targets(Tensor.normal([256, 4], seed: 4), basis, Array(repeating: 0.3, count: 16))
        let hidden = try mlp.hidden(of: x, workspace: &workspace)
        let active = try Tensor(hidden.shape, hidden.elements.map { $0 > 0 ? Float(1) : 0 })
        let router = try RouterFitting().neuronRouter(inputs: x, activity: hidden, rank: 6)
        let scores = try router(x)
        let count = try RouterCalibration.count(scores: scores, activity: active, recall: 0.99)
        #expect(count < 62)
        func recall(_ count: Int) throws -> Double {
            try RouterCalibration.recall(scores: scores, activity: active, count: count)
        }
        #expect(try recall(count) >= 0.99 && recall(count - 1) < 0.99)
        #expect(try recall(64) == 1)
        #expect(try recall(32) > 0.75)
        // Bits do not depend on threads.
        let serial = try RouterFitting().neuronRouter(
            inputs: x, activity: hidden, rank: 6, on: .serial)
        #expect(serial.up.bits == router.up.bits && serial.down.bits == router.down.bits)
    }

    @Test("norms of head outputs, by query head and by group")
    func norms() throws {
        let output = try Tensor<Float>.normal([4, 3, 5], seed: 1)
        for heads in [4, 2, 1] {
            let norms = try HeadActivity.norms(of: output, heads: heads)
            for token in 0..<3 {
                for head in 0..<heads {
                    var sum = 0.0
                    for member in 0..<4 where member * heads / 4 == head {
                        for channel in 0..<5 {
                            sum += Double(output[member, token, channel]) * Double(output[member, token, channel])
                        }
                    }
                    #expect(abs(Double(norms[token, head]) - sum.squareRoot()) < 1e-6)
                }
            }
        }
        expectError(.invalidShape, "heads", containing: "4", "3") { _ = try HeadActivity.norms(of: output, heads: 3) }
    }

    @Test("counts by hand")
    func counts() throws {
        let scores = try Tensor<Float>([2, 4], [4, 3, 2, 1, 1, 1, 1, 1])
        let activity = try Tensor<Float>([2, 4], [1, 0, 1, 0, 1, 0, 0, 0])
        func count(_ recall: Double) throws -> Int {
            try RouterCalibration.count(scores: scores, activity: activity, recall: recall)
        }
        // Rank 0 has two of three active channels, rank 2 the third.
        #expect(try count(0.5) == 1 && count(0.66) == 1 && count(0.67) == 3 && count(1) == 3)
        let none = try Tensor<Float>(zeros: [2, 4])
        #expect(try RouterCalibration.count(scores: scores, activity: none) == 0)
        #expect(try RouterCalibration.recall(scores: scores, activity: none, count: 0) == 1)
    }

    @Test("errors name the operand")
    func errors() throws {
        let (x, y) = try (Tensor<Float>.normal([5, 3], seed: 1), Tensor<Float>.normal([5, 2], seed: 2))
        for regularization in [0, -1, .nan, .infinity] {
            expectError(.invalidArgument, "regularization", containing: "\(regularization)") {
                _ = try RouterFitting(regularization: regularization)
            }
        }
        let fitting = try RouterFitting()
        let short = try Tensor<Float>.normal([4, 2], seed: 2)
        expectError(.invalidShape, "activity", containing: "5", "4") {
            _ = try fitting.headRouter(inputs: x, activity: short)
        }
        let bad = try Tensor<Float>([5, 2]) { $0 == 3 ? .nan : 1 }
        expectError(.invalidArgument, "activity", containing: "nan") {
            _ = try fitting.headRouter(inputs: x, activity: bad)
        }
        expectError(.invalidArgument, "rank", containing: "2", "3") {
            _ = try fitting.neuronRouter(inputs: x, activity: y, rank: 3)
        }
        let zeros = try Tensor<Float>(zeros: [5, 3])
        expectError(.invalidArgument, "inputs") {
            _ = try fitting.neuronRouter(inputs: zeros, activity: y, rank: 1)
        }
        for recall in [0, -1, 1.1, .nan] {
            expectError(.invalidArgument, "recall") {
                _ = try RouterCalibration.count(scores: y, activity: y, recall: recall)
            }
        }
        let negative = try Tensor<Float>([1, 2], [1, -1])
        expectError(.invalidArgument, "activity[0, 1]", containing: "-1") {
            _ = try RouterCalibration.count(scores: negative, activity: negative)
        }
        expectError(.invalidArgument, "count", containing: "0 to 2", "3") {
            _ = try RouterCalibration.recall(scores: y, activity: y, count: 3)
        }
    }
}
