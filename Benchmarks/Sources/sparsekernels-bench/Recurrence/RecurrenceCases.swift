import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Recurrent layers of language models: prompts of 2K to 131K tokens, and steps of decoding.
///
/// **Prompts.** The roof is that of multiply-adds on the same threads, for the products that the chunked algorithm makes. Rows are
/// compared with `steps`, the recurrence as it is defined: one call per token, each of which reads and writes all states. `stepwise`
/// is the operator's form with one token after the other, which keeps the states of some heads in the cache. `Attn.` is the speed over
/// dense causal attention of as many tokens, heads and channels, of which some heads are timed. Long prompts have fewer heads, so
/// that every length is about the same work.
///
/// **Steps.** Every call starts with empty caches, like a layer of a model. The roof is the memory bandwidth, measured on the same
/// threads right before the call: bytes of the states, read once and written once.
///
/// A further recurrence is a file in this folder with an extension that makes its groups, and a line in `section()`.
struct RecurrenceCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        Section(
            kind: .recurrence,
            groups: dualityGroups() + linearGroups() + deltaGroups() + scanGroups() + convolutionGroups() + hybridGroups()
                + stormGroups(),
            baselines: [RecurrenceBaseline.steps, HybridStack.labels[0], ScanProblem.forward, StormProblem.whole])
    }

    /// Prompt lengths, with the part of the heads that are computed.
    var prompts: [(tokens: Int, part: Int)] {
        if isQuick { return [(2048, 4)] }
        return [(2048, 1), (8192, 1), (32_768, 4)] + (run.isLong ? [(131_072, 16)] : [])
    }

    /// Sequences of a step.
    var batches: [Int] { isQuick ? [1] : [1, 8] }
}

enum RecurrenceBaseline {
    static let steps = "steps"
}

/// One prompt of a recurrent layer, in the ways in which it is timed.
struct RecurrencePrompt {
    var tokens: Int
    /// Multiply-adds of the chunked algorithm's products, per prompt.
    var products: Double
    /// The prompt as one call, in chunks and stepwise. The latter computes `sample` tokens.
    var chunked: (InstructionSet) throws -> () -> Void
    var stepwise: ((InstructionSet) throws -> () -> Void)?
    /// `sample` calls of one token each.
    var steps: (InstructionSet) throws -> () -> Void
    /// Tokens of those two.
    var sample: Int
    /// Compares the result of `chunked` with the oracle.
    var check: () throws -> Verification
    /// Heads and channels of the attention layer of equal width.
    var heads: Int
    var headDim: Int

    /// - Parameters:
    ///   - states: with one slot, for the prompt.
    ///   - form: that of the prompt as one call.
    ///   - plan: makes the operator of a form.
    ///   - run: runs tokens of a batch from a given one on.
    init<Plan>(
        tokens: Int, products: Double, states: RecurrentStates, form: RecurrenceForm,
        plan: @escaping (RecurrenceForm, InstructionSet) throws -> Plan,
        run: @escaping (Plan, _ first: Int, PackedSequences) throws -> Void, check: @escaping () throws -> Verification,
        heads: Int, headDim: Int
    ) throws {
        let sample = min(tokens, 256)
        let whole = try PackedSequences(lengths: [tokens])
        let part = try PackedSequences(lengths: [sample])
        let one = try PackedSequences(stepOf: [0])
        (self.tokens, self.products, self.sample) = (tokens, products, sample)
        (self.check, self.heads, self.headDim) = (check, heads, headDim)
        chunked = { set in
            let plan = try plan(form, set)
            return {
                try! states.reset(0)
                try! run(plan, 0, whole)
            }
        }
        stepwise = { set in
            let plan = try plan(.stepwise, set)
            return { try! run(plan, 0, part) }
        }
        steps = { set in
            let plan = try plan(.stepwise, set)
            return { for token in 0..<sample { try! run(plan, token, one) } }
        }
    }
}

extension RecurrenceCases {
    /// The prompts of a recurrence with `heads` heads, and then its steps.
    func groups(
        op: String, name: String, heads: Int, prompt: @escaping (_ tokens: Int, _ part: Int) throws -> RecurrencePrompt,
        step: @escaping (_ batch: Int, RecurrentStates.Format) throws -> RecurrenceStep
    ) -> [CaseGroup] {
        let prompts = prompts.map { tokens, part in
            group(op: op, name: "\(name) \(tokens) H \(heads / part)") { announce in
                announce("making the operands")
                return try prompt(tokens, part)
            }
        }
        let steps = batches.map { batch in
            stepGroup(op: op + ".step", name: "\(name) step b\(batch)") { try step(batch, $0) }
        }
        return prompts + steps
    }

    /// The rows of a prompt.
    private func group(op: String, name: String, _ make: @escaping ((String) -> Void) throws -> RecurrencePrompt) -> CaseGroup {
        var group = CaseGroup(op: op, name: name, amounts: .uncounted, labels: ["stepwise", RecurrenceBaseline.steps]) {
            announce in
            let prompt = try make(announce)
            let attention = try PromptAttention(prompt, instructionSet, on: pool)
            var variants = [
                Variant(
                    isa: instructionSet.name, threads: pool.threads, body: attention.body, isHidden: true, verify: { nil })
            ]
            for set in instructionSets {
                let steps = variants.count
                let scale = Double(prompt.tokens) / Double(prompt.sample)
                variants += try part(of: prompt.steps(set), set, scale: scale, label: RecurrenceBaseline.steps)
                let row = steps + 1
                if let stepwise = prompt.stepwise {
                    var rows = try part(of: stepwise(set), set, scale: scale, label: "stepwise")
                    rows[1].mixture = [(variants.count, scale)]
                    rows[1].baseline = (row, RecurrenceBaseline.steps)
                    variants += rows
                }
                variants[row].mixture = [(steps, scale)]
                let body = try prompt.chunked(set)
                let index = variants.count
                var chunked = Variant(
                    isa: set.name, threads: pool.threads, body: body,
                    verify: {
                        body()
                        return try prompt.check()
                    },
                    baseline: (row, RecurrenceBaseline.steps),
                    roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) },
                    amounts: .operations(2 * prompt.products))
                chunked.sampled[.attentionSpeedup] = { attention.scale * $0.speedup(of: "\(index)", over: "0") }
                variants.append(chunked)
            }
            return variants
        }
        group.rounds = isQuick ? nil : 5
        return group
    }

    /// A hidden timing of a part of the tokens, and the row that it is scaled to.
    private func part(
        of body: @escaping () -> Void, _ set: InstructionSet, scale: Double, label: String
    ) -> [Variant] {
        [
            Variant(isa: set.name, threads: pool.threads, body: body, isHidden: true, verify: { nil }),
            Variant(isa: set.name, threads: pool.threads, verify: { nil }, label: label),
        ]
    }

    /// The rows of a step, one per format of the states.
    func stepGroup(
        op: String, name: String,
        _ make: @escaping (RecurrentStates.Format) throws -> RecurrenceStep
    ) -> CaseGroup {
        let formats = RecurrentStates.Format.allCases
        return CaseGroup(op: op, name: name, amounts: .uncounted, labels: formats.map(\.rawValue)) { _ in
            var variants: [Variant] = []
            for format in formats {
                let step = try make(format)
                for set in instructionSets {
                    let caches = ColdCaches(set, pool)
                    let body = try step.body(set)
                    // One operation per byte, so that rates have a unit.
                    let bytes = Double(2 * step.stateBytes)
                    var variant = Variant(
                        isa: set.name, threads: pool.threads, body: body, verify: { nil }, preparation: caches.empty,
                        roof: { caches.rate(operations: bytes, bytes: bytes) }, label: format.rawValue,
                        amounts: .operations(bytes))
                    variant.metrics[.bytesRead] = bytes
                    variants.append(variant)
                }
            }
            return variants
        }
    }
}

/// One step of decoding.
struct RecurrenceStep {
    /// Bytes of the states of all sequences.
    var stateBytes: Int
    var body: (InstructionSet) throws -> () -> Void
}

/// Dense causal attention of some heads of a layer as wide as a recurrent one.
private struct PromptAttention {
    let body: () -> Void
    /// The heads of the layer over those that are timed.
    let scale: Double

    init(_ prompt: RecurrencePrompt, _ set: InstructionSet, on pool: WorkerPool) throws {
        // About 4·10¹⁰ multiply-adds.
        let perHead = Double(prompt.tokens) * Double(prompt.tokens) * Double(prompt.headDim)
        let heads = min(prompt.heads, max(pool.threads, Int(4e10 / perHead)))
        scale = Double(prompt.heads) / Double(heads)
        let shape = try AttentionShape(
            queryLength: prompt.tokens, keyLength: prompt.tokens, queryHeads: heads, kvHeads: heads, headDim: prompt.headDim)
        let operands = try (1...3).map {
            try Tensor<Float>.normal([heads, prompt.tokens, prompt.headDim], seed: UInt64($0))
        }
        let plan = try DenseAttention(shape, mask: .causal, instructionSet: set)
        let output = AttentionOutput(shape)
        body = { output.compute(plan, operands[0], operands[1], operands[2], on: pool) }
    }
}
