import BenchmarkReport
import Foundation
import SparseKernels
import SparseKernelsReference

/// The selective scan of Mamba-1: 4096 channels of 16 states.
///
/// **Prompts.** The roof is the rate of exponentials in the nearest cache, on the same threads, and the rate of a row is that of the
/// exponentials of the decays alone: tokens · channels · states. Those of softplus and gate, and everything else, are not counted.
/// `both` runs the backward direction, too, and is compared with one direction.
extension RecurrenceCases {
    func scanGroups() -> [CaseGroup] {
        let lengths = isQuick ? [512] : [2048, 8192]
        let prompts = lengths.map { tokens in
            var group = CaseGroup(
                op: "recurrence.scan", name: "Scan \(tokens)", amounts: .uncounted,
                labels: [ScanProblem.forward, "gated", "both"]
            ) { announce in
                announce("making the operands")
                let problem = try ScanProblem(tokens: tokens)
                var variants: [Variant] = []
                for set in instructionSets {
                    let first = variants.count
                    let exponentials = Double(tokens * ScanProblem.channels * ScanProblem.stateSize)
                    let roof = { MachineRoofs.exponential(instructionSet: set, on: pool, duration: .zero) }
                    for (label, isGated, directions) in [
                        (ScanProblem.forward, false, [RecurrenceDirection.forward]), ("gated", true, [.forward]),
                        ("both", false, [.forward, .backward]),
                    ] {
                        let body = try problem.body(set, isGated: isGated, directions, on: pool)
                        var variant = Variant(
                            isa: set.name, threads: pool.threads, body: body,
                            verify: {
                                body()
                                return directions.count == 1 && !isGated ? try problem.check() : nil
                            }, roof: roof, label: label,
                            amounts: .operations(exponentials * Double(directions.count)))
                        if variants.count > first { variant.baseline = (first, ScanProblem.forward) }
                        variants.append(variant)
                    }
                }
                return variants
            }
            group.rounds = isQuick ? nil : 5
            return group
        }
        let steps = batches.map { batch in
            stepGroup(op: "recurrence.scan.step", name: "Scan step b\(batch)") { format in
                try ScanProblem(tokens: batch).step(format, on: pool)
            }
        }
        return prompts + steps
    }
}

final class ScanProblem {
    static let (channels, stateSize, forward) = (4096, 16, "forward")

    private let tokens: Int
    private let aLog: Tensor<Float>
    private let skip: Tensor<Float>
    private let bias: Tensor<Float>
    private let x: Tensor<Float>
    private let delta: Tensor<Float>
    private let z: Tensor<Float>
    private let b: Tensor<Float>
    private let c: Tensor<Float>
    private var y: Tensor<Float>

    init(tokens: Int) throws {
        self.tokens = tokens
        let (channels, states) = (Self.channels, Self.stateSize)
        // As models start: A in 1…16, Δ about 10⁻².
        let noise = try Tensor<Float>.normal([channels, states], seed: 1, scale: 0.1)
        aLog = try Tensor([channels, states]) { Float($0 % states) / Float(states) * 2.77 + noise[flat: $0] }
        skip = try Tensor([channels]) { _ in 1 }
        bias = try Tensor([channels]) { -6.9 + Float($0 % 16) / 16 * 4.6 }
        x = try .normal([tokens, channels], seed: 2)
        delta = try .normal([tokens, channels], seed: 3, scale: 0.5)
        z = try .normal([tokens, channels], seed: 4)
        b = try .normal([tokens, states], seed: 5)
        c = try .normal([tokens, states], seed: 6)
        y = try Tensor(zeros: [tokens, channels])
    }

    private func plan(_ set: InstructionSet) throws -> SelectiveScan {
        try SelectiveScan(aLog: aLog, skip: skip, deltaBias: bias, instructionSet: set)
    }

    func body(
        _ set: InstructionSet, isGated: Bool, _ directions: [RecurrenceDirection], on pool: WorkerPool
    ) throws -> () -> Void {
        let plan = try plan(set)
        let states = try RecurrentStates(slots: 1, heads: 1, rows: Self.stateSize, columns: Self.channels)
        let batch = try PackedSequences(lengths: [tokens])
        return {
            for direction in directions {
                try! states.reset(0)
                try! self.run(plan, isGated: isGated, direction, batch, states, on: pool)
            }
        }
    }

    private func run(
        _ plan: SelectiveScan, isGated: Bool, _ direction: RecurrenceDirection, _ batch: PackedSequences,
        _ states: RecurrentStates, on pool: WorkerPool
    ) throws {
        try Self.run(plan, x, delta, b, c, gate: isGated ? z : nil, into: &y, direction, batch, states, on: pool)
    }

    /// A view of a property is an error; one of a parameter is not.
    private static func run(
        _ plan: SelectiveScan, _ x: Tensor<Float>, _ delta: Tensor<Float>, _ b: Tensor<Float>, _ c: Tensor<Float>,
        gate: Tensor<Float>?, into y: inout Tensor<Float>, _ direction: RecurrenceDirection, _ batch: PackedSequences,
        _ states: RecurrentStates, on pool: WorkerPool
    ) throws {
        if let gate {
            try plan.run(
                x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(), gate: gate.matrixView(),
                into: y.mutableMatrixView(), direction: direction, batch: batch, states: states, on: pool)
        } else {
            try plan.run(
                x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(),
                into: y.mutableMatrixView(), direction: direction, batch: batch, states: states, on: pool)
        }
    }

    /// Compares the first tokens of two channels, scanned forward without a gate, with the oracle.
    func check() throws -> Verification {
        var verification = Verification.none
        let count = min(tokens, 300)
        for channel in [0, Self.channels - 1] {
            func column(_ tensor: Tensor<Float>) -> [[Double]] { (0..<count).map { [Double(tensor[$0, channel])] } }
            func row(_ tensor: Tensor<Float>, _ token: Int) -> [Double] {
                (0..<Self.stateSize).map { Double(tensor[token, $0]) }
            }
            let oracle = ReferenceSelectiveScan(
                a: [row(aLog, channel).map { Double(Float(-exp($0))) }], skip: [Double(skip[flat: channel])],
                deltaBias: [Double(bias[flat: channel])])
            let result = oracle.run(
                x: column(x), delta: column(delta), b: { token, _ in row(b, token) }, c: { token, _ in row(c, token) })
            for token in 0..<count {
                verification.add(
                    error: abs(Double(y[token, channel]) - result.y[token][0]), bound: result.yBound[token][0])
            }
        }
        return verification
    }

    func step(_ format: RecurrentStates.Format, on pool: WorkerPool) throws -> RecurrenceStep {
        let states = try RecurrentStates(
            slots: tokens, heads: 1, rows: Self.stateSize, columns: Self.channels, format: format)
        for slot in 0..<tokens {
            try states.setState(.normal([1, Self.stateSize, Self.channels], seed: 7), of: slot)
        }
        let batch = try PackedSequences(stepOf: Array(0..<tokens))
        return RecurrenceStep(stateBytes: states.byteCount) { set in
            let plan = try self.plan(set)
            return { try! self.run(plan, isGated: true, .forward, batch, states, on: pool) }
        }
    }
}
