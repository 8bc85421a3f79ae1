public import ArgumentParser
import PictureSelection
public import SparseKernels
import SparseKernelsModels
import Terminal

extension VisionLinearFormat: @retroactive ExpressibleByArgument {}

/// The model that a command runs.
struct ModelOptions: ParsableArguments {
    @Option(
        help: "A folder with config.json and safetensors of a SigLIP or CLIP model. Without it, weights are random, by --seed.")
    var checkpoint: String?

    @Option(help: "Seed of random weights.")
    var seed: UInt64 = 1

    @Option(help: "Channels of a random model.")
    var width = 192

    @Option(help: "Layers of a random model.")
    var layers = 6

    @Option(help: "Heads of a random model.")
    var heads = 3

    @Option(help: "How linear layers are computed: float32, float16, bfloat16 or w8a8.")
    var linear = VisionLinearFormat.float32

    @Option(help: "Threads. Default: as many as the process may use.")
    var threads: Int?

    func validate() throws {
        if let threads, threads < 1 { throw ValidationError("--threads takes 1 or more, got \(threads)") }
        guard (1...64).contains(heads), (1...8192).contains(width), width % heads == 0, width / heads <= 256 else {
            throw ValidationError(
                "--width takes a multiple of --heads with at most 256 channels per head, got \(width) and \(heads)")
        }
        guard (1...256).contains(layers) else { throw ValidationError("--layers takes 1 to 256, got \(layers)") }
    }

    var pool: WorkerPool { threads.map { WorkerPool(threads: $0) } ?? .shared }

    /// The weights of the checkpoint, or random ones for pictures of a side.
    func weights(imageSize: Int) throws -> VisionTransformerWeights {
        if let checkpoint { return try VisionTransformerWeights(folder: checkpoint) }
        let configuration = VisionTransformerConfiguration(
            imageSize: imageSize, patchSize: 14,
            layer: VisionLayerConfiguration(width: width, heads: heads, hidden: 4 * width), layers: layers)
        return try VisionTransformerWeights(configuration, seed: seed)
    }

    /// What the model is, for people.
    func description(of c: VisionTransformerConfiguration) -> String {
        let source = checkpoint ?? "random weights, seed \(seed)"
        return
            "model: \(c.layers) layers of width \(c.width), \(c.layer.heads) heads, \(linear.rawValue) linear layers; \(source)"
    }
}
