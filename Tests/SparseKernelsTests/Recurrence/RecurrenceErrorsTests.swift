import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Errors of recurrences, with both numbers, and operands without elements.
@Suite("Linear recurrences: errors")
struct RecurrenceErrorsTests {
    private static func shape() throws -> RecurrenceShape {
        try RecurrenceShape(keyHeads: 2, valueHeads: 4, keyDim: 8, valueDim: 6)
    }

    @Test("shapes")
    func shapes() {
        expectError(.invalidShape, "keyHeads", containing: "at least 1", "0") {
            _ = try RecurrenceShape(keyHeads: 0, valueHeads: 4, keyDim: 8, valueDim: 6)
        }
        expectError(.invalidShape, "valueHeads", containing: "multiple of keyHeads (3)", "4") {
            _ = try RecurrenceShape(keyHeads: 3, valueHeads: 4, keyDim: 8, valueDim: 6)
        }
        expectError(.invalidShape, "keyDim", containing: "at most 256", "257") {
            _ = try RecurrenceShape(keyHeads: 1, valueHeads: 4, keyDim: 257, valueDim: 6)
        }
        expectError(.invalidShape, "valueDim", containing: "at most 256", "\(Int.max)") {
            _ = try RecurrenceShape(keyHeads: 1, valueHeads: 4, keyDim: 8, valueDim: .max)
        }
    }

    @Test("plans")
    func plans() throws {
        let shape = try Self.shape()
        expectError(.invalidShape, "decay", containing: "4, one per value head", "2") {
            _ = try LinearRecurrence(shape, decay: .perHead([0, 0]))
        }
        for (index, bad) in [Float.nan, 0.5].enumerated() {
            expectError(.invalidArgument, "decay[\(index)]", containing: "0 or less", "\(bad)") {
                var decays: [Float] = [-1, -.infinity, 0, 0]
                decays[index] = bad
                _ = try LinearRecurrence(shape, decay: .perHead(decays))
            }
        }
        expectError(.invalidArgument, "scale", containing: "finite", "inf") {
            _ = try LinearRecurrence(shape, decay: .perToken, scale: .infinity)
        }
        for chunk in [0, 257, -1] {
            expectError(.invalidArgument, "form", containing: "1 to 256", "\(chunk)") {
                _ = try LinearRecurrence(shape, decay: .perToken, form: .chunked(chunk))
            }
        }
        expectError(.invalidArgument, "layer", containing: "0 to 11", "12") {
            _ = try LinearRecurrence.lightningDecays(heads: 4, layer: 12, layers: 12)
        }
        func ssd(
            heads: Int = 4, groups: Int = 2, aLog: Tensor<Float>? = nil, dtBias: Tensor<Float>? = nil,
            limits: ClosedRange<Float> = 0...1
        ) throws {
            _ = try StateSpaceDuality(
                heads: heads, headDim: 6, stateSize: 8, groups: groups, aLog: aLog ?? Tensor(zeros: [4]), dtBias: dtBias,
                dtLimits: limits)
        }
        expectError(.invalidShape, "heads", containing: "multiple of groups (3)", "4") { try ssd(groups: 3) }
        expectError(.invalidShape, "groups", containing: "at least 1", "0") { try ssd(groups: 0) }
        expectError(.invalidShape, "aLog", containing: "[4]", "[3]") { try ssd(aLog: Tensor(zeros: [3])) }
        expectError(.invalidArgument, "dtBias", containing: "finite", "nan") {
            try ssd(dtBias: Tensor([4], [0, .nan, 0, 0]))
        }
        expectError(.invalidArgument, "dtLimits", containing: "0 or more", "-1") { try ssd(limits: -1...1) }
    }

    @Test("operands that disagree leave outputs and states as they are")
    func operands() throws {
        let shape = try Self.shape()
        let perToken = try LinearRecurrence(shape, decay: .perToken)
        let states = try RecurrentStates(slots: 2, shape: shape)
        let state = try Tensor<Float>.normal([4, 8, 6], seed: 1)
        try states.setState(state, of: 0)
        let (query, value) = (try Tensor<Float>.normal([2, 5, 8], seed: 2), try Tensor<Float>.normal([4, 5, 6], seed: 3))
        let decays = try Tensor<Float>(zeros: [5, 4])
        var output = try Tensor<Float>([4, 5, 6]) { _ in 7 }
        func run(
            _ plan: LinearRecurrence, query: Tensor<Float>, value: Tensor<Float>, decays: Tensor<Float>,
            lengths: [Int] = [5], slots: [Int]? = nil, states: RecurrentStates
        ) throws {
            try plan.run(
                query: query, key: query, value: value, logDecay: decays, into: &output,
                batch: PackedSequences(lengths: lengths, slots: slots), states: states)
        }
        expectError(.invalidShape, "query", containing: "4 tokens", "5") {
            try run(perToken, query: query, value: value, decays: decays, lengths: [4], states: states)
        }
        expectError(.invalidArgument, "slots[0]", containing: "0 to 1", "2") {
            try run(perToken, query: query, value: value, decays: decays, slots: [2], states: states)
        }
        expectError(.invalidShape, "value", containing: "4 heads × 5 tokens × 6", "2 × 5 × 8") {
            try run(perToken, query: query, value: query, decays: decays, states: states)
        }
        expectError(.invalidShape, "logDecay", containing: "5 × 4", "4 × 5") {
            try run(perToken, query: query, value: value, decays: Tensor(zeros: [4, 5]), states: states)
        }
        let others = try RecurrentStates(slots: 1, heads: 4, rows: 6, columns: 8)
        expectError(.invalidShape, "states", containing: "4 × 8 × 6", "4 × 6 × 8") {
            try run(perToken, query: query, value: value, decays: decays, states: others)
        }
        let perChannel = try LinearRecurrence(shape, decay: .perChannel)
        expectError(.invalidShape, "logDecay", containing: "4 heads × 5 tokens × 8", "4 × 5 × 6") {
            try run(perChannel, query: query, value: value, decays: value, states: states)
        }
        let perHead = try LinearRecurrence(shape, decay: .perHead([0, 0, 0, 0]))
        expectError(.invalidArgument, "logDecay", containing: "no operand", "matrix") {
            try run(perHead, query: query, value: value, decays: decays, states: states)
        }
        expectError(.invalidArgument, "logDecay", containing: "matrix [tokens, valueHeads]", "no operand") {
            try perToken.run(
                query: query, key: query, value: value, into: &output, batch: PackedSequences(lengths: [5]), states: states)
        }
        #expect(output.elements.allSatisfy { $0 == 7 })
        #expect(try states.state(of: 0) == state)
    }

    @Test("no tokens, no sequences", arguments: InstructionSet.available)
    func empty(_ set: InstructionSet) throws {
        let shape = try Self.shape()
        let plan = try LinearRecurrence(shape, decay: .perHead([0, -1, -2, -.infinity]), instructionSet: set)
        let states = try RecurrentStates(slots: 1, shape: shape)
        let state = try Tensor<Float>.normal([4, 8, 6], seed: 1)
        try states.setState(state, of: 0)
        let (query, value) = (try Tensor<Float>(zeros: [2, 0, 8]), try Tensor<Float>(zeros: [4, 0, 6]))
        var output = value
        for lengths in [[], [0]] {
            try plan.run(
                query: query, key: query, value: value, into: &output, batch: PackedSequences(lengths: lengths),
                states: states)
        }
        #expect(try states.state(of: 0) == state)
    }

    @Test("decays of Lightning attention")
    func lightning() throws {
        #expect(try LinearRecurrence.lightningDecays(heads: 4, layer: 0, layers: 2) == [0, -2, -4, -6])
        #expect(try LinearRecurrence.lightningDecays(heads: 4, layer: 1, layers: 2) == [0, -1, -2, -3])
    }
}

#if os(Linux) && canImport(Glibc)
    @Suite("Allocations of linear recurrences")
    struct RecurrenceAllocationTests {
        @Test("recurrences allocate nothing after the first calls")
        func recurrences() async {
            await #expect(processExitsWith: .success) {
                let shape = try RecurrenceShape(keyHeads: 2, valueHeads: 6, keyDim: 20, valueDim: 24)
                let query = try Tensor<Float>.normal([2, 41, 20], seed: 1)
                let value = try Tensor<Float>.normal([6, 41, 24], seed: 2)
                let channels = try Tensor<Float>([2, 41, 20]) { _ in -0.1 }
                let rows = try Tensor<Float>.normal([41, 6], seed: 3)
                let states = try RecurrentStates(slots: 2, shape: shape)
                let batch = try PackedSequences(lengths: [40, 1])
                var output = try Tensor<Float>(zeros: value.shape)
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let perChannel = try LinearRecurrence(shape, decay: .perChannel, instructionSet: set)
                        let ssd = try StateSpaceDuality(
                            heads: 6, headDim: 24, stateSize: 20, groups: 2, aLog: Tensor(zeros: [6]), instructionSet: set)
                        AllocationTests.warmUp(
                            pool, scratchByteCount: max(perChannel.scratchByteCount, ssd.scratchByteCount))
                        var allocated = 0
                        for call in 0..<12 {
                            let (q, v) = (try query.view(), try value.view())
                            let (logs, dt) = (try channels.view(), try rows.matrixView())
                            do {
                                let y = try output.mutableView()
                                let before = AllocationCounter.count
                                try perChannel.run(
                                    query: q, key: q, value: v, logDecay: logs, into: y, batch: batch, states: states, on: pool)
                                if call >= 2 { allocated += AllocationCounter.count - before }
                            }
                            do {
                                let y = try output.mutableView()
                                let before = AllocationCounter.count
                                try ssd.run(x: v, b: q, c: q, dt: dt, into: y, batch: batch, states: states, on: pool)
                                if call >= 2 { allocated += AllocationCounter.count - before }
                            }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }
    }
#endif
