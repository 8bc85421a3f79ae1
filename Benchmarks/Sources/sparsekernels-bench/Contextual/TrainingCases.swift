import BenchmarkReport
import SparseKernels
import SparseKernelsReference
import SparseKernelsTraining

/// Gradients that go through memory once, and the optimiser, against the bandwidth of the memory; adapters against the multiply-add roof.
extension ContextualCases {
    func trainingGroups() -> [CaseGroup] {
        let tokens = isQuick ? 128 : 2048
        var groups = [
            memoryGroup(op: "contextual.gradient", name: "RMSNorm gradient \(tokens)×4096") {
                try NormGradientProblem(tokens: tokens, channels: 4096)
            },
            memoryGroup(op: "contextual.gradient", name: "SiLU·gate gradient \(tokens)×14336") {
                try ActivationGradientProblem(tokens: tokens, columns: 14336)
            },
            memoryGroup(op: "contextual.gradient", name: "cross-entropy \(tokens / 8)×128256") {
                try CrossEntropyProblem(rows: tokens / 8, vocabulary: 128_256)
            },
            memoryGroup(op: "contextual.adamw", name: "AdamW \(isQuick ? 1 : 16) M") {
                try AdamWProblem(count: (isQuick ? 1 : 16) << 20)
            },
        ]
        var shapes = [(tokens, 4096, 4096, 32)]
        if !isQuick { shapes += [(2048, 4096, 14336, 32), (4096, 512, 512, 32), (8192, 512, 1536, 16)] }
        for (rows, inFeatures, outFeatures, rank) in shapes {
            for backward in [false, true] {
                groups.append(adapter(rows, inFeatures, outFeatures, rank, backward: backward))
            }
        }
        return groups
    }

    private func adapter(
        _ rows: Int, _ inFeatures: Int, _ outFeatures: Int, _ rank: Int, backward: Bool
    ) -> CaseGroup {
        let products = Double(rows * rank) * Double(inFeatures + outFeatures)
        let flop = 2 * products * (backward ? 2 : 1)
        return CaseGroup(
            op: "contextual.lora", name: "LoRA \(rows)×\(inFeatures)→\(outFeatures) r \(rank) \(backward ? "back" : "forward")",
            amounts: .operations(flop)
        ) { _ in
            let problem = try AdapterProblem(rows: rows, inFeatures: inFeatures, outFeatures: outFeatures, rank: rank)
            return try instructionSets.map { set in
                let plan = try LoRAOperator(
                    inFeatures: inFeatures, outFeatures: outFeatures, rank: rank, instructionSet: set)
                let body = { backward ? problem.runBack(plan, on: pool) : problem.run(plan, on: pool) }
                return Variant(
                    isa: set.name, threads: pool.threads, body: body,
                    verify: {
                        problem.reset()
                        problem.run(plan, on: pool)
                        if backward { problem.runBack(plan, on: pool) }
                        return problem.check(backward: backward)
                    }, roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) })
            }
        }
    }
}

// Shapes agree by construction, so no `run` can throw.

extension Tensor<Float> {
    /// A row in `Double`.
    fileprivate func numbers(row: Int) -> [Double] {
        let columns = shape[1]
        return (0..<columns).map { Double(self[flat: row * columns + $0]) }
    }
}

private final class NormGradientProblem: RowProblem {
    private let x: Tensor<Float>
    private let dy: Tensor<Float>
    private let weight: Tensor<Float>
    private var dx: Tensor<Float>

    init(tokens: Int, channels: Int) throws {
        x = try .normal([tokens, channels], seed: 1)
        dy = try .normal([tokens, channels], seed: 2)
        weight = try .normal([channels], seed: 3)
        dx = try Tensor(zeros: x.shape)
    }

    var elements: Int { x.count }
    var bytes: Int { x.count * 12 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let plan = try RMSNormGradient(weight: weight, epsilon: 1e-5, instructionSet: set)
        return { [self] in try! plan.run(x: x, outputGradient: dy, inputGradient: &dx, on: pool) }
    }

    func check() -> Verification {
        var verification = Verification.none
        let w = weight.elements.map(Double.init)
        for row in [0, x.shape[0] - 1] {
            let (values, d) = (x.numbers(row: row), dy.numbers(row: row))
            let expected = ReferenceGradients.rmsNorm(values, weight: w, epsilon: 1e-5, outputGradient: d).input
            let magnitude = ReferenceGradients.rmsNormMagnitude(values, weight: w, epsilon: 1e-5, outputGradient: d)
            let relative = 2 * ReferenceRows.sumError(w.count)
            for (channel, actual) in dx.numbers(row: row).enumerated() {
                verification.add(error: abs(actual - expected[channel]), bound: relative * magnitude[channel])
            }
        }
        return verification
    }
}

private final class ActivationGradientProblem: RowProblem {
    private let gate: Tensor<Float>
    private let up: Tensor<Float>
    private let dh: Tensor<Float>
    private var dGate: Tensor<Float>
    private var dUp: Tensor<Float>

    init(tokens: Int, columns: Int) throws {
        gate = try .normal([tokens, columns], seed: 1)
        up = try .normal([tokens, columns], seed: 2)
        dh = try .normal([tokens, columns], seed: 3)
        (dGate, dUp) = (try Tensor(zeros: gate.shape), try Tensor(zeros: gate.shape))
    }

    var elements: Int { gate.count }
    var bytes: Int { gate.count * 20 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let plan = try GatedActivationGradient(.silu, instructionSet: set)
        return { [self] in
            try! plan.run(gate: gate, up: up, outputGradient: dh, gateGradient: &dGate, upGradient: &dUp, on: pool)
        }
    }

    func check() -> Verification {
        var verification = Verification.none
        for row in [0, gate.shape[0] - 1] {
            let (g, u, d) = (gate.numbers(row: row), up.numbers(row: row), dh.numbers(row: row))
            for (column, actual) in dGate.numbers(row: row).enumerated() {
                let expected = d[column] * u[column] * ReferenceGradients.slope(.silu, g[column])
                let bound =
                    abs(d[column] * u[column]) * ReferenceGradients.slopeError(.silu, g[column]) + abs(expected) * 0x1p-22
                verification.add(error: abs(actual - expected), bound: bound)
            }
        }
        return verification
    }
}

private final class CrossEntropyProblem: RowProblem {
    private let logits: Tensor<Float>
    private let targets: [Int]
    private var gradient: Tensor<Float>

    init(rows: Int, vocabulary: Int) throws {
        logits = try .normal([rows, vocabulary], seed: 1, scale: 3)
        targets = (0..<rows).map { $0 * 7919 % vocabulary }
        gradient = try Tensor(zeros: logits.shape)
    }

    var elements: Int { logits.count }
    var bytes: Int { logits.count * 8 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let plan = try CrossEntropy(vocabulary: logits.shape[1], instructionSet: set)
        return { [self] in _ = try! plan.run(logits, targets: targets, divisor: 1, gradient: &gradient, on: pool) }
    }

    func check() -> Verification {
        var verification = Verification.none
        for row in [0, targets.count - 1] {
            let expected = ReferenceGradients.crossEntropy(logits.numbers(row: row), target: targets[row]).gradient
            for (column, actual) in gradient.numbers(row: row).enumerated() {
                verification.add(error: abs(actual - expected[column]), bound: 2e-6)
            }
        }
        return verification
    }
}

private final class AdamWProblem: RowProblem {
    private let start: Tensor<Float>
    private let gradient: Tensor<Float>
    private var parameter: Tensor<Float>
    private var moments: AdamW.Moments

    init(count: Int) throws {
        start = try .normal([count], seed: 1)
        gradient = try .normal([count], seed: 2)
        parameter = start
        moments = try AdamW.Moments(of: start)
    }

    var elements: Int { start.count }
    var bytes: Int { start.count * 28 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let plan = try AdamW(weightDecay: 0.01, instructionSet: set)
        return { [self] in
            try! plan.step(&parameter, gradient: gradient, moments: &moments, learningRate: 1e-3, on: pool)
        }
    }

    func reset() {
        parameter = start
        moments = try! AdamW.Moments(of: start)
    }

    func check() -> Verification {
        var verification = Verification.none
        for index in stride(from: 0, to: start.count, by: 1009) {
            var oracle = ReferenceAdamW()
            let expected = oracle.update(
                Double(start[flat: index]), gradient: Double(gradient[flat: index]), learningRate: 1e-3, weightDecay: 0.01)
            verification.add(
                error: abs(Double(parameter[flat: index]) - expected), bound: abs(expected) * 0x1p-22 + 1e-8)
        }
        return verification
    }
}

/// An adapter, whose results are compared with exact ones at some elements.
private final class AdapterProblem {
    private let x: Tensor<Float>
    private let dy: Tensor<Float>
    private let factors: LoRAFactors
    private var t: Tensor<Float>
    private var y: Tensor<Float>
    private var dx: Tensor<Float>
    private var da: Tensor<Float>
    private var db: Tensor<Float>

    init(rows: Int, inFeatures: Int, outFeatures: Int, rank: Int) throws {
        x = try .normal([rows, inFeatures], seed: 1)
        dy = try .normal([rows, outFeatures], seed: 2)
        factors = try LoRAFactors(
            a: .normal([rank, inFeatures], seed: 3), b: .normal([outFeatures, rank], seed: 4), scale: 2)
        t = try Tensor(zeros: [rows, rank])
        (y, dx) = (try Tensor(zeros: dy.shape), try Tensor(zeros: x.shape))
        (da, db) = (try Tensor(zeros: factors.a.shape), try Tensor(zeros: factors.b.shape))
    }

    func run(_ plan: LoRAOperator, on pool: WorkerPool) {
        try! plan.run(x: x, factors: factors, projected: &t, adding: &y, on: pool)
    }

    func runBack(_ plan: LoRAOperator, on pool: WorkerPool) {
        try! plan.gradient(
            x: x, projected: t, factors: factors, outputGradient: dy, a: &da, b: &db, adding: &dx, on: pool)
    }

    func reset() {
        y = try! Tensor(zeros: y.shape)
        dx = try! Tensor(zeros: dx.shape)
        (da, db) = (try! Tensor(zeros: da.shape), try! Tensor(zeros: db.shape))
    }

    /// The last element of the outputs, whose sums pass through every depth.
    func check(backward: Bool) -> Verification {
        var verification = Verification.none
        let (rows, rank, a, b) = (x.shape[0], factors.rank, factors.a, factors.b)
        let (last, lastIn, lastOut) = (rows - 1, x.shape[1] - 1, dy.shape[1] - 1)
        func add(_ actual: Float, depth: Int, terms: [(Double, Double)]) {
            let expected = terms.reduce(0) { $0 + $1.0 * $1.1 }
            let size = terms.reduce(0) { $0 + abs($1.0 * $1.1) }
            verification.add(
                error: abs(Double(actual) - expected), bound: 6 * Double(depth).squareRoot() * 0x1p-24 * size)
        }
        /// Σ over one axis, for each of the ranks.
        func dots(_ wide: Tensor<Float>, row: Int, _ factor: (Int, Int) -> Float) -> [Double] {
            (0..<rank).map { r in
                (0..<wide.shape[1]).reduce(0) { $0 + Double(wide[row, $1]) * Double(factor(r, $1)) }
            }
        }
        if !backward {
            let projected = dots(x, row: last) { a[$0, $1] }
            add(y[last, lastOut], depth: lastIn + rank, terms: (0..<rank).map { (projected[$0], 2 * Double(b[lastOut, $0])) })
            return verification
        }
        let dt = dots(dy, row: last) { 2 * b[$1, $0] }
        add(dx[last, lastIn], depth: lastOut + rank, terms: (0..<rank).map { (dt[$0], Double(a[$0, lastIn])) })
        let r = rank - 1
        add(
            da[r, lastIn], depth: lastOut + rows,
            terms: (0..<rows).map { row in
                ((0...lastOut).reduce(0) { $0 + Double(dy[row, $1]) * 2 * Double(b[$1, r]) }, Double(x[row, lastIn]))
            })
        add(
            db[lastOut, r], depth: lastIn + rows,
            terms: (0..<rows).map { row in
                ((0...lastIn).reduce(0) { $0 + Double(x[row, $1]) * 2 * Double(a[r, $1]) }, Double(dy[row, lastOut]))
            })
        return verification
    }
}
