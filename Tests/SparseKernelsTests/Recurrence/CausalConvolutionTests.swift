import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Causal convolution")
struct CausalConvolutionTests {
    static func rows<Element: AttentionElement>(_ tensor: Tensor<Element>) -> [[Double]] {
        let columns = tensor.shape.last!
        return (0..<tensor.count / max(1, columns)).map { row in
            (0..<columns).map { Double(tensor[flat: row * columns + $0].floatValue) }
        }
    }

    /// The state of a slot as rows of doubles.
    static func state(_ states: RecurrentStates, _ slot: Int) throws -> [[Double]] {
        states.rows == 0 ? [] : rows(try states.state(of: slot))
    }

    /// Runs a packed batch from random states, and compares outputs and states with the oracle.
    static func check<X: AttentionElement, Y: AttentionElement>(
        _ xType: X.Type, _ yType: Y.Type, _ set: InstructionSet, channels: Int, width: Int, lengths: [Int],
        activation: CausalConvolution.Activation, direction: RecurrenceDirection, format: RecurrentStates.Format = .float32,
        hasBias: Bool = true
    ) throws {
        let label = "\(set), \(X.self) to \(Y.self), \(channels) × \(width), \(lengths), \(activation), \(direction)"
        let weight = try Tensor<Float>.normal([channels, width], seed: 1)
        let bias = try Tensor<Float>.normal([channels], seed: 2)
        let convolution = try CausalConvolution(
            weight: weight, bias: hasBias ? bias : nil, activation: activation, instructionSet: set)
        let states = try convolution.makeStates(slots: lengths.count + 1, format: format)
        // Sequences use the slots in another order, and one slot is of none of them.
        let slots = lengths.indices.map { (2 * $0 + 1) % (lengths.count + 1) }
        let batch = try PackedSequences(lengths: lengths, slots: Set(slots).count == slots.count ? slots : nil)
        for slot in 0..<states.slots {
            let state = try Tensor<Float>.normal([1, width - 1, channels], seed: UInt64(10 + slot))
            try states.setState(state, of: slot)
        }
        let before = try (0..<states.slots).map { try Self.state(states, $0) }
        let x = try Tensor<X>.normal([batch.tokenCount, channels], seed: 3)
        var y = try Tensor<Y>(zeros: x.shape)
        try convolution.run(
            x.matrixView(), into: y.mutableMatrixView(), direction: direction, batch: batch, states: states, on: .serial)
        let (inputs, outputs) = (rows(x), rows(y))
        var start = 0
        for (index, length) in lengths.enumerated() {
            var (sequence, result) = (Array(inputs[start..<start + length]), Array(outputs[start..<start + length]))
            if direction == .backward { (sequence, result) = (sequence.reversed(), result.reversed()) }
            let slot = batch.slots[index]
            let expected = ReferenceConvolution.sums(
                sequence, weight: rows(weight), bias: hasBias ? rows(bias)[0] : Array(repeating: 0, count: channels),
                state: before[slot])
            for token in 0..<length {
                for channel in 0..<channels {
                    let (sum, error) = (expected.values[token][channel], expected.errors[token][channel])
                    // SiLU's slope is below 1.1.
                    let value = activation == .silu ? ReferenceRows.activation(.silu, sum) : sum
                    let bound =
                        (activation == .silu ? 1.1 * error + ReferenceRows.activationError(.silu, sum) : error)
                        + RowNormTests.rounding(Y.self) * abs(value) + 0x1p-25
                    if !(abs(result[token][channel] - value) <= bound) {
                        Issue.record("\(label): \(result[token][channel]) for \(value) at \(token), \(channel) of \(index)")
                        return
                    }
                }
            }
            let after = ReferenceConvolution.state(after: sequence, before: before[slot]).map { row in
                row.map { format == .float32 ? $0 : Double(BFloat16(Float($0)).floatValue) }
            }
            #expect(try Self.state(states, slot) == after, "\(label), state of \(index)")
            start += length
        }
        for slot in 0..<states.slots where !batch.slots.contains(slot) {
            #expect(try Self.state(states, slot) == before[slot], "\(label): an unused slot changed")
        }
    }

    @Test(
        "packed sequences agree with the oracle at all channels", arguments: InstructionSet.available,
        [1, 3, 7, 8, 16, 17, 33, 2050])
    func channels(_ set: InstructionSet, _ channels: Int) throws {
        for direction in RecurrenceDirection.allCases {
            try Self.check(
                Float.self, Float.self, set, channels: channels, width: 4, lengths: channels > 100 ? [6, 1] : [9, 0, 1, 3, 6],
                activation: .silu,
                direction: direction)
        }
        if channels > 100 { return }
        try Self.check(
            Float16.self, BFloat16.self, set, channels: channels, width: 4, lengths: [2, 11], activation: .silu,
            direction: .forward)
        try Self.check(
            BFloat16.self, Float16.self, set, channels: channels, width: 4, lengths: [8, 2], activation: .none,
            direction: .backward, hasBias: false)
    }

    @Test(
        "every width and length, one more and one less than the width", arguments: InstructionSet.available, [1, 2, 3, 4, 5, 9])
    func widths(_ set: InstructionSet, _ width: Int) throws {
        for length in Set([0, 1, 2, max(0, width - 2), width - 1, width, width + 1, 2 * width + 5]) {
            try Self.check(
                Float.self, Float.self, set, channels: 19, width: width, lengths: [length, 2], activation: .none,
                direction: .forward)
            try Self.check(
                Float.self, Float.self, set, channels: 19, width: width, lengths: [length], activation: .silu,
                direction: .backward, format: .bfloat16)
        }
    }

    @Test("one prefill is its parts and its steps, in bits", arguments: InstructionSet.available)
    func parts(_ set: InstructionSet) throws {
        func check<X: AttentionElement>(_ type: X.Type, format: RecurrentStates.Format) throws {
            let convolution = try CausalConvolution(
                weight: .normal([21, 4], seed: 1), bias: .normal([21], seed: 2), activation: .silu, instructionSet: set)
            let x = try Tensor<X>.normal([90, 21], seed: 3)
            let whole = try convolution.makeStates(slots: 1, format: format)
            let expected = try Self.run(convolution, x, PackedSequences(lengths: [90]), whole)
            for parts in [[30, 60], [1, 2, 3, 84], [40, 0, 49, 1], Array(repeating: 1, count: 90)] {
                let states = try convolution.makeStates(slots: 3, format: format)
                var (start, elements) = (0, [Float]())
                for length in parts {
                    let part = try Tensor<X>([length, 21], Array(x.elements[start * 21..<(start + length) * 21]))
                    let batch = try PackedSequences(lengths: [length], slots: [2])
                    elements += try Self.run(convolution, part, batch, states).elements
                    start += length
                }
                #expect(elements == expected.elements, "\(set), \(X.self), \(parts)")
                #expect(try states.state(of: 2) == whole.state(of: 0))
            }
        }
        try check(Float.self, format: .float32)
        try check(Float16.self, format: .float32)
        try check(BFloat16.self, format: .bfloat16)
    }

    static func run<X: AttentionElement>(
        _ convolution: CausalConvolution, _ x: Tensor<X>, _ batch: PackedSequences, _ states: RecurrentStates,
        direction: RecurrenceDirection = .forward, on pool: WorkerPool = .serial
    ) throws -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: x.shape)
        try convolution.run(
            x.matrixView(), into: y.mutableMatrixView(), direction: direction, batch: batch, states: states, on: pool)
        return y
    }

    @Test("threads do not change bits, nor sequences each other", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let convolution = try CausalConvolution(
            weight: .normal([290, 4], seed: 1), activation: .silu, instructionSet: set)
        // Tasks have some 80 tokens.
        let lengths = [170, 1, 0, 90, 300, 3, 5]
        let batch = try PackedSequences(lengths: lengths)
        var x = try Tensor<Float>.normal([batch.tokenCount, 290], seed: 3)
        for direction in RecurrenceDirection.allCases {
            let states = try convolution.makeStates(slots: lengths.count)
            let first = try Self.run(convolution, x, batch, states, direction: direction)
            for threads in [2, 7] {
                let others = try convolution.makeStates(slots: lengths.count)
                let y = try Self.run(convolution, x, batch, others, direction: direction, on: WorkerPool(threads: threads))
                #expect(y.bits == first.bits, "\(set), \(threads) threads, \(direction)")
                for slot in lengths.indices { #expect(try others.state(of: slot) == states.state(of: slot)) }
            }
            var start = 0
            for length in lengths {
                let alone = try convolution.makeStates(slots: 1)
                let part = try Tensor<Float>([length, 290], Array(x.elements[start * 290..<(start + length) * 290]))
                let y = try Self.run(convolution, part, PackedSequences(lengths: [length]), alone, direction: direction)
                #expect(y.elements[...] == first.elements[start * 290..<(start + length) * 290], "\(set), \(length) tokens")
                start += length
            }
        }
        // What is not finite reaches the four tokens that see it, in its channel.
        let clean = try Self.run(convolution, x, batch, convolution.makeStates(slots: lengths.count))
        x[100, 5] = .nan
        x[567, 6] = .infinity
        let y = try Self.run(convolution, x, batch, convolution.makeStates(slots: lengths.count))
        let (values, others) = (y.elements, clean.elements)
        let changed = values.indices.filter { values[$0] != others[$0] }
        #expect(
            Set(changed) == Set((100..<104).map { $0 * 290 + 5 } + (567..<569).map { $0 * 290 + 6 }))
    }

    @Test("rows are slices of wider rows, and what lies between them stays", arguments: InstructionSet.available)
    func strides(_ set: InstructionSet) throws {
        let wide = try Tensor<Float>.normal([50, 60], seed: 4)
        let narrow = try Tensor<Float>([50, 37]) { wide[$0 / 37, 11 + $0 % 37] }
        let convolution = try CausalConvolution(weight: .normal([37, 4], seed: 1), activation: .silu, instructionSet: set)
        let batch = try PackedSequences(lengths: [40, 10])
        for direction in RecurrenceDirection.allCases {
            let expected = try Self.run(convolution, narrow, batch, convolution.makeStates(slots: 2), direction: direction)
            var y = try Tensor<Float>([50, 45]) { _ in 7 }
            try convolution.run(
                MatrixView(wide.span.extracting(11...), rows: 50, columns: 37, rowStride: 60),
                into: MutableMatrixView(y.mutableSpan, rows: 50, columns: 37, rowStride: 45), direction: direction,
                batch: batch,
                states: convolution.makeStates(slots: 2))
            for row in 0..<50 {
                #expect((0..<37).allSatisfy { y[row, $0] == expected[row, $0] } && (37..<45).allSatisfy { y[row, $0] == 7 })
            }
        }
    }

    @Test("nothing is read or written beyond the operands", arguments: InstructionSet.available)
    func fences(_ set: InstructionSet) throws {
        for channels in [5, 17] {
            let convolution = try CausalConvolution(
                weight: .normal([channels, 4], seed: 1), activation: .silu, instructionSet: set)
            for fencesEnd in [true, false] {
                for length in [1, 2, 11] {
                    let x = FencedMemory(Array(repeating: Float(1), count: length * channels), fencesEnd: fencesEnd)
                    let y = FencedMemory(Array(repeating: Float(0), count: length * channels), fencesEnd: fencesEnd)
                    for direction in RecurrenceDirection.allCases {
                        try convolution.run(
                            MatrixView(x.elements.span, rows: length, columns: channels),
                            into: MutableMatrixView(y.elements.mutableSpan, rows: length, columns: channels),
                            direction: direction, batch: PackedSequences(lengths: [length]),
                            states: convolution.makeStates(slots: 1))
                    }
                }
            }
        }
    }

    @Test("errors name the operand and both numbers, and leave outputs and states as they were")
    func errors() throws {
        expectError(.invalidShape, "weight", containing: "[4]") { _ = try CausalConvolution(weight: .init(zeros: [4])) }
        expectError(.invalidShape, "weight", containing: "[8, 0]") { _ = try CausalConvolution(weight: .init(zeros: [8, 0])) }
        expectError(.invalidArgument, "weight", containing: "nan") {
            _ = try CausalConvolution(weight: Tensor([8, 4]) { _ in .nan })
        }
        expectError(.invalidShape, "bias", containing: "[8]", "[9]") {
            _ = try CausalConvolution(weight: .init(zeros: [8, 4]), bias: .init(zeros: [9]))
        }
        let convolution = try CausalConvolution(weight: .normal([8, 4], seed: 1))
        let states = try convolution.makeStates(slots: 2)
        let state = try Tensor<Float>.normal([1, 3, 8], seed: 5)
        try states.setState(state, of: 0)
        let batch = try PackedSequences(lengths: [3])
        func run(_ x: [Int], _ y: [Int], _ batch: PackedSequences, _ states: RecurrentStates) throws {
            let input = try Tensor<Float>.normal(x, seed: 1)
            var output = try Tensor<Float>(y) { _ in 7 }
            defer { #expect(output.elements.allSatisfy { $0 == 7 }) }
            try convolution.run(input.matrixView(), into: output.mutableMatrixView(), batch: batch, states: states)
        }
        expectError(.invalidShape, "x", containing: "8", "9") { try run([3, 9], [3, 8], batch, states) }
        expectError(.invalidShape, "x", containing: "3 tokens", "4") { try run([4, 8], [4, 8], batch, states) }
        expectError(.invalidShape, "y", containing: "3 × 8", "2 × 8") { try run([3, 8], [2, 8], batch, states) }
        expectError(.invalidArgument, "slots[0]", containing: "0 to 1", "2") {
            try run([3, 8], [3, 8], PackedSequences(lengths: [3], slots: [2]), states)
        }
        expectError(.invalidShape, "states", containing: "1 × 3 × 8", "1 × 2 × 8") {
            try run([3, 8], [3, 8], batch, RecurrentStates(slots: 1, heads: 1, rows: 2, columns: 8))
        }
        #expect(try states.state(of: 0) == state)
        // No sequences and no tokens at all.
        try run([0, 8], [0, 8], PackedSequences(lengths: []), states)
        try run([0, 8], [0, 8], PackedSequences(lengths: [0, 0]), states)
        #expect(try states.state(of: 0) == state)
    }
}
