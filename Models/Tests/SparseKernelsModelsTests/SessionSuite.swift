import SparseKernels
import SparseKernelsModels

/// A suite that compares sessions of tiny models over the same tokens.
protocol SessionSuite {}

extension SessionSuite {
    var tokens: [Int] { LanguageSessionTests.tokens }

    /// Exact attention over a cache in single precision.
    static func exact(chunk: Int = 64) -> SessionOptions {
        var options = SessionOptions(keyFormat: .float32, valueFormat: .float32, tokenCapacity: 256)
        options.chunk = chunk
        return options
    }

    /// The logits of all tokens as one prompt.
    func logits(
        _ model: LanguageModel, _ options: SessionOptions, on pool: WorkerPool = .shared
    ) throws -> Tensor<Float> {
        let session = try LanguageSession(model, options, on: pool)
        return try session.append([tokens], to: [session.makeSequence()], logits: .all)
    }

    /// The logits of all tokens: a prompt, then token by token.
    func stepwise(_ model: LanguageModel, _ options: SessionOptions, prompt: Int) throws -> Tensor<Float> {
        let session = try LanguageSession(model, options)
        let sequence = session.makeSequence()
        var rows = try session.append([Array(tokens[..<prompt])], to: [sequence], logits: .all).elements
        for token in tokens[prompt...] { rows += try session.append([[token]], to: [sequence]).elements }
        return try Tensor([tokens.count, 48], rows)
    }
}
