internal import Foundation
public import SparseKernels

extension SparseLoRAConfiguration: Codable {
    /// The keys of the released files, and two more.
    private enum Key: String, CodingKey {
        case mode
        case start = "start_step"
        case end = "end_step"
        case averagesSequences = "mlp_seq_avg"
        case outputTokensAreDense = "skip_output_tokens"
        case rank = "predictor_rank"
        case layers = "layer_sparsity"
        /// The older name of the same.
        case sparsity
    }

    /// Decodes the form that `encode` writes, the released `sparselora_config.json`, and the older files under `configs/sparsity` as JSON.
    ///
    /// What is missing has the value of the released code: sparse from the first step to the last, rank 8, mean tokens; but output tokens
    /// are dense.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: Key.self)
        let sparsities =
            try values.decodeIfPresent([String: Double].self, forKey: .layers)
            ?? values.decode([String: Double].self, forKey: .sparsity)
        var layers: [Layer] = []
        var seen: Set<String> = []
        func corrupted(_ text: String) -> DecodingError {
            .dataCorrupted(.init(codingPath: values.codingPath, debugDescription: text))
        }
        // In the order of the keys, so that an error is the same for each run.
        for (key, value) in sparsities.sorted(by: { $0.key < $1.key }) {
            let parts = key.split(separator: ".", omittingEmptySubsequences: false)
            guard parts.count >= 3, parts[parts.count - 3] == "layers", let index = Int(parts[parts.count - 2]),
                (0..<Self.layerLimit).contains(index), parts.last == "mlp" || parts.last == "self_attn"
            else {
                throw corrupted(
                    "keys such as layers.3.mlp and layers.3.self_attn of fewer than \(Self.layerLimit) layers, not \(key)")
            }
            guard seen.insert("\(index).\(parts.last!)").inserted else {
                throw corrupted("one value for layer \(index), not two: \(key)")
            }
            while layers.count <= index { layers.append(Layer()) }
            // The released code runs a layer of sparsity 0 as a dense one.
            let sparsity = value == 0 ? nil : value
            if parts.last == "mlp" { layers[index].mlp = sparsity } else { layers[index].attention = sparsity }
        }
        var mode = Mode.intended
        var rank = try values.decodeIfPresent(Int.self, forKey: .rank) ?? 8
        if let text = try values.decodeIfPresent(String.self, forKey: .mode) {
            if let known = Mode(rawValue: text) {
                mode = known
            } else if text.hasPrefix("svd_"), let number = Int(text.dropFirst(4)) {
                rank = number
            } else {
                throw corrupted("a mode of intended, released or svd_<rank>, not \(text)")
            }
        }
        self.init(
            layers: layers, mode: mode, start: try values.decodeIfPresent(Double.self, forKey: .start) ?? 0,
            end: try values.decodeIfPresent(Double.self, forKey: .end) ?? 1,
            averagesSequences: try values.decodeIfPresent(Bool.self, forKey: .averagesSequences) ?? true,
            outputTokensAreDense: try values.decodeIfPresent(Bool.self, forKey: .outputTokensAreDense) ?? true,
            estimatorRank: rank)
        do throws(SparseKernelsError) { try validate() } catch { throw corrupted(error.description) }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        try values.encode(mode.rawValue, forKey: .mode)
        try values.encode(start, forKey: .start)
        try values.encode(end, forKey: .end)
        try values.encode(averagesSequences, forKey: .averagesSequences)
        try values.encode(outputTokensAreDense, forKey: .outputTokensAreDense)
        try values.encode(estimatorRank, forKey: .rank)
        var sparsities: [String: Double] = [:]
        for (index, layer) in layers.enumerated() {
            sparsities["model.layers.\(index).mlp"] = layer.mlp ?? 0
            sparsities["model.layers.\(index).self_attn"] = layer.attention ?? 0
        }
        try values.encode(sparsities, forKey: .layers)
    }

    /// More layers than any model has. A file cannot ask for more memory.
    private static let layerLimit = 4096
}

extension SparseLoRAConfiguration {
    /// Reads a JSON file: one that `write(to:)` has written, or a released one.
    ///
    /// - Parameters:
    ///   - path: of the file.
    ///   - variant: which of several sets of sparsities to take from a released `config.json`, `o1` (careful) or `o2`.
    /// - Throws: `.inputOutput` when the file cannot be read, otherwise as `init(json:variant:)`.
    public init(path: String, variant: String? = nil) throws(SparseKernelsError) {
        let data: Data
        do {
            data = try Data(contentsOf: URL(fileURLWithPath: path))
        } catch {
            throw SparseKernelsError(.inputOutput, path, expected: "readable", actual: error.localizedDescription)
        }
        try self.init(data, named: path, variant: variant)
    }

    /// Reads a JSON text.
    /// - Throws: `.malformedFile` for text of another form or numbers out of their domains; `.notFound` for a variant that is not there.
    public init(json: String, variant: String? = nil) throws(SparseKernelsError) {
        try self.init(Data(json.utf8), named: "json", variant: variant)
    }

    private init(_ data: Data, named name: String, variant: String?) throws(SparseKernelsError) {
        do {
            guard let variant else {
                self = try JSONDecoder().decode(Self.self, from: data)
                return
            }
            let released = try JSONDecoder().decode(ReleasedVariants.self, from: data)
            guard var chosen = released.modes[variant] else {
                throw SparseKernelsError(
                    .notFound, "\(name), variant", expected: released.modes.keys.sorted().joined(separator: ", "),
                    actual: variant)
            }
            chosen.estimatorRank = released.rank ?? chosen.estimatorRank
            try chosen.validate()
            self = chosen
        } catch let error as SparseKernelsError {
            throw error
        } catch {
            throw SparseKernelsError(
                .malformedFile, name, expected: "an object with sparsities by layer under layer_sparsity",
                actual: Self.description(of: error))
        }
    }

    /// The JSON text of this configuration, keys sorted.
    /// - Throws: `.invalidArgument` for numbers out of their domains.
    public func json() throws(SparseKernelsError) -> String {
        try validate()
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted, .withoutEscapingSlashes]
        // The encoder accepts all strings, booleans and finite numbers, and validation has refused the others.
        return String(decoding: try! encoder.encode(self), as: UTF8.self) + "\n"
    }

    /// Writes the JSON text, in one step.
    /// - Throws: `.invalidArgument` for numbers out of their domains, `.inputOutput`.
    public func write(to path: String) throws(SparseKernelsError) {
        let text = try json()
        do {
            try Data(text.utf8).write(to: URL(fileURLWithPath: path), options: .atomic)
        } catch {
            throw SparseKernelsError(.inputOutput, path, expected: "writable", actual: error.localizedDescription)
        }
    }

    private static func description(of error: any Error) -> String {
        switch error as? DecodingError {
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .keyNotFound(_, let context),
            .dataCorrupted(let context):
            let path = context.codingPath.map(\.stringValue).joined(separator: ".")
            return path.isEmpty ? context.debugDescription : "\(path): \(context.debugDescription)"
        default: return "\(error)"
        }
    }
}

/// The released `config.json` with several sets of sparsities.
private struct ReleasedVariants: Decodable {
    var rank: Int?
    var modes: [String: SparseLoRAConfiguration]

    enum CodingKeys: String, CodingKey {
        case rank = "predictor_rank"
        case modes
    }
}
