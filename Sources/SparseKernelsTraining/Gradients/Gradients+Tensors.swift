// The calls with views, for tensors.

extension GatedActivationGradient {
    /// Computes the gradients of h = f(gate) · up. All tensors are `[rows, columns]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        gate: Tensor<Float>, up: Tensor<Float>, outputGradient: Tensor<Float>, gateGradient: inout Tensor<Float>,
        upGradient: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            gate: gate.matrixView(named: "gate"), up: up.matrixView(named: "up"),
            outputGradient: outputGradient.matrixView(named: "outputGradient"),
            gateGradient: gateGradient.mutableMatrixView(named: "gateGradient"),
            upGradient: upGradient.mutableMatrixView(named: "upGradient"), on: pool)
    }

    /// Computes the gradient of h = f(x). All tensors are `[rows, columns]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        _ x: Tensor<Float>, outputGradient: Tensor<Float>, inputGradient: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x.matrixView(named: "x"), outputGradient: outputGradient.matrixView(named: "outputGradient"),
            inputGradient: inputGradient.mutableMatrixView(named: "inputGradient"), on: pool)
    }
}

extension RMSNormGradient {
    /// Computes dx. All tensors are `[rows, channels]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        x: Tensor<Float>, outputGradient: Tensor<Float>, inputGradient: inout Tensor<Float>, accumulates: Bool = false,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x: x.matrixView(named: "x"), outputGradient: outputGradient.matrixView(named: "outputGradient"),
            inputGradient: inputGradient.mutableMatrixView(named: "inputGradient"), accumulates: accumulates, on: pool)
    }

    /// Computes dx, `[rows, channels]`, and adds the gradient of the weight to `weightGradient`, `[channels]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        x: Tensor<Float>, outputGradient: Tensor<Float>, inputGradient: inout Tensor<Float>, accumulates: Bool = false,
        weightGradient: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x: x.matrixView(named: "x"), outputGradient: outputGradient.matrixView(named: "outputGradient"),
            inputGradient: inputGradient.mutableMatrixView(named: "inputGradient"), accumulates: accumulates,
            weightGradient: &weightGradient, on: pool)
    }
}

extension CrossEntropy {
    /// The loss of the rows of a tensor, `[rows, vocabulary]`.
    /// - Throws: the errors of `loss` with a view, and `.invalidShape` for another rank.
    public func loss(
        _ logits: Tensor<Float>, targets: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Loss {
        try loss(logits.matrixView(named: "logits"), targets: targets, on: pool)
    }

    /// The loss of the rows of a tensor and the gradient, both `[rows, vocabulary]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        _ logits: Tensor<Float>, targets: [Int], divisor: Double? = nil, gradient: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Loss {
        try run(
            logits.matrixView(named: "logits"), targets: targets, divisor: divisor,
            gradient: gradient.mutableMatrixView(named: "gradient"), on: pool)
    }
}

extension LinearGradient {
    /// Adds the gradient of the weight, from x, `[rows, inFeatures]`, and dy, `[rows, outFeatures]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        x: Tensor<Float>, outputGradient: Tensor<Float>, weight: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x: x.matrixView(named: "x"), outputGradient: outputGradient.matrixView(named: "outputGradient"),
            weight: &weight, on: pool)
    }

    /// Adds the gradients of the weight and the bias, from x, `[rows, inFeatures]`, and dy, `[rows, outFeatures]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        x: Tensor<Float>, outputGradient: Tensor<Float>, weight: inout Tensor<Float>, bias: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x: x.matrixView(named: "x"), outputGradient: outputGradient.matrixView(named: "outputGradient"),
            weight: &weight, bias: &bias, on: pool)
    }
}

extension LoRAOperator {
    /// Computes t = x · aᵀ and y += scale · t · bᵀ, for x, `[rows, inFeatures]`, and y, `[rows, outFeatures]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        x: Tensor<Float>, factors: LoRAFactors, projected t: inout Tensor<Float>, adding y: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x: x.matrixView(named: "x"), factors: factors, projected: &t, adding: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Adds the gradients of the factors and of x, `[rows, inFeatures]`, from dy, `[rows, outFeatures]`.
    /// - Throws: the errors of `gradient` with views, and `.invalidShape` for another rank.
    public func gradient(
        x: Tensor<Float>, projected t: Tensor<Float>, factors: LoRAFactors, outputGradient dy: Tensor<Float>,
        a aGradient: inout Tensor<Float>, b bGradient: inout Tensor<Float>, adding dx: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try gradient(
            x: x.matrixView(named: "x"), projected: t, factors: factors,
            outputGradient: dy.matrixView(named: "outputGradient"), a: &aGradient, b: &bGradient,
            adding: dx.mutableMatrixView(named: "dx"), on: pool)
    }
}
