public import SparseKernels

/// The mixers of a hybrid model, a letter each: `M` is Mamba-2, `-` an MLP, `*` attention.
///
/// ```swift
/// let pattern = try HybridPattern("M-M*-M-")
/// print(pattern.layers.count, pattern.count(of: .mamba2))   // 7 3
/// ```
///
/// A layer has one mixer: x ← x + mixer(RMSNorm(x)).
///
/// - Source: NVIDIA, "Nemotron-H" (arXiv 2504.03624), section 2.1; `hybrid_override_pattern` of the Hugging Face checkpoints.
public struct HybridPattern: Hashable, Sendable, CustomStringConvertible {
    /// What a layer does between its norm and the residual stream.
    public enum Layer: Character, Hashable, Sendable, CaseIterable {
        case mamba2 = "M"
        /// down(relu(up(x))²), without a gate.
        case mlp = "-"
        /// Causal, with groups of queries, and without any encoding of positions.
        case attention = "*"
    }

    public let layers: [Layer]

    public init(_ layers: [Layer]) { self.layers = layers }

    /// Reads a text.
    /// - Throws: `.invalidArgument` naming the place of a letter that stands for no layer, or for one that is not here: `E`, a
    ///   mixture of experts.
    public init(_ text: String) throws(SparseKernelsError) {
        var layers: [Layer] = []
        for letter in text {
            guard let layer = Layer(rawValue: letter) else {
                let name = letter.unicodeScalars.map { $0.escaped(asASCII: false) }.joined()
                throw SparseKernelsError(
                    .invalidArgument, "pattern[\(layers.count)]",
                    expected: "\"M\" (Mamba-2), \"-\" (MLP) or \"*\" (attention)",
                    actual: "\"\(name)\"" + (letter == "E" ? ", a mixture of experts, which is not supported" : ""))
            }
            layers.append(layer)
        }
        self.layers = layers
    }

    /// The letters.
    public var description: String { String(layers.map(\.rawValue)) }

    /// How many layers are of a kind.
    public func count(of kind: Layer) -> Int { layers.count { $0 == kind } }

    /// How many layers before this one are of its kind: where a cache of that kind has it.
    public func ordinal(of layer: Int) -> Int { layers[..<layer].count { $0 == layers[layer] } }

    /// The layers of Nemotron-H 8B: 24 of Mamba-2, 24 MLPs and 4 of attention.
    public static let nemotronH8B = try! HybridPattern("M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-")
}
