public import SparseKernels

extension LoRAAdapter {
    /// The sorted names of the layers that have factors in a file.
    ///
    /// Names by old attention processors of diffusers are translated: `attn1.processor.to_out_lora` to `attn1.to_out.0`.
    public static func layers(in file: SafetensorsFile) -> [String] {
        Set(file.tensors.compactMap { LoRANames.layer(ofFactor: $0.name) }).sorted()
    }

    /// Reads the adapter of a layer.
    ///
    /// Factors are matrices or kernels of 1 × 1 convolutions, of `F64`, `F32`, `F16`, `BF16` or 8-bit floats, under the names
    /// of PEFT, kohya-ss and diffusers, including old ones (see Docs/Papers/SVDQuant.md). Biases of `up` and differences of the
    /// layer's bias (`diff_b`) are also read.
    ///
    /// The alpha that scales the factors is the first that exists of: a tensor `alpha` of the layer, of any numeric type; the
    /// metadata of the file (`lora_adapter_metadata`, or entries such as `transformer.lora_alpha`); `configuration`; `alpha`;
    /// `adapter_config.json` in the folder of a file that was opened by its path. Without any of these the scale is 1.
    ///
    /// - Parameters:
    ///   - file: the adapter's file.
    ///   - layer: the layer's name in the file (the part before `.lora_`) or in the model. Names are also found after
    ///     `base_model.model.`, `transformer.`, `unet.` or `diffusion_model.`, and with underscores after `lora_unet_`.
    ///   - alpha: the alpha, if the file has none.
    ///   - configuration: further settings, if the file has none. With it, `adapter_config.json` is not read.
    /// - Throws: `.notFound` when a factor is missing, or several layers have the name; `.invalidElementType` for another type;
    ///   `.malformedFile` for shapes that disagree, values that are not finite, factors under two names, a configuration that
    ///   disagrees with the factors, and tensors whose change to the layer is not a pair of factors: magnitudes (DoRA), LoKr,
    ///   LoHa, trained weights and others. Messages name the file and the tensor.
    public init(
        file: SafetensorsFile, layer: String, alpha: Float? = nil, configuration: LoRAConfiguration? = nil
    ) throws(SparseKernelsError) {
        let reader = try LoRAReader(file: file, layer: layer)
        let pair = reader.pair
        let (down, up) = (try reader.factor(pair.down), try reader.factor(pair.up))
        try file.requireTensor(
            (1...LowRankBranch.maximumRank).contains(down.shape[0]) && down.shape[1] >= 1, pair.down,
            expected: "[rank, inFeatures] with a rank of 1 to \(LowRankBranch.maximumRank)", actual: abbreviated(down.shape))
        let rank = down.shape[0]
        try file.requireTensor(
            up.shape[0] >= 1 && up.shape[1] == rank, pair.up, expected: "[outFeatures, \(rank)]",
            actual: abbreviated(up.shape))
        let bias = file[pair.bias] == nil ? nil : try reader.floats(pair.bias)
        let scale = try reader.scale(rank: rank, alpha: alpha, configuration: configuration)
        let difference = try reader.biasDifference()
        do throws(SparseKernelsError) {
            try self.init(down: down, up: up, scale: scale, bias: bias, biasDifference: difference)
        } catch {
            let names = [
                "down": pair.down, "up": pair.up, "bias": pair.bias, "biasDifference": reader.biasDifferenceName,
                "scale": reader.alphaName ?? pair.down,
            ]
            throw SparseKernelsError(
                .malformedFile, "\(file.name), tensor \(quoted(names[error.argument] ?? layer))", expected: error.expected,
                actual: error.actual)
        }
    }
}
