import CATS
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("Language models whose MLPs skip small activations")
struct CATSModelTests {
    private let windows = (0..<4).map { seed in (0..<40).map { (seed * 31 + $0 * $0 * 7 + $0) % 32 } }

    private func load(_ tiny: TinyLlama, _ linear: LinearFormat = .float32) throws -> LanguageModel {
        try LanguageModel(folder: tiny.folder, linear: linear, cats: LanguageModel.zeroThresholds(folder: tiny.folder))
    }

    private func distance(_ a: Tensor<Float>, _ b: Tensor<Float>) -> Float {
        zip(a.elements, b.elements).map { abs($0 - $1) }.max() ?? 0
    }

    @Test("thresholds of zero are the dense model", arguments: [LinearFormat.float32, .float16, .bfloat16])
    func zeros(_ linear: LinearFormat) throws {
        let tiny = try TinyLlama()
        let dense = try LanguageModel(folder: tiny.folder, linear: linear)
        let sparse = try load(tiny, linear)
        #expect(distance(try dense.logits(windows[0]), try sparse.logits(windows[0])) < 1e-4)
        #expect(dense.cats == nil && sparse.cats?.values == [0, 0])
    }

    @Test("calibrated thresholds skip the part that was asked for, and steps and prompts agree")
    func calibrated() throws {
        let tiny = try TinyLlama()
        let model = try load(tiny)
        let exact = try model.logits(windows[0])
        var distances: [Float] = []
        for sparsity in [0.25, 0.5, 0.75] {
            let thresholds = try model.catsThresholds(sparsity: sparsity, windows: windows)
            #expect(thresholds.sparsity == sparsity && thresholds.values.allSatisfy { $0 > 0 })
            let sparse = try model.with(thresholds)
            let prompt = try sparse.logits(windows[0])
            distances.append(distance(prompt, exact))
            let session = try LanguageSession(sparse, SessionOptions(keyFormat: .float32, valueFormat: .float32))
            let sequence = session.makeSequence()
            for (row, token) in windows[0].enumerated() {
                let step = try session.append([[token]], to: [sequence])
                // An entry at the threshold may fall on either side, as sums of a row and of several differ in rounding.
                for column in 0..<32 { #expect(abs(step[0, column] - prompt[row, column]) < 1e-3) }
            }
            #expect(abs(session.statistics.channelDensity - (1 - sparsity)) < 0.15)
        }
        #expect(distances[0] > 0 && distances[0] < distances[2])
    }

    @Test("windows in any order give the same thresholds")
    func order() throws {
        let model = try load(TinyLlama())
        #expect(
            try model.catsThresholds(sparsity: 0.5, windows: windows)
                == model.catsThresholds(sparsity: 0.5, windows: windows.reversed(), on: .serial))
    }

    @Test("models, formats and thresholds that do not fit are errors")
    func errors() throws {
        let tiny = try TinyLlama()
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, sourceLocation: SourceLocation = #_sourceLocation,
            _ body: () throws -> Void
        ) {
            let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) { try body() }
            #expect(error?.code == code && error?.argument == argument, sourceLocation: sourceLocation)
        }
        let three = try CATSThresholds([0, 0, 0], sparsity: 0)
        expect(.invalidShape, "thresholds") { _ = try LanguageModel(folder: tiny.folder, cats: three) }
        let gelu = try CATSThresholds([0, 0], sparsity: 0, function: .gelu)
        expect(.invalidArgument, "thresholds") { _ = try LanguageModel(folder: tiny.folder, cats: gelu) }
        for linear in [LinearFormat.fp8, .w4a16] { expect(.invalidArgument, "cats") { _ = try load(tiny, linear) } }
        let dense = try LanguageModel(folder: tiny.folder)
        expect(.invalidArgument, "cats") { _ = try dense.catsThresholds(sparsity: 0.5, windows: windows) }
        expect(.invalidArgument, "cats") { _ = try dense.with(CATSThresholds([0, 0], sparsity: 0)) }
        expect(.invalidArgument, "sparsity") { _ = try load(tiny).catsThresholds(sparsity: 1, windows: windows) }
    }
}
