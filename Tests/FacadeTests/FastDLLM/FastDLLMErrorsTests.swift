import FastDLLM
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Fast-dLLM: errors")
struct FastDLLMErrorsTests {
    @Test("options out of their domain are refused")
    func options() {
        func expect(_ argument: String, _ change: (inout FastDLLMConfiguration) -> Void) {
            var configuration = FastDLLMConfiguration()
            change(&configuration)
            expectError(.invalidArgument, argument) { _ = try FastDLLMDecoder(configuration) }
        }
        expect("blockLength") { $0.blockLength = 0 }
        for threshold in [-0.1, 1.1, .nan] { expect("rule.threshold") { $0.rule = .threshold(threshold) } }
        for factor in [0, -1, .infinity, .nan] { expect("rule.factor") { $0.rule = .factor(factor) } }
        expect("rule.tokensPerStep") { $0.rule = .tokensPerStep(0) }
        for rule in [CommitRule.schedule(steps: 0), .random(steps: -1), .entropy(steps: 0), .entropy(steps: .max)] {
            expect("rule.steps") { $0.rule = rule }
        }
        for epsilon in [0, 1, .nan] { expect("rule.epsilon") { $0.rule = .entropy(steps: 4, epsilon: epsilon) } }
        expect("refreshEvery") { $0.refreshEvery = 0 }
        for temperature in [-1, .infinity, .nan] { expect("temperature") { $0.temperature = temperature } }
        for distance in [-1, Double.nan] { expect("nearTie") { $0.nearTie = distance } }
    }

    @Test("sequences that do not fit are refused before the model runs")
    func sequences() throws {
        let model = ScriptedModel()
        func expect(
            _ argument: String, _ texts: String..., rule: CommitRule = .threshold(0.9), shifts: Bool = false,
            _ run: (FastDLLMDecoder, inout ScriptedModel) throws -> Void
        ) throws {
            var copy = model
            let decoder = try FastDLLMDecoder(FastDLLMConfiguration(blockLength: 8, rule: rule, shiftsLogits: shifts))
            expectError(.invalidArgument, argument, containing: texts) { try run(decoder, &copy) }
            #expect(copy.calls.isEmpty)
        }
        for length in [12, -8, 7] {
            try expect("length", "8", "\(length)") { _ = try $0.generate([1], length: length, with: &$1) }
        }
        try expect("length", "255", "256") { _ = try $0.generate([1], length: 256, with: &$1) }
        try expect("tokens", "position 1") { _ = try $0.generate([1, 11], length: 8, with: &$1) }
        try expect("tokens") { _ = try $0.generate([99], length: 8, with: &$1) }
        try expect("rule.steps", "3 blocks", "8", rule: .schedule(steps: 8)) { _ = try $0.generate([1], length: 24, with: &$1) }
        try expect("start", "shiftsLogits", shifts: true) { _ = try $0.generate([], length: 8, with: &$1) }
        for start in [-1, 9] {
            try expect("start", "0 to 8") { _ = try $0.fill(Array(repeating: 11, count: 8), from: start, with: &$1) }
        }
        try expect("start", "6 positions") { _ = try $0.fill([1, 2, 3, 4, 5, 6, 7, 8], from: 2, with: &$1) }
        try expect("tokens", "256") { _ = try $0.fill(Array(repeating: 11, count: 264), from: 0, with: &$1) }
    }

    @Test("a model that answers with other rows, or with NaN, is an error and no trap")
    func badModels() throws {
        struct Bad: DiffusionModel {
            let vocabularySize = 4
            let maskToken = 9
            let capacity = 64
            let shape: [Int]
            let value: Float
            func check(_ tokens: [Int]) {}
            mutating func logits(
                of rows: [Int], running: Range<Int>, in tokens: [Int], on pool: WorkerPool
            ) throws(SparseKernelsError) -> Tensor<Float> {
                try Tensor(shape, Array(repeating: value, count: shape.reduce(1, *)))
            }
        }
        let decoder = try FastDLLMDecoder(FastDLLMConfiguration(blockLength: 8))
        for shape in [[7, 4], [8, 3], [8], [0, 4]] {
            var model = Bad(shape: shape, value: 1)
            expectError(.invalidShape, "logits", containing: "[8, 4]") {
                _ = try decoder.generate([1], length: 8, with: &model)
            }
        }
        var model = Bad(shape: [8, 4], value: .nan)
        expectError(.invalidArgument, "logits") { _ = try decoder.generate([1], length: 8, with: &model) }
    }
}
