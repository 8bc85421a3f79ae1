import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Operands of the selective scan")
struct SelectiveScanOperandTests {
    @Test("rows are slices of wider rows, and what lies between them stays", arguments: InstructionSet.available)
    func strides(_ set: InstructionSet) throws {
        let narrow = try ScanCase<Float>(set, channels: 37, stateSize: 6, lengths: [20, 1, 5])
        func widened(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            let columns = tensor.shape[1]
            return try Tensor([26, columns + 11]) { index in
                let column = index % (columns + 11)
                return column >= 5 && column < columns + 5 ? tensor[index / (columns + 11), column - 5] : .nan
            }
        }
        let (x, delta, b, c, z) = (
            try widened(narrow.x), try widened(narrow.delta), try widened(narrow.b), try widened(narrow.c),
            try widened(narrow.z!)
        )
        for direction in RecurrenceDirection.allCases {
            let expected = try narrow.run(narrow.makeStates(), direction)
            var y = try Tensor<Float>([26, 45]) { _ in 7 }
            try narrow.scan.run(
                x: MatrixView(x.span.extracting(5...), rows: 26, columns: 37, rowStride: 48),
                delta: MatrixView(delta.span.extracting(5...), rows: 26, columns: 37, rowStride: 48),
                b: MatrixView(b.span.extracting(5...), rows: 26, columns: 6, rowStride: 17),
                c: MatrixView(c.span.extracting(5...), rows: 26, columns: 6, rowStride: 17),
                gate: MatrixView(z.span.extracting(5...), rows: 26, columns: 37, rowStride: 48),
                into: MutableMatrixView(y.mutableSpan, rows: 26, columns: 37, rowStride: 45), direction: direction,
                batch: narrow.batch, states: narrow.makeStates())
            for row in 0..<26 {
                #expect((0..<37).allSatisfy { y[row, $0] == expected[row, $0] } && (37..<45).allSatisfy { y[row, $0] == 7 })
            }
        }
    }

    @Test("the result may take the place of x, delta or z", arguments: InstructionSet.available)
    func aliases(_ set: InstructionSet) throws {
        let scanCase = try ScanCase<Float>(set, channels: 37, stateSize: 6, lengths: [20, 1])
        let expected = try scanCase.run(scanCase.makeStates()).elements
        for alias in 0..<3 {
            let memory = [scanCase.x, scanCase.delta, scanCase.z!].map { FencedMemory($0.elements, fencesEnd: true) }
            try scanCase.scan.run(
                x: MatrixView(memory[0].elements.span, rows: 21, columns: 37),
                delta: MatrixView(memory[1].elements.span, rows: 21, columns: 37), b: scanCase.b.matrixView(),
                c: scanCase.c.matrixView(), gate: MatrixView(memory[2].elements.span, rows: 21, columns: 37),
                into: MutableMatrixView(memory[alias].elements.mutableSpan, rows: 21, columns: 37), batch: scanCase.batch,
                states: scanCase.makeStates())
            #expect(Array(memory[alias].elements) == expected, "\(set), operand \(alias)")
        }
    }

    @Test("nothing is read or written beyond the operands", arguments: InstructionSet.available)
    func fences(_ set: InstructionSet) throws {
        for (channels, stateSize) in [(5, 3), (17, 4)] {
            let scan = try SelectiveScan(a: Tensor([channels, stateSize]) { _ in -1 }, instructionSet: set)
            for fencesEnd in [true, false] {
                for length in [1, 2, 19] {
                    func memory(_ columns: Int) -> FencedMemory<Float> {
                        FencedMemory(Array(repeating: 1, count: length * columns), fencesEnd: fencesEnd)
                    }
                    let (x, delta, b, c, z, y) = (
                        memory(channels), memory(channels), memory(stateSize), memory(stateSize), memory(channels),
                        memory(channels)
                    )
                    for direction in RecurrenceDirection.allCases {
                        try scan.run(
                            x: MatrixView(x.elements.span, rows: length, columns: channels),
                            delta: MatrixView(delta.elements.span, rows: length, columns: channels),
                            b: MatrixView(b.elements.span, rows: length, columns: stateSize),
                            c: MatrixView(c.elements.span, rows: length, columns: stateSize),
                            gate: MatrixView(z.elements.span, rows: length, columns: channels),
                            into: MutableMatrixView(y.elements.mutableSpan, rows: length, columns: channels),
                            direction: direction,
                            batch: PackedSequences(lengths: [length]),
                            states: RecurrentStates(slots: 1, heads: 1, rows: stateSize, columns: channels))
                    }
                }
            }
        }
    }

    @Test("errors of plans name the operand and what came")
    func plans() throws {
        func plan(
            _ a: Tensor<Float>, skip: Tensor<Float>? = nil, bias: Tensor<Float>? = nil, groups: Int = 1
        ) throws { _ = try SelectiveScan(a: a, skip: skip, deltaBias: bias, groups: groups) }
        let a = try Tensor<Float>([6, 2]) { _ in -1 }
        expectError(.invalidShape, "a", containing: "[4]") { try plan(.init(zeros: [4])) }
        expectError(.invalidShape, "a", containing: "[0, 4]") { try plan(.init(zeros: [0, 4])) }
        expectError(.invalidShape, "a", containing: "[4, 0]") { try plan(.init(zeros: [4, 0])) }
        expectError(.invalidArgument, "a[1, 0]", containing: "0 or less", "0.5") { try plan(Tensor([2, 1], [-1, 0.5])) }
        expectError(.invalidArgument, "a", containing: "nan") { try plan(Tensor([2, 1], [-1, .nan])) }
        expectError(.invalidArgument, "aLog", containing: "inf") { _ = try SelectiveScan(aLog: Tensor([1, 1], [100])) }
        expectError(.invalidShape, "aLog", containing: "[3]") { _ = try SelectiveScan(aLog: .init(zeros: [3])) }
        expectError(.invalidShape, "skip", containing: "[6]", "[5]") { try plan(a, skip: .init(zeros: [5])) }
        expectError(.invalidShape, "deltaBias", containing: "[6]", "[6, 1]") { try plan(a, bias: .init(zeros: [6, 1])) }
        expectError(.invalidShape, "groups", containing: "6", "4") { try plan(a, groups: 4) }
        expectError(.invalidShape, "groups", containing: "6", "0") { try plan(a, groups: 0) }
        expectError(.invalidShape, "fixedC", containing: "[6, 2]", "[2, 6]") {
            _ = try SelectiveScan(a: a, fixedB: a, fixedC: .init(zeros: [2, 6]))
        }
        #expect(try SelectiveScan(aLog: Tensor([1, 2], [0, -1000])).stateSize == 2)
    }

    @Test("errors of calls name the operand and both numbers, and leave outputs and states as they were")
    func calls() throws {
        let a = try Tensor<Float>([6, 2]) { _ in -1 }
        let scan = try SelectiveScan(a: a, groups: 3)
        let states = try RecurrentStates(slots: 2, heads: 1, rows: 2, columns: 6)
        let state = try Tensor<Float>.normal([1, 2, 6], seed: 5)
        try states.setState(state, of: 0)
        func run(
            x: [Int] = [4, 6], delta: [Int] = [4, 6], b: [Int] = [4, 6], c: [Int] = [4, 6], z: [Int] = [4, 6],
            y: [Int] = [4, 6],
            _ batch: PackedSequences? = nil, _ other: RecurrentStates? = nil
        ) throws {
            func zeros(_ shape: [Int]) throws -> Tensor<Float> { try Tensor(zeros: shape) }
            let (x, delta, b, c, z) = (try zeros(x), try zeros(delta), try zeros(b), try zeros(c), try zeros(z))
            var output = try Tensor<Float>(y) { _ in 7 }
            defer { #expect(output.elements.allSatisfy { $0 == 7 }) }
            try scan.run(
                x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(), gate: z.matrixView(),
                into: output.mutableMatrixView(), batch: batch ?? PackedSequences(lengths: [3, 1]), states: other ?? states)
        }
        expectError(.invalidShape, "x", containing: "6", "5") { try run(x: [4, 5]) }
        expectError(.invalidShape, "x", containing: "4 tokens", "5") { try run(x: [5, 6], delta: [5, 6], z: [5, 6]) }
        expectError(.invalidShape, "delta", containing: "4 × 6", "3 × 6") { try run(delta: [3, 6]) }
        expectError(.invalidShape, "b", containing: "4 × 6", "4 × 2") { try run(b: [4, 2]) }
        expectError(.invalidShape, "c", containing: "4 × 6", "4 × 7") { try run(c: [4, 7]) }
        expectError(.invalidShape, "gate", containing: "4 × 6", "1 × 6") { try run(z: [1, 6]) }
        expectError(.invalidShape, "y", containing: "4 × 6", "4 × 5") { try run(y: [4, 5]) }
        expectError(.invalidArgument, "slots[0]", containing: "0 to 1", "2") {
            try run(PackedSequences(lengths: [3, 1], slots: [2, 0]))
        }
        expectError(.invalidShape, "states", containing: "1 × 2 × 6", "1 × 6 × 2") {
            try run(nil, RecurrentStates(slots: 2, heads: 1, rows: 6, columns: 2))
        }
        #expect(try states.state(of: 0) == state)
        // No sequences and no tokens at all.
        let nothing = [0, 6]
        try run(x: nothing, delta: nothing, b: nothing, c: nothing, z: nothing, y: nothing, PackedSequences(lengths: []))
        try run(x: nothing, delta: nothing, b: nothing, c: nothing, z: nothing, y: nothing, PackedSequences(lengths: [0, 0]))
        #expect(try states.state(of: 0) == state)
        let x = try Tensor<Float>(zeros: [4, 6])
        var y = try Tensor<Float>(zeros: [4, 6])
        let batch = try PackedSequences(lengths: [4])
        expectError(.invalidArgument, "b", containing: "none") {
            try scan.run(x: x.matrixView(), delta: x.matrixView(), into: y.mutableMatrixView(), batch: batch, states: states)
        }
        let fixed = try SelectiveScan(a: a, fixedB: a, fixedC: a)
        expectError(.invalidArgument, "b", containing: "fixed", "4 × 6") {
            try fixed.run(
                x: x.matrixView(), delta: x.matrixView(), b: x.matrixView(), c: x.matrixView(), into: y.mutableMatrixView(),
                batch: batch, states: states)
        }
    }
}
