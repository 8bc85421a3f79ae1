import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("States of recurrent layers, packed sequences")
struct RecurrentStatesTests {
    @Test("states are zero at first, and keep what was set, in their format")
    func roundTrip() throws {
        for format in RecurrentStates.Format.allCases {
            let states = try RecurrentStates(slots: 3, heads: 2, rows: 5, columns: 7, format: format)
            #expect(states.bytesPerSlot == 70 * format.byteCount && states.byteCount == 3 * states.bytesPerSlot)
            let state = try Tensor<Float>.normal([2, 5, 7], seed: 1)
            try states.setState(state, of: 1)
            let expected = format == .float32 ? state.elements : state.elements.map { BFloat16($0).floatValue }
            #expect(try states.state(of: 1).elements == expected)
            for slot in [0, 2] { #expect(try states.state(of: slot).elements.allSatisfy { $0 == 0 }, "a neighbour changed") }
            try states.copy(from: 1, to: 2)
            try states.copy(from: 1, to: 1)
            try states.reset(1)
            #expect(try states.state(of: 2).elements == expected)
            #expect(try states.state(of: 1).elements.allSatisfy { $0 == 0 })
        }
    }

    @Test("what is not finite stays so")
    func special() throws {
        for format in RecurrentStates.Format.allCases {
            let states = try RecurrentStates(slots: 1, heads: 1, rows: 1, columns: 4, format: format)
            try states.setState(Tensor([1, 1, 4], [.nan, .infinity, -.infinity, -0.0]), of: 0)
            let state = try states.state(of: 0)
            #expect(state[flat: 0].isNaN && state[flat: 1] == .infinity && state[flat: 2] == -.infinity)
            #expect(state[flat: 3].bitPattern == Float(-0.0).bitPattern)
        }
    }

    @Test("states without rows or slots are legitimate")
    func empty() throws {
        let narrow = try RecurrentStates(slots: 2, heads: 1, rows: 0, columns: 8)
        #expect(narrow.byteCount == 0)
        try narrow.reset(1)
        try narrow.copy(from: 0, to: 1)
        #expect(try narrow.state(of: 0).shape == [1, 0, 8])
        let none = try RecurrentStates(slots: 0, heads: 1, rows: 3, columns: 8)
        #expect(none.byteCount == 0)
        expectError(.invalidArgument, "slot", containing: "no slot", "0") { try none.reset(0) }
    }

    @Test("errors name the argument and both numbers, and nothing is written")
    func errors() throws {
        expectError(.invalidShape, "slots", containing: "-1") {
            _ = try RecurrentStates(slots: -1, heads: 1, rows: 1, columns: 1)
        }
        expectError(.invalidShape, "heads", containing: "at least 1", "0") {
            _ = try RecurrentStates(slots: 1, heads: 0, rows: 1, columns: 1)
        }
        expectError(.invalidShape, "rows", containing: "-3") {
            _ = try RecurrentStates(slots: 1, heads: 1, rows: -3, columns: 1)
        }
        expectError(.invalidShape, "columns", containing: "0") {
            _ = try RecurrentStates(slots: 1, heads: 1, rows: 1, columns: 0)
        }
        #expect(throws: SparseKernelsError.self) {
            _ = try RecurrentStates(slots: 1 << 40, heads: 1 << 20, rows: 1 << 20, columns: 8)
        }
        let states = try RecurrentStates(slots: 2, heads: 1, rows: 2, columns: 3)
        let state = try Tensor<Float>.normal([1, 2, 3], seed: 1)
        try states.setState(state, of: 1)
        expectError(.invalidArgument, "slot", containing: "0 to 1", "2") { try states.reset(2) }
        expectError(.invalidArgument, "slot", containing: "-1") { _ = try states.state(of: -1) }
        expectError(.invalidArgument, "source", containing: "2") { try states.copy(from: 2, to: 1) }
        expectError(.invalidArgument, "target", containing: "7") { try states.copy(from: 1, to: 7) }
        expectError(.invalidShape, "state", containing: "[1, 2, 3]", "[1, 3, 2]") {
            try states.setState(Tensor(zeros: [1, 3, 2]), of: 1)
        }
        #expect(try states.state(of: 1) == state)
    }

    @Test("a packed batch knows its tokens and slots")
    func batches() throws {
        let batch = try PackedSequences(lengths: [5, 0, 2], slots: [4, 1, 0])
        #expect(batch.tokenCount == 7 && batch.slots == [4, 1, 0])
        #expect(try PackedSequences(lengths: [1, 1]).slots == [0, 1])
        #expect(try PackedSequences(stepOf: [3, 0]) == PackedSequences(lengths: [1, 1], slots: [3, 0]))
        #expect(try PackedSequences(lengths: []).tokenCount == 0)
        expectError(.invalidShape, "slots", containing: "2", "1") { _ = try PackedSequences(lengths: [1, 1], slots: [0]) }
        expectError(.invalidArgument, "lengths[1]", containing: "-1") { _ = try PackedSequences(lengths: [1, -1]) }
        expectError(.invalidArgument, "lengths[1]", containing: "2⁶³") { _ = try PackedSequences(lengths: [.max, 1]) }
        expectError(.invalidArgument, "slots[1]", containing: "2") { _ = try PackedSequences(stepOf: [2, 2]) }
        expectError(.invalidArgument, "slots[0]", containing: "-2") { _ = try PackedSequences(stepOf: [-2]) }
    }
}
