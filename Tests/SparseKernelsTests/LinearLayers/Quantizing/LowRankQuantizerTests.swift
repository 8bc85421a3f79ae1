import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The whole quantiser: the effect of each part, the results of the layer when it runs, and limits.
@Suite("Low-rank quantiser")
struct LowRankQuantizerTests {
    typealias Configuration = LowRankQuantizer.Configuration

    private static func configuration(_ change: (inout Configuration) -> Void) -> Configuration {
        var configuration = Configuration()
        change(&configuration)
        return configuration
    }

    private static func quantize(
        _ layer: OutlierLayer, on pool: WorkerPool = .shared, _ change: (inout Configuration) -> Void
    ) throws -> LowRankQuantizer.Result {
        try LowRankQuantizer(configuration(change))(
            weight: layer.weight, bias: layer.bias, calibration: layer.inputs, on: pool)
    }

    @Test("smoothing helps, and the low-rank branch helps more")
    func ablation() throws {
        let layer = try OutlierLayer(160, 192, tokens: 96, seed: 30)
        let plain = try Self.quantize(layer) { ($0.rank, $0.smoothing) = (0, .none) }
        let smoothed = try Self.quantize(layer) { ($0.rank, $0.smoothing) = (0, .search(grids: 10)) }
        let split = try Self.quantize(layer) { ($0.rank, $0.smoothing, $0.iterations) = (16, .search(grids: 10), 1) }
        let refined = try Self.quantize(layer) { ($0.rank, $0.smoothing, $0.iterations) = (16, .search(grids: 10), 20) }
        #expect(smoothed.outputError < 0.8 * plain.outputError, "\(smoothed.outputError), \(plain.outputError)")
        #expect(split.outputError < 0.8 * smoothed.outputError, "\(split.outputError), \(smoothed.outputError)")
        #expect(refined.outputError <= split.outputError, "\(refined.outputError), \(split.outputError)")
        #expect(plain.lowRank == nil && plain.smooth == nil && plain.candidate == nil && plain.trials.isEmpty)
        #expect(smoothed.lowRank == nil && smoothed.smooth != nil && smoothed.splitErrors.isEmpty)
        #expect(split.trials.count == 19 && split.splitErrors.count == 1)
    }

    @Test("GPTQ rounds the residual better than to nearest")
    func gptq() throws {
        let layer = try OutlierLayer(96, 128, tokens: 300, seed: 31)
        let results = try LowRankQuantizer.ResidualRounding.allCases.map { rounding in
            try Self.quantize(layer) {
                ($0.rank, $0.smoothing, $0.residual) = (8, .fixed(.init(alpha: 0.5, beta: 0)), rounding)
            }
        }
        #expect(results[1].outputError < results[0].outputError)
        #expect(results[1].weight.scales == results[0].weight.scales)
    }

    @Test(
        "the running layer has the error that the quantiser states",
        arguments: [ActivationFormat.int4, .int8PerToken, .int8PerGroup, .float])
    func runs(_ activation: ActivationFormat) throws {
        let layer = try OutlierLayer(70, 130, tokens: 40, seed: 32)
        let result = try Self.quantize(layer) {
            ($0.rank, $0.activation, $0.smoothing) = (8, activation, .fixed(.init(alpha: 0.5, beta: 0.25)))
        }
        let linear = try QuantizedLinear(
            PackedWeight(result.weight), activation: activation, smooth: result.smooth, lowRank: result.lowRank,
            bias: result.bias)
        let exact = exactLayer(layer.weight, layer.inputs)
        let outputs = try linear(layer.inputs).rows.map { row in row.indices.map { row[$0] - Double(layer.bias[flat: $0]) } }
        // Sums are in single precision, and a code at a tie may differ between instruction sets.
        #expect(abs(relativeDistance(outputs, exact) - result.outputError) <= 0.01 * result.outputError)
    }

    @Test(
        "the running layer undoes the shift of a GELU",
        arguments: [LowRankQuantizer.Smoothing.none, .fixed(.init(alpha: 0.5, beta: 0))])
    func shiftedLayer(_ smoothing: LowRankQuantizer.Smoothing) throws {
        let layer = try OutlierLayer(30, 130, tokens: 40, seed: 39)
        // The outputs of a GELU are not below −0.17.
        let inputs = try Tensor<Float>(layer.inputs.shape) { max(layer.inputs[flat: $0], -0.17) }
        let activation = ActivationFormat.uint4(shift: ActivationFormat.geluShift)
        let result = try LowRankQuantizer(
            Self.configuration { ($0.rank, $0.activation, $0.smoothing) = (8, activation, smoothing) })(
                weight: layer.weight, bias: layer.bias, calibration: inputs)
        let linear = try QuantizedLinear(
            PackedWeight(result.weight), activation: activation, smooth: result.smooth, lowRank: result.lowRank,
            bias: result.bias)
        let exact = exactLayer(layer.weight, inputs, bias: layer.bias)
        let energy = energy(of: exactLayer(layer.weight, inputs))
        let error = (ReferenceSVDQuant.squaredDistance(try linear(inputs).rows, exact) / energy).squareRoot()
        #expect(abs(error - result.outputError) <= 0.02 * result.outputError, "\(error), \(result.outputError)")
    }

    @Test("the search's error for a candidate is the oracle's", arguments: [0, 5])
    func trialErrors(_ rank: Int) throws {
        let layer = try OutlierLayer(48, 96, tokens: 30, seed: 33)
        let candidates = [SmoothingCandidate.identity, .init(alpha: 0.4, beta: 0), .init(alpha: 0.6, beta: 0.4)]
        let search = try SmoothingSearch(candidates: candidates, rank: rank, scaleType: .float32)
        let trials = try search(weights: [layer.weight], calibration: layer.inputs).trials
        let exact = exactLayer(layer.weight, layer.inputs)
        for trial in trials {
            let smooth = ReferenceSVDQuant.smoothingFactors(
                inputs: layer.inputs.rows, weights: [layer.weight.rows], alpha: trial.candidate.alpha,
                beta: trial.candidate.beta)
            let inputs = layer.inputs.rows.map { zip($0, smooth).map(/) }
            let weight = layer.weight.rows.map { zip($0, smooth).map(*) }
            var residual = weight
            var outputs = exact.map { $0.map { _ in 0.0 } }
            if rank > 0 {
                let factors = ReferenceSVDQuant.lowRankFactors(weight, rank: rank)
                residual = ReferenceSVDQuant.difference(weight, ReferenceSVDQuant.product(factors.up, factors.down))
                outputs = ReferenceSVDQuant.product(
                    ReferenceSVDQuant.product(inputs, ReferenceSVDQuant.transposed(factors.down)),
                    ReferenceSVDQuant.transposed(factors.up))
            }
            let rounded = residual.map { ReferenceSVDQuant.roundedWeights($0, groupSize: 64) }
            let activations = inputs.map { ReferenceSVDQuant.roundedActivations($0, groupSize: 64) }
            let products = ReferenceSVDQuant.product(activations, ReferenceSVDQuant.transposed(rounded))
            let error = relativeDistance(zip(products, outputs).map { zip($0, $1).map(+) }, exact)
            // Without a branch only codes at ties differ. With one, the squared error of the subspace is found to 1%.
            #expect(abs(trial.error - error) <= (rank == 0 ? 0.002 : 0.02) * error, "\(trial) against \(error)")
        }
    }

    @Test("a corrected bias undoes the shift exactly when nothing is rounded")
    func shiftedBias() throws {
        let (weight, down, up) = try (
            Tensor<Float>.normal([9, 21], seed: 40), Tensor<Float>.normal([3, 21], seed: 41),
            Tensor<Float>.normal([9, 3], seed: 42)
        )
        let bias = try Tensor<Float>.normal([9], seed: 43)
        let shift = ActivationFormat.geluShift
        let inputs = try Tensor<Float>.normal([6, 21], seed: 44)
        let corrected = try #require(
            try LowRankQuantizer.correctedBias(bias, weight: weight, shift: shift, lowRank: LowRankBranch(down: down, up: up)))
        let residual = ReferenceSVDQuant.difference(weight.rows, ReferenceSVDQuant.product(up.rows, down.rows))
        let shifted = inputs.rows.map { $0.map { $0 + Double(shift) } }
        let quantizedPath = ReferenceSVDQuant.product(shifted, ReferenceSVDQuant.transposed(residual))
        let branch = ReferenceSVDQuant.product(
            ReferenceSVDQuant.product(inputs.rows, ReferenceSVDQuant.transposed(down.rows)),
            ReferenceSVDQuant.transposed(up.rows))
        let exact = exactLayer(weight, inputs, bias: bias)
        for m in 0..<6 {
            for n in 0..<9 {
                let output = quantizedPath[m][n] + branch[m][n] + Double(corrected[flat: n])
                // Only the bias was rounded, to single precision.
                #expect(abs(output - exact[m][n]) <= 0x1p-24 * Double(abs(corrected[flat: n])) + 1e-12)
            }
        }
        let oracle = ReferenceSVDQuant.correctedBias(
            bias.rowsOfOne, weight: weight.rows, shift: Double(shift), down: down.rows, up: up.rows)
        for n in 0..<9 { #expect(corrected[flat: n] == Float(oracle[n])) }
        #expect(try LowRankQuantizer.correctedBias(nil, weight: weight, shift: 0) == nil)
        #expect(try LowRankQuantizer.correctedBias(bias, weight: weight, shift: 0) == bias)
        #expect(try LowRankQuantizer.correctedBias(nil, weight: weight, shift: 1)?.shape == [9])
    }

    @Test(
        "recorded biases are reproduced to the last bit", .enabled(if: !RecordedSplit.paths.isEmpty, TestData.absence),
        arguments: RecordedSplit.paths)
    func recordedBias(_ path: String) throws {
        let recorded = try RecordedSplit(path)
        let bias = try LowRankQuantizer.correctedBias(
            recorded["in.bias"], weight: recorded["in.weight"], shift: recorded.parameters.shift)
        let rounded = rounding(to: recorded.type)
        let values = try #require(bias).elements.map { Float(rounded(Double($0))) }
        #expect(try values == recorded["out.bias_corrected"].elements)
    }

    @Test(
        "recorded layers are quantised as well as recorded", .enabled(if: !RecordedSplit.paths.isEmpty, TestData.absence),
        arguments: RecordedSplit.paths)
    func recorded(_ path: String) throws {
        let recorded = try RecordedSplit(path)
        let (weight, bias, inputs) = try (recorded["in.weight"], recorded["in.bias"], recorded["in.x"])
        let configuration = Self.configuration {
            $0.rank = recorded.parameters.rank
            $0.activation = recorded.activation
            $0.smoothing = .fixed(recorded.candidate)
            $0.iterations = recorded.parameters.iterations
            $0.scaleType = recorded.type
        }
        let result = try LowRankQuantizer(configuration)(weight: weight, bias: bias, calibration: inputs)
        let exact = try recorded["out.y_exact"].rows
        let energy = energy(of: exactLayer(weight, inputs))
        let expected = ReferenceSVDQuant.squaredDistance(try recorded["out.y_quantized"].rows, exact)
        #expect(result.outputError <= 1.03 * (expected / energy).squareRoot(), "\(result.outputError)")
        let searched = try LowRankQuantizer(
            Self.configuration {
                ($0.rank, $0.activation, $0.scaleType) = (recorded.parameters.rank, recorded.activation, recorded.type)
                ($0.iterations, $0.smoothing) = (recorded.parameters.iterations, .search(grids: 5))
            })(weight: weight, bias: bias, calibration: inputs)
        #expect(searched.outputError <= 1.03 * result.outputError, "\(searched.outputError), \(result.outputError)")
    }

    @Test("16-bit factors are exactly representable", arguments: [ElementType.float16, .bfloat16])
    func scaleTypes(_ type: ElementType) throws {
        let layer = try OutlierLayer(33, 80, tokens: 20, seed: 34)
        let result = try Self.quantize(layer) {
            ($0.rank, $0.scaleType, $0.smoothing) = (5, type, .fixed(.init(alpha: 0.7, beta: 0.2)))
        }
        let rounded = rounding(to: type)
        let branch = try #require(result.lowRank)
        for tensor in [branch.down, branch.up, try #require(result.smooth), result.weight.scales] {
            #expect(tensor.elements.allSatisfy { Float(rounded(Double($0))) == $0 })
        }
    }

    @Test("results are the same bits on any number of threads, and for a seed")
    func threads() throws {
        let layer = try OutlierLayer(140, 200, tokens: 60, seed: 35)
        let results = try [1, 2, 7].map { threads in
            try Self.quantize(layer, on: WorkerPool(threads: threads)) {
                ($0.rank, $0.smoothing, $0.residual, $0.iterations) = (8, .search(grids: 4), .gptq, 3)
            }
        }
        for result in results.dropFirst() {
            #expect(
                result.weight.codes == results[0].weight.codes && result.weight.scales.bits == results[0].weight.scales.bits)
            #expect(result.lowRank?.down.bits == results[0].lowRank?.down.bits)
            #expect(result.lowRank?.up.bits == results[0].lowRank?.up.bits)
            #expect(result.trials == results[0].trials && result.outputError == results[0].outputError)
            #expect(result.smooth?.bits == results[0].smooth?.bits)
        }
    }

    @Test("every weight format and activation gives finite layers", arguments: [1, 3, 70])
    func formats(_ inFeatures: Int) throws {
        let layer = try OutlierLayer(3, inFeatures, tokens: 2, seed: 36)
        let activations: [ActivationFormat] = [.float, .int8PerToken, .int8PerGroup, .int4, .uint4(shift: 40), .fp4]
        for (format, activation) in zip(
            [.svdQuantInt4, .int8PerChannel, .nvfp4, try WeightFormat(.uint4, groupSize: 128), .svdQuantInt4, .nvfp4],
            activations)
        {
            for residual in LowRankQuantizer.ResidualRounding.allCases {
                let result = try Self.quantize(layer) {
                    ($0.rank, $0.weightFormat, $0.activation, $0.residual) = (1, format, activation, residual)
                    ($0.smoothing, $0.iterations) = (.search(grids: 3), 2)
                }
                #expect(
                    result.outputError.isFinite && result.outputError < 1, "\(format), \(activation): \(result.outputError)")
            }
        }
    }

    @Test("weights and tokens of zeros never give NaN")
    func zeros() throws {
        let layer = try OutlierLayer(4, 70, tokens: 3, seed: 37)
        let zero = try Tensor<Float>(zeros: [4, 70])
        var halfZero = layer.weight
        for k in 0..<70 { halfZero[flat: k] = 0 }
        for n in 0..<4 { halfZero[flat: n * 70 + 5] = 0 }
        let silent = try Tensor<Float>(zeros: [3, 70])
        for (weight, inputs) in [(zero, layer.inputs), (layer.weight, silent), (zero, silent), (halfZero, layer.inputs)] {
            let result = try LowRankQuantizer(Self.configuration { ($0.rank, $0.residual) = (3, .gptq) })(
                weight: weight, calibration: inputs)
            #expect(result.outputError.isFinite)
            #expect(try result.weight.dequantized().elements.allSatisfy { $0.isFinite })
            #expect(result.trials.allSatisfy { $0.error.isFinite })
        }
    }

    @Test("bad operands and options are named")
    func errors() throws {
        let layer = try OutlierLayer(6, 20, tokens: 5, seed: 38)
        let quantizer = try LowRankQuantizer(Self.configuration { $0.rank = 2 })
        for bad in [Float.nan, .infinity] {
            var (weight, inputs, bias) = (layer.weight, layer.inputs, layer.bias)
            weight[flat: 11] = bad
            inputs[flat: 99] = bad
            bias[flat: 0] = bad
            expectError(.invalidArgument, "weight") { _ = try quantizer(weight: weight, calibration: layer.inputs) }
            expectError(.invalidArgument, "calibration") { _ = try quantizer(weight: layer.weight, calibration: inputs) }
            expectError(.invalidArgument, "bias") {
                _ = try quantizer(weight: layer.weight, bias: bias, calibration: layer.inputs)
            }
        }
        expectError(.invalidShape, "weight") {
            _ = try quantizer(weight: layer.weight, calibration: .normal([5, 21], seed: 1))
        }
        expectError(.invalidShape, "calibration") {
            _ = try quantizer(weight: layer.weight, calibration: .init(zeros: [0, 20]))
        }
        expectError(.invalidShape, "bias") {
            _ = try quantizer(weight: layer.weight, bias: .init(zeros: [5]), calibration: layer.inputs)
        }
        let wide = try LowRankQuantizer()
        expectError(.invalidArgument, "rank") { _ = try wide(weight: layer.weight, calibration: layer.inputs) }
        let huge = try Tensor<Float>([6, 20]) { _ in 1e30 }
        expectError(.invalidArgument, "calibration") { _ = try quantizer(weight: huge, calibration: huge) }
        // This exceeds what sums of products can hold.
        expectError(.invalidArgument, "weight") {
            _ = try quantizer(weight: Tensor([6, 20]) { _ in 1e37 }, calibration: layer.inputs)
        }
        // FP16 has no scale for it, and no candidate helps.
        expectError(.invalidArgument, "weight") {
            _ = try quantizer(weight: Tensor([6, 20]) { _ in 1e29 }, calibration: layer.inputs)
        }
        expectError(.invalidArgument, "rank") { _ = try LowRankQuantizer(Self.configuration { $0.rank = -1 }) }
        expectError(.invalidArgument, "iterations") { _ = try LowRankQuantizer(Self.configuration { $0.iterations = 0 }) }
        expectError(.invalidArgument, "sampleTokens") { _ = try LowRankQuantizer(Self.configuration { $0.sampleTokens = 0 }) }
        expectError(.invalidArgument, "grids") {
            _ = try LowRankQuantizer(Self.configuration { $0.smoothing = .search(grids: 0) })
        }
        expectError(.invalidArgument, "shift") {
            _ = try LowRankQuantizer(Self.configuration { $0.activation = .uint4(shift: .nan) })
        }
        expectError(.invalidElementType, "scaleType") { _ = try LowRankQuantizer(Self.configuration { $0.scaleType = .int8 }) }
    }

    static let model = TestData.externalFile("models/code-lm/model.safetensors")

    @Test("a trained layer on its own inputs", .enabled(if: model != nil, TestData.absence))
    func trainedLayer() throws {
        let file = try SafetensorsFile(path: #require(Self.model))
        let prefix = "model.layers.0."
        let projections = try ["k", "v"].map { try file.floatTensor(prefix + "self_attn.\($0)_proj.weight") }
        let weight = try Tensor([projections.reduce(0) { $0 + $1.shape[0] }, 512], projections.flatMap(\.elements))
        // The first layer's input: embeddings of the bytes of a text, normalised.
        let (embedding, norm) = try (
            file.floatTensor("model.embed_tokens.weight"), file.floatTensor(prefix + "input_layernorm.weight")
        )
        let text = Array(
            "public func callAsFunction(_ weight: Tensor<Float>, on pool: WorkerPool = .shared) throws -> {}\n0123456789".utf8)
        let inputs = try Tensor<Float>([text.count, 512]) { index in
            let row = Int(text[index / 512]) * 512
            let energy = (0..<512).reduce(Float(0)) { $0 + embedding[flat: row + $1] * embedding[flat: row + $1] }
            return embedding[flat: row + index % 512] / (energy / 512 + 1e-5).squareRoot() * norm[flat: index % 512]
        }
        let quantizer = { (rank: Int, smoothing: LowRankQuantizer.Smoothing) throws in
            try LowRankQuantizer(Self.configuration { ($0.rank, $0.smoothing) = (rank, smoothing) })(
                weight: weight, calibration: inputs
            ).outputError
        }
        let errors = try [quantizer(0, .none), quantizer(0, .search(grids: 3)), quantizer(32, .search(grids: 3))]
        #expect(errors[1] <= errors[0] && errors[2] < 0.95 * errors[1], "\(errors)")
    }
}

extension Tensor<Float> {
    fileprivate var rowsOfOne: [Double] { elements.map(Double.init) }
}
