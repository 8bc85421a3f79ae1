import BenchmarkReport
import SparseKernels

/// The costs of quantising a layer: the relative error of its output on tokens unseen by the quantiser, and the seconds taken.
///
/// Layers are Gaussian with outlier channels, or come from trained models with recorded activations.
struct QuantizationErrorCases: CaseFamily {
    let run: RunContext

    /// The number of candidates of the released smoothing search, which computes a full decomposition for each.
    private static let releasedDecompositions = 39
    private static let decompositionLabel = "\(releasedDecompositions) SVDs"

    func section() -> Section {
        let size = isQuick ? 512 : 3072
        // Without LAPACK a full decomposition of the large layer takes an hour, and kernels below the machine's level would
        // make our speed-up too large.
        let comparesDecomposition = !isQuick && openBLAS.isFit
        var groups = [
            group("Gaussian \(size)×\(size)", comparesDecomposition: comparesDecomposition) { announce in
                announce("making the weights")
                let input = OutlierInput(channels: size, seed: 5)
                // GPTQ needs more tokens than channels.
                let layer = try LinearLayer.gaussian(outFeatures: size, input: input, calibrationTokens: 2 * size)
                return (layer, try input.tokens(256, seed: 6))
            }
        ]
        var recorded = RecordedLayer.shipped
        if !isQuick { recorded += RecordedLayer.models }
        for one in recorded { groups.append(group(one.name) { announce in try one.load(announce) }) }
        return Section(
            kind: .quantizationError, groups: groups, baselines: comparesDecomposition ? [Self.decompositionLabel] : [])
    }

    /// - Parameter load: loads the layer, and activations to judge it by.
    private func group(
        _ name: String, comparesDecomposition: Bool = false,
        load: @escaping (_ announce: (String) -> Void) throws -> (LinearLayer, Tensor<Float>)
    ) -> CaseGroup {
        let methods = QuantizationMethod.all
        return CaseGroup(
            op: "quant.error", name: name, amounts: .uncounted,
            labels: methods.flatMap { method in method.activations.map { method.label($0) } }
                + (comparesDecomposition ? [Self.decompositionLabel] : [])
        ) { announce in
            let (layer, tokens) = try load(announce)
            let exact = try layer.output(of: tokens, on: pool)
            var variants: [Variant] = []
            for method in methods {
                announce(method.label(method.activations[0]))
                let method = layer.followsGELU ? method.afterGELU : method
                let quantized = try QuantizedLayer(layer, method.configuration, on: pool)
                for (index, activation) in method.activations.enumerated() {
                    var variant = try row(quantized.with(activation), tokens, exact)
                    variant.label = method.label(activation)
                    if index == 0 { variant.metrics[.quantizationSeconds] = quantized.seconds }
                    variants.append(variant)
                }
            }
            if comparesDecomposition {
                announce("one full decomposition")
                for index in variants.indices where variants[index].metrics[.quantizationSeconds] != nil {
                    variants[index].baseline = (variants.count, Self.decompositionLabel)
                }
                variants.append(try decompositions(of: layer.weight))
            }
            return variants
        }
    }

    private func row(_ quantized: QuantizedLayer, _ tokens: Tensor<Float>, _ exact: Tensor<Float>) throws -> Variant {
        let output = try quantized.packed(for: instructionSet)(tokens, on: pool)
        let check = quantized.check(x: tokens, y: output)
        var variant = Variant(isa: instructionSet.name, threads: pool.threads, verify: { check })
        variant.metrics[.outputError] = output.relativeDistance(to: exact)
        return variant
    }

    /// The time that the released search spends on decompositions only. One is timed, and the others cost the same.
    private func decompositions(of weight: Tensor<Float>) throws -> Variant {
        let factorization = try LowRankFactorization(rank: 32, method: .full)
        let clock = ContinuousClock()
        let start = clock.now
        _ = try factorization(weight, on: pool)
        var variant = Variant(isa: instructionSet.name, threads: pool.threads, verify: { nil })
        variant.label = Self.decompositionLabel
        variant.metrics[.quantizationSeconds] = Double(Self.releasedDecompositions) * ((clock.now - start) / .seconds(1))
        return variant
    }
}
