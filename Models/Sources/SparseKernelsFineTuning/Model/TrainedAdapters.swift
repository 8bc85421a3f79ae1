import SparseKernels
import SparseKernelsModels
import SparseKernelsTraining
import SparseLoRA

/// The factors that are trained, their gradients and the moments of the optimiser: a place for each target of each block.
struct TrainedAdapters: Sendable {
    let targets: [AdapterTarget]
    let blocks: Int
    let rank: Int
    let alpha: Double
    var factors: [LoRAFactors]
    var aGradients: [Tensor<Float>]
    var bGradients: [Tensor<Float>]
    var aMoments: [AdamW.Moments]
    var bMoments: [AdamW.Moments]

    init(_ c: FineTuningConfiguration, _ model: LanguageModelConfiguration) throws(SparseKernelsError) {
        // In one order, whatever that of the settings.
        targets = AdapterTarget.allCases.filter { c.targets.contains($0) }
        (blocks, rank, alpha) = (model.layers, c.rank, c.alpha)
        factors = []
        (aGradients, bGradients, aMoments, bMoments) = ([], [], [], [])
        let shapes = model.linearShapes
        var seeds = SplitMix64(seed: c.seed)
        for _ in 0..<blocks {
            for target in targets {
                let shape = shapes["self_attn.\(target.rawValue)"]!
                let factors = try LoRAFactors(
                    inFeatures: shape[1], outFeatures: shape[0], rank: rank, alpha: Float(alpha), seed: seeds.next())
                aGradients.append(try Tensor(zeros: factors.a.shape))
                bGradients.append(try Tensor(zeros: factors.b.shape))
                aMoments.append(try AdamW.Moments(of: factors.a))
                bMoments.append(try AdamW.Moments(of: factors.b))
                self.factors.append(factors)
            }
        }
    }

    /// The place of a target of a block; nil for a layer without an adapter.
    func place(_ target: AdapterTarget, block: Int) -> Int? {
        targets.firstIndex(of: target).map { block * targets.count + $0 }
    }

    /// The name of a place's layer in the model.
    func layer(_ place: Int) -> String { targets[place % targets.count].layer(block: place / targets.count) }

    /// The numbers that are trained.
    var count: Int { factors.reduce(0) { $0 + $1.a.count + $1.b.count } }

    /// Sets all gradients to 0.
    mutating func clearGradients() {
        func clear(_ tensors: inout [Tensor<Float>]) {
            for i in tensors.indices {
                var elements = tensors[i].mutableSpan
                for j in 0..<elements.count { elements[j] = 0 }
            }
        }
        clear(&aGradients)
        clear(&bGradients)
    }

    /// The norm of all gradients, which are scaled down to `limit` if it is larger.
    mutating func clip(to limit: Double?, on pool: WorkerPool) throws(SparseKernelsError) -> Double {
        // Moved into one list and back, so that nothing is copied.
        var all = aGradients + bGradients
        (aGradients, bGradients) = ([], [])
        defer {
            aGradients = Array(all[..<factors.count])
            bGradients = Array(all[factors.count...])
        }
        guard let limit else { return GradientNorm.norm(of: all, on: pool) }
        return try GradientNorm.clip(&all, to: limit, on: pool)
    }

    /// A step of the optimiser.
    mutating func step(_ optimizer: AdamW, rate: Double, on pool: WorkerPool) throws(SparseKernelsError) {
        for i in factors.indices {
            try optimizer.step(
                &factors[i].a, gradient: aGradients[i], moments: &aMoments[i], learningRate: rate, on: pool)
            try optimizer.step(
                &factors[i].b, gradient: bGradients[i], moments: &bMoments[i], learningRate: rate, on: pool)
        }
    }

    /// The gradients of a projection: of its input, and of its factors where it has an adapter.
    mutating func gradient(
        _ projection: SparseProjection, _ target: AdapterTarget, block: Int, _ dy: Tensor<Float>, x: Tensor<Float>, rows: Int,
        tape: SparseProjection.Tape, workspace: inout SparseLoRAWorkspace, into dx: inout Tensor<Float>, accumulates: Bool,
        passesFrozenGradient passes: Bool, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (inputs, outputs) = (projection.inFeatures, projection.outFeatures)
        guard let place = place(target, block: block) else {
            return try projection.gradient(
                MatrixView(dy.span, rows: rows, columns: outputs, named: "dy"), tape: tape, workspace: &workspace,
                dx: MutableMatrixView(dx.mutableSpan, rows: rows, columns: inputs, named: "dx"), accumulates: accumulates,
                passesFrozenGradient: passes, on: pool)
        }
        try projection.gradient(
            MatrixView(dy.span, rows: rows, columns: outputs, named: "dy"),
            x: MatrixView(x.span, rows: rows, columns: inputs, named: "x"), lora: factors[place],
            aGradient: &aGradients[place], bGradient: &bGradients[place], tape: tape, workspace: &workspace,
            dx: MutableMatrixView(dx.mutableSpan, rows: rows, columns: inputs, named: "dx"), accumulates: accumulates,
            passesFrozenGradient: passes, on: pool)
    }

    // MARK: - Checkpoints

    /// A, its moments, B, its moments.
    func tensors(_ place: Int) -> [Tensor<Float>] {
        [
            factors[place].a, aMoments[place].first, aMoments[place].second, factors[place].b, bMoments[place].first,
            bMoments[place].second,
        ]
    }

    /// Sets what `tensors` gives, after so many steps.
    mutating func replace(_ place: Int, _ tensors: [Tensor<Float>], steps: Int) throws(SparseKernelsError) {
        factors[place] = try LoRAFactors(a: tensors[0], b: tensors[3], scale: factors[place].scale)
        aMoments[place] = try AdamW.Moments(first: tensors[1], second: tensors[2], step: steps)
        bMoments[place] = try AdamW.Moments(first: tensors[4], second: tensors[5], step: steps)
    }
}
