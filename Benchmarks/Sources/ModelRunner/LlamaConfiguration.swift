import Foundation
public import SparseKernels

/// The sizes of a Llama model, as `config.json` of a Hugging Face checkpoint gives them.
public struct LlamaConfiguration: Hashable, Sendable, Decodable {
    public let vocabularySize: Int
    public let hiddenSize: Int
    public let intermediateSize: Int
    public let layers: Int
    public let queryHeads: Int
    public let kvHeads: Int
    public let headDim: Int
    public let ropeTheta: Double
    public let rmsNormEpsilon: Float

    private enum CodingKeys: String, CodingKey {
        case vocabularySize = "vocab_size"
        case hiddenSize = "hidden_size"
        case intermediateSize = "intermediate_size"
        case layers = "num_hidden_layers"
        case queryHeads = "num_attention_heads"
        case kvHeads = "num_key_value_heads"
        case headDim = "head_dim"
        case ropeTheta = "rope_theta"
        case rmsNormEpsilon = "rms_norm_eps"
    }

    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile` when a size is missing, or none that a model can have.
    public init(path: String) throws(SparseKernelsError) {
        func failure(_ code: SparseKernelsError.Code, _ expected: String, _ error: any Error) -> SparseKernelsError {
            SparseKernelsError(code, path, expected: expected, actual: "\(error)")
        }
        let data: Data
        do { data = try Data(contentsOf: URL(fileURLWithPath: path)) } catch {
            throw failure(.inputOutput, "a readable file", error)
        }
        do { self = try JSONDecoder().decode(Self.self, from: data) } catch {
            throw failure(.malformedFile, "the config.json of a Llama model", error)
        }
        let sizes = [vocabularySize, hiddenSize, intermediateSize, layers, queryHeads, kvHeads, headDim]
        guard
            sizes.allSatisfy({ (1...1 << 20).contains($0) }), queryHeads.isMultiple(of: kvHeads), headDim.isMultiple(of: 2),
            ropeTheta > 0, rmsNormEpsilon >= 0
        else {
            throw SparseKernelsError(
                .malformedFile, path, expected: "sizes of 1 to 2²⁰, queryHeads a multiple of kvHeads, an even headDim",
                actual: "\(self)")
        }
    }
}
