import SparseKernels

extension SessionOptions {
    /// Throws `.invalidArgument` for options, and for models, that several ranks cannot have.
    func checkSharded(_ model: LanguageModel) throws(SparseKernelsError) {
        guard model.configuration.recurrentLayers == 0 else {
            throw SparseKernelsError(
                .invalidArgument, "model", expected: "a model whose sequences are in pages alone, on several ranks",
                actual: "one with \(model.configuration.recurrentLayers) recurrent layers")
        }
        switch prefill {
        case .dense, .streaming: break
        case .xAttention, .mInference, .sparge, .lServe:
            throw SparseKernelsError(
                .invalidArgument, "options.prefill", expected: ".dense or .streaming, on several ranks", actual: ".\(prefill)")
        }
        switch decoding {
        case .dense, .streaming, .quest: break
        case .twilight, .lServe, .polar:
            throw SparseKernelsError(
                .invalidArgument, "options.decoding", expected: ".dense, .streaming or .quest, on several ranks",
                actual: ".\(decoding)")
        }
    }
}
