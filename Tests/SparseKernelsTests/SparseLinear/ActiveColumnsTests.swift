import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Active columns, and activations with a threshold")
struct ActiveColumnsTests {
    /// Normal numbers, most of them 0.
    private func sparse(_ rows: Int, _ columns: Int, seed: UInt64) throws -> Tensor<Float> {
        let normal = try Tensor<Float>.normal([rows, columns], seed: seed)
        return try Tensor([rows, columns]) { abs(normal[flat: $0]) < 1.2 ? ($0 % 3 == 0 ? -0.0 : 0) : normal[flat: $0] }
    }

    @Test("the list has the columns that are not 0 in some row", arguments: InstructionSet.available)
    func lists(_ set: InstructionSet) throws {
        let active = try ActiveColumns(instructionSet: set)
        var channels = ChannelSubset(all: 3)
        for (rows, columns) in [(0, 5), (3, 0), (1, 1), (1, 16), (2, 31), (5, 129), (1, 1000), (9, 70)] {
            let x = try sparse(rows, columns, seed: UInt64(columns + 1))
            let expected = (0..<columns).filter { column in (0..<rows).contains { x[$0, column] != 0 } }
            try active.list(x.matrixView(), into: &channels)
            #expect(channels.indices.map { Int($0) } == expected && channels.width == columns, "\(set), \(rows) × \(columns)")
            // Rows apart, with other numbers between.
            let stride = columns + 3
            let wide = try Tensor([max(rows, 1), stride]) {
                $0 % stride < columns && $0 / stride < rows ? x[$0 / stride, $0 % stride] : 9
            }
            try active.list(MatrixView(wide.span, rows: rows, columns: columns, rowStride: stride), into: &channels)
            #expect(channels.indices.map { Int($0) } == expected)
        }
    }

    @Test("NaN, infinities and the smallest numbers are not 0", arguments: InstructionSet.available)
    func extremes(_ set: InstructionSet) throws {
        let values: [Float] = [0, .nan, 0, -.infinity, -0.0, .leastNonzeroMagnitude, -.nan]
        for offset in [0, 11] {
            let x = try Tensor([1, offset + values.count]) { $0 < offset ? 0 : values[$0 - offset] }
            var channels = ChannelSubset(all: 0)
            try ActiveColumns(instructionSet: set).list(x.matrixView(), into: &channels)
            #expect(channels.indices.map { Int($0) - offset } == [1, 3, 5, 6])
        }
    }

    @Test("gates multiply their columns, and 0 gives 0 whatever it meets", arguments: InstructionSet.available)
    func gates(_ set: InstructionSet) throws {
        let active = try ActiveColumns(instructionSet: set)
        for (rows, columns) in [(1, 40), (3, 17), (700, 90)] {
            let gate = try sparse(rows, columns, seed: 5)
            let channels = try ChannelSubset((0..<Int32(columns)).filter { $0 % 3 != 1 }, of: columns)
            let count = channels.count
            let y = try Tensor<Float>.normal([rows, count], seed: 6)
            let dirty = try Tensor([rows, count]) { index in
                let isOff = gate[index / count, Int(channels.indices[index % count])] == 0
                return isOff ? (index % 2 == 0 ? .infinity : .nan) : y[flat: index]
            }
            for threads in [1, 7] {
                var result = dirty
                try active.gate(
                    result.mutableMatrixView(), by: gate.matrixView(), channels, on: WorkerPool(threads: threads))
                let isRight = (0..<rows * count).allSatisfy { index in
                    let factor = gate[index / count, Int(channels.indices[index % count])]
                    return result[flat: index] == (factor == 0 ? 0 : factor * y[flat: index])
                }
                #expect(isRight, "\(set), \(rows) × \(columns), \(threads) threads")
            }
        }
        let gate = try sparse(2, 5, seed: 1)
        var y = try Tensor([2, 3]) { _ in Float(7) }
        expectError(.invalidShape, "gate", containing: "4 columns", "5") {
            try active.gate(y.mutableMatrixView(), by: gate.matrixView(), ChannelSubset(all: 4))
        }
        expectError(.invalidShape, "y", containing: "2 × 5", "2 × 3") {
            try active.gate(y.mutableMatrixView(), by: gate.matrixView(), ChannelSubset(all: 5))
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
    }

    @Test("nothing is read or written past the operands")
    func borders() async {
        await #expect(processExitsWith: .success) {
            for set in InstructionSet.available {
                let active = try ActiveColumns(instructionSet: set)
                for columns in [1, 15, 16, 17, 33] {
                    for fencesEnd in [false, true] {
                        let x = FencedMemory((0..<2 * columns).map { Float($0 % 3) }, fencesEnd: fencesEnd)
                        let rows = try MatrixView(
                            x.elements.span, rows: 2, columns: columns, named: "x")
                        var channels = ChannelSubset(all: 0)
                        try active.list(rows, into: &channels, on: .serial)
                        let y = FencedMemory([Float](repeating: 1, count: 2 * channels.count), fencesEnd: fencesEnd)
                        try active.gate(
                            MutableMatrixView(y.elements.mutableSpan, rows: 2, columns: channels.count), by: rows, channels,
                            on: .serial)
                        withExtendedLifetime((x, y)) {}
                    }
                }
            }
        }
    }

    @Test("activations of at most the threshold become 0, with and without up", arguments: InstructionSet.available)
    func thresholds(_ set: InstructionSet) throws {
        for function in GatedActivation.Function.allCases {
            for columns in [1, 15, 16, 37] {
                var gate = try Tensor<Float>.normal([3, columns], seed: 1, scale: 2)
                gate[1, 0] = .nan
                let up = try Tensor<Float>.normal([3, columns], seed: 2)
                let plain = try GatedActivation(function, instructionSet: set)
                let cut = try GatedActivation(function, threshold: 0.3, instructionSet: set)
                var (a, b) = (gate, gate)
                try plain.run(gate.matrixView(), into: a.mutableMatrixView())
                try cut.run(gate.matrixView(), into: b.mutableMatrixView())
                var (c, d) = (gate, gate)
                try plain.run(gate: gate.matrixView(), up: up.matrixView(), into: c.mutableMatrixView())
                // What meets a small activation does not matter.
                let dirty = try Tensor([3, columns]) { abs(a[flat: $0]) <= 0.3 ? .nan : up[flat: $0] }
                try cut.run(gate: gate.matrixView(), up: dirty.matrixView(), into: d.mutableMatrixView())
                for index in 0..<3 * columns {
                    let isSmall = abs(a[flat: index]) <= 0.3
                    #expect(b[flat: index].bitPattern == (isSmall ? 0 : a[flat: index].bitPattern), "\(set), \(function)")
                    #expect(d[flat: index].bitPattern == (isSmall ? 0 : c[flat: index].bitPattern), "\(set), \(function)")
                }
                #expect(b[1, 0].isNaN && d[1, 0].isNaN)
            }
        }
        for threshold: Float in [-1, .nan, .infinity] {
            expectError(.invalidArgument, "threshold", containing: "\(threshold)") {
                _ = try GatedActivation(.silu, threshold: threshold)
            }
        }
    }
}
