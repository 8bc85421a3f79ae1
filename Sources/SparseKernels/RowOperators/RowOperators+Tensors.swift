// The forms of row operators that take tensors.

extension RMSNorm {
    /// Normalises the rows of x, `[rows, channels]`, into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Adds x to the residual stream and normalises the sums. All tensors are `[rows, channels]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        adding x: Tensor<X>, to residual: inout Tensor<Float>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            adding: x.matrixView(named: "x"), to: residual.mutableMatrixView(named: "residual"),
            into: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// The normalised rows of x, `[rows, channels]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: x.shape)
        try run(x, into: &y, on: pool)
        return y
    }

    /// Normalises every row of a tensor in place. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    /// - Throws: the errors of `normalize` with a view, and `.invalidShape` for another rank.
    public func normalize<Element: AttentionElement>(
        _ x: inout Tensor<Element>, layout: TensorLayout = .hnd, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try normalize(x.mutableView(layout: layout, named: "x"), on: pool)
    }
}

extension LayerNorm {
    /// Normalises the rows of x, `[rows, channels]`, into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Adds x to the residual stream and normalises the sums. All tensors are `[rows, channels]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        adding x: Tensor<X>, to residual: inout Tensor<Float>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            adding: x.matrixView(named: "x"), to: residual.mutableMatrixView(named: "residual"),
            into: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// The normalised rows of x, `[rows, channels]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: x.shape)
        try run(x, into: &y, on: pool)
        return y
    }

    /// Normalises every row of a tensor in place. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    /// - Throws: the errors of `normalize` with a view, and `.invalidShape` for another rank.
    public func normalize<Element: AttentionElement>(
        _ x: inout Tensor<Element>, layout: TensorLayout = .hnd, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try normalize(x.mutableView(layout: layout, named: "x"), on: pool)
    }
}

extension GatedActivation {
    /// Computes y = f(gate) · up. All tensors are `[rows, columns]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        gate: Tensor<X>, up: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            gate: gate.matrixView(named: "gate"), up: up.matrixView(named: "up"), into: y.mutableMatrixView(named: "y"),
            on: pool)
    }

    /// Computes y = f(x). Both tensors are `[rows, columns]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Computes y = f(gate) · up, `[rows, columns]`, from the halves of x, `[rows, 2·columns]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        halvesOf x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(halvesOf: x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// f(gate) · up, `[rows, columns]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<X: AttentionElement>(
        gate: Tensor<X>, up: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: gate.shape)
        try run(gate: gate, up: up, into: &y, on: pool)
        return y
    }

    /// f(x), `[rows, columns]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: x.shape)
        try run(x, into: &y, on: pool)
        return y
    }
}

extension RotaryTable {
    /// Rotates every head of every token of a tensor in place. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    /// - Throws: the errors of `rotate` with a view, and `.invalidShape` for another rank.
    public func rotate<Element: AttentionElement>(
        _ x: inout Tensor<Element>, layout: TensorLayout = .hnd, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rotate(x.mutableView(layout: layout, named: "x"), on: pool)
    }
}
