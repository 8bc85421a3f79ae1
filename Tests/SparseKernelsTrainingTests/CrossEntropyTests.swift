import SparseKernelsReference
import SparseKernelsTraining
import TestSupport
import Testing

@Suite("Cross-entropy")
struct CrossEntropyTests {
    @Test("the oracle's gradient is that of finite differences")
    func differences() throws {
        let row = TrainingSupport.doubles(try Tensor<Float>.normal([1, 11], seed: 1, scale: 3), row: 0)
        let differences = ReferenceGradients.differences(row) { ReferenceGradients.crossEntropy($0, target: 4).loss }
        let gradient = ReferenceGradients.crossEntropy(row, target: 4).gradient
        TrainingSupport.expectNear(gradient, differences, bound: { _ in 1e-9 }, "gradient")
    }

    @Test(
        "loss and gradient agree with the oracle", arguments: InstructionSet.available,
        TrainingSupport.sizes + [1000, 16_384, 16_385, 40_001])
    func agree(_ set: InstructionSet, _ vocabulary: Int) throws {
        let rows = vocabulary > 1000 ? 2 : 6
        let logits = try Tensor<Float>.normal([rows, vocabulary], seed: 1, scale: 4)
        let targets = (0..<rows).map { $0 == 1 ? -100 : ($0 * 7919 + vocabulary / 2) % vocabulary }
        let entropy = try CrossEntropy(vocabulary: vocabulary, instructionSet: set)
        var gradient = try Tensor<Float>([rows, vocabulary]) { _ in 7 }
        let loss = try entropy.run(logits, targets: targets, gradient: &gradient)
        var expected = 0.0
        for row in 0..<rows {
            let actual = TrainingSupport.doubles(gradient, row: row)
            if row == 1 {
                #expect(actual.allSatisfy { $0 == 0 })
                continue
            }
            let oracle = ReferenceGradients.crossEntropy(TrainingSupport.doubles(logits, row: row), target: targets[row])
            expected += oracle.loss
            let tokens = Double(rows - 1)
            TrainingSupport.expectNear(
                actual, oracle.gradient.map { $0 / tokens }, bound: { _ in 2e-6 / tokens },
                "\(set), vocabulary \(vocabulary), row \(row)")
        }
        #expect(loss.tokens == rows - 1)
        #expect(abs(loss.nats - expected) < 4e-6 * Double(rows), "\(set), vocabulary \(vocabulary): \(loss) for \(expected)")
        #expect(try entropy.loss(logits, targets: targets) == loss)
        // In place, and with another divisor.
        var replaced = logits
        let same = try entropy.run(replacing: replaced.mutableMatrixView(), targets: targets)
        #expect(same == loss && replaced.bits == gradient.bits)
    }

    @Test("threads do not change bits, strides are followed", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let logits = try Tensor<Float>.normal([300, 1003], seed: 2, scale: 3)
        let targets = (0..<300).map { $0 % 5 == 0 ? -1 : $0 * 3 }
        let entropy = try CrossEntropy(vocabulary: 1000, ignoredTarget: -1, instructionSet: set)
        func run(_ threads: Int) throws -> (CrossEntropy.Loss, Tensor<Float>) {
            var gradient = try Tensor<Float>([300, 1001]) { _ in 7 }
            let target = try MutableMatrixView(gradient.mutableSpan, rows: 300, columns: 1000, rowStride: 1001)
            let loss = try entropy.run(
                logits.matrixView().columns(0..<1000), targets: targets, divisor: 2, gradient: target,
                on: WorkerPool(threads: threads))
            return (loss, gradient)
        }
        let first = try run(1)
        for threads in [2, 7] {
            let other = try run(threads)
            #expect(other.0 == first.0 && other.1.bits == first.1.bits, "\(set), \(threads) threads")
        }
        #expect((0..<300).allSatisfy { first.1[$0, 1000] == 7 })
        // Each row sums to 0, and the entry of the target is negative.
        for row in [1, 2, 299] {
            #expect(abs(TrainingSupport.doubles(first.1, row: row).prefix(1000).reduce(0, +)) < 1e-5)
            #expect(first.1[row, targets[row]] < 0)
        }
    }

    @Test("rows that are not finite, rows that do not count, no rows", arguments: InstructionSet.available)
    func special(_ set: InstructionSet) throws {
        let entropy = try CrossEntropy(vocabulary: 20, instructionSet: set)
        var logits = try Tensor<Float>.normal([5, 20], seed: 3)
        logits[0, 3] = .nan
        logits[1, 3] = .infinity
        for column in 0..<20 { logits[2, column] = -.infinity }
        logits[3, 3] = -.infinity
        var gradient = try Tensor<Float>(zeros: [5, 20])
        #expect(try entropy.run(logits, targets: [1, 1, 1, 1, 1], gradient: &gradient).nats.isNaN)
        for row in 0..<3 { #expect((0..<20).allSatisfy { gradient[row, $0].isNaN }, "\(set), row \(row)") }
        #expect(gradient[3, 3] == 0 && (0..<20).allSatisfy { gradient[3, $0].isFinite && gradient[4, $0].isFinite })
        // A target without a chance.
        #expect(try entropy.loss(logits, targets: [-100, -100, -100, 3, -100]).nats == .infinity)
        // Ignored rows are not read.
        let loss = try entropy.run(logits, targets: [-100, -100, -100, 1, 1], gradient: &gradient)
        #expect(loss.nats.isFinite && loss.tokens == 2 && gradient.elements.allSatisfy { $0.isFinite })
        let none = try entropy.run(logits, targets: [Int](repeating: -100, count: 5), gradient: &gradient)
        #expect(none == CrossEntropy.Loss() && none.mean == 0 && gradient.elements.allSatisfy { $0 == 0 })
        #expect(try entropy.loss(Tensor(zeros: [0, 20]), targets: []) == CrossEntropy.Loss())
        // Large logits do not overflow.
        let large = try Tensor<Float>([1, 20]) { Float($0) * 1e6 }
        #expect(try entropy.loss(large, targets: [19]).nats == 0)
        #expect(try abs(entropy.loss(large, targets: [0]).nats - 19e6) < 1)
    }

    @Test("errors name the row and the value")
    func errors() throws {
        expectError(.invalidShape, "vocabulary", containing: "0") { _ = try CrossEntropy(vocabulary: 0) }
        let entropy = try CrossEntropy(vocabulary: 20)
        let logits = try Tensor<Float>(zeros: [2, 20])
        expectError(.invalidArgument, "targets[1]", containing: "0 to 19, or -100", "20") {
            _ = try entropy.loss(logits, targets: [19, 20])
        }
        expectError(.invalidArgument, "targets[0]", containing: "-1") { _ = try entropy.loss(logits, targets: [-1, 0]) }
        expectError(.invalidShape, "targets", containing: "2 targets", "3") {
            _ = try entropy.loss(logits, targets: [1, 2, 3])
        }
        expectError(.invalidShape, "logits", containing: "20", "21") {
            _ = try entropy.loss(Tensor(zeros: [2, 21]), targets: [1, 2])
        }
        var gradient = try Tensor<Float>(zeros: [2, 20])
        for divisor in [0, -1, .infinity, .nan] {
            expectError(.invalidArgument, "divisor", containing: "\(divisor)") {
                _ = try entropy.run(logits, targets: [1, 2], divisor: divisor, gradient: &gradient)
            }
        }
        gradient = try Tensor(zeros: [3, 20])
        expectError(.invalidShape, "gradient", containing: "2 × 20", "3 × 20") {
            _ = try entropy.run(logits, targets: [1, 2], gradient: &gradient)
        }
    }
}
