import Foundation
import SparseKernelsReference
import SparseKernelsTraining
import TestSupport
import Testing

@Suite("Optimiser, schedules, norms of gradients")
struct OptimizerTests {
    @Test("several steps are those of torch", arguments: InstructionSet.available, [1, 3, 16, 17, 5000])
    func steps(_ set: InstructionSet, _ count: Int) throws {
        for decay in [0.0, 0.01] {
            let optimizer = try AdamW(weightDecay: decay, instructionSet: set)
            let start = try Tensor<Float>.normal([count], seed: 1)
            var parameter = start
            var moments = try AdamW.Moments(of: parameter)
            var oracles = [ReferenceAdamW](repeating: ReferenceAdamW(), count: count)
            var expected = parameter.elements.map(Double.init)
            let schedule = LearningRateSchedule.linear(peak: 1e-2, warmupSteps: 2, totalSteps: 6)
            for step in 0..<6 {
                let gradient = try Tensor<Float>.normal([count], seed: UInt64(10 + step), scale: step == 3 ? 1e-4 : 1)
                let rate = schedule.rate(step: step)
                try optimizer.step(&parameter, gradient: gradient, moments: &moments, learningRate: rate)
                for index in 0..<count {
                    expected[index] = oracles[index].update(
                        expected[index], gradient: Double(gradient[flat: index]), learningRate: rate, weightDecay: decay)
                }
            }
            #expect(moments.step == 6)
            // A step moves by at most about the rate; each has some roundings of that, and one of the parameter.
            TrainingSupport.expectNear(
                parameter.elements.map(Double.init), expected,
                bound: { 6 * (abs(expected[$0]) * 0x1p-23 + 1e-2 * 1e-6) }, "\(set), decay \(decay)")
            TrainingSupport.expectNear(
                moments.first.elements.map(Double.init), oracles.map(\.first), bound: { _ in 1e-6 }, "\(set), m")
            TrainingSupport.expectNear(
                moments.second.elements.map(Double.init), oracles.map(\.second),
                bound: { oracles[$0].second * 2e-6 + 1e-12 }, "\(set), v")
        }
    }

    @Test("the first step moves by the rate against the sign", arguments: InstructionSet.available)
    func firstStep(_ set: InstructionSet) throws {
        var parameter = try Tensor<Float>([3], [1, 1, 1])
        var moments = try AdamW.Moments(of: parameter)
        try AdamW(instructionSet: set).step(
            &parameter, gradient: Tensor([3], [5, -0.01, 0]), moments: &moments, learningRate: 0.125)
        #expect(abs(parameter[flat: 0] - 0.875) < 1e-6 && abs(parameter[flat: 1] - 1.125) < 1e-5 && parameter[flat: 2] == 1)
    }

    @Test("threads do not change bits, a checkpoint goes on as if nothing had been", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let optimizer = try AdamW(weightDecay: 0.1, instructionSet: set)
        let start = try Tensor<Float>.normal([70, 1001], seed: 1)
        let gradient = try Tensor<Float>.normal([70, 1001], seed: 2)
        func run(_ threads: Int, interrupted: Bool) throws -> [UInt32] {
            let pool = WorkerPool(threads: threads)
            var parameter = start
            var moments = try AdamW.Moments(of: parameter)
            for _ in 0..<3 {
                try optimizer.step(&parameter, gradient: gradient, moments: &moments, learningRate: 1e-3, on: pool)
                if interrupted {
                    moments = try AdamW.Moments(
                        first: Tensor([70, 1001], moments.first.elements),
                        second: Tensor([70, 1001], moments.second.elements), step: moments.step)
                }
            }
            return parameter.bits + moments.first.bits + moments.second.bits
        }
        let first = try run(1, interrupted: false)
        #expect(try run(2, interrupted: true) == first && run(7, interrupted: false) == first, "\(set)")
    }

    @Test("schedules are those of Hugging Face")
    func schedules() throws {
        let constant = LearningRateSchedule.constant(peak: 2, warmupSteps: 4)
        #expect((0..<6).map(constant.rate) == [0, 0.5, 1, 1.5, 2, 2])
        let linear = LearningRateSchedule.linear(peak: 2, warmupSteps: 2, totalSteps: 6)
        #expect((0..<8).map(linear.rate) == [0, 1, 2, 1.5, 1, 0.5, 0, 0])
        let cosine = LearningRateSchedule.cosine(peak: 2, warmupSteps: 2, totalSteps: 6)
        let expected = [0, 1, 2, 1 + 0.5.squareRoot(), 1, 1 - 0.5.squareRoot(), 0, 0]
        for step in 0..<8 { #expect(abs(cosine.rate(step: step) - expected[step]) < 1e-12) }
        #expect(LearningRateSchedule.cosine(peak: 2, totalSteps: 4).rate(step: 0) == 2)
        // Nonsense gives numbers, and no trap.
        for shape in LearningRateSchedule.Shape.allCases {
            let odd = LearningRateSchedule(shape, peak: 1, warmupSteps: .min, totalSteps: .min)
            #expect([Int.min, -1, 0, 1, .max].allSatisfy { odd.rate(step: $0).isFinite })
        }
        let data = try JSONEncoder().encode(cosine)
        #expect(try JSONDecoder().decode(LearningRateSchedule.self, from: data) == cosine)
    }

    @Test("the norm is that of all elements, and clipping scales all by one factor")
    func norms() throws {
        var gradients = [
            try Tensor<Float>.normal([40_000], seed: 1), try Tensor<Float>(zeros: [0]),
            try Tensor<Float>.normal([3, 5], seed: 2),
        ]
        let before = gradients
        let squares = gradients.flatMap(\.elements).reduce(0) { $0 + Double($1) * Double($1) }
        let norm = GradientNorm.norm(of: gradients)
        #expect(abs(norm - squares.squareRoot()) < 1e-9)
        for threads in [1, 2, 7] { #expect(GradientNorm.norm(of: gradients, on: WorkerPool(threads: threads)) == norm) }
        #expect(try GradientNorm.clip(&gradients, to: 1000) == norm && gradients == before)
        #expect(try GradientNorm.clip(&gradients, to: 2) == norm)
        #expect(abs(GradientNorm.norm(of: gradients) - 2) < 1e-6)
        let factor = Float(2 / (norm + 1e-6))
        #expect(gradients[2].elements == before[2].elements.map { $0 * factor })
        #expect(GradientNorm.norm(of: []) == 0)
        // Magnitudes whose squares are beyond single precision.
        #expect(GradientNorm.norm(of: [try Tensor([2], [3e30, 4e30])]).isFinite)
        gradients[2][flat: 7] = .nan
        #expect(try GradientNorm.clip(&gradients, to: 1).isNaN)
        gradients[2][flat: 7] = .infinity
        let infinite = gradients
        #expect(try GradientNorm.clip(&gradients, to: 1) == .infinity && gradients == infinite)
        expectError(.invalidArgument, "limit", containing: "0") { try GradientNorm.clip(&gradients, to: 0) }
    }

    @Test("errors name the argument and both numbers")
    func errors() throws {
        expectError(.invalidArgument, "beta1", containing: "[0, 1)", "1.0") { _ = try AdamW(beta1: 1) }
        expectError(.invalidArgument, "beta2", containing: "nan") { _ = try AdamW(beta2: .nan) }
        expectError(.invalidArgument, "epsilon", containing: "-1") { _ = try AdamW(epsilon: -1) }
        expectError(.invalidArgument, "weightDecay", containing: "inf") { _ = try AdamW(weightDecay: .infinity) }
        let optimizer = try AdamW()
        var parameter = try Tensor<Float>(zeros: [4])
        var moments = try AdamW.Moments(of: parameter)
        expectError(.invalidShape, "gradient", containing: "[4]", "[5]") {
            try optimizer.step(&parameter, gradient: Tensor(zeros: [5]), moments: &moments, learningRate: 1)
        }
        expectError(.invalidArgument, "learningRate", containing: "nan") {
            try optimizer.step(&parameter, gradient: parameter, moments: &moments, learningRate: .nan)
        }
        #expect(moments.step == 0)
        moments.step = .max
        expectError(.invalidArgument, "moments.step", containing: "\(Int.max)") {
            try optimizer.step(&parameter, gradient: Tensor(zeros: [4]), moments: &moments, learningRate: 1)
        }
        moments = try AdamW.Moments(of: Tensor(zeros: [2, 2]))
        expectError(.invalidShape, "moments.first", containing: "[4]", "[2, 2]") {
            try optimizer.step(&parameter, gradient: Tensor(zeros: [4]), moments: &moments, learningRate: 1)
        }
        expectError(.invalidShape, "second", containing: "[4]", "[3]") {
            _ = try AdamW.Moments(first: Tensor(zeros: [4]), second: Tensor(zeros: [3]), step: 0)
        }
    }
}
