internal import DuoAttention
internal import Foundation
public import SparseKernels

/// Which KV heads are retrieval heads, from a file of gates as DuoAttention has them (`full_attention_heads.tsv`) and as
/// `sparse-lm heads` makes them: a line per layer, with a number per KV head between tabs. Larger ones need the whole context more.
public enum RetrievalHeads {
    /// Reads a file.
    ///
    /// - Parameters:
    ///   - path: of the file.
    ///   - streaming: the part of all heads that stream, 0…1: those with the lowest gates.
    /// - Returns: for every layer, whether each KV head is a retrieval head.
    /// - Throws: `.inputOutput` and `.malformedFile` naming the file, `.invalidArgument` for a part outside 0…1.
    public static func read(_ path: String, streaming: Double) throws(SparseKernelsError) -> [[Bool]] {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw SparseKernelsError(.inputOutput, path, expected: "a file that can be read", actual: "none")
        }
        let gates: DuoAttentionGates
        do throws(SparseKernelsError) {
            gates = try DuoAttentionGates(tsv: String(decoding: data, as: UTF8.self))
        } catch {
            throw SparseKernelsError(error.code, "\(path), \(error.argument)", expected: error.expected, actual: error.actual)
        }
        let heads = try gates.heads(sparsity: streaming)
        return (0..<heads.layers).map { Array(heads[$0]) }
    }

    /// The text of a file.
    public static func text(_ gates: [[Double]]) -> String {
        gates.map { $0.map { "\($0)" }.joined(separator: "\t") + "\n" }.joined()
    }
}
