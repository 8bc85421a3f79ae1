public import SparseKernels

extension LoRAAdapter {
    /// How files name the factors of a layer: down and up, behind the layer's name.
    private static let factorNames = [
        (".lora_A.weight", ".lora_B.weight"), (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_down.weight", ".lora_up.weight"), (".lora.down.weight", ".lora.up.weight"),
    ]
    private static let alphaName = ".alpha"

    /// The names of the layers that a file has factors for, sorted.
    public static func layers(in file: SafetensorsFile) -> [String] {
        var layers: Set<String> = []
        for entry in file.tensors {
            for suffixes in factorNames {
                for suffix in [suffixes.0, suffixes.1] where entry.name.hasSuffix(suffix) {
                    layers.insert(String(entry.name.dropLast(suffix.count)))
                }
            }
        }
        return layers.sorted()
    }

    /// Reads the adapter of a layer.
    ///
    /// Factors are `F32`, `F16` or `BF16`, under the names `lora_A` and `lora_B` of PEFT or `lora_down` and `lora_up` of
    /// kohya-ss and diffusers, followed by `.weight`. A scalar `alpha` and a bias of `up` are read where they are.
    ///
    /// - Parameters:
    ///   - file: the adapter's file.
    ///   - layer: the layer's name in the file, which is what stands before `.lora_`.
    ///   - alpha: what the file leaves out, such as `lora_alpha` of PEFT, which stands in another file. What is in the file
    ///     goes first.
    /// - Throws: `.notFound` when a factor is missing; `.invalidElementType` for another type; `.malformedFile` for shapes that
    ///   disagree, values that are not finite, or factors under two names. Messages name the file and the tensor.
    public init(file: SafetensorsFile, layer: String, alpha: Float? = nil) throws(SparseKernelsError) {
        let found = Self.factorNames.filter { file[layer + $0.0] != nil || file[layer + $0.1] != nil }
        guard let names = found.first else {
            let known = Self.layers(in: file)
            throw SparseKernelsError(
                .notFound, "\(file.name), layer \(quoted(layer))",
                expected: known.isEmpty
                    ? "one with lora_A and lora_B, or lora_down and lora_up; the file has none"
                    : "one of its \(known.count) layers with factors, such as \(quoted(known[0]))",
                actual: "no factors of that name")
        }
        try file.requireTensor(
            found.count == 1, layer + names.0, expected: "the layer's only factor of its kind",
            actual: "also \(quoted(layer + (found.last?.0 ?? "")))")
        let (downName, upName) = (layer + names.0, layer + names.1)
        let (downShape, upShape) = (try file.entry(named: downName).shape, try file.entry(named: upName).shape)
        try file.requireTensor(
            downShape.count == 2 && (1...1024).contains(downShape[0]) && downShape[1] >= 1, downName,
            expected: "[rank, inFeatures] with a rank of 1 to 1024", actual: abbreviated(downShape))
        try file.requireTensor(
            upShape.count == 2 && upShape[0] >= 1 && upShape[1] == downShape[0], upName,
            expected: "[outFeatures, \(downShape[0])]", actual: abbreviated(upShape))

        var alpha = alpha
        let alphaName = layer + Self.alphaName
        if let entry = file[alphaName] {
            try file.requireTensor(entry.count == 1, alphaName, expected: "one number", actual: abbreviated(entry.shape))
            alpha = try file.floatTensor(alphaName)[flat: 0]
        }
        let biasName = upName.dropLast("weight".count) + "bias"
        let (down, up) = (try file.floatTensor(downName), try file.floatTensor(upName))
        let bias = file[String(biasName)] == nil ? nil : try file.floatTensor(String(biasName))
        do throws(SparseKernelsError) {
            try self.init(down: down, up: up, alpha: alpha, bias: bias)
        } catch {
            let names = ["down": downName, "up": upName, "alpha": alphaName, "bias": String(biasName)]
            throw SparseKernelsError(
                .malformedFile, "\(file.name), tensor \(quoted(names[error.argument] ?? layer))", expected: error.expected,
                actual: error.actual)
        }
    }
}
