internal import Foundation
internal import KernelInterface

/// Adam with decoupled weight decay.
///
///     p ← p · (1 − lr · decay)
///     m ← m + (g − m)(1 − β₁)        v ← β₂ v + (1 − β₂) g²
///     p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
///
/// ```swift
/// let optimizer = try AdamW(weightDecay: 0.01)
/// var moments = try AdamW.Moments(of: parameter)
/// try optimizer.step(&parameter, gradient: gradient, moments: &moments, learningRate: 1e-4)
/// ```
///
/// - Exactness: the factors of a step are taken in `Double` and rounded once; each element has nine roundings.
/// - Non-finite gradients make their own elements non-finite, for ever. ``GradientNorm`` tells before the step.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: one pass over memory: 28 bytes per element.
/// - Scratch: none.
/// - Source: Loshchilov and Hutter, 2019 (arXiv 1711.05101); `torch.optim.AdamW`, whose order of operations it has.
public struct AdamW: Sendable, Hashable {
    /// How fast the mean of the gradients forgets.
    public let beta1: Double
    /// How fast the mean of their squares forgets.
    public let beta2: Double
    /// ε, outside of the root and not corrected.
    public let epsilon: Double
    /// The decay of parameters per unit of learning rate.
    public let weightDecay: Double
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet

    /// What the optimiser remembers of one parameter. A checkpoint stores all three.
    public struct Moments: Sendable {
        /// m, of the parameter's shape.
        public var first: Tensor<Float>
        /// v, of the parameter's shape.
        public var second: Tensor<Float>
        /// Steps so far.
        public var step: Int

        /// The moments before the first step.
        /// - Throws: nothing that a tensor of this shape has not thrown.
        public init(of parameter: Tensor<Float>) throws(SparseKernelsError) {
            first = try Tensor(zeros: parameter.shape)
            second = try Tensor(zeros: parameter.shape)
            step = 0
        }

        /// Moments of a checkpoint.
        /// - Throws: `.invalidShape` for moments of different shapes, `.invalidArgument` for a negative step.
        public init(first: Tensor<Float>, second: Tensor<Float>, step: Int) throws(SparseKernelsError) {
            try require(
                second.shape == first.shape, .invalidShape, "second", expected: "\(first.shape)", actual: "\(second.shape)")
            try require(step >= 0, .invalidArgument, "step", expected: "at least 0", actual: "\(step)")
            self.first = first
            self.second = second
            self.step = step
        }
    }

    /// - Parameters:
    ///   - beta1: in [0, 1).
    ///   - beta2: in [0, 1).
    ///   - epsilon: at least 0 and finite.
    ///   - weightDecay: at least 0 and finite.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` naming the number that is out of range, `.unsupportedInstructionSet`.
    public init(
        beta1: Double = 0.9, beta2: Double = 0.999, epsilon: Double = 1e-8, weightDecay: Double = 0,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, value) in [("beta1", beta1), ("beta2", beta2)] {
            try require(value >= 0 && value < 1, .invalidArgument, name, expected: "in [0, 1)", actual: "\(value)")
        }
        for (name, value) in [("epsilon", epsilon), ("weightDecay", weightDecay)] {
            try require(
                value >= 0 && value.isFinite, .invalidArgument, name, expected: "0 or more, and finite", actual: "\(value)")
        }
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.weightDecay = weightDecay
        self.instructionSet = try InstructionSet.resolve(instructionSet)
    }

    /// Takes one step.
    ///
    /// - Parameters:
    ///   - parameter: of any shape.
    ///   - gradient: of the parameter's shape.
    ///   - moments: of the parameter's shape; its `step` is increased first.
    ///   - learningRate: finite; 0 changes the moments only.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the tensor of another shape, `.invalidArgument` for a learning rate that is not finite or a step that is
    ///   negative or the largest; nothing is written then.
    public func step(
        _ parameter: inout Tensor<Float>, gradient: Tensor<Float>, moments: inout Moments, learningRate: Double,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let shape = parameter.shape
        try require(
            gradient.shape == shape, .invalidShape, "gradient", expected: "\(shape)", actual: "\(gradient.shape)")
        try require(
            moments.first.shape == shape, .invalidShape, "moments.first", expected: "\(shape)",
            actual: "\(moments.first.shape)")
        try require(
            moments.second.shape == shape, .invalidShape, "moments.second", expected: "\(shape)",
            actual: "\(moments.second.shape)")
        try require(
            learningRate.isFinite, .invalidArgument, "learningRate", expected: "finite", actual: "\(learningRate)")
        try require(
            moments.step >= 0 && moments.step < .max, .invalidArgument, "moments.step", expected: "at least 0",
            actual: "\(moments.step)")
        moments.step += 1
        let count = parameter.count
        if count == 0 { return }
        var arguments = AdamWArguments(
            parameter: parameter.uniqueAddress(), gradient: gradient.address, first: moments.first.uniqueAddress(),
            second: moments.second.uniqueAddress(), count: count)
        arguments.firstRate = Float(1 - beta1)
        arguments.beta2 = Float(beta2)
        arguments.secondRate = Float(1 - beta2)
        arguments.decay = Float(1 - learningRate * weightDecay)
        arguments.stepSize = Float(learningRate / (1 - pow(beta1, Double(moments.step))))
        arguments.inverseRoot = Float(1 / (1 - pow(beta2, Double(moments.step))).squareRoot())
        arguments.epsilon = Float(epsilon)
        let call = AdamWCall(kernels: instructionSet.kernels, arguments: arguments)
        pool.run(call, tasks: call.count, work: count * 28)
    }
}

private struct AdamWCall: PoolCall {
    /// Elements of a task: 112 KB of memory in motion.
    static let part = 4096

    let kernels: any KernelTable.Type
    let arguments: AdamWArguments

    var count: Int { (arguments.count + Self.part - 1) / Self.part }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * Self.part
        var part = arguments
        part.parameter += first
        part.gradient += first
        part.first += first
        part.second += first
        part.count = min(Self.part, arguments.count - first)
        kernels.stepAdamW(&part)
    }
}
