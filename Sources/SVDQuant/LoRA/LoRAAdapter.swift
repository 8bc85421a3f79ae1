public import SparseKernels

/// A low-rank adapter of one linear layer: y += strength · (scale · (x · downᵀ) · upᵀ + scale · bias).
///
/// `SVDQuantLinear.adding` appends it to the layer's own branch, and the quantised weight does not change. The layer's
/// smoothing does not affect it, because the branch gets activations that are not smoothed.
public struct LoRAAdapter: Sendable {
    /// `down` is `[rank, inFeatures]` (A), `up` is `[outFeatures, rank]` (B).
    public let factors: LowRankBranch
    /// alpha / rank, alpha / √rank for rank-stabilised adapters, or 1 without an alpha.
    public let scale: Float
    /// The bias, `[outFeatures]`; nil for none.
    public let bias: Tensor<Float>?

    public var rank: Int { factors.rank }
    public var inFeatures: Int { factors.down.shape[1] }
    public var outFeatures: Int { factors.up.shape[0] }

    /// - Parameters:
    ///   - down: `[rank, inFeatures]`, with a rank of 1 to `LowRankBranch.maximumRank`.
    ///   - up: `[outFeatures, rank]`.
    ///   - alpha: scales the adapter by alpha / rank; nil for no scaling.
    ///   - bias: `[outFeatures]`.
    /// - Throws: `.invalidShape` for shapes that disagree, `.invalidArgument` for elements or an alpha that are not finite.
    public init(
        down: Tensor<Float>, up: Tensor<Float>, alpha: Float? = nil, bias: Tensor<Float>? = nil
    ) throws(SparseKernelsError) {
        try require(alpha?.isFinite ?? true, .invalidArgument, "alpha", expected: "finite", actual: "\(alpha ?? 0)")
        let rank = down.shape.first ?? 1
        try self.init(down: down, up: up, scale: alpha.map { $0 / Float(max(1, rank)) } ?? 1, bias: bias, biasDifference: nil)
    }

    /// - Parameter biasDifference: `[outFeatures]`, added to the layer's bias unscaled. The adapter cannot store it apart, so
    ///   if there is one, the scale moves into `up` and the bias.
    init(
        down: Tensor<Float>, up: Tensor<Float>, scale: Float, bias: Tensor<Float>?, biasDifference: Tensor<Float>?
    ) throws(SparseKernelsError) {
        let factors = try LowRankBranch(down: down, up: up)
        try require(scale.isFinite, .invalidArgument, "scale", expected: "finite", actual: "\(scale)")
        for (name, tensor) in [("bias", bias), ("biasDifference", biasDifference)] {
            guard let tensor else { continue }
            try require(
                tensor.shape == [up.shape[0]], .invalidShape, name, expected: "\([up.shape[0]])", actual: "\(tensor.shape)")
            try require(
                tensor.elements.allSatisfy(\.isFinite), .invalidArgument, name, expected: "finite",
                actual: "an element that is not")
        }
        guard let biasDifference else {
            self.init(factors: factors, scale: scale, bias: bias)
            return
        }
        let scaled = try LowRankBranch(down: down, up: Tensor(up.shape) { scale * up[flat: $0] })
        self.init(
            factors: scaled, scale: 1,
            bias: try Tensor(biasDifference.shape) { biasDifference[flat: $0] + scale * (bias?[flat: $0] ?? 0) })
    }

    private init(factors: LowRankBranch, scale: Float, bias: Tensor<Float>?) {
        self.factors = factors
        self.scale = scale
        self.bias = bias
    }

    // MARK: - Layers that are cut or joined

    /// The adapter of projections that one layer computes together, such as q, k and v.
    ///
    /// Projections with identical factors `down` share them, and their factors `up` are stacked. Otherwise the factors `down`
    /// are stacked, and `up` is block-diagonal. Projections without an adapter get zeros.
    ///
    /// - Parameter projections: adapters in the order of the outputs, nil for none, each with its number of outputs.
    /// - Throws: `.invalidArgument` when no projection has an adapter; `.invalidShape` for numbers of outputs or inputs that
    ///   disagree, or a total rank above `LowRankBranch.maximumRank`.
    /// - Source: nunchaku, `lora/flux/nunchaku_converter.py`.
    public static func fused(_ projections: [(adapter: LoRAAdapter?, outFeatures: Int)]) throws(SparseKernelsError)
        -> LoRAAdapter
    {
        let present = projections.compactMap(\.adapter)
        guard let first = present.first else {
            throw SparseKernelsError(
                .invalidArgument, "projections", expected: "at least one with an adapter",
                actual: "\(projections.count) without")
        }
        for (index, projection) in projections.enumerated() {
            let adapter = projection.adapter
            try require(
                projection.outFeatures >= 1 && adapter?.outFeatures ?? projection.outFeatures == projection.outFeatures,
                .invalidShape, "projections[\(index)]", expected: "\(projection.outFeatures) outputs, 1 or more",
                actual: "\(adapter?.outFeatures ?? 0)")
            try require(
                adapter?.inFeatures ?? first.inFeatures == first.inFeatures, .invalidShape, "projections[\(index)]",
                expected: "\(first.inFeatures) inputs, as the others", actual: "\(adapter?.inFeatures ?? 0)")
        }
        let shares = present.allSatisfy { $0.factors.down == first.factors.down }
        let rank = shares ? first.rank : present.reduce(0) { $0 + $1.rank }
        let down = shares ? first.factors.down : try stacked(present.map(\.factors.down))
        let outFeatures = projections.reduce(0) { $0 + $1.outFeatures }
        var up = [Float](repeating: 0, count: outFeatures * rank)
        var bias = [Float](repeating: 0, count: outFeatures)
        var (row, column) = (0, 0)
        for (adapter, outputs) in projections {
            if let adapter {
                for output in 0..<outputs {
                    for i in 0..<adapter.rank {
                        up[(row + output) * rank + column + i] =
                            adapter.scale * adapter.factors.up[flat: output * adapter.rank + i]
                    }
                    bias[row + output] = adapter.scale * (adapter.bias?[flat: output] ?? 0)
                }
                if !shares { column += adapter.rank }
            }
            row += outputs
        }
        return try LoRAAdapter(
            down: down, up: Tensor([outFeatures, rank], up),
            bias: present.contains { $0.bias != nil } ? Tensor([outFeatures], bias) : nil)
    }

    /// The adapter for one part of a layer that is split by inputs, such as the output projection of a FLUX single block. `up`
    /// is the same for all parts; the part with the first input gets the bias.
    /// - Throws: `.invalidArgument` for an empty range, or one that exceeds the inputs.
    public func inputs(_ range: Range<Int>) throws(SparseKernelsError) -> LoRAAdapter {
        try require(
            !range.isEmpty && range.lowerBound >= 0 && range.upperBound <= inFeatures, .invalidArgument, "range",
            expected: "a part of 0..<\(inFeatures)", actual: "\(range)")
        let down = try Tensor<Float>([rank, range.count]) {
            factors.down[flat: $0 / range.count * inFeatures + range.lowerBound + $0 % range.count]
        }
        return LoRAAdapter(
            factors: try LowRankBranch(down: down, up: factors.up), scale: scale,
            bias: range.lowerBound == 0 ? bias : nil)
    }
}

// MARK: - Adding

extension SVDQuantLinear {
    /// Appends adapters to the branch, without new quantisation. Keep the original layer to remove them later.
    ///
    ///     down'' = [down; A₁; A₂; …]        up'' = [up, strength₁ · scale₁ · B₁, strength₂ · scale₂ · B₂, …]
    ///
    /// - Parameter adapters: adapters with their strengths. A strength of 0 adds ranks without effect.
    /// - Throws: `.invalidShape` for an adapter of another layer, or a total rank above `LowRankBranch.maximumRank`;
    ///   `.invalidArgument` for a strength that is not finite.
    /// - Complexity: O(rank · (inFeatures + outFeatures)).
    public func adding(_ adapters: [(adapter: LoRAAdapter, strength: Float)]) throws(SparseKernelsError) -> SVDQuantLinear {
        for (index, (adapter, strength)) in adapters.enumerated() {
            try require(
                adapter.inFeatures == inFeatures && adapter.outFeatures == outFeatures, .invalidShape, "adapters[\(index)]",
                expected: "\(inFeatures) inputs and \(outFeatures) outputs",
                actual: "\(adapter.inFeatures) and \(adapter.outFeatures)")
            try require(
                strength.isFinite, .invalidArgument, "adapters[\(index)].strength", expected: "finite", actual: "\(strength)")
        }
        if adapters.isEmpty { return self }
        let total = adapters.reduce(rank) { $0 + $1.adapter.rank }
        try require(
            total <= LowRankBranch.maximumRank, .invalidShape, "adapters",
            expected: "of a total rank of at most \(LowRankBranch.maximumRank), the layer's own branch included",
            actual: "\(total)")
        let down = try stacked((lowRank.map { [$0.down] } ?? []) + adapters.map(\.adapter.factors.down))
        var up: [Float] = []
        up.reserveCapacity(total * outFeatures)
        for row in 0..<outFeatures {
            if let lowRank { for i in 0..<rank { up.append(lowRank.up[flat: row * rank + i]) } }
            for (adapter, strength) in adapters {
                let factor = strength * adapter.scale
                for i in 0..<adapter.rank { up.append(factor * adapter.factors.up[flat: row * adapter.rank + i]) }
            }
        }
        var bias = self.bias
        if adapters.contains(where: { $0.adapter.bias != nil }) {
            bias = try Tensor([outFeatures]) { row in
                adapters.reduce(self.bias?[flat: row] ?? 0) {
                    $0 + $1.strength * $1.adapter.scale * ($1.adapter.bias?[flat: row] ?? 0)
                }
            }
        }
        return try with(lowRank: LowRankBranch(down: down, up: Tensor([outFeatures, total], up)), bias: bias)
    }

    /// Appends one adapter to the branch.
    /// - Throws: as `adding(_:)`.
    public func adding(_ adapter: LoRAAdapter, strength: Float = 1) throws(SparseKernelsError) -> SVDQuantLinear {
        try adding([(adapter, strength)])
    }
}

/// Stacks matrices of the same width.
private func stacked(_ matrices: [Tensor<Float>]) throws(SparseKernelsError) -> Tensor<Float> {
    let rows = matrices.reduce(0) { $0 + $1.shape[0] }
    return try Tensor([rows, matrices[0].shape[1]], matrices.flatMap(\.elements))
}
