public import SparseKernels
import SparseKernelsReference

/// A sample of the inputs of every linear layer, for calibration. All layers have the same tokens, drawn evenly from all seen.
///
/// It is reservoir sampling (Vitter's algorithm R, 1985) with a seed. After any number of tokens each of them is in the sample
/// with equal probability, and memory depends on the sample only, not on the length of the text.
public struct CalibrationRecorder: Sendable {
    /// The largest number of rows in each layer's sample.
    public let capacity: Int
    /// The number of tokens seen.
    public private(set) var tokens = 0
    private var generator: SplitMix64
    private var rows: [String: Rows] = [:]

    private struct Rows {
        var inFeatures: Int
        var elements: [Float]
    }

    /// - Throws: `.invalidArgument` for a capacity below 1.
    public init(capacity: Int, seed: UInt64 = 0) throws(SparseKernelsError) {
        guard capacity >= 1 else {
            throw SparseKernelsError(.invalidArgument, "capacity", expected: "at least 1", actual: "\(capacity)")
        }
        self.capacity = capacity
        generator = SplitMix64(seed: seed)
    }

    /// Runs the model over one sequence and samples the inputs of its linear layers.
    /// - Returns: the logits, from which the model's quality on this text can be computed.
    /// - Throws: the errors of `LlamaModel.logits`. After an error the sample is not one of all tokens.
    @discardableResult
    public mutating func record(
        _ sequence: [Int], through model: LlamaModel, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        // They are drawn once per sequence, so that all layers keep the same tokens.
        var kept: [Int: Int] = [:]
        for (position, index) in (tokens..<tokens + sequence.count).enumerated() {
            let slot = index < capacity ? index : Int.random(in: 0...index, using: &generator)
            if slot < capacity { kept[slot] = position }
        }
        tokens += sequence.count
        let (size, slots) = (min(tokens, capacity), kept)
        var rows = rows
        self.rows = [:]
        defer { self.rows = rows }
        return try model.logits(sequence, on: pool) { layer, input throws(SparseKernelsError) in
            let inFeatures = input.shape[1]
            let source = input.span
            var sample = rows.removeValue(forKey: layer) ?? Rows(inFeatures: inFeatures, elements: [])
            sample.elements.append(
                contentsOf: repeatElement(0, count: size * inFeatures - sample.elements.count))
            for (slot, position) in slots {
                for k in 0..<inFeatures { sample.elements[slot * inFeatures + k] = source[position * inFeatures + k] }
            }
            rows[layer] = sample
        }
    }

    /// The names of the layers seen, in order.
    public var layers: [String] { rows.keys.sorted() }

    /// The sample of a layer, `[tokens, inFeatures]`.
    /// - Throws: `.notFound`.
    public func sample(of layer: String) throws(SparseKernelsError) -> Tensor<Float> {
        guard let sample = rows[layer] else {
            throw SparseKernelsError(
                .notFound, "layer \"\(layer)\"", expected: "one of the \(rows.count) layers that were run",
                actual: "another name")
        }
        return try Tensor([sample.elements.count / sample.inFeatures, sample.inFeatures], sample.elements)
    }

    /// Writes the calibration file for `sparsekernels quantize --calibration`: a tensor `[tokens, inFeatures]` per layer name.
    ///
    /// Values are bfloat16, whose rounding error is far below that of 4-bit codes.
    /// - Throws: `.inputOutput`.
    public func write(to path: String, source: String) throws(SparseKernelsError) {
        var writer = SafetensorsWriter(metadata: [
            "format": "calibration", "layout": "[tokens, inFeatures]", "source": source, "tokens": "\(tokens)",
        ])
        for layer in layers {
            try writer.add(layer, sample(of: layer).converted(to: BFloat16.self))
        }
        try writer.write(to: path)
    }
}
