// The operands of gradients and of the optimiser. All are in single precision; strides count elements.

/// Rows of the gradients of h = f(gate) · up, or of h = f(gate).
public struct ActivationGradientArguments {
    public var gate: RowOperand
    /// Read only if `hasUp`.
    public var up: RowOperand
    public var hasUp: Bool
    public var outputGradient: RowOperand
    public var gateGradient: RowTarget
    /// Written only if `hasUp`.
    public var upGradient: RowTarget
    public var rows: Int
    public var columns: Int
    public var function: RowFunction

    public init(
        gate: RowOperand, up: RowOperand, hasUp: Bool, outputGradient: RowOperand, gateGradient: RowTarget,
        upGradient: RowTarget, rows: Int, columns: Int, function: RowFunction
    ) {
        self.gate = gate
        self.up = up
        self.hasUp = hasUp
        self.outputGradient = outputGradient
        self.gateGradient = gateGradient
        self.upGradient = upGradient
        self.rows = rows
        self.columns = columns
        self.function = function
    }
}

/// Rows of the gradients of y = x / √(mean x² + ε) · weight.
public struct NormGradientArguments {
    public var x: RowOperand
    public var outputGradient: RowOperand
    public var inputGradient: RowTarget
    /// Whether the gradient is added to what is there.
    public var accumulates = false
    public var rows: Int
    /// At least 1.
    public var channels: Int
    public var epsilon: Float
    /// `channels` floats.
    public var weight: UnsafePointer<Float>
    /// `channels` floats, to which the sums over the rows are added, row by row.
    public var weightGradient: UnsafeMutablePointer<Float>?

    public init(
        x: RowOperand, outputGradient: RowOperand, inputGradient: RowTarget, rows: Int, channels: Int, epsilon: Float,
        weight: UnsafePointer<Float>
    ) {
        self.x = x
        self.outputGradient = outputGradient
        self.inputGradient = inputGradient
        self.rows = rows
        self.channels = channels
        self.epsilon = epsilon
        self.weight = weight
    }
}

/// One step of AdamW on adjacent elements:
///
///     m += (g − m) · (1 − β₁)      v = v · β₂ + g² · (1 − β₂)      p = p · decay − stepSize · m / (√v · inverseRoot + ε)
public struct AdamWArguments {
    public var parameter: UnsafeMutablePointer<Float>
    public var gradient: UnsafePointer<Float>
    public var first: UnsafeMutablePointer<Float>
    public var second: UnsafeMutablePointer<Float>
    public var count: Int
    /// 1 − β₁.
    public var firstRate: Float = 0
    public var beta2: Float = 0
    /// 1 − β₂.
    public var secondRate: Float = 0
    /// 1 − learning rate · weight decay.
    public var decay: Float = 1
    /// The learning rate by the bias correction of m.
    public var stepSize: Float = 0
    /// 1 / √(bias correction of v).
    public var inverseRoot: Float = 1
    public var epsilon: Float = 0

    public init(
        parameter: UnsafeMutablePointer<Float>, gradient: UnsafePointer<Float>, first: UnsafeMutablePointer<Float>,
        second: UnsafeMutablePointer<Float>, count: Int
    ) {
        self.parameter = parameter
        self.gradient = gradient
        self.first = first
        self.second = second
        self.count = count
    }
}

/// Rows of y += scale · x, or of y = scale · x. `x` may be the memory of `y`, with the same stride.
public struct AddRowsArguments {
    public var x: UnsafePointer<Float>
    public var xStride: Int
    public var y: UnsafeMutablePointer<Float>
    public var yStride: Int
    public var rows: Int
    public var columns: Int
    public var scale: Float
    public var accumulates: Bool

    public init(
        x: UnsafePointer<Float>, xStride: Int, y: UnsafeMutablePointer<Float>, yStride: Int, rows: Int, columns: Int,
        scale: Float = 1, accumulates: Bool = true
    ) {
        self.x = x
        self.xStride = xStride
        self.y = y
        self.yStride = yStride
        self.rows = rows
        self.columns = columns
        self.scale = scale
        self.accumulates = accumulates
    }
}

/// target[x][y] = scale · source[y][x] for y < rows, x < columns.
public struct TransposeArguments {
    public var source: UnsafePointer<Float>
    public var stride: Int
    public var rows: Int
    public var columns: Int
    public var scale: Float
    public var target: UnsafeMutablePointer<Float>
    public var targetStride: Int

    public init(
        source: UnsafePointer<Float>, stride: Int, rows: Int, columns: Int, scale: Float = 1,
        target: UnsafeMutablePointer<Float>, targetStride: Int
    ) {
        self.source = source
        self.stride = stride
        self.rows = rows
        self.columns = columns
        self.scale = scale
        self.target = target
        self.targetStride = targetStride
    }
}
