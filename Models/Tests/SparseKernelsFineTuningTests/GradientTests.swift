import Foundation
import SparseKernels
import SparseKernelsReference
import SparseLoRA
import Testing

@testable import SparseKernelsFineTuning

@Suite("Gradients of the trainer")
struct GradientTests {
    private static func configuration(sparsity: SparseLoRAConfiguration? = nil) -> FineTuningConfiguration {
        var c = FineTuningConfiguration()
        (c.rank, c.alpha, c.batch, c.length, c.scored, c.steps) = (3, 6, 2, 7, 3, 4)
        c.sparsity = sparsity
        return c
    }

    private static func batch() -> TrainingBatch {
        var (batch, generator) = (TrainingBatch(length: 7), SplitMix64(seed: 3))
        for _ in 0..<2 {
            let tokens = (0..<8).map { _ in Int(generator.next() % 40) }
            batch.append(tokens[..<7], targets: Array(repeating: -100, count: 4) + tokens[5...])
        }
        return batch
    }

    /// A trainer whose factors B are not 0, so that factors A have gradients.
    private static func trainer(
        _ tiny: TinyTrainee, _ c: FineTuningConfiguration, on pool: WorkerPool = .serial
    ) throws -> LoRATrainer {
        let trainer = try LoRATrainer(FrozenModel(folder: tiny.folder, rank: c.rank, on: pool), c, on: pool)
        for place in trainer.adapters.factors.indices {
            trainer.adapters.factors[place].b = try .normal(
                trainer.adapters.factors[place].b.shape, seed: UInt64(place), scale: 0.3)
        }
        return trainer
    }

    /// The oracle of a trainer.
    private static func reference(_ tiny: TinyTrainee, _ trainer: LoRATrainer) -> ReferenceTrainee {
        var reference = ReferenceTrainee(tiny)
        for place in trainer.adapters.factors.indices {
            let factors = trainer.adapters.factors[place]
            reference.factors[trainer.adapters.layer(place)] = (
                ReferenceTrainee.matrix(factors.a), ReferenceTrainee.matrix(factors.b)
            )
        }
        return reference
    }

    /// Compares the derivative of the loss along directions with central differences in double precision, of all factors.
    ///
    /// The difference quotient is off by the third derivative times ε²/6, below 10⁻⁷ here. Single precision makes each gradient off by
    /// parts of 10⁻⁶ of its norm: sums of up to 100 products behind each other in two blocks.
    private static func compare(
        _ trainer: LoRATrainer, _ reference: ReferenceTrainee, _ batch: TrainingBatch, _ comment: Comment
    ) {
        var generator = SplitMix64(seed: 5)
        let step = 1e-4
        for place in trainer.adapters.factors.indices {
            let layer = trainer.adapters.layer(place)
            for isA in [true, false] {
                let gradient = (isA ? trainer.adapters.aGradients : trainer.adapters.bGradients)[place].elements.map(
                    Double.init)
                let norm = gradient.reduce(0) { $0 + $1 * $1 }.squareRoot()
                #expect(norm > 1e-4, "\(comment) \(layer) has a gradient")
                let random = gradient.map { _ in Double(generator.normal()) }
                for direction in [gradient.map { $0 / norm }, random] {
                    func loss(_ t: Double) -> Double {
                        var moved = reference
                        let old = reference.factors[layer]!
                        func move(_ m: ReferenceTrainee.Matrix) -> ReferenceTrainee.Matrix {
                            (m.columns, zip(m.values, direction).map { $0 + t * $1 })
                        }
                        moved.factors[layer] = isA ? (move(old.a), old.b) : (old.a, move(old.b))
                        return moved.loss(batch)
                    }
                    let expected = (loss(step) - loss(-step)) / (2 * step)
                    let actual = zip(gradient, direction).reduce(0) { $0 + $1.0 * $1.1 }
                    let length = direction.reduce(0) { $0 + $1 * $1 }.squareRoot()
                    #expect(
                        abs(actual - expected) <= 2e-5 * norm * length + 1e-7,
                        "\(comment) \(layer), \(isA ? "A" : "B"): \(actual), \(expected), norm \(norm)")
                }
            }
        }
    }

    @Test("are those of finite differences in double precision, for all factors", arguments: [false, true])
    func finiteDifferences(hasBias: Bool) throws {
        let tiny = try TinyTrainee(hasBias: hasBias)
        let batch = Self.batch()
        let trainer = try Self.trainer(tiny, Self.configuration())
        let reference = Self.reference(tiny, trainer)
        let loss = try trainer.computeGradients(batch, sparse: false)
        #expect(loss.tokens == 6 && abs(loss.mean - reference.loss(batch)) < 2e-6)
        Self.compare(trainer, reference, batch, "all channels")
    }

    @Test("and with channels of the context left out, where the chosen ones stay")
    func sparse() throws {
        let tiny = try TinyTrainee()
        let batch = Self.batch()
        let sparsity = SparseLoRAConfiguration(
            layers: [.init(mlp: 0.5, attention: 0.5), .init(mlp: 0.75, attention: 0.25)], start: 0)
        let trainer = try Self.trainer(tiny, Self.configuration(sparsity: sparsity))
        var reference = Self.reference(tiny, trainer)
        let loss = try trainer.computeGradients(batch, sparse: true)
        let channels = trainer.tapes.map(\.channels)
        #expect(channels.map { $0.mlp?.count } == [24, 12] && channels.map { $0.attention?.key.count } == [8, 12])
        reference.channels = channels
        reference.dense = 4..<7
        #expect(abs(loss.mean - reference.loss(batch)) < 2e-6)
        Self.compare(trainer, reference, batch, "chosen channels")
    }

    @Test("the same bits with any number of threads", arguments: [false, true])
    func threads(sparse: Bool) throws {
        let tiny = try TinyTrainee()
        let batch = Self.batch()
        let sparsity = SparseLoRAConfiguration(layers: [.init(mlp: 0.5, attention: 0.5), .init(mlp: 0.5)], start: 0)
        var results: [[Tensor<Float>]] = []
        for threads in [1, 2, 7] {
            let trainer = try Self.trainer(
                tiny, Self.configuration(sparsity: sparse ? sparsity : nil), on: WorkerPool(threads: threads))
            for _ in 0..<2 { _ = try trainer.step(batch) }
            results.append(trainer.adapters.factors.flatMap { [$0.a, $0.b] })
        }
        #expect(results[1] == results[0] && results[2] == results[0])
    }
}
