import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Layers with picked channels against sums in `Double`.
@Suite("Sparse linear layer")
struct SparseLinearTests {
    /// Both sides and both directions.
    private func forEachUse(_ body: (SparseLinear.Side, Bool) throws -> Void) rethrows {
        for side in SparseLinear.Side.allCases { for isGradient in [false, true] { try body(side, isGradient) } }
    }

    @Test("types, shapes and subsets agree with Double, both directions and sides", arguments: InstructionSet.available)
    func shapes(_ set: InstructionSet) throws {
        for (index, (rows, channels, depth, picked)) in [
            (1, 1, 1, 1), (1, 40, 37, 11), (2, 33, 130, 17), (3, 7, 15, 3), (5, 64, 16, 33), (4, 50, 64, 49), (6, 9, 300, 5),
            (16, 21, 35, 8),
            (17, 97, 49, 50), (19, 260, 13, 197), (40, 12, 250, 7),
        ].enumerated() {
            try forEachUse { side, isGradient in
                let (hasBias, gap) = (index % 2 == 0 && !isGradient, index % 3)
                try SparseLinearProblem<Float>(
                    side, isGradient: isGradient, channels: channels, depth: depth, picked: picked, rows: rows, hasBias: hasBias
                ).expectMatch(set, gap: gap)
                try SparseLinearProblem<BFloat16>(
                    side, isGradient: isGradient, channels: channels, depth: depth, picked: picked, rows: rows,
                    hasBias: !hasBias
                ).expectMatch(set, gap: gap)
                try SparseLinearProblem<Float16>(
                    side, isGradient: isGradient, channels: channels, depth: depth, picked: picked, rows: rows, hasBias: hasBias
                ).expectMatch(set, gap: gap)
            }
        }
    }

    @Test("weights of 8 bits agree with what their codes stand for", arguments: InstructionSet.available)
    func float8(_ set: InstructionSet) throws {
        for (rows, channels, depth, picked) in [(1, 50, 37, 21), (3, 20, 70, 7), (20, 61, 35, 33)] {
            try forEachUse { side, isGradient in
                let problem = try SparseLinearProblem<Float>(
                    side, isGradient: isGradient, channels: channels, depth: depth, picked: picked, rows: rows, hasBias: true)
                try expectMatch(problem, Float8Tensor<E4M3>(problem.weight), set)
                try expectMatch(problem, Float8Tensor<E5M2>(problem.weight), set)
            }
        }
        var codes = try Float8Tensor<E5M2>(Tensor<Float>.normal([3, 4], seed: 1)).codes
        codes[flat: 5] = E5M2(bitPattern: 0x7c)
        expectError(.invalidArgument, "weight", containing: "element 5") {
            _ = try SparseLinear(weight: Float8Tensor(codes: codes, scale: 1), picking: .outputs)
        }
    }

    private func expectMatch<Code: Float8>(
        _ problem: SparseLinearProblem<Float>, _ weight: Float8Tensor<Code>, _ set: InstructionSet
    ) throws {
        let layer = try SparseLinear(weight: weight, picking: problem.side, bias: problem.bias, instructionSet: set)
        var exact = problem
        exact.weight = try weight.dequantized()
        for accumulates in [false, true] {
            let result = try #require(try problem.run(layer, accumulates: accumulates))
            // The reference rounds each weight, and the layer each sum, to 1 / scale.
            let worst = exact.expected(accumulates: accumulates).worst(result)
            #expect(worst <= 1, "\(set), \(Code.name), \(problem.label): \(worst) of the bound")
        }
    }

    @Test("no subset and a subset of all channels are the dense layer, with the same bits", arguments: InstructionSet.available)
    func allChannels(_ set: InstructionSet) throws {
        for rows in [1, 3, 30] {
            try forEachUse { side, isGradient in
                let dense = try SparseLinearProblem<Float16>(
                    side, isGradient: isGradient, channels: 41, depth: 29, picked: nil, rows: rows)
                try dense.expectMatch(set, gap: 0)
                let all = try SparseLinearProblem<Float16>(
                    side, isGradient: isGradient, channels: 41, depth: 29, picked: 41, rows: rows)
                #expect(
                    try dense.run(dense.layer(set))?.map(\.bitPattern) == all.run(all.layer(set))?.map(\.bitPattern),
                    "\(set), \(all.label)")
            }
        }
    }

    @Test("an empty subset gives no columns, the bias, zeros, or what was there", arguments: InstructionSet.available)
    func emptySubset(_ set: InstructionSet) throws {
        for rows in [0, 1, 20] {
            try forEachUse { side, isGradient in
                for hasBias in [false, true] {
                    let problem = try SparseLinearProblem<Float>(
                        side, isGradient: isGradient, channels: 9, depth: 5, picked: 0, rows: rows, hasBias: hasBias)
                    let layer = try problem.layer(set)
                    let start = problem.start
                    let bias = isGradient ? nil : problem.bias
                    let added = (0..<start.count).map { bias?[flat: $0 % 5] ?? 0 }
                    #expect(try problem.run(layer) == added, "\(set), \(problem.label)")
                    #expect(
                        try problem.run(layer, accumulates: true) == zip(start, added).map { $0 + $1 },
                        "\(set), \(problem.label)")
                }
            }
        }
    }

    @Test("no tokens are no work")
    func noTokens() throws {
        try forEachUse { side, isGradient in
            let problem = try SparseLinearProblem<Float>(
                side, isGradient: isGradient, channels: 9, depth: 5, picked: 4, rows: 0)
            #expect(try problem.run(problem.layer(.portable)) == [])
        }
    }

    @Test("results have the same bits on 1, 2 and 7 threads", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let pools = [2, 7].map { WorkerPool(threads: $0) }
        for rows in [1, 4, 70] {
            try forEachUse { side, isGradient in
                let problem = try SparseLinearProblem<BFloat16>(
                    side, isGradient: isGradient, channels: 700, depth: 300, picked: 330, rows: rows)
                let layer = try problem.layer(set)
                let serial = try problem.run(layer)?.map(\.bitPattern)
                for pool in pools {
                    #expect(
                        try problem.run(layer, on: pool)?.map(\.bitPattern) == serial,
                        "\(problem.label), \(pool.threads) threads")
                }
            }
        }
    }

    @Test("few rows times long lists, which are summed in parts, agree with Double", arguments: InstructionSet.available)
    func longLists(_ set: InstructionSet) throws {
        let pool = WorkerPool(threads: 3)
        for rows in [1, 5] {
            for (side, isGradient) in [(SparseLinear.Side.inputs, false), (.outputs, true)] {
                for picked in [173, nil] {
                    let problem = try SparseLinearProblem<Float>(
                        side, isGradient: isGradient, channels: 330, depth: 1024, picked: picked, rows: rows,
                        hasBias: !isGradient)
                    try problem.expectMatch(set, gap: 1)
                    let layer = try problem.layer(set)
                    #expect(
                        try problem.run(layer, on: pool)?.map(\.bitPattern) == problem.run(layer)?.map(\.bitPattern),
                        "\(set), \(problem.label)")
                }
            }
        }
    }

    @Test("NaN in channels that are not picked changes nothing", arguments: InstructionSet.available)
    func unpickedChannelsAreNotRead(_ set: InstructionSet) throws {
        for rows in [1, 2, 24] {
            try forEachUse { side, isGradient in
                let problem = try SparseLinearProblem<Float>(
                    side, isGradient: isGradient, channels: 30, depth: 20, picked: 11, rows: rows)
                let kept = Set(problem.list)
                let spoiled = try Tensor<Float>(problem.weight.shape) { index in
                    let channel = side == .outputs ? index / 20 : index % 30
                    return kept.contains(channel) ? problem.weight[flat: index] : .nan
                }
                let layer = try SparseLinear(weight: spoiled, picking: side, instructionSet: set)
                #expect(
                    try problem.run(layer)?.map(\.bitPattern) == problem.run(problem.layer(set))?.map(\.bitPattern),
                    "\(set), \(problem.label)")
            }
        }
    }

    @Test("a NaN spoils its own row and nothing else", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        for rows in [3, 30] {
            try forEachUse { side, isGradient in
                var problem = try SparseLinearProblem<Float16>(
                    side, isGradient: isGradient, channels: 50, depth: 33, picked: 21, rows: rows)
                let layer = try problem.layer(set)
                let clean = try #require(try problem.run(layer))
                problem.operand[problem.operandColumns + 5] = .nan
                let result = try #require(try problem.run(layer))
                let columns = problem.resultColumns
                for index in result.indices {
                    #expect(
                        index / columns == 1 ? result[index].isNaN : result[index].bitPattern == clean[index].bitPattern,
                        "\(set), \(problem.label), element \(index)")
                }
            }
        }
    }

    @Test("operands that disagree are refused with both numbers, and nothing is written")
    func errors() throws {
        let weight = try Tensor<Float>.normal([6, 4], seed: 1)
        let layer = try SparseLinear(weight: weight, picking: .outputs)
        let subset = try ChannelSubset([1, 4], of: 6)
        let x = try Tensor<Float>.normal([3, 4], seed: 2)
        var y = try Tensor<Float>([3, 3]) { _ in 5 }
        expectError(.invalidShape, "y", containing: ["3 × 2", "3 × 3"]) {
            try layer.run(x: x.matrixView(), channels: subset, y: y.mutableMatrixView())
        }
        expectError(.invalidShape, "x", containing: ["4 columns", "got 3"]) {
            let narrow = try Tensor<Float>.normal([3, 3], seed: 2)
            try layer.run(x: narrow.matrixView(), channels: subset, y: y.mutableMatrixView())
        }
        expectError(.invalidShape, "channels", containing: ["subset of 6", "of 4"]) {
            try layer.run(x: x.matrixView(), channels: ChannelSubset([1], of: 4), y: y.mutableMatrixView())
        }
        expectError(.invalidShape, "dy", containing: ["2 columns", "got 4"]) {
            try layer.inputGradient(x.matrixView(), channels: subset, into: y.mutableMatrixView())
        }
        expectError(.invalidShape, "dx", containing: ["3 × 4", "3 × 3"]) {
            let dy = try Tensor<Float>.normal([3, 2], seed: 2)
            try layer.inputGradient(dy.matrixView(), channels: subset, into: y.mutableMatrixView())
        }
        #expect(y.elements == Array(repeating: 5, count: 9))
        expectError(.invalidShape, "weight", containing: ["[outFeatures, inFeatures]", "[0, 4]"]) {
            _ = try SparseLinear(weight: Tensor<Float>(zeros: [0, 4]), picking: .outputs)
        }
        expectError(.invalidShape, "bias", containing: ["[6]", "[4]"]) {
            _ = try SparseLinear(weight: weight, picking: .inputs, bias: Tensor<Float>(zeros: [4]))
        }
        expectError(.invalidArgument, "bias", containing: "inf") {
            _ = try SparseLinear(weight: weight, picking: .inputs, bias: Tensor<Float>([6]) { _ in .infinity })
        }
    }
}
