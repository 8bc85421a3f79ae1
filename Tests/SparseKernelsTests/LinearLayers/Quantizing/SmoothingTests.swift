import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Candidates, factors and their edge cases, compared with the oracle and recorded layers.
@Suite("Smoothing")
struct SmoothingTests {
    @Test("families have the official candidates in the official order")
    func families() throws {
        let shipped = try SmoothingFamily.activationsThenBalanced.candidates()
        #expect(shipped.count == 39)
        #expect(shipped[0] == .identity)
        #expect(shipped[1] == SmoothingCandidate(alpha: 0.05, beta: 0))
        #expect(shipped[19] == SmoothingCandidate(alpha: 0.95, beta: 0))
        #expect(shipped[20] == SmoothingCandidate(alpha: 0.05, beta: 0.95))
        #expect(try SmoothingFamily.balanced.candidates(grids: 4).map(\.alpha) == [0, 0.25, 0.5, 0.75])
        #expect(try SmoothingFamily.full.candidates().count == 381)
        for family in SmoothingFamily.allCases {
            #expect(try family.candidates(grids: 1) == [.identity])
            let candidates = try family.candidates(grids: 7)
            #expect(Set(candidates).count == candidates.count)
        }
        let error = #expect(throws: SparseKernelsError.self) { try SmoothingFamily.full.candidates(grids: 0) }
        #expect(error?.argument == "grids")
    }

    @Test("factors are the oracle's", arguments: [ElementType.float32, .float16, .bfloat16], [1, 3, 70])
    func factors(_ type: ElementType, _ inFeatures: Int) throws {
        let inputs = try Tensor<Float>.normal([130, inFeatures], seed: 1)
        let weights = try [2, 67].map { try Tensor<Float>.normal([$0, inFeatures], seed: UInt64($0)) }
        let ranges = try SmoothingRanges(calibration: inputs, weights: weights)
        for candidate in try SmoothingFamily.full.candidates(grids: 4) {
            let expected = ReferenceSVDQuant.smoothingFactors(
                inputs: inputs.rows, weights: weights.map(\.rows), alpha: candidate.alpha, beta: candidate.beta,
                rounding: rounding(to: type))
            #expect(try ranges.factors(candidate, scaleType: type).elements.map(Double.init) == expected)
        }
    }

    @Test("a dead input keeps its factor 1, a dead weight column takes all smoothing away")
    func edges() throws {
        let inputs = try Tensor<Float>([2, 3], [0, 4, -2, 0, 1, 8])
        let weight = try Tensor<Float>([1, 3], [2, 0.5, 1])
        let factors = try SmoothingRanges(calibration: inputs, weights: [weight]).factors(.init(alpha: 0.5, beta: 0))
        #expect(factors.elements == [1, 2, Tensor<Float>.half(Float(8).squareRoot())])
        let dead = try Tensor<Float>([1, 3], [2, 0, 1])
        let ranges = try SmoothingRanges(calibration: inputs, weights: [dead])
        #expect(try ranges.factors(.init(alpha: 0.5, beta: 0.5)).elements == [1, 1, 1])
        #expect(try ranges.factors(.init(alpha: 0.5, beta: 0)).elements[1] == 2)
        // 0⁰ is 1, so that an exponent of 0 has no effect, whatever the range.
        #expect(try ranges.factors(.identity).elements == [1, 1, 1])
    }

    @Test("factors that overflow or vanish in 16 bits follow the same rules")
    func sixteenBits() throws {
        let inputs = try Tensor<Float>([1, 2], [1e8, 1])
        let weight = try Tensor<Float>([1, 2], [1, 1])
        let huge = try SmoothingRanges(calibration: inputs, weights: [weight])
        #expect(try huge.factors(.init(alpha: 1, beta: 0)).elements == [1, 1])
        #expect(try huge.factors(.init(alpha: 1, beta: 0), scaleType: .float32).elements == [1e8, 1])
        let tiny = try SmoothingRanges(calibration: Tensor<Float>([1, 2], [1e-9, 1]), weights: [weight])
        #expect(try tiny.factors(.init(alpha: 1, beta: 0)).elements == [1, 1])
    }

    @Test("the shift takes part in the range of activations")
    func shift() throws {
        let inputs = try Tensor<Float>([2, 2], [-0.1, 1, 0.05, -2])
        let ranges = try SmoothingRanges(calibration: inputs, weights: [Tensor([1, 2], [1, 1])], shift: 0.25)
        #expect(ranges.activations == [0.25 + 0.05, 1.75])
    }

    @Test(
        "recorded factors are reproduced to the last bit", .enabled(if: !RecordedSplit.paths.isEmpty, TestData.absence),
        arguments: RecordedSplit.paths)
    func recorded(_ path: String) throws {
        let recorded = try RecordedSplit(path)
        // The official code adds the shift in 16 bits.
        let shift = recorded.parameters.shift
        let rounded = rounding(to: recorded.type)
        let inputs = try recorded["in.x"]
        let shifted = try Tensor<Float>(inputs.shape) { Float(rounded(Double(inputs[flat: $0] + shift))) }
        let ranges = try SmoothingRanges(calibration: shifted, weights: [recorded["in.weight"]])
        let factors = try ranges.factors(recorded.candidate, scaleType: recorded.type)
        #expect(try factors == recorded["out.smooth"])
    }

    @Test("bad operands are named")
    func errors() throws {
        let x = try Tensor<Float>.normal([4, 6], seed: 1)
        let w = try Tensor<Float>.normal([5, 6], seed: 2)
        expectError(.invalidShape, "weight") {
            _ = try SmoothingRanges(calibration: x, weights: [w, .normal([5, 7], seed: 3)])
        }
        expectError(.invalidShape, "weights") { _ = try SmoothingRanges(calibration: x, weights: []) }
        expectError(.invalidShape, "calibration") { _ = try SmoothingRanges(calibration: .init(zeros: [0, 6]), weights: [w]) }
        for bad in [Float.nan, .infinity, -.infinity] {
            var (badX, badW) = (x, w)
            badX[flat: 7] = bad
            badW[flat: 29] = bad
            expectError(.invalidArgument, "calibration") { _ = try SmoothingRanges(calibration: badX, weights: [w]) }
            expectError(.invalidArgument, "weight") { _ = try SmoothingRanges(calibration: x, weights: [badW]) }
        }
        let ranges = try SmoothingRanges(calibration: x, weights: [w])
        expectError(.invalidArgument, "alpha") { _ = try ranges.factors(.init(alpha: 1.5, beta: 0)) }
        expectError(.invalidArgument, "beta") { _ = try ranges.factors(.init(alpha: 0, beta: .nan)) }
        expectError(.invalidElementType, "scaleType") { _ = try ranges.factors(.identity, scaleType: .int8) }
        expectError(.invalidArgument, "candidates") { _ = try SmoothingSearch(candidates: []) }
        expectError(.invalidArgument, "sampleTokens") { _ = try SmoothingSearch(candidates: [.identity], sampleTokens: 0) }
    }

    @Test("a search of many weights tries all candidates on all of them, and the last of equal ones wins")
    func search() throws {
        let layers = try [48, 20].map { try OutlierLayer($0, 64, tokens: 40, seed: 10) }
        let search = try SmoothingSearch(candidates: SmoothingFamily.balanced.candidates(grids: 5), rank: 4)
        var seen: [SmoothingSearch.Trial] = []
        let result = try search(weights: layers.map(\.weight), calibration: layers[0].inputs) { seen.append($0) }
        #expect(result.trials == seen && seen.map(\.candidate) == search.candidates)
        let best = try #require(seen.min { $0.error < $1.error })
        #expect(result.candidate == best.candidate && best.error < seen[0].error)

        // With inputs of one magnitude and a weight of zeros, every candidate is the identity and exact.
        let flat = try SmoothingSearch(
            candidates: [.init(alpha: 0.5, beta: 0), .identity, .init(alpha: 0.2, beta: 0)], rank: 0)
        let tie = try flat(
            weights: [Tensor(zeros: [3, 64])], calibration: Tensor([2, 64]) { _ in 1 })
        #expect(tie.candidate == flat.candidates[2])
        #expect(tie.trials.map(\.error) == [0, 0, 0])
    }
}
