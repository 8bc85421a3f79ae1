public import SparseKernels

/// The kinds of the heads of one call, and the errors that decided.
public struct SVGSelection: Sendable, Equatable {
    /// One per query head. Heads that share a KV head are of the same kind.
    public let patterns: [SVGHeadKind]
    /// Mean squared errors of the sampled rows, `[2, queryHeads]`, spatial ones first.
    public let errors: Tensor<Float>
    /// The query tokens that were profiled.
    public let sampledRows: [Int]

    /// Chooses the kinds from measured errors.
    ///
    /// The kind of the smaller error wins, and spatial a tie. Heads that share a KV head are decided together, by the sum of
    /// their errors. An error that is NaN loses to a number; two of them make a head spatial. Under released rules the first NaN
    /// wins, as in PyTorch's argmin.
    init(errors: PatternErrors, rows: [Int], shape: AttentionShape, nanWins: Bool) {
        let group = shape.queryHeadsPerKVHead
        patterns = (0..<shape.queryHeads).map { head in
            let heads = head / group * group..<(head / group + 1) * group
            if nanWins,
                let kind = SVGHeadKind.allCases.first(where: { kind in
                    heads.contains { errors.errors[kind.rawValue, $0].isNaN }
                })
            {
                return kind
            }
            return errors.best(heads: heads) == 0 ? .spatial : .temporal
        }
        self.errors = errors.errors
        sampledRows = rows
    }
}
