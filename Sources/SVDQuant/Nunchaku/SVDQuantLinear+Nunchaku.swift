public import SparseKernels

extension SVDQuantLinear {
    // MARK: - Import

    /// Reads a W4A4 layer of a nunchaku checkpoint: packed INT4 or NVFP4 weights, smoothing factors and low-rank factors.
    ///
    /// The type of `wscales` tells INT4 from NVFP4. Its shape and `quantization_config` in the metadata must agree. Names of
    /// both versions are accepted.
    ///
    /// - Parameters:
    ///   - file: the checkpoint.
    ///   - prefix: the layer's name in the checkpoint, such as `transformer_blocks.0.qkv_proj`.
    ///   - activation: nil means the engine's format: `.fp4` for FP4 weights; for INT4 weights `.uint4(shift: 11/64)` in second
    ///     layers of MLPs (`mlp_fc2`, `mlp_context_fc2`, `ff.net.2`, `ff_context.net.2`), which follow a GELU, and `.int4`
    ///     elsewhere. For another format use `with(activation:)` of the layer, which corrects the bias.
    ///   - epilogue: operations after the layer, which the checkpoint does not state.
    ///   - outFeatures: outputs without the padding to a multiple of 128; nil for all.
    ///   - inFeatures: inputs without the padding to a multiple of 128; nil for all.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.notFound` for a missing tensor, with names that exist, such as the `wtscale` of an FP4 layer without
    ///   `wcscales`; `.invalidElementType` for a type that a tensor cannot have, or FP16 beside BF16; `.malformedFile` for
    ///   shapes that are not whole tiles or disagree, a configuration of the other precision, numbers that are not finite,
    ///   smoothing factors that are not positive, or padding that is not 0; `.invalidArgument` for features that the layer does
    ///   not have; `.unsupportedInstructionSet`.
    /// - Complexity: O(inFeatures · outFeatures).
    public init(
        nunchaku file: SafetensorsFile, prefix: String, activation: ActivationFormat? = nil, epilogue: Epilogue = .none,
        outFeatures: Int? = nil, inFeatures: Int? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        var reader = NunchakuReader(file: file, layer: prefix)
        let packed = try reader.codes()
        let (rows, columns) = (packed.shape[0], 2 * packed.shape[1])
        let precision = try reader.precision(outFeatures: rows, inFeatures: columns)
        let (outputs, inputs) = (outFeatures ?? rows, inFeatures ?? columns)
        for (name, value, limit) in [("outFeatures", outputs, rows), ("inFeatures", inputs, columns)] {
            try require(
                value >= 1 && value <= limit, .invalidArgument, name, expected: "1 to the \(limit) of the checkpoint",
                actual: "\(value)")
        }

        let scalesName = reader.name(NunchakuNames.scales)
        let scales: Tensor<Float>
        switch precision {
        case .int4:
            scales = try NunchakuLayout.unpackedScales(reader.floats(scalesName, [columns / 64, rows]))
        case .fp4: scales = try NunchakuLayout.unpackedMicroScales(file.storedFloats(scalesName))
        }
        let smoothName = try reader.name(NunchakuNames.allCases.map(\.smooth))
        let smooth = try NunchakuLayout.unpackedVector(reader.floats(smoothName, [columns]))
        let downName = try reader.name(NunchakuNames.allCases.map(\.down))
        let upName = try reader.name(NunchakuNames.allCases.map(\.up))
        let rank = try reader.rank(downName)
        let down = try NunchakuLayout.unpackedDown(reader.floats(downName, [columns, rank]))
        let up = try NunchakuLayout.unpackedUp(reader.floats(upName, [rows, rank]))
        let channelScales = try reader.channelScales(rows, precision)
        var bias: Tensor<Float>?
        if file[reader.name(NunchakuNames.bias)] != nil {
            bias = try NunchakuLayout.unpackedVector(reader.floats(reader.name(NunchakuNames.bias), [rows]))
        }

        let format = precision.format
        let codes = try NunchakuLayout.unpackedCodes(packed)
        try file.requireTensor(
            codes.hasOnlyZeros(outsideRows: outputs, nibbles: inputs), reader.name(NunchakuNames.codes),
            expected: "0 in the padding beyond \(outputs) outputs and \(inputs) inputs", actual: "other codes")
        do throws(SparseKernelsError) {
            let weight = try QuantizedWeight(
                format: format, inFeatures: inputs,
                codes: codes.resized(to: [outputs, format.paddedInFeatures(inputs) / 2]),
                scales: scales.resized(to: [outputs, format.groups(inFeatures: inputs)]),
                channelScales: channelScales?.resized(to: [outputs]))
            let isSmoothed = (0..<columns).contains { smooth[flat: $0] != 1 }
            try self.init(
                weight: weight, smooth: isSmoothed ? smooth.resized(to: [inputs]) : nil,
                lowRank: LowRankBranch(down: down.resized(to: [rank, inputs]), up: up.resized(to: [outputs, rank])),
                bias: bias?.resized(to: [outputs]),
                activation: activation ?? Self.engineActivation(precision, layer: prefix), epilogue: epilogue,
                instructionSet: instructionSet)
        } catch {
            let names = [
                "scales": scalesName, "channelScales": reader.name(NunchakuNames.channelScales), "smooth": smoothName,
                "down": downName, "up": upName, "bias": reader.name(NunchakuNames.bias),
            ]
            guard let name = names[error.argument] else { throw error }
            throw SparseKernelsError(
                .malformedFile, "\(file.name), tensor \(quoted(name))", expected: error.expected, actual: error.actual)
        }
    }

    /// The engine's format for the activations of a layer with that name.
    private static func engineActivation(_ precision: NunchakuPrecision, layer: String) -> ActivationFormat {
        if precision == .fp4 { return .fp4 }
        let followsGELU = ["mlp_fc2", "mlp_context_fc2", "ff.net.2", "ff_context.net.2"].contains {
            layer == $0 || layer.hasSuffix(".\($0)")
        }
        return followsGELU ? .uint4(shift: ActivationFormat.geluShift) : .int4
    }

    // MARK: - Export

    /// Adds the layer to a nunchaku checkpoint, padded and packed.
    ///
    /// Scales must already be values of the element type, so that codes keep their meaning. Those of a layer that was quantised
    /// with F16 scales often need `.float16`, as the error states. Smoothing factors, low-rank factors and the bias are rounded
    /// to the type. A layer without smoothing gets ones, without branch a rank of 16 zeros, without bias zeros. The metadata
    /// get the `quantization_config` of the precision. Nothing states the activation format: the engine shifts activations of
    /// second layers of MLPs by 11/64, and no others, so a layer of `.uint4` needs such a name.
    ///
    /// - Parameters:
    ///   - writer: the checkpoint.
    ///   - prefix: the layer's name in the checkpoint.
    ///   - elementType: `.bfloat16` or `.float16`, the type of the model. All layers of a checkpoint should have the same.
    ///   - names: v1 for the C++ engine, v2 for the Python modules.
    /// - Throws: `.invalidArgument` for weights that are not symmetric INT4 in groups of 64 or NVFP4, scales that the type
    ///   cannot represent, or a checkpoint of the other precision; `.invalidElementType` for another element type.
    public func writeNunchaku(
        to writer: inout SafetensorsWriter, prefix: String, elementType: ElementType = .bfloat16, names: NunchakuNames = .v1
    ) throws(SparseKernelsError) {
        try require(
            elementType == .bfloat16 || elementType == .float16, .invalidElementType, "elementType",
            expected: "BF16 or F16", actual: elementType.rawValue)
        let precision = NunchakuPrecision.allCases.first { $0.format == weight.format }
        try require(
            precision != nil && weight.offsets == nil, .invalidArgument, "weight",
            expected: "symmetric int4 group 64, or fp4 group 16",
            actual: "\(weight.format)\(weight.offsets == nil ? "" : " with offsets")")
        let text = NunchakuConfiguration.text(precision!)
        let written = writer.metadata[NunchakuConfiguration.key]
        try require(
            written ?? text == text, .invalidArgument, "metadata \(quoted(NunchakuConfiguration.key))",
            expected: quoted(text, limit: 200), actual: quoted(written ?? "", limit: 200))
        let scaleType = precision == .fp4 ? ElementType.float8E4M3 : elementType
        try requireValues("weight.scales", weight.scales, of: scaleType, elementType)

        // A copy, so that a name that is taken leaves the checkpoint unchanged.
        var result = writer
        func add(_ name: String, _ tensor: Tensor<Float>, as type: ElementType? = nil) throws(SparseKernelsError) {
            try result.addRounded(NunchakuNames.of(name, in: prefix), tensor, to: type ?? elementType)
        }
        let (rows, columns) = (
            NunchakuLayout.padded(outFeatures, NunchakuLayout.featureTile),
            NunchakuLayout.padded(inFeatures, NunchakuLayout.featureTile)
        )
        let codes = try NunchakuLayout.packedCodes(weight.codes)
        try result.add(
            NunchakuNames.of(NunchakuNames.codes, in: prefix), elementType: .int8, shape: codes.shape, bytes: codes.elements)
        switch precision! {
        case .int4: try add(NunchakuNames.scales, NunchakuLayout.packedScales(weight.scales, filling: 1))
        case .fp4:
            let scales = try weight.scales.resized(to: [rows, columns / 16], filling: 1)
            try add(NunchakuNames.scales, NunchakuLayout.packedMicroScales(scales, filling: 1), as: scaleType)
        }
        let channelScales = weight.channelScales?.elements ?? []
        if precision == .fp4 && channelScales.allSatisfy({ $0 == channelScales[0] }) {
            // One scale of the whole weight stays in 32 bits. An FP4 layer has one even where it is 1.
            try add(NunchakuNames.tensorScale, Tensor([1], [channelScales.first ?? 1]), as: .float32)
        } else if let scales = weight.channelScales {
            try requireValues("weight.channelScales", scales, of: elementType, elementType)
            try add(NunchakuNames.channelScales, NunchakuLayout.packedVector(scales, filling: 1))
        }
        let ones = try Tensor<Float>([inFeatures]) { _ in 1 }
        let packedSmooth = try NunchakuLayout.packedVector(smooth ?? ones, filling: 1)
        try add(names.smooth, packedSmooth)
        try add(names.originalSmooth, packedSmooth)
        let noBranch = try LowRankBranch(down: Tensor(zeros: [1, inFeatures]), up: Tensor(zeros: [outFeatures, 1]))
        try add(names.down, NunchakuLayout.packedDown((lowRank ?? noBranch).down))
        try add(names.up, NunchakuLayout.packedUp((lowRank ?? noBranch).up))
        let zeros = try Tensor<Float>(zeros: [outFeatures])
        try add(NunchakuNames.bias, NunchakuLayout.packedVector(bias ?? zeros, filling: 0))
        result.metadata[NunchakuConfiguration.key] = text
        writer = result
    }

    /// Throws unless the type represents all elements. The error suggests another element or scale type.
    private func requireValues(
        _ name: String, _ tensor: Tensor<Float>, of type: ElementType, _ elementType: ElementType
    ) throws(SparseKernelsError) {
        let values = tensor.span
        guard let bad = values.indices.first(where: { !type.holds(values[$0]) }) else { return }
        let other: ElementType = elementType == .bfloat16 ? .float16 : .bfloat16
        let remedy =
            if type == elementType && values.indices.allSatisfy({ other.holds(values[$0]) }) {
                "\(other.rawValue) has all of them: write with elementType .\(other == .float16 ? "float16" : "bfloat16")"
            } else if type == elementType {
                "quantise with that scaleType, or write with the elementType of the scales"
            } else {
                "quantise to WeightFormat.nvfp4"
            }
        throw SparseKernelsError(
            .invalidArgument, name, expected: "values that \(type.rawValue) has exactly (\(remedy))",
            actual: "\(values[bad]) at element \(bad)")
    }
}
