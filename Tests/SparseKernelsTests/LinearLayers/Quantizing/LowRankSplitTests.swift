import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The split into branch and residual: the oracle's loop, recorded loops, and options.
@Suite("Low-rank split")
struct LowRankSplitTests {
    private static func oracle(
        _ split: LowRankSplit, _ layer: OutlierLayer, codes: ClosedRange<Double> = -7...7
    ) throws -> ReferenceSVDQuant.Split {
        let group = split.configuration.weightFormat.groupSize ?? layer.weight.shape[1]
        return ReferenceSVDQuant.split(
            layer.weight.rows, inputs: layer.inputs.rows, rank: split.configuration.rank,
            iterations: split.configuration.iterations, groupSize: group,
            rounding: rounding(to: split.configuration.scaleType)
        ) { ReferenceSVDQuant.roundedActivations($0, groupSize: group, codes: codes) }
    }

    @Test("iterations have the oracle's errors", arguments: [ElementType.float32, .float16, .bfloat16])
    func errors(_ type: ElementType) throws {
        let layer = try OutlierLayer(40, 96, tokens: 30, seed: 3)
        let split = try LowRankSplit(.init(rank: 6, iterations: 5, stopsEarly: true, method: .full, scaleType: type))
        let result = try split(layer.weight, calibration: layer.inputs)
        let expected = try Self.oracle(split, layer)
        #expect(result.errors.count == expected.errors.count)
        // A code at a tie may be rounded the other way in single precision. One of 30 · 96 moves the error by far less than 1%.
        for (error, reference) in zip(result.errors, expected.errors) { #expect(abs(error - reference) <= 0.01 * reference) }
        #expect(result.errors[result.keptIteration] == result.errors.min())
        let product = ReferenceSVDQuant.product(result.up.rows, result.down.rows)
        #expect(relativeDistance(product, ReferenceSVDQuant.product(expected.up, expected.down)) < 0.02)
    }

    @Test("a branch of full rank leaves nothing")
    func fullRank() throws {
        let layer = try OutlierLayer(7, 33, tokens: 9, seed: 4)
        let result = try LowRankSplit(.init(rank: 7, scaleType: .float32))(layer.weight, calibration: layer.inputs)
        let scale = layer.weight.elements.map(abs).max() ?? 0
        // A product of 7 terms in single precision, and factors that are orthogonal to about the same precision.
        #expect(result.residual.elements.allSatisfy { abs($0) <= 64 * 0x1p-24 * 7 * scale })
    }

    @Test("the randomised method is as good as the full one", arguments: [1, 4])
    func randomized(_ iterations: Int) throws {
        let layer = try OutlierLayer(64, 128, tokens: 40, seed: 5)
        let errors = try [SVDMethod.full, .randomized()].map { method in
            let split = try LowRankSplit(.init(rank: 8, iterations: iterations, method: method))
            return try #require(try split(layer.weight, calibration: layer.inputs).errors.min())
        }
        #expect(errors[1] <= 1.05 * errors[0])
    }

    @Test("without early stop all iterations run, and the best is kept")
    func allIterations() throws {
        let layer = try OutlierLayer(32, 64, tokens: 16, seed: 6)
        let split = try LowRankSplit(.init(rank: 4, iterations: 12, stopsEarly: false))
        let result = try split(layer.weight, calibration: layer.inputs)
        #expect(result.errors.count == 12)
        #expect(result.errors[result.keptIteration] == result.errors.min())
        let stopped = try LowRankSplit(.init(rank: 4, iterations: 12))(layer.weight, calibration: layer.inputs)
        #expect(stopped.errors == Array(result.errors.prefix(stopped.errors.count)))
    }

    @Test("compensation starts from the error of plain rounding")
    func compensates() throws {
        let layer = try OutlierLayer(48, 64, tokens: 20, seed: 7)
        let split = try LowRankSplit(.init(rank: 3, compensates: true, scaleType: .float32))
        let result = try split(layer.weight, calibration: layer.inputs)
        let quantized = layer.weight.rows.map { ReferenceSVDQuant.roundedWeights($0, groupSize: 64) }
        let factors = ReferenceSVDQuant.lowRankFactors(ReferenceSVDQuant.difference(layer.weight.rows, quantized), rank: 3)
        for (value, reference) in zip(result.singularValues, factors.singularValues) {
            #expect(abs(Double(value) - reference) <= 0.05 * reference)
        }
    }

    @Test(
        "recorded loops have the recorded errors", .enabled(if: !RecordedSplit.paths.isEmpty, TestData.absence),
        arguments: RecordedSplit.paths)
    func recordedErrors(_ path: String) throws {
        let recorded = try RecordedSplit(path)
        let (parameters, smoothed) = (recorded.parameters, try recorded["out.weight_smoothed"])
        // Full decompositions take most of the time, and an iteration does not depend on how many there are.
        for (method, tolerance, iterations) in [(SVDMethod.full, 0.02, 3), (.randomized(), 0.05, parameters.iterations)] {
            let split = try LowRankSplit(
                .init(
                    rank: parameters.rank, iterations: min(iterations, parameters.iterations), stopsEarly: false,
                    method: method,
                    activation: recorded.activation, scaleType: recorded.type, roundsAsReleased: true))
            let result = try split(smoothed, calibration: recorded["out.x_smoothed"])
            for (error, expected) in zip(result.errors, parameters.errorHistory) {
                #expect(abs(error - expected) <= tolerance * expected)
            }
        }
        let exact = try LowRankFactorization(rank: parameters.rank, method: .full)(smoothed)
        for (value, expected) in zip(exact.singularValues, try recorded["out.singular_values"].elements) {
            #expect(abs(value - expected) <= 1e-5 * expected)
        }
    }

    @Test(
        "recorded factors leave the recorded residual, scales and codes",
        .enabled(if: !RecordedSplit.paths.isEmpty, TestData.absence),
        arguments: RecordedSplit.paths)
    func recordedCodes(_ path: String) throws {
        let recorded = try RecordedSplit(path)
        let split = try LowRankSplit(.init(rank: recorded.parameters.rank, scaleType: recorded.type, roundsAsReleased: true))
        let residual = try split.residual(
            of: recorded["out.weight_smoothed"], down: recorded["out.lora_down"], up: recorded["out.lora_up"])
        let expected = try recorded["out.residual"]
        // The recorded product was summed in another order. Where a sum is at a tie of 16 bits, the last bit differs.
        let different = zip(residual.elements, expected.elements).count { $0 != $1 }
        #expect(different * 1000 <= expected.count)
        let quantized = try WeightQuantizer(.svdQuantInt4, scaleType: recorded.type)(expected)
        #expect(try quantized.scales == recorded["out.residual_scales"])
        let codes: Tensor<Int8> = try recorded.file.tensor("out.residual_codes")
        #expect(try quantized.integers() == codes)
    }

    @Test("results are the same bits on any number of threads")
    func threads() throws {
        let layer = try OutlierLayer(300, 260, tokens: 70, seed: 8)
        let split = try LowRankSplit(.init(rank: 8, iterations: 3))
        let results = try [1, 2, 7].map { try split(layer.weight, calibration: layer.inputs, on: WorkerPool(threads: $0)) }
        for result in results.dropFirst() {
            #expect(result.residual.bits == results[0].residual.bits && result.down.bits == results[0].down.bits)
            #expect(result.up.bits == results[0].up.bits && result.errors == results[0].errors)
        }
    }

    @Test("a weight of zeros splits into zeros")
    func zeros() throws {
        let result = try LowRankSplit(.init(rank: 3))(Tensor(zeros: [5, 70]), calibration: .normal([4, 70], seed: 9))
        #expect((result.down.elements + result.up.elements + result.residual.elements).allSatisfy { $0.isFinite })
        #expect(result.up.elements.allSatisfy { $0 == 0 } && result.residual.elements.allSatisfy { $0 == 0 })
        #expect(result.errors == [0])
    }

    @Test("bad options and operands are named")
    func errors() throws {
        expectError(.invalidArgument, "rank") { _ = try LowRankSplit(.init(rank: 0)) }
        expectError(.invalidArgument, "rank") { _ = try LowRankSplit(.init(rank: 1025)) }
        expectError(.invalidArgument, "iterations") { _ = try LowRankSplit(.init(iterations: 0)) }
        expectError(.invalidArgument, "oversampling") { _ = try LowRankSplit(.init(method: .randomized(oversampling: -1))) }
        expectError(.invalidElementType, "scaleType") { _ = try LowRankSplit(.init(scaleType: .float64)) }
        let layer = try OutlierLayer(8, 20, tokens: 5, seed: 11)
        let split = try LowRankSplit(.init(rank: 9))
        expectError(.invalidArgument, "rank") { _ = try split(layer.weight, calibration: layer.inputs) }
        let small = try LowRankSplit(.init(rank: 2))
        expectError(.invalidShape, "weight") { _ = try small(layer.weight, calibration: .normal([5, 19], seed: 1)) }
        var bad = layer.weight
        bad[flat: 3] = .nan
        expectError(.invalidArgument, "weight") { _ = try small(bad, calibration: layer.inputs) }
        expectError(.invalidShape, "up") {
            _ = try small.residual(of: layer.weight, down: .init(zeros: [2, 20]), up: .init(zeros: [8, 3]))
        }
        expectError(.invalidShape, "down") {
            _ = try small.residual(of: layer.weight, down: .init(zeros: [2, 21]), up: .init(zeros: [8, 2]))
        }
    }
}
