public import SparseKernels

// Estimators in safetensors files, with the names and orientations of the released ones: `<prefix>.<projection>.w1` is
// `[inFeatures, rank]`, and `<prefix>.<projection>.w2` is `[rank, outFeatures]`. A prefix is such as `model.layers.3.mlp`.

extension ChannelEstimator {
    /// Reads an estimator, of `F32`, `F16` or `BF16`.
    /// - Throws: `.notFound`, `.invalidElementType`; `.malformedFile` for factors that do not fit each other or are not finite.
    public init(_ file: SafetensorsFile, prefix: String) throws(SparseKernelsError) {
        let (first, second) = ("\(prefix).w1", "\(prefix).w2")
        let w1 = try file.floatTensor(first)
        let w2 = try file.floatTensor(second)
        try file.requireTensor(
            w1.shape.count == 2 && w1.shape[1] >= 1, first, expected: "[inFeatures, rank]", actual: "\(w1.shape)")
        try file.requireTensor(
            w2.shape.count == 2 && w2.shape[0] == w1.shape[1], second, expected: "[\(w1.shape[1]), outFeatures]",
            actual: "\(w2.shape)")
        for (name, tensor) in [(first, w1), (second, w2)] {
            try file.requireTensor(
                tensor.elements.allSatisfy(\.isFinite), name, expected: "finite elements", actual: "NaN or infinity")
        }
        try self.init(down: flipped(w1), up: flipped(w2))
    }

    /// Adds the factors to a file.
    /// - Throws: `.invalidArgument` for names that are used.
    public func add(to writer: inout SafetensorsWriter, prefix: String) throws(SparseKernelsError) {
        try writer.add("\(prefix).w1", flipped(down))
        try writer.add("\(prefix).w2", flipped(up))
    }
}

extension MLPEstimator {
    /// Reads the estimators `<prefix>.gate_proj` and `<prefix>.up_proj`.
    /// - Throws: the errors of ``ChannelEstimator``; `.malformedFile` for estimators of different extents.
    public init(
        _ file: SafetensorsFile, prefix: String, function: GatedActivation.Function = .silu
    ) throws(SparseKernelsError) {
        let gate = try ChannelEstimator(file, prefix: "\(prefix).gate_proj")
        let up = try ChannelEstimator(file, prefix: "\(prefix).up_proj")
        self = try file.validated { () throws(SparseKernelsError) in try MLPEstimator(gate: gate, up: up, function: function) }
    }

    /// Adds the estimators to a file.
    /// - Throws: `.invalidArgument` for names that are used.
    public func add(to writer: inout SafetensorsWriter, prefix: String) throws(SparseKernelsError) {
        try gate.add(to: &writer, prefix: "\(prefix).gate_proj")
        try up.add(to: &writer, prefix: "\(prefix).up_proj")
    }
}

extension AttentionEstimator {
    /// Reads the estimators `<prefix>.q_proj`, `<prefix>.k_proj` and `<prefix>.v_proj`.
    /// - Throws: the errors of ``ChannelEstimator``; `.malformedFile` for estimators that do not belong to as many heads.
    public init(
        _ file: SafetensorsFile, prefix: String, heads: Int, kvHeads: Int
    ) throws(SparseKernelsError) {
        let query = try ChannelEstimator(file, prefix: "\(prefix).q_proj")
        let key = try ChannelEstimator(file, prefix: "\(prefix).k_proj")
        let value = try ChannelEstimator(file, prefix: "\(prefix).v_proj")
        self = try file.validated { () throws(SparseKernelsError) in
            try AttentionEstimator(query: query, key: key, value: value, heads: heads, kvHeads: kvHeads)
        }
    }

    /// Adds the estimators to a file.
    /// - Throws: `.invalidArgument` for names that are used.
    public func add(to writer: inout SafetensorsWriter, prefix: String) throws(SparseKernelsError) {
        try query.add(to: &writer, prefix: "\(prefix).q_proj")
        try key.add(to: &writer, prefix: "\(prefix).k_proj")
        try value.add(to: &writer, prefix: "\(prefix).v_proj")
    }
}

/// The transposed matrix.
private func flipped(_ matrix: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
    let (rows, columns, elements) = (matrix.shape[0], matrix.shape[1], matrix.elements)
    return try Tensor([columns, rows]) { elements[$0 % rows * columns + $0 / rows] }
}
