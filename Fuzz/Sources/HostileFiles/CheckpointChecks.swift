import QServe
import SVDQuant
package import SparseKernels
import SparseKernelsReference

/// Small valid checkpoints of every imported kind, with which a mutator starts.
package func sampleCheckpoints() throws(SparseKernelsError) -> [[UInt8]] {
    try [svdQuantSample()] + nunchakuSamples()
        + [loraSample(), qserveSample(), awqSample(), gptqSample()].map {
            writer throws(SparseKernelsError) in try writer.encoded()
        }
}

private func svdQuantLayer(_ format: WeightFormat, rows: Int, columns: Int) throws(SparseKernelsError) -> SVDQuantLinear {
    try SVDQuantLinear(
        weight: WeightQuantizer(format)(Tensor<Float>.normal([rows, columns], seed: 1)),
        smooth: Tensor([columns]) { 1 + Float($0 % 3) / 2 },
        lowRank: LowRankBranch(down: .normal([16, columns], seed: 2), up: .normal([rows, 16], seed: 3)),
        bias: Tensor([rows]) { Float($0) }, activation: format == .nvfp4 ? .fp4 : .int4)
}

private func svdQuantSample() throws(SparseKernelsError) -> [UInt8] {
    var writer = SafetensorsWriter()
    try svdQuantLayer(.svdQuantInt4, rows: 5, columns: 70).write(to: &writer, prefix: "a")
    try svdQuantLayer(.nvfp4, rows: 3, columns: 16).write(to: &writer, prefix: "b.c")
    return try writer.encoded()
}

private func nunchakuSamples() throws(SparseKernelsError) -> [[UInt8]] {
    var samples: [[UInt8]] = []
    for (format, names) in [(WeightFormat.svdQuantInt4, NunchakuNames.v1), (.nvfp4, .v2)] {
        var writer = SafetensorsWriter()
        let layer = try SVDQuantLinear(
            weight: WeightQuantizer(format, scaleType: .bfloat16)(Tensor<Float>.normal([128, 128], seed: 4)),
            activation: format == .nvfp4 ? .fp4 : .int4)
        try layer.writeNunchaku(to: &writer, prefix: "blocks.0.mlp_fc2", names: names)
        samples.append(try writer.encoded())
    }
    return samples
}

private func loraSample() throws(SparseKernelsError) -> SafetensorsWriter {
    var writer = SafetensorsWriter()
    writer.metadata["lora_adapter_metadata"] =
        #"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"x|[ab]": 2}, "rank_pattern": {"b": 2}}"#
    try writer.add("a.lora_A.weight", Tensor<BFloat16>.normal([4, 70], seed: 1))
    try writer.add("a.lora_B.weight", Tensor<BFloat16>.normal([5, 4], seed: 2))
    try writer.add("b.lora_down.weight", Tensor<Float>.normal([2, 6], seed: 3))
    try writer.add("b.lora_up.weight", Tensor<Float>.normal([7, 2], seed: 4))
    try writer.add("b.lora_up.bias", Tensor<Float>.normal([7], seed: 5))
    try writer.add("b.alpha", Tensor<Float>([], [8]))
    return writer
}

private func qserveSample() throws(SparseKernelsError) -> SafetensorsWriter {
    var writer = SafetensorsWriter()
    for (prefix, size) in [("grouped", 128), ("channels", nil)] as [(String, Int?)] {
        let weight = try ProgressiveQuantizer(groupSize: size)(Tensor<Float>.normal([32, 256], seed: 1))
        try QServeTensors(packing: weight, order: .omniserve, bias: Tensor(zeros: [32])).write(to: &writer, prefix: prefix)
    }
    return writer
}

private func words(_ shape: [Int]) throws(SparseKernelsError) -> Tensor<Int32> {
    var random = SplitMix64(seed: 7)
    return try Tensor(shape) { _ in Int32(truncatingIfNeeded: random.next()) }
}

private func awqSample() throws(SparseKernelsError) -> SafetensorsWriter {
    var writer = SafetensorsWriter()
    try writer.add("awq.qweight", words([64, 2]))
    try writer.add("awq.qzeros", words([2, 2]))
    try writer.add("awq.scales", Tensor<BFloat16>.normal([2, 16], seed: 1))
    return writer
}

private func gptqSample() throws(SparseKernelsError) -> SafetensorsWriter {
    var writer = SafetensorsWriter()
    try writer.add("gptq.qweight", words([8, 16]))
    try writer.add("gptq.qzeros", words([2, 2]))
    try writer.add("gptq.scales", Tensor<BFloat16>.normal([2, 16], seed: 1))
    try writer.add("gptq.g_idx", Tensor<Int32>([64]) { Int32($0 % 2) })
    return writer
}

/// Imports every layer of a file by every importer, and runs the accepted layers.
///
/// - Returns: the number of successful imports.
/// - Throws: `SparseKernelsError` when the file is not safetensors, `BrokenPromise` for an accepted layer that is invalid.
@discardableResult
package func importEverything(_ bytes: [UInt8]) throws -> Int {
    let file = try SafetensorsFile(bytes: bytes)
    // A layer's name is that of a tensor without the last part or, for adapters, the last two parts.
    var layers: Set<String> = [""]
    for entry in file.tensors.prefix(64) {
        let parts = entry.name.split(separator: ".", omittingEmptySubsequences: false)
        for count in 1...2 where parts.count > count { layers.insert(parts.dropLast(count).joined(separator: ".")) }
    }
    var accepted = 0
    func attempt(_ body: () throws -> Void) throws {
        do {
            try body()
            accepted += 1
        } catch is SparseKernelsError {
            return
        }
    }
    for layer in layers.sorted() {
        try attempt { try check(SVDQuantLinear(file: file, prefix: layer)) }
        try attempt { try check(SVDQuantLinear(nunchaku: file, prefix: layer)) }
        try attempt { try check(LoRAAdapter(file: file, layer: layer)) }
        for order in QServeTensors.Order.allCases {
            try attempt { try check(file, QServeTensors(file: file, prefix: layer), order) }
        }
        for size in [nil, 32, 128] as [Int?] {
            try attempt { try check(awq(file, layer, groupSize: size).quantizedWeight(), .float) }
            for version in GPTQLayout.Version.allCases {
                // Only the first of them reads groups in activation order.
                try attempt { _ = try gptq(file, layer, version, groupSize: size).dequantized() }
                try attempt { try check(gptq(file, layer, version, groupSize: size).quantizedWeight(), .float) }
            }
        }
    }
    return accepted
}

private func awq(_ file: SafetensorsFile, _ layer: String, groupSize: Int?) throws(SparseKernelsError) -> AWQLayout {
    try AWQLayout(
        qweight: file.tensor("\(layer).qweight"), qzeros: file.tensor("\(layer).qzeros"),
        scales: file.floatTensor("\(layer).scales"), groupSize: groupSize)
}

private func gptq(
    _ file: SafetensorsFile, _ layer: String, _ version: GPTQLayout.Version, groupSize: Int?
) throws(SparseKernelsError) -> GPTQLayout {
    let indices = "\(layer).g_idx"
    return try GPTQLayout(
        version: version, qweight: file.tensor("\(layer).qweight"), qzeros: file.tensor("\(layer).qzeros"),
        scales: file.floatTensor("\(layer).scales"), groupIndices: file[indices] == nil ? nil : file.tensor(indices),
        groupSize: groupSize)
}

// MARK: - Promises of accepted layers

private func requirePromise(_ holds: Bool, _ text: @autoclosure () -> String) throws {
    if !holds { throw BrokenPromise(description: text()) }
}

private func check(_ weight: QuantizedWeight, _ activation: ActivationFormat) throws {
    let x = try Tensor<Float>([1, weight.inFeatures]) { Float($0 % 5) - 2 }
    let y = try QuantizedLinear(PackedWeight(weight), activation: activation)(x, on: .serial)
    try requirePromise(y.shape == [1, weight.outFeatures], "\(weight.format): y has shape \(y.shape)")
}

private func check(_ layer: SVDQuantLinear) throws {
    let x = try Tensor<Float>([2, layer.inFeatures]) { Float($0 % 7) / 8 }
    let y = try layer(x, on: .serial)
    try requirePromise(y.shape == [2, layer.outFeatures], "a layer of \(layer.weight.format): y has shape \(y.shape)")
    var writer = SafetensorsWriter()
    try layer.write(to: &writer, prefix: "again")
    let again = try SVDQuantLinear(file: SafetensorsFile(bytes: writer.encoded()), prefix: "again")
    try requirePromise(again.weight.codes == layer.weight.codes, "codes changed in writing")
    try requirePromise(bits(again.weight.scales) == bits(layer.weight.scales), "scales changed in writing")
    try requirePromise(bits(again.bias) == bits(layer.bias), "the bias changed in writing")
}

private func check(_ adapter: LoRAAdapter) throws {
    let shape = (adapter.factors.down.shape, adapter.factors.up.shape)
    try requirePromise(
        shape.0 == [adapter.rank, adapter.inFeatures] && shape.1 == [adapter.outFeatures, adapter.rank],
        "an adapter of shapes \(shape)")
    try requirePromise(adapter.scale.isFinite, "an adapter with the scale \(adapter.scale)")
}

private func check(_ file: SafetensorsFile, _ tensors: QServeTensors, _ order: QServeTensors.Order) throws {
    let weight = try tensors.weight(order: order, on: .serial)
    if weight.format.groupSize != nil {
        try requirePromise(try IntermediateRange(weight, on: .serial).fits, "bytes between the levels that do not fit")
    }
    try check(weight, .int8PerToken)
    do {
        let again = try QServeTensors(packing: weight, order: order, bias: tensors.bias, on: .serial)
        try requirePromise(again.qweight == tensors.qweight, "codes changed in packing")
        try requirePromise(again.s2Scales == tensors.s2Scales && again.s2Zeros == tensors.s2Zeros, "scales changed in packing")
    } catch let error as SparseKernelsError {
        // A file may have scales in a wider type than the format's, which packing refuses.
        let names = ["weight.scales", "weight.offsets", "weight.channelScales"]
        try requirePromise(names.contains(error.argument), "cannot be packed again: \(error)")
    }
}

private func bits(_ tensor: Tensor<Float>?) -> [UInt32]? { tensor?.elements.map(\.bitPattern) }
