public import SparseKernels

/// Layers of SparseLoRA in `Double`, forward and backward, with what results in `Float` may be off by.
///
/// Every row has a mask: sparse rows see the picked channels of frozen weights, and zeros elsewhere. All formulas are those of dense layers
/// with masked matrices; nothing is compacted.
public enum ReferenceSparseLoRA {
    /// Which channels each row of a batch sees.
    public struct Mask: Sendable {
        public var isDense: [Bool]
        public var isPicked: [Bool]

        public init(isDense: [Bool], channels: [Int], of width: Int) {
            self.isDense = isDense
            isPicked = Array(repeating: false, count: width)
            for channel in channels { isPicked[channel] = true }
        }

        func keeps(_ row: Int, _ channel: Int) -> Bool { isDense[row] || isPicked[channel] }

    }

    /// Trainable factors: y += scale · (x·aᵀ)·bᵀ.
    public struct Adapter: Sendable {
        public var a: BoundedMatrix
        public var b: BoundedMatrix
        public var scale: Double

        public init(a: BoundedMatrix, b: BoundedMatrix, scale: Double) {
            self.a = a
            self.b = b
            self.scale = scale
        }

        func output(_ x: BoundedMatrix) -> BoundedMatrix { x.timesTransposed(a).timesTransposed(b).times(scale) }
        func inputGradient(_ dy: BoundedMatrix) -> BoundedMatrix { dy.times(b).times(a).times(scale) }
        func gradients(_ x: BoundedMatrix, _ dy: BoundedMatrix) -> (a: BoundedMatrix, b: BoundedMatrix) {
            (
                dy.times(b).transposed.times(x).times(scale), dy.transposed.times(x.timesTransposed(a)).times(scale)
            )
        }
    }

    public struct Result: Sendable {
        public var y: BoundedMatrix
        public var dx: BoundedMatrix
        /// Gradients of the adapters, in the order in which they were given.
        public var adapters: [(a: BoundedMatrix, b: BoundedMatrix)]
    }

    /// A projection of which sparse rows use some outputs.
    public static func outputs(
        x: BoundedMatrix, weight: BoundedMatrix, bias: [Double]? = nil, adapter: Adapter? = nil, mask: Mask,
        dy: BoundedMatrix, passesFrozenGradient: Bool = true
    ) -> Result {
        var y = x.timesTransposed(weight).masked(mask)
        if let bias { y = y.adding(row: bias) }
        var dx = dy.masked(mask).times(weight)
        if !passesFrozenGradient { dx = dx.keeping(rows: mask.isDense) }
        return finish(x, y, dx, adapter, dy)
    }

    /// A projection of which sparse rows use some inputs.
    public static func inputs(
        x: BoundedMatrix, weight: BoundedMatrix, bias: [Double]? = nil, adapter: Adapter? = nil, mask: Mask,
        dy: BoundedMatrix, passesFrozenGradient: Bool = true
    ) -> Result {
        var y = x.masked(mask).timesTransposed(weight)
        if let bias { y = y.adding(row: bias) }
        var dx = dy.times(weight).masked(mask)
        if !passesFrozenGradient { dx = dx.keeping(rows: mask.isDense) }
        return finish(x, y, dx, adapter, dy)
    }

    private static func finish(
        _ x: BoundedMatrix, _ y: BoundedMatrix, _ dx: BoundedMatrix, _ adapter: Adapter?, _ dy: BoundedMatrix
    ) -> Result {
        guard let adapter else { return Result(y: y, dx: dx, adapters: []) }
        return Result(
            y: y.plus(adapter.output(x)), dx: dx.plus(adapter.inputGradient(dy)), adapters: [adapter.gradients(x, dy)])
    }

    /// A feed-forward layer with SiLU. Adapters are those of gate, up and down, or none.
    public static func mlp(
        x: BoundedMatrix, gate: BoundedMatrix, up: BoundedMatrix, down: BoundedMatrix, adapters: [Adapter] = [],
        mask: Mask, dy: BoundedMatrix
    ) -> Result {
        var g = x.timesTransposed(gate).masked(mask)
        var u = x.timesTransposed(up).masked(mask)
        if !adapters.isEmpty {
            g = g.plus(adapters[0].output(x))
            u = u.plus(adapters[1].output(x))
        }
        let f = g.mapped(slope: 1.1) { value in
            (ReferenceRows.activation(.silu, value), ReferenceRows.activationError(.silu, value))
        }
        let h = f.timesElements(u)
        var y = h.masked(mask).timesTransposed(down)
        if !adapters.isEmpty { y = y.plus(adapters[2].output(h)) }

        var dh = dy.times(down).masked(mask)
        if !adapters.isEmpty { dh = dh.plus(adapters[2].inputGradient(dy)) }
        // The second derivative of SiLU is at most 1/2.
        let slope = g.mapped(slope: 0.5) { value in
            let sigmoid = 1 / (1 + exponential(-value))
            let slope = sigmoid * (1 + value * (1 - sigmoid))
            return (slope, 6e-7 + 1e-7 * abs(value * slope))
        }
        let dg = dh.timesElements(u).timesElements(slope)
        let du = dh.timesElements(f)
        var dx = dg.masked(mask).times(gate).plus(du.masked(mask).times(up))
        if adapters.isEmpty { return Result(y: y, dx: dx, adapters: []) }
        dx = dx.plus(adapters[0].inputGradient(dg)).plus(adapters[1].inputGradient(du))
        return Result(
            y: y, dx: dx,
            adapters: [adapters[0].gradients(x, dg), adapters[1].gradients(x, du), adapters[2].gradients(h, dy)])
    }

    /// Norms over the rows of f(x·gateᵀ) ⊙ (x·upᵀ), with gate and up as `[channels, width]` products of estimators.
    public static func hiddenNorms(
        x: BoundedMatrix, gate: BoundedMatrix, up: BoundedMatrix, function: GatedActivation.Function = .silu
    ) -> [Double] {
        let (g, u) = (x.timesTransposed(gate), x.timesTransposed(up))
        let h = g.mapped(slope: 1.1) { (ReferenceRows.activation(function, $0), 0) }.timesElements(u)
        return h.columnNorms
    }
}
