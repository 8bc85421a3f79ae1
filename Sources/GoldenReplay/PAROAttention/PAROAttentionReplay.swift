internal import PAROAttention
internal import SparseKernels

/// `paro.permutation`: the six orders of the axes, of the image part alone. Equal.
func replayPAROPermutation(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let geometry = try golden.parameters(PAROParameters.self).geometry
    var comparison = GoldenComparison()
    let orders = PAROAxisOrder.allCases
    let expected = try golden.rows("out.permutation", [orders.count, geometry.videoTokens])
    for (order, row) in zip(orders, expected) {
        let tokens = order.permutation(geometry).order(head: 0)
        let image = tokens[tokens.startIndex + geometry.video.lowerBound..<tokens.startIndex + geometry.video.upperBound]
        comparison.compare("out.permutation[\(order)]", image.map { Double(Int($0) - geometry.video.lowerBound) }, row)
    }
    return comparison.result(golden)
}

/// `paro.attention`: orders, the padded mask, INT8 codes, attention of floats and attention of codes. Head h has order h.
///
/// Tolerances, as recorded with the cases: orders and masks equal; codes equal unless the exact quotient is within 10⁻⁶ of a
/// half; outputs within 10⁻⁵. Scales, which are one division, are within 2⁻²³ relative, and the LSE of exact arithmetic within
/// 10⁻⁵, as the output. Both attentions run on what is recorded: the mask of image blocks, and the codes.
func replayPAROAttention(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(PAROParameters.self)
    let geometry = try parameters.geometry
    let blocks = try PAROBlocks(geometry, blockSize: parameters.block ?? PAROBlocks.releasedBlockSize)
    let query = try golden.file.floatTensor("in.q")
    let key = try golden.file.floatTensor("in.k")
    let value = try golden.file.floatTensor("in.v")
    let shape = try AttentionShape(query: query, key: key, value: value)
    let tokens = geometry.tokens
    var comparison = GoldenComparison()

    let orders = (0..<shape.queryHeads).map { PAROAxisOrder.allCases[$0 % PAROAxisOrder.allCases.count] }
    let recorded = try golden.rows("out.permutation", [PAROAxisOrder.allCases.count, tokens])
    for (order, row) in zip(PAROAxisOrder.allCases, recorded) {
        comparison.compare("out.permutation[\(order)]", order.permutation(geometry).order(head: 0).map { Double($0) }, row)
    }

    let mask = try blocks.mask(padding: golden.file.tensor("in.image_block_mask", as: UInt8.self))
    let padded = try golden.file.tensor("out.block_mask", as: UInt8.self)
    try golden.check("out.block_mask", padded.shape, [shape.queryHeads, blocks.grid.blockRows, blocks.grid.blockColumns])
    comparison.compare("out.block_mask", mask, with: padded)

    let plan = try PAROAttentionPlan(geometry: geometry, orders: orders, masks: [mask])
    let permutation = try plan.permutation()
    let state = try plan.attention(shape, instructionSet: instructionSet)(query: query, key: key, value: value, on: pool)
    try comparison.compareOutput(golden, "out.o", state.output)
    let logSumExp = try golden.rows("aux.f64_lse_permuted", [shape.queryHeads, tokens])
    for (head, row) in logSumExp.enumerated() {
        let actual = permutation.order(head: head).map { Double(state.logSumExp[flat: head * tokens + Int($0)]) }
        comparison.compare("aux.f64_lse_permuted[\(head)]", actual, row, absolute: 1e-5)
    }

    let codes = try plan.int8Codes(query: query, key: key, instructionSet: instructionSet, on: pool)
    let rows = try permutation.gathered(query.view(), instructionSet: instructionSet, on: pool)
    let keyRows = try permutation.gathered(key.view(), instructionSet: instructionSet, on: pool)
    try comparison.compareCodes(golden, "q", codes.query, rows)
    try comparison.compareCodes(golden, "k", codes.key, keyRows)
    let int8 = try PAROInt8Codes(
        query: codes.query.replacing(golden, "q"), key: codes.key.replacing(golden, "k"))
    let quantized = try plan.attention(of: int8, value: value, instructionSet: instructionSet, on: pool)
    try comparison.compareOutput(golden, "out.o_int8_qk", quantized.output)
    return comparison.result(golden)
}

extension Int8BlockQuantization {
    /// The recorded codes and scales over the same blocks.
    fileprivate func replacing(_ golden: GoldenCase, _ side: String) throws(SparseKernelsError) -> Int8BlockQuantization {
        try Int8BlockQuantization(
            partition: partition, codes: golden.file.tensor("out.\(side)_codes", as: Int8.self),
            scales: golden.file.floatTensor("out.\(side)_scale"))
    }
}

extension GoldenComparison {
    fileprivate mutating func compareOutput(
        _ golden: GoldenCase, _ name: String, _ output: Tensor<Float>
    ) throws(SparseKernelsError) {
        let expected = try golden.file.floatTensor(name)
        try golden.check(name, expected.shape, output.shape)
        for index in 0..<output.count {
            compare(
                "\(name)[\(index)]", actual: Double(output[flat: index]), expected: Double(expected[flat: index]), bound: 1e-5)
        }
    }

    /// Compares codes and scales of permuted rows.
    fileprivate mutating func compareCodes(
        _ golden: GoldenCase, _ side: String, _ quantised: Int8BlockQuantization, _ rows: Tensor<Float>
    ) throws(SparseKernelsError) {
        let codes = try golden.file.tensor("out.\(side)_codes", as: Int8.self)
        let scales = try golden.file.floatTensor("out.\(side)_scale")
        try golden.check("out.\(side)_codes", codes.shape, quantised.codes.shape)
        try golden.check("out.\(side)_scale", scales.shape, quantised.scales.shape)
        for index in 0..<scales.count {
            let expected = Double(scales[flat: index])
            compare(
                "out.\(side)_scale[\(index)]", actual: Double(quantised.scales[flat: index]), expected: expected,
                bound: 0x1p-23 * expected)
        }
        let (tokens, channels) = (codes.shape[1], codes.shape[2])
        let partition = quantised.partition
        // The largest magnitude of every block in exact arithmetic.
        var largest = [Double](repeating: 1e-7, count: scales.count)
        func block(_ index: Int) -> Int {
            index / channels / tokens * partition.count + partition.block(of: index / channels % tokens)
        }
        for index in 0..<rows.count { largest[block(index)] = max(largest[block(index)], Double(abs(rows[flat: index]))) }
        for index in 0..<codes.count where codes[flat: index] != quantised.codes[flat: index] {
            let quotient = abs(Double(rows[flat: index]) * 127 / largest[block(index)])
            compare(
                "out.\(side)_codes[\(index)], distance of \(quotient) from a half",
                actual: abs(quotient.truncatingRemainder(dividingBy: 1) - 0.5), expected: 0, bound: 1e-6)
            compare(
                "out.\(side)_codes[\(index)]", actual: Double(quantised.codes[flat: index]),
                expected: Double(codes[flat: index]), bound: 1)
        }
    }
}

private struct PAROParameters: Decodable {
    var frames: Int
    var height: Int
    var width: Int
    var text: Int
    var block: Int?

    enum CodingKeys: String, CodingKey {
        case frames, height, width, block
        case text = "text_tokens"
    }

    var geometry: VideoGeometry {
        get throws(SparseKernelsError) {
            try VideoGeometry(frames: frames, height: height, width: width, textTokens: text, textPlacement: .before)
        }
    }
}
