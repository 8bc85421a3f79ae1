public import SparseKernels

extension SVDQuantLinear {
    /// Reads a modulation linear (adaLN) of a nunchaku checkpoint, such as `transformer_blocks.0.norm1.linear`: W4A16, with
    /// unsigned codes in groups of 64, a zero per group, and optional low-rank factors.
    ///
    /// In the checkpoint the outputs of the splits (shift, scale, gate, …) alternate: output i of split s is row i · splits +
    /// s. The bias of splits that act as 1 + scale includes the 1. Reading reverses both, so the layer has the model's own
    /// outputs.
    ///
    /// - Parameters:
    ///   - file: the checkpoint.
    ///   - prefix: the layer's name in the checkpoint.
    ///   - splits: 6 in FLUX double blocks, 3 in single ones; 1 keeps rows and bias unchanged.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: as for W4A4 layers, and `.invalidArgument` for splits that do not divide the outputs.
    /// - Complexity: O(inFeatures · outFeatures).
    /// - Source: `deepcompressor/backend/nunchaku/utils.py`, `convert_to_nunchaku_w4x16_linear_weight`.
    public init(
        nunchakuModulation file: SafetensorsFile, prefix: String, splits: Int, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        var reader = NunchakuReader(file: file, layer: prefix)
        let entry = try file.entry(named: reader.name(NunchakuNames.codes))
        try reader.requireType(entry, [.int32])
        try file.requireTensor(
            entry.shape.count == 2 && entry.shape.allSatisfy { $0 >= 1 } && entry.shape[1] % 32 == 0, entry.name,
            expected: "[outFeatures / 4, inFeatures / 2], the inputs a multiple of 64", actual: abbreviated(entry.shape))
        let (rows, columns) = (4 * entry.shape[0], 2 * entry.shape[1])
        try require(
            splits >= 1 && rows % splits == 0, .invalidArgument, "splits", expected: "a divisor of the \(rows) outputs",
            actual: "\(splits)")
        let groups = columns / 64
        let scales = try reader.floats(reader.name(NunchakuNames.scales), [groups, rows])
        let zeros = try reader.floats(reader.name(NunchakuNames.zeros), [groups, rows])
        let (biasName, downName, upName) = (
            reader.name(NunchakuNames.bias), reader.name(NunchakuNames.v1.down), reader.name(NunchakuNames.v1.up)
        )
        let bias = file[biasName] == nil ? nil : try reader.floats(biasName, [rows])
        var factors: (down: Tensor<Float>, up: Tensor<Float>)?
        if file[downName] != nil || file[upName] != nil {
            let rank = try file.entry(named: downName).shape.first ?? 0
            factors = (try reader.floats(downName, [rank, columns]), try reader.floats(upName, [rows, rank]))
        }

        /// The row of the checkpoint for row n of the model.
        func stored(_ n: Int) -> Int { n % (rows / splits) * splits + n / (rows / splits) }
        let words = try file.bytes(entry.name)
        let codes = try Tensor<UInt8>([rows, columns / 2]) { index in
            let (row, column) = (stored(index / (columns / 2)), index % (columns / 2) * 2)
            func code(_ column: Int) -> UInt8 {
                let (byte, isHigh) = NunchakuLayout.modulationByte(row: row, column: column, inFeatures: columns)
                let pair = words.unsafeLoad(fromByteOffset: byte, as: UInt8.self)
                return isHigh ? pair >> 4 : pair & 15
            }
            return code(column) | code(column + 1) << 4
        }
        do throws(SparseKernelsError) {
            // The checkpoint adds its zeros, but a weight subtracts its offsets.
            let weight = try QuantizedWeight(
                format: WeightFormat(.uint4, groupSize: 64), inFeatures: columns, codes: codes,
                scales: Tensor([rows, groups]) { scales[flat: $0 % groups * rows + stored($0 / groups)] },
                offsets: Tensor([rows, groups]) { -zeros[flat: $0 % groups * rows + stored($0 / groups)] })
            var branch: LowRankBranch?
            if let (down, up) = factors {
                let rank = down.shape[0]
                branch = try LowRankBranch(
                    down: down, up: Tensor([rows, rank]) { up[flat: stored($0 / rank) * rank + $0 % rank] })
            }
            var modelBias: Tensor<Float>?
            if let bias {
                // Splits 1 and splits − 2 are the scales, which act as 1 + scale.
                let ones = splits >= 3 ? Set([1, splits - 2]) : []
                modelBias = try Tensor([rows]) {
                    bias[flat: stored($0)] - (ones.contains($0 / (rows / splits)) ? 1 : 0)
                }
            }
            try self.init(
                weight: weight, lowRank: branch, bias: modelBias, activation: .float, instructionSet: instructionSet)
        } catch {
            let names = [
                "scales": NunchakuNames.scales, "offsets": NunchakuNames.zeros, "down": NunchakuNames.v1.down,
                "up": NunchakuNames.v1.up, "bias": NunchakuNames.bias,
            ]
            guard let name = names[error.argument] else { throw error }
            throw SparseKernelsError(
                .malformedFile, "\(file.name), tensor \(quoted(reader.name(name)))", expected: error.expected,
                actual: error.actual)
        }
    }
}
