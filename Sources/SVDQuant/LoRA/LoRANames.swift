internal import SparseKernels

/// The names that files use for the factors of a layer.
///
/// | Layer `a.q` | By |
/// |---|---|
/// | `a.q.lora_A.weight`, `a.q.lora_B.weight` | PEFT; with the adapter's name before `weight` in state dictionaries |
/// | `a.q.lora_down.weight`, `a.q.lora_up.weight` | kohya-ss, with underscores for dots in the layer's name |
/// | `a.q.lora.down.weight`, `a.q.lora.up.weight` | diffusers |
/// | `a.q.lora_linear_layer.down.weight`, … | diffusers before 0.22, text encoders |
/// | `a.processor.q_lora.down.weight`, `a.q_lora.down.weight`, … | diffusers before 0.22, attention |
enum LoRANames {
    /// The parts of the names of both factors after the stem.
    struct Endings {
        let down: String
        let up: String
    }

    /// The two factors of a layer.
    struct Pair {
        /// The common start of all names of the layer.
        let stem: String
        let down: String
        let up: String

        init(_ stem: String, _ endings: Endings) {
            self.stem = stem
            down = stem + endings.down
            up = stem + endings.up
        }

        /// The bias that belongs to `up`.
        var bias: String { up.dropLast("weight".count) + "bias" }
    }

    private static let endings = [
        Endings(down: ".lora_A.weight", up: ".lora_B.weight"),
        Endings(down: ".lora_A.default.weight", up: ".lora_B.default.weight"),
        Endings(down: ".lora_down.weight", up: ".lora_up.weight"),
        Endings(down: ".lora.down.weight", up: ".lora.up.weight"),
        Endings(down: ".lora_linear_layer.down.weight", up: ".lora_linear_layer.up.weight"),
    ]
    private static let plain = Endings(down: ".down.weight", up: ".up.weight")
    /// Modules with other names in old attention processors: the name there, and the model's.
    private static let renamed = [
        (old: "to_out_lora", new: "to_out.0"), (old: "to_q_lora", new: "q_proj"), (old: "to_k_lora", new: "k_proj"),
        (old: "to_v_lora", new: "v_proj"), (old: "to_out_lora", new: "out_proj"),
    ]

    // MARK: - From a layer to its factors

    /// All possible names of a layer's factors, except those with an adapter's name.
    static func pairs(ofLayer layer: String) -> [Pair] {
        endings.map { Pair(layer, $0) } + oldStems(ofLayer: layer).map { Pair($0, plain) }
    }

    /// The factors of a layer with an adapter's name, `layer.lora_A.style.weight`, from the name of one of them.
    static func namedPair(_ name: String, ofLayer layer: String) -> Pair? {
        guard name.hasPrefix(layer + ".lora_"), name.hasSuffix(".weight") else { return nil }
        let parts = name.dropFirst(layer.count + 1).split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 3, parts[0] == "lora_A" || parts[0] == "lora_B" else { return nil }
        return Pair(layer, Endings(down: ".lora_A.\(parts[1]).weight", up: ".lora_B.\(parts[1]).weight"))
    }

    /// The names that old attention processors use for a layer.
    static func oldStems(ofLayer layer: String) -> [String] {
        // The layer itself has such a name.
        if layer.hasSuffix("_lora") || layer.split(separator: ".").last?.contains("_lora") == true { return [layer] }
        var stems: [String] = []
        func add(_ ending: some StringProtocol, _ old: String) {
            let parent = layer.dropLast(ending.count)
            for middle in ["processor.", ""] { stems.append(parent + middle + old) }
        }
        for (old, new) in renamed where layer.hasSuffix(".\(new)") && (new.hasPrefix("to_") || layer.contains("self_attn")) {
            add(new, old)
        }
        if let dot = layer.lastIndex(of: ".") {
            let leaf = layer[layer.index(after: dot)...]
            add(leaf, "\(leaf)_lora")
        }
        return stems
    }

    // MARK: - From a tensor to its layer

    /// The layer to which a factor belongs; nil for other tensors.
    static func layer(ofFactor name: String) -> String? {
        for endings in endings {
            for ending in [endings.down, endings.up] where name.hasSuffix(ending) {
                return String(name.dropLast(ending.count))
            }
        }
        for ending in [plain.down, plain.up] where name.hasSuffix(ending) {
            return layer(ofOldStem: String(name.dropLast(ending.count)))
        }
        // Names with an adapter's name.
        for factor in [".lora_A.", ".lora_B."] {
            guard let range = name.utf8.firstRange(of: Array(factor.utf8)), name.hasSuffix(".weight") else { continue }
            let rest = name[range.upperBound...].dropLast(".weight".count)
            if !rest.isEmpty && !rest.contains(".") { return String(name[..<range.lowerBound]) }
        }
        return nil
    }

    /// The layer for the name that an old attention processor uses; nil for names of other things.
    private static func layer(ofOldStem stem: String) -> String? {
        let leaf = stem.lastIndex(of: ".").map { stem[stem.index(after: $0)...] } ?? stem[...]
        guard leaf.contains("_lora") else { return nil }
        // Numbered names, in Flux adapters by XLabs, have no module of their own.
        guard leaf.hasSuffix("_lora"), leaf.count < stem.count else { return stem }
        var parent = stem.dropLast(leaf.count)
        let isTextEncoder = parent.hasSuffix("self_attn.")
        if parent.hasSuffix(".processor.") { parent = parent.dropLast("processor.".count) }
        let new = renamed.first { $0.old == leaf && $0.new.hasPrefix("to_") != isTextEncoder }?.new
        return parent + (new ?? String(leaf.dropLast("_lora".count)))
    }

    // MARK: - Other spellings of a layer's name

    private static let wrappers = ["base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet."]
    private static let underscored = ["lora_unet_", "lora_transformer_", "lora_te_", "lora_te1_", "lora_te2_", "lycoris_"]

    /// The layer's name without the prefixes that files add.
    static func bare(_ layer: String) -> String {
        for wrapper in wrappers where layer.hasPrefix(wrapper) { return String(layer.dropFirst(wrapper.count)) }
        return layer
    }

    /// The other names that a layer may have in files.
    static func spellings(ofLayer layer: String) -> [String] {
        let bare = bare(layer)
        let dashed = String(bare.map { $0 == "." ? "_" : $0 })
        return ([bare] + wrappers.map { $0 + bare } + underscored.map { $0 + dashed }).filter { $0 != layer }
    }

    // MARK: - Tensors that change a layer and are not pairs

    /// The start of the name, after the layer's, of tensors that other kinds of adapters have.
    private static let foreign = [
        "lora_", "lora.", "lokr_", "hada_", "oft_", "boft_", "ia3_", "vera_", "randlora_", "dora_", "hra_", "fourierft_",
        "vblora_", "shira_", "miss_", "bone_", "modules_to_save", "magnitude",
    ]
    private static let weights = ["a1.weight", "a2.weight", "b1.weight", "b2.weight"]

    /// Whether a tensor, by its name after the layer's and a dot, belongs to the layer itself and not to a module inside it.
    static func isOfLayer(_ rest: Substring) -> Bool {
        !rest.contains(".") || weights.contains { $0 == rest }
            || foreign.contains { rest.hasPrefix($0) }
    }
}
