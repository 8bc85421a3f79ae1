import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// A scan with random parameters and operands of a packed batch.
struct ScanCase<X: AttentionElement> {
    var scan: SelectiveScan
    var oracle: ReferenceSelectiveScan
    var batch: PackedSequences
    var x: Tensor<X>
    var delta: Tensor<X>
    var b: Tensor<X>
    var c: Tensor<X>
    var z: Tensor<X>?
    var fixed: (b: Tensor<Float>, c: Tensor<Float>)?

    /// Plain cases have no skip and no bias, which may make a step negative where there is no softplus.
    init(
        _ set: InstructionSet, channels: Int, stateSize: Int, groups: Int = 1, lengths: [Int], isGated: Bool = true,
        isPlain: Bool = false, appliesSoftplus: Bool = true, isFixed: Bool = false, fastest: Float = 1
    ) throws {
        batch = try PackedSequences(lengths: lengths, slots: lengths.indices.map { lengths.count - $0 })
        let tokens = batch.tokenCount
        let spread = try Tensor<Float>.normal([channels, stateSize], seed: 1)
        let a = try Tensor<Float>([channels, stateSize]) { index in
            -fastest * Float(index % stateSize + 1) * (1 + 0.2 * spread[flat: index]).magnitude
        }
        let skip = try Tensor<Float>.normal([channels], seed: 2)
        let bias = try Tensor<Float>.normal([channels], seed: 3)
        x = try .normal([tokens, channels], seed: 4)
        delta = try .normal([tokens, channels], seed: 5, scale: 1.5)
        if !appliesSoftplus {
            delta = try Tensor([tokens, channels]) { [delta] in X(delta[flat: $0].floatValue.magnitude / 8) }
        }
        b = try .normal([tokens, groups * stateSize], seed: 6)
        c = try .normal([tokens, groups * stateSize], seed: 7)
        z = isGated ? try .normal([tokens, channels], seed: 8, scale: 2) : nil
        if isFixed {
            let (b, c) = (
                try Tensor<Float>.normal([channels, stateSize], seed: 9),
                try Tensor<Float>.normal([channels, stateSize], seed: 10)
            )
            fixed = (b, c)
            scan = try SelectiveScan(
                a: a, fixedB: b, fixedC: c, skip: isPlain ? nil : skip, deltaBias: isPlain ? nil : bias,
                appliesSoftplus: appliesSoftplus, instructionSet: set)
        } else {
            scan = try SelectiveScan(
                a: a, skip: isPlain ? nil : skip, deltaBias: isPlain ? nil : bias, appliesSoftplus: appliesSoftplus,
                groups: groups, instructionSet: set)
        }
        oracle = ReferenceSelectiveScan(
            a: Self.rows(a), skip: isPlain ? nil : Self.rows(skip)[0], deltaBias: isPlain ? nil : Self.rows(bias)[0],
            appliesSoftplus: appliesSoftplus)
    }

    static func rows<Element: AttentionElement>(_ tensor: Tensor<Element>) -> [[Double]] {
        let columns = tensor.shape.last!
        return (0..<tensor.count / max(1, columns)).map { row in
            (0..<columns).map { Double(tensor[flat: row * columns + $0].floatValue) }
        }
    }

    func makeStates(_ format: RecurrentStates.Format = .float32) throws -> RecurrentStates {
        try RecurrentStates(
            slots: batch.lengths.count + 1, heads: 1, rows: scan.stateSize, columns: scan.channels, format: format)
    }

    func run<Y: AttentionElement>(
        as type: Y.Type = Float.self, _ states: RecurrentStates, _ direction: RecurrenceDirection = .forward,
        batch other: PackedSequences? = nil, on pool: WorkerPool = .serial
    ) throws -> Tensor<Y> {
        var y = try Tensor<Y>(zeros: x.shape)
        if fixed == nil {
            if let z {
                try scan.run(
                    x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(), gate: z.matrixView(),
                    into: y.mutableMatrixView(), direction: direction, batch: other ?? batch, states: states, on: pool)
            } else {
                try scan.run(
                    x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(),
                    into: y.mutableMatrixView(), direction: direction, batch: other ?? batch, states: states, on: pool)
            }
        } else {
            try scan.run(
                x: x.matrixView(), delta: delta.matrixView(), gate: z?.matrixView(), into: y.mutableMatrixView(),
                direction: direction, batch: other ?? batch, states: states, on: pool)
        }
        return y
    }

    /// Tokens `range` alone.
    func part(_ range: Range<Int>) throws -> ScanCase {
        func rows(_ tensor: Tensor<X>) throws -> Tensor<X> {
            let columns = tensor.shape[1]
            return try Tensor(
                [range.count, columns], Array(tensor.elements[range.lowerBound * columns..<range.upperBound * columns]))
        }
        var part = self
        (part.x, part.delta, part.b, part.c) = (try rows(x), try rows(delta), try rows(b), try rows(c))
        part.z = try z.map(rows)
        part.batch = try PackedSequences(lengths: [range.count], slots: [0])
        return part
    }

    /// The values and bounds of the whole batch, in the order of its sequences, from states of zeros or those given by slot.
    func expected(_ direction: RecurrenceDirection, from states: [[[Double]]]? = nil) -> [ReferenceSelectiveScan.Result] {
        let (x, delta, b, c) = (Self.rows(x), Self.rows(delta), Self.rows(b), Self.rows(c))
        let z = z.map(Self.rows)
        let (n, perGroup) = (scan.stateSize, scan.channels / scan.groups)
        let fixed = fixed.map { (Self.rows($0.b), Self.rows($0.c)) }
        var start = 0
        return batch.lengths.enumerated().map { index, length in
            let range = start..<start + length
            start += length
            return oracle.run(
                x: Array(x[range]), delta: Array(delta[range]),
                b: { fixed?.0[$1] ?? Array(b[range.lowerBound + $0][$1 / perGroup * n..<($1 / perGroup + 1) * n]) },
                c: { fixed?.1[$1] ?? Array(c[range.lowerBound + $0][$1 / perGroup * n..<($1 / perGroup + 1) * n]) },
                z: z.map { Array($0[range]) }, states: states?[batch.slots[index]], isBackward: direction == .backward)
        }
    }
}

@Suite("Selective scan")
struct SelectiveScanTests {
    /// Runs a case from random states and compares outputs and states with the oracle.
    static func check<X: AttentionElement, Y: AttentionElement>(
        _ scanCase: ScanCase<X>, _ yType: Y.Type, _ label: String, direction: RecurrenceDirection = .forward,
        format: RecurrentStates.Format = .float32
    ) throws {
        let scan = scanCase.scan
        let states = try scanCase.makeStates(format)
        for slot in 0..<states.slots {
            try states.setState(.normal([1, scan.stateSize, scan.channels], seed: UInt64(20 + slot)), of: slot)
        }
        func stored() throws -> [[[Double]]] {
            try (0..<states.slots).map { slot in
                let state = try states.state(of: slot)
                return (0..<scan.channels).map { c in (0..<scan.stateSize).map { Double(state[0, $0, c]) } }
            }
        }
        let before = try stored()
        let y = ScanCase<X>.rows(try scanCase.run(as: Y.self, states, direction))
        let after = try stored()
        var token = 0
        for (index, result) in scanCase.expected(direction, from: before).enumerated() {
            for (row, bounds) in zip(result.y, result.yBound) {
                for channel in row.indices {
                    let bound = bounds[channel] + RowNormTests.rounding(Y.self) * abs(row[channel]) + 0x1p-25
                    if !(abs(y[token][channel] - row[channel]) <= bound) {
                        Issue.record("\(label): \(y[token][channel]) for \(row[channel]) ± \(bound) at \(token), \(channel)")
                        return
                    }
                }
                token += 1
            }
            let (state, slot) = (after[scanCase.batch.slots[index]], scanCase.batch.slots[index])
            if scanCase.batch.lengths[index] == 0 {
                #expect(state == before[slot], "\(label): a sequence without tokens changed its state")
                continue
            }
            for channel in state.indices {
                for n in state[channel].indices {
                    let value = result.states[channel][n]
                    let bound = result.stateBound[channel][n] + (format == .float32 ? 0 : 0x1p-8 * abs(value))
                    if !(abs(state[channel][n] - value) <= bound) {
                        Issue.record("\(label): state \(state[channel][n]) for \(value) ± \(bound) at \(channel), \(n)")
                        return
                    }
                }
            }
        }
        #expect(after[0] == before[0], "\(label): the unused slot changed")
    }

    @Test("packed sequences agree with the oracle at all channels and states", arguments: InstructionSet.available)
    func sizes(_ set: InstructionSet) throws {
        for (channels, stateSize) in [(1, 1), (3, 4), (7, 16), (16, 16), (17, 5), (33, 8), (130, 3), (272, 17)] {
            let lengths = channels > 100 ? [18, 1] : [17, 0, 1, 33, 2]
            for direction in RecurrenceDirection.allCases {
                try Self.check(
                    ScanCase<Float>(set, channels: channels, stateSize: stateSize, lengths: lengths), Float.self,
                    "\(set), \(channels) × \(stateSize), \(direction)", direction: direction)
            }
        }
    }

    @Test("groups, fixed B and C, and what may be left out", arguments: InstructionSet.available)
    func options(_ set: InstructionSet) throws {
        for (channels, groups) in [(24, 2), (24, 24), (300, 2)] {
            try Self.check(
                ScanCase<Float>(set, channels: channels, stateSize: 6, groups: groups, lengths: [7, 1]), Float.self,
                "\(set), \(groups) groups of \(channels)", direction: .backward)
        }
        for direction in RecurrenceDirection.allCases {
            for stateSize in [4, 7] {
                try Self.check(
                    ScanCase<Float>(
                        set, channels: 21, stateSize: stateSize, lengths: [20, 1, 2], isGated: false, isFixed: true),
                    Float.self, "\(set), fixed, \(direction)", direction: direction)
            }
        }
        try Self.check(
            ScanCase<Float>(set, channels: 21, stateSize: 8, lengths: [20, 1], isGated: false, isPlain: true), Float.self,
            "\(set), plain")
        try Self.check(
            ScanCase<Float>(set, channels: 21, stateSize: 8, lengths: [20, 1], isPlain: true, appliesSoftplus: false),
            Float.self,
            "\(set), without softplus")
    }

    @Test("element types and formats of states", arguments: InstructionSet.available)
    func types(_ set: InstructionSet) throws {
        try Self.check(
            ScanCase<Float16>(set, channels: 37, stateSize: 8, lengths: [20, 1]), BFloat16.self, "\(set), Float16",
            direction: .backward)
        try Self.check(
            ScanCase<BFloat16>(set, channels: 37, stateSize: 8, lengths: [20, 1]), Float16.self, "\(set), BFloat16",
            format: .bfloat16)
        try Self.check(
            ScanCase<Float>(set, channels: 37, stateSize: 9, lengths: [1, 20]), Float.self, "\(set), states",
            format: .bfloat16)
    }

    @Test("states that decay at once, and steps of any size", arguments: InstructionSet.available)
    func decays(_ set: InstructionSet) throws {
        // Exponents of −1000 and below beside those of a few tenths, in one vector.
        try Self.check(
            ScanCase<Float>(set, channels: 40, stateSize: 16, lengths: [40, 1], fastest: 100), Float.self, "\(set), fast")
        for (value, step) in [(Float(-200), Float(0)), (-90, 0), (25, 25), (1e4, 1e4), (-.infinity, 0)] {
            let scan = try SelectiveScan(a: Tensor([2, 1], [-1, 0]), instructionSet: set)
            for tokens in [1, 3] {
                let states = try RecurrentStates(slots: 1, heads: 1, rows: 1, columns: 2)
                try states.setState(Tensor([1, 1, 2], [3, 3]), of: 0)
                let (x, delta) = (try Tensor<Float>([tokens, 2]) { _ in 2 }, try Tensor<Float>([tokens, 2]) { _ in value })
                let ones = try Tensor<Float>([tokens, 1]) { _ in 1 }
                var y = try Tensor<Float>(zeros: [tokens, 2])
                try scan.run(
                    x: x.matrixView(), delta: delta.matrixView(), b: ones.matrixView(), c: ones.matrixView(),
                    into: y.mutableMatrixView(), batch: PackedSequences(lengths: [tokens]), states: states)
                // A decay of 0 leaves Δ·x alone, and A = 0 sums.
                let last = step == 0 ? 3 : 2 * step
                #expect(abs(y[tokens - 1, 0] - last) <= 1e-6 * last && abs(y[0, 1] - (3 + 2 * step)) <= 1e-6 * (3 + 2 * step))
            }
        }
        // Without softplus a negative step makes states grow; what overflows is infinite.
        let scan = try SelectiveScan(a: Tensor([1, 1], [-1]), appliesSoftplus: false, instructionSet: set)
        let states = try RecurrentStates(slots: 1, heads: 1, rows: 1, columns: 1)
        try states.setState(Tensor([1, 1, 1], [1]), of: 0)
        let (one, step) = (try Tensor<Float>([1, 1], [1]), try Tensor<Float>([1, 1], [-200]))
        var y = try Tensor<Float>(zeros: [1, 1])
        try scan.run(
            x: one.matrixView(), delta: step.matrixView(), b: one.matrixView(), c: one.matrixView(),
            into: y.mutableMatrixView(),
            batch: PackedSequences(lengths: [1]), states: states)
        #expect(y[flat: 0] == .infinity)
    }

    @Test("a step size below the smallest normal number keeps its relative accuracy", arguments: InstructionSet.available)
    func softplus(_ set: InstructionSet) throws {
        // One state with A = 0 sums Δ·x.
        let scan = try SelectiveScan(a: Tensor([1, 1], [0]), instructionSet: set)
        let one = try Tensor<Float>([1, 1], [1])
        for value in stride(from: Float(-86), to: 40, by: 0.37) {
            let states = try RecurrentStates(slots: 1, heads: 1, rows: 1, columns: 1)
            let delta = try Tensor<Float>([1, 1], [value])
            var y = try Tensor<Float>(zeros: [1, 1])
            try scan.run(
                x: one.matrixView(), delta: delta.matrixView(), b: one.matrixView(), c: one.matrixView(),
                into: y.mutableMatrixView(), batch: PackedSequences(lengths: [1]), states: states, on: .serial)
            let expected = ReferenceSelectiveScan.softplus(Double(value))
            let bound = expected * (4e-7 + (set == .portable ? 1e-7 : 2e-8) * Double(abs(value)))
            #expect(abs(Double(y[flat: 0]) - expected) <= bound, "\(set): \(y[flat: 0]) for \(expected) at \(value)")
        }
    }

    @Test("one prefill is its parts and its steps, in bits", arguments: InstructionSet.available)
    func parts(_ set: InstructionSet) throws {
        let whole = try ScanCase<Float>(set, channels: 37, stateSize: 7, lengths: [60])
        let states = try whole.makeStates()
        let expected = try whole.run(states).elements
        for parts in [[30, 30], [1, 16, 17, 26], [40, 0, 19, 1], Array(repeating: 1, count: 60)] {
            let continued = try whole.makeStates()
            var (start, elements) = (0, [Float]())
            for length in parts {
                elements += try whole.part(start..<start + length).run(continued).elements
                start += length
            }
            #expect(elements == expected, "\(set), \(parts)")
            #expect(try continued.state(of: 0) == states.state(of: 1))
        }
    }

    @Test("backward is forward over reversed tokens, reversed, in bits", arguments: InstructionSet.available)
    func backward(_ set: InstructionSet) throws {
        let forward = try ScanCase<Float>(set, channels: 37, stateSize: 7, lengths: [41])
        func reversed(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            let (rows, columns) = (tensor.shape[0], tensor.shape[1])
            return try Tensor(tensor.shape) { tensor[rows - 1 - $0 / columns, $0 % columns] }
        }
        var other = forward
        (other.x, other.delta, other.b, other.c) = (
            try reversed(forward.x), try reversed(forward.delta), try reversed(forward.b), try reversed(forward.c)
        )
        other.z = try forward.z.map(reversed)
        let (states, others) = (try forward.makeStates(), try forward.makeStates())
        #expect(try forward.run(states, .backward) == reversed(other.run(others)))
        #expect(try states.state(of: 1) == others.state(of: 1))
    }

    @Test("threads do not change bits, nor sequences each other", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let packed = try ScanCase<Float>(set, channels: 390, stateSize: 6, groups: 3, lengths: [50, 1, 0, 33, 2])
        for direction in RecurrenceDirection.allCases {
            let states = try packed.makeStates()
            let first = try packed.run(states, direction)
            for threads in [2, 7] {
                let others = try packed.makeStates()
                #expect(try packed.run(others, direction, on: WorkerPool(threads: threads)).bits == first.bits)
                for slot in 0..<others.slots { #expect(try others.state(of: slot) == states.state(of: slot)) }
            }
            var start = 0
            for (index, length) in packed.batch.lengths.enumerated() {
                let alone = try packed.makeStates()
                let y = try packed.part(start..<start + length).run(alone, direction)
                #expect(y.elements[...] == first.elements[start * 390..<(start + length) * 390], "\(set), \(length) tokens")
                #expect(try alone.state(of: 0) == states.state(of: packed.batch.slots[index]))
                start += length
            }
        }
    }

    @Test("what is not finite stays in its channel, and in B and C in its group", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let clean = try ScanCase<Float>(set, channels: 48, stateSize: 5, groups: 2, lengths: [40])
        let expected = try clean.run(clean.makeStates()).elements
        func changed(_ change: (inout ScanCase<Float>) -> Void) throws -> Set<Int> {
            var dirty = clean
            change(&dirty)
            let y = try dirty.run(dirty.makeStates()).elements
            return Set(y.indices.filter { y[$0].bitPattern != expected[$0].bitPattern })
        }
        for value in [Float.nan, .infinity] {
            #expect(try changed { $0.x[20, 3] = value } == Set((20..<40).map { $0 * 48 + 3 }))
            #expect(try changed { $0.z![20, 7] = value } == [20 * 48 + 7])
        }
        #expect(try changed { $0.delta[11, 17] = .nan } == Set((11..<40).map { $0 * 48 + 17 }))
        #expect(try changed { $0.b[20, 6] = .nan } == Set((20..<40).flatMap { t in (24..<48).map { t * 48 + $0 } }))
        #expect(try changed { $0.c[20, 1] = .nan } == Set((0..<24).map { 20 * 48 + $0 }))
    }
}
