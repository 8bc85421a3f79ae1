public import SparseKernels

extension QServeTensors {
    private static func name(_ tensor: String, in layer: String) -> String { layer.isEmpty ? tensor : "\(layer).\(tensor)" }

    /// Reads a layer of a file: `qweight`, `s1_scales`, `s2_scales` and `s2_zeros` or `s1_szeros`, and `bias` if there is one.
    ///
    /// - Parameters:
    ///   - file: a QServe checkpoint.
    ///   - prefix: the layer's name in the file, such as `model.layers.0.mlp.down_proj`; empty for none.
    /// - Throws: `.notFound` for a missing tensor; `.invalidElementType` for tensors of other formats with the same names, such
    ///   as AWQ's `qweight`; `.malformedFile` for the tensors of both variants, shapes that disagree, or numbers that are not
    ///   finite. Messages name the file and the tensor.
    public init(file: SafetensorsFile, prefix: String = "") throws(SparseKernelsError) {
        func name(_ tensor: String) -> String { Self.name(tensor, in: prefix) }
        let isPerChannel = file[name("s1_szeros")] != nil
        try require(
            !isPerChannel || (file[name("s2_scales")] == nil && file[name("s2_zeros")] == nil), .malformedFile,
            "\(file.name), tensor \(quoted(name("s1_szeros")))",
            expected: "in layers per channel only, without s2_scales and s2_zeros", actual: "one with both")
        let qweight = try file.tensor(name("qweight"), as: Int8.self)
        let s1Scales = try file.floatTensor(name("s1_scales"))
        let bias = file[name("bias")] == nil ? nil : try file.floatTensor(name("bias"))
        if isPerChannel {
            let zeros = try file.floatTensor(name("s1_szeros"))
            self = try Self.naming(file, prefix) { () throws(SparseKernelsError) in
                try QServeTensors(qweight: qweight, s1Scales: s1Scales, s1SZeros: zeros, bias: bias)
            }
        } else {
            let scales = try file.tensor(name("s2_scales"), as: Int8.self)
            let zeros = try file.tensor(name("s2_zeros"), as: Int8.self)
            self = try Self.naming(file, prefix) { () throws(SparseKernelsError) in
                try QServeTensors(qweight: qweight, s1Scales: s1Scales, s2Scales: scales, s2Zeros: zeros, bias: bias)
            }
        }
    }

    /// Returns the result of `make`, and turns an error about a tensor into one about the file.
    static func naming<Value>(
        _ file: SafetensorsFile, _ layer: String, _ make: () throws(SparseKernelsError) -> Value
    ) throws(SparseKernelsError) -> Value {
        do throws(SparseKernelsError) {
            return try make()
        } catch {
            let name = name(error.argument, in: layer)
            if file[name] == nil { throw error }
            throw SparseKernelsError(
                .malformedFile, "\(file.name), tensor \(quoted(name))", expected: error.expected, actual: error.actual)
        }
    }

    /// Adds the layer's tensors to a file, with scales, zeros and bias as `F16`.
    ///
    /// - Parameters:
    ///   - writer: the writer of the file.
    ///   - prefix: the layer's name in the file; empty for none.
    /// - Throws: `.invalidArgument` for names that are taken, and for values that fp16 does not hold exactly. The bias is
    ///   rounded instead, and must not overflow.
    public func write(to writer: inout SafetensorsWriter, prefix: String = "") throws(SparseKernelsError) {
        try Self.requireHalf(s1Scales, "s1_scales")
        if let s1SZeros { try Self.requireHalf(s1SZeros, "s1_szeros") }
        let overflow = bias?.elements.first { !roundedToHalf($0).isFinite }
        try require(
            overflow == nil, .invalidArgument, "bias", expected: "within the range of fp16", actual: "\(overflow ?? 0)")
        for (name, tensor) in [("qweight", qweight), ("s2_scales", s2Scales), ("s2_zeros", s2Zeros)] {
            if let tensor { try writer.add(Self.name(name, in: prefix), tensor) }
        }
        for (name, tensor) in [("s1_scales", s1Scales), ("s1_szeros", s1SZeros), ("bias", bias)] {
            guard let tensor else { continue }
            let bytes = tensor.elements.flatMap { value in
                let bits = halfBitPattern(value)
                return [UInt8(truncatingIfNeeded: bits), UInt8(truncatingIfNeeded: bits >> 8)]
            }
            try writer.add(Self.name(name, in: prefix), elementType: .float16, shape: tensor.shape, bytes: bytes)
        }
    }
}
