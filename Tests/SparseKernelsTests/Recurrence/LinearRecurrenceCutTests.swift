import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The same tokens in one call and in several, in batches, on other threads and in other layouts.
@Suite("Linear recurrences: calls, batches and layouts")
struct LinearRecurrenceCutTests {
    private static func shape() throws -> RecurrenceShape {
        try RecurrenceShape(keyHeads: 2, valueHeads: 4, keyDim: 12, valueDim: 20)
    }

    @Test("a prompt in pieces, and steps after it, are one prompt", arguments: InstructionSet.available)
    func pieces(_ set: InstructionSet) throws {
        for decay in RecurrenceProblem.Decay.allCases {
            let problem = try RecurrenceProblem(Self.shape(), decay, lengths: [70], seed: 3)
            let expected = try problem.expected()
            for pieces in [[70], [32, 32, 6], [41, 1, 1, 1, 26], [64, 1, 1, 1, 1, 1, 1], [1, 69]] {
                let states = try problem.states()
                var output = try Tensor<Float>(zeros: problem.value.shape)
                var start = 0
                for piece in pieces {
                    let some = try problem.tokens(start..<start + piece).run(.chunked(32), set, states: states)
                    for head in 0..<4 {
                        for token in 0..<piece {
                            for channel in 0..<20 { output[head, start + token, channel] = some[head, token, channel] }
                        }
                    }
                    start += piece
                }
                let violation = try expected.violation(output, states)
                #expect(violation == nil, "\(set), \(decay), \(pieces)")
                if pieces == [32, 32, 6] {
                    // Cut between chunks, a prompt is the same computation.
                    let whole = try problem.states()
                    #expect(try problem.run(.chunked(32), set, states: whole).bits == output.bits)
                    #expect(try whole.state(of: 0).bits == states.state(of: 0).bits)
                }
            }
        }
    }

    @Test("a sequence of a batch has the bits that it has alone, on any number of threads", arguments: InstructionSet.available)
    func batches(_ set: InstructionSet) throws {
        for decay in RecurrenceProblem.Decay.allCases {
            let problem = try RecurrenceProblem(Self.shape(), decay, lengths: [35, 1, 0, 17], seed: 4)
            let states = try problem.states()
            let output = try problem.run(.chunked(16), set, states: states)
            for threads in [2, 7] {
                let others = try problem.states()
                let other = try problem.run(.chunked(16), set, states: others, on: WorkerPool(threads: threads))
                #expect(other.bits == output.bits)
                for slot in 0..<4 { #expect(try others.state(of: slot).bits == states.state(of: slot).bits) }
            }
            // The slots of a sequence without tokens and of none keep what they hold.
            #expect(try states.state(of: 2).bits == problem.initialStates[2].bits)
            let last = try problem.tokens(36..<53)
            let alone = try RecurrentStates(slots: 2, shape: problem.shape)
            try alone.setState(problem.initialStates[3], of: 1)
            let result = try last.run(.chunked(16), set, states: alone, batch: PackedSequences(lengths: [17], slots: [1]))
            #expect(try alone.state(of: 1).bits == states.state(of: 3).bits)
            #expect(try alone.state(of: 0).elements.allSatisfy { $0 == 0 })
            for head in 0..<4 { #expect(result[head, 16, 19] == output[head, 52, 19]) }
        }
    }

    @Test("slices of one row, other layouts and types", arguments: InstructionSet.available)
    func layouts(_ set: InstructionSet) throws {
        let problem = try RecurrenceProblem(Self.shape(), .discretized, lengths: [40, 1], isFirst: true, seed: 5)
        let ssd = try problem.ssd(.chunked(16), set)
        let states = try problem.states()
        let output = try problem.run(.chunked(16), set, states: states)
        // A row is x, B, C and dt.
        let (heads, groups, channels, size, tokens) = (4, 2, 20, 12, 41)
        let width = heads * channels + 2 * groups * size + heads
        let rows = try Tensor<Float>([tokens, width]) { index in
            let (token, column) = index.quotientAndRemainder(dividingBy: width)
            if column < heads * channels { return problem.value[column / channels, token, column % channels] }
            let rest = column - heads * channels
            if rest < groups * size { return problem.key[rest / size, token, rest % size] }
            if rest < 2 * groups * size { return problem.query[rest / size - groups, token, rest % size] }
            return problem.steps[token, rest - 2 * groups * size]
        }
        func run<X: AttentionElement, Y: AttentionElement>(_ rows: Tensor<X>, into y: inout Tensor<Y>) throws {
            try states.reset(0)
            try states.reset(1)
            let span = rows.span
            func geometry(_ heads: Int, _ channels: Int) throws -> TensorGeometry {
                try TensorGeometry(
                    heads: heads, tokens: tokens, channels: channels, headStride: channels, tokenStride: width)
            }
            try ssd.run(
                x: TensorView(span, geometry: geometry(heads, channels)),
                b: TensorView(span.extracting(droppingFirst: heads * channels), geometry: geometry(groups, size)),
                c: TensorView(
                    span.extracting(droppingFirst: heads * channels + groups * size), geometry: geometry(groups, size)),
                dt: MatrixView(
                    span.extracting(droppingFirst: width - heads), rows: tokens, columns: heads, rowStride: width),
                into: y.mutableView(layout: .nhd), batch: problem.batch(), states: states)
        }
        var y = try Tensor<Float>(zeros: [tokens, heads, channels])
        try run(rows, into: &y)
        var half = try Tensor<Float16>(zeros: y.shape)
        try run(rows, into: &half)
        for token in 0..<tokens {
            for head in 0..<heads {
                for channel in 0..<channels {
                    #expect(y[token, head, channel].bitPattern == output[head, token, channel].bitPattern)
                    #expect(half[token, head, channel] == Float16(output[head, token, channel]))
                }
            }
        }
        // Operands of 16 bits are widened exactly.
        let narrow: Tensor<BFloat16> = rows.converted()
        var (wide, brain) = (y, try Tensor<BFloat16>(zeros: y.shape))
        try run(narrow.converted(to: Float.self), into: &wide)
        try run(narrow, into: &brain)
        #expect(brain.bits == wide.converted(to: BFloat16.self).bits)
    }

    @Test("padding of a step size of 0 leaves the state as it is, bit for bit", arguments: InstructionSet.available)
    func padding(_ set: InstructionSet) throws {
        let problem = try RecurrenceProblem(Self.shape(), .discretized, lengths: [9], seed: 6)
        for form in [RecurrenceForm.chunked(4), .automatic, .stepwise] {
            let ssd = try problem.ssd(form, set)
            for raw: Float in [-200, -.infinity] {
                let states = try problem.states()
                var y = problem.value
                try ssd.run(
                    x: problem.value, b: problem.key, c: problem.query, dt: Tensor<Float>([9, 4]) { _ in raw }, into: &y,
                    batch: problem.batch(), states: states)
                #expect(try states.state(of: 0).bits == problem.initialStates[0].bits, "\(set), \(form)")
            }
        }
    }

    @Test(
        "what is not finite reaches no earlier token, no other head and no other sequence", arguments: InstructionSet.available)
    func notFinite(_ set: InstructionSet) throws {
        for decay in RecurrenceProblem.Decay.allCases {
            let problem = try RecurrenceProblem(Self.shape(), decay, lengths: [30, 20], seed: 7)
            let clean = try problem.run(.chunked(16), set, states: problem.states())
            for (name, poison) in [("value", Float.nan), ("value", .infinity), ("key", .nan), ("steps", .nan)] {
                if name == "steps" && decay == .perHead { continue }
                var damaged = problem
                switch name {
                case "value": damaged.value[1, 21, 3] = poison
                case "key": damaged.key[0, 21, 3] = poison
                default:
                    if decay == .perChannel { damaged.steps[1, 21, 3] = poison } else { damaged.steps[21, 1] = poison }
                }
                let output = try damaged.run(.chunked(16), set, states: problem.states())
                let heads = name == "key" ? [2, 3] : [0, 2, 3]
                for head in 0..<4 {
                    for token in 0..<50 where heads.contains(head) || token < 21 || token >= 30 {
                        for channel in 0..<20 where output[head, token, channel] != clean[head, token, channel] {
                            Issue.record("\(set), \(decay), \(name): head \(head), token \(token), channel \(channel)")
                            return
                        }
                    }
                }
                #expect(!output[1, 21, 3].isFinite, "\(set), \(decay), \(name)")
            }
        }
    }

    /// A state of 16 bits is rounded when a call ends, to 2⁻⁹ of itself. Decays forget these errors as they forget tokens, so that after t
    /// calls they are at most 2⁻⁹ · Σ_j d^(t−j) · |S_j|.
    @Test("states of 16 bits drift within the sum of their roundings", arguments: InstructionSet.available)
    func drift(_ set: InstructionSet) throws {
        let shape = try RecurrenceShape(keyHeads: 1, valueHeads: 3, keyDim: 16, valueDim: 48)
        // Decays of 1, 0.98 and 0.96 per token.
        let problem = try RecurrenceProblem(shape, .perHead, lengths: [200], isFirst: true, decayScale: 0.02, seed: 8)
        let (exact, rounded) = (try problem.states(), try problem.states(.bfloat16))
        var bounds = Array(repeating: 0.0, count: exact.heads * exact.rows * exact.columns)
        for token in 0..<200 {
            let one = try problem.tokens(token..<token + 1)
            _ = try one.run(.stepwise, set, states: exact)
            _ = try one.run(.stepwise, set, states: rounded)
            for (index, value) in try rounded.state(of: 0).elements.enumerated() {
                let decay = Double(problem.decayOfHead(index / (16 * 48)))
                bounds[index] = decay * bounds[index] + 0x1p-9 * 1.01 * Double(abs(value)) + 1e-6
            }
        }
        let (a, b) = (try exact.state(of: 0).elements, try rounded.state(of: 0).elements)
        var (largest, sum) = (0.0, 0.0)
        for index in a.indices {
            let error = Double(abs(a[index] - b[index]))
            largest = max(largest, error / bounds[index])
            sum += error / bounds[index]
        }
        #expect(largest <= 1, "\(set)")
        // Roundings have either sign, so that most of the errors are far smaller.
        #expect(sum / Double(a.count) < 0.2, "\(set): \(sum / Double(a.count))")
        // A prompt in one call is rounded once.
        let once = try problem.states(.bfloat16)
        let whole = try problem.states()
        _ = try problem.run(.automatic, set, states: once)
        _ = try problem.run(.automatic, set, states: whole)
        #expect(try once.state(of: 0).bits == whole.state(of: 0).converted(to: BFloat16.self).bits)
    }
}
