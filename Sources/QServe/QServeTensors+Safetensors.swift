public import SparseKernels

extension QServeTensors {
    /// Reads a layer of a file: `qweight`, `s1_scales`, either `s2_scales` and `s2_zeros` or `s1_szeros`, and `bias` where there is one.
    ///
    /// - Parameters:
    ///   - file: a QServe checkpoint.
    ///   - prefix: what stands before these names, such as `model.layers.0.mlp.down_proj.`; with its point.
    /// - Throws: `.notFound` for a missing tensor; `.malformedFile` for a file that has the tensors of both variants; `.invalidElementType` for
    ///   tensors of other formats that use the same names, such as AWQ's `qweight`; and what the other initialisers throw.
    public init(file: SafetensorsFile, prefix: String = "") throws(SparseKernelsError) {
        let (perChannel, grouped) = (prefix + "s1_szeros", ["s2_scales", "s2_zeros"].map { prefix + $0 })
        let both = file[perChannel] != nil && grouped.contains { file[$0] != nil }
        try require(
            !both, .malformedFile, "\(file.name), \(prefix)qweight",
            expected: "either s1_szeros, per channel, or s2_scales and s2_zeros, with groups", actual: "both")
        let qweight = try file.tensor(prefix + "qweight", as: Int8.self)
        let s1Scales = try file.floatTensor(prefix + "s1_scales")
        let bias = file[prefix + "bias"] == nil ? nil : try file.floatTensor(prefix + "bias")
        if file[perChannel] != nil {
            try self.init(qweight, s1Scales, s1SZeros: file.floatTensor(perChannel), bias: bias)
        } else {
            try self.init(
                qweight, s1Scales,
                s2: (file.tensor(grouped[0], as: Int8.self), file.tensor(grouped[1], as: Int8.self)), bias: bias)
        }
    }

    /// Adds the layer's tensors to a file, scales, zeros and bias as `F16`.
    ///
    /// - Parameters:
    ///   - writer: the file to be.
    ///   - prefix: as for reading.
    /// - Throws: `.invalidArgument` for names that are taken, and for values that fp16 does not hold exactly, a bias excepted, which is
    ///   rounded and must not overflow.
    public func write(to writer: inout SafetensorsWriter, prefix: String = "") throws(SparseKernelsError) {
        try Self.requireHalf(s1Scales, "s1_scales")
        if let s1SZeros { try Self.requireHalf(s1SZeros, "s1_szeros") }
        let overflow = bias?.elements.first { !roundedToHalf($0).isFinite }
        try require(
            overflow == nil, .invalidArgument, "bias", expected: "within the range of fp16", actual: "\(overflow ?? 0)")
        try writer.add(prefix + "qweight", qweight)
        for (name, tensor) in [("s2_scales", s2Scales), ("s2_zeros", s2Zeros)] {
            if let tensor { try writer.add(prefix + name, tensor) }
        }
        for (name, tensor) in [("s1_scales", s1Scales), ("s1_szeros", s1SZeros), ("bias", bias)] {
            guard let tensor else { continue }
            let bytes = tensor.elements.flatMap { value in
                let bits = halfBitPattern(value)
                return [UInt8(truncatingIfNeeded: bits), UInt8(truncatingIfNeeded: bits >> 8)]
            }
            try writer.add(prefix + name, elementType: .float16, shape: tensor.shape, bytes: bytes)
        }
    }
}
