import NemotronH
import SparseKernels

/// How the keys of hybrid models are read, with the names and defaults of `NemotronHConfig`.
extension LanguageModelConfiguration {
    /// The mixers of the layers, of `hybrid_override_pattern` or, in newer files, `layers_block_type`.
    static func pattern(_ file: ConfigurationFile) throws(SparseKernelsError) -> HybridPattern {
        let key = file.has("hybrid_override_pattern") ? "hybrid_override_pattern" : "layers_block_type"
        let pattern: HybridPattern
        if key == "layers_block_type", file.has(key) {
            var layers: [HybridPattern.Layer] = []
            for type in try file.texts(key) {
                switch type {
                case "mamba": layers.append(.mamba2)
                case "mlp": layers.append(.mlp)
                case "attention": layers.append(.attention)
                default:
                    throw file.failure(
                        key, expected: "\"mamba\", \"mlp\" or \"attention\"", actual: "\"\(type.prefix(40))\"")
                }
            }
            pattern = HybridPattern(layers)
        } else {
            guard let text = try file.text("hybrid_override_pattern") else {
                throw file.failure(
                    "hybrid_override_pattern", expected: "there, as it says what the layers are", actual: "no such key")
            }
            do throws(SparseKernelsError) { pattern = try HybridPattern(text) } catch {
                throw file.failure(
                    key, expected: "of \(error.expected)", actual: "\(error.actual) at \(error.argument.dropFirst(7))")
            }
        }
        let count = try file.integer("num_hidden_layers", in: 1...4096, default: max(1, pattern.layers.count))
        guard count == pattern.layers.count else {
            throw file.failure(key, expected: "\(count) layers (num_hidden_layers)", actual: "\(pattern.layers.count)")
        }
        guard pattern.count(of: .attention) > 0 else {
            throw file.failure(
                key, expected: "with a layer of attention, which the cache counts tokens by", actual: "\"\(pattern)\"")
        }
        return pattern
    }

    static func mamba2(_ file: ConfigurationFile, epsilon: Float) throws(SparseKernelsError) -> Mamba2Configuration {
        let kernel = file.has("mamba_d_conv") && !file.has("conv_kernel") ? "mamba_d_conv" : "conv_kernel"
        let heads = try file.integer("mamba_num_heads")
        let groups = try file.integer("n_groups", default: 8)
        guard heads.isMultiple(of: groups) else {
            throw file.failure("n_groups", expected: "a divisor of mamba_num_heads (\(heads))", actual: "\(groups)")
        }
        // The width is heads × head size; the key `expand` of released files is wrong, and not read.
        return try Mamba2Configuration(
            heads: heads, headDim: try file.integer("mamba_head_dim", in: 1...RecurrenceShape.maximumDim, default: 64),
            groups: groups, stateSize: try file.integer("ssm_state_size", in: 1...RecurrenceShape.maximumDim, default: 128),
            convolutionWidth: try file.integer(kernel, in: 2...4, default: 4), timeStepLimits: try timeStepLimits(file),
            epsilon: epsilon)
    }

    private static func timeStepLimits(_ file: ConfigurationFile) throws(SparseKernelsError) -> ClosedRange<Float> {
        guard file.has("time_step_limit") else { return 0...Float.infinity }
        let limits = try file.extendedNumbers("time_step_limit").map { Float($0) }
        guard limits.count == 2, limits[0] >= 0, limits[0].isFinite, limits[1] >= limits[0] else {
            throw file.failure(
                "time_step_limit", expected: "two numbers of 0 or more, the larger one last, which may be infinite",
                actual: "\(limits)")
        }
        return limits[0]...limits[1]
    }

    /// Throws for keys that change the arithmetic in ways that are not implemented. Keys of experts say nothing as long as the pattern
    /// has none.
    static func refuseOthersOfHybrids(_ file: ConfigurationFile) throws(SparseKernelsError) {
        let activation = try file.text("mamba_hidden_act") ?? "silu"
        guard ["silu", "swish"].contains(activation) else {
            throw file.failure("mamba_hidden_act", expected: "\"silu\"", actual: "\"\(activation.prefix(40))\"")
        }
        for key in ["sliding_window", "rope_scaling", "rope_parameters", "partial_rotary_factor", "is_causal"]
        where file.has(key) {
            if key == "is_causal", try file.flag(key) == true { continue }
            throw file.failure(key, expected: "absent: such models have no positions and no windows", actual: "a value")
        }
        try refuseFactors(file)
    }
}
