public import ArgumentParser
import SparseKernels
public import SparseKernelsModels
public import VideoGeneration

extension VideoMethod: ExpressibleByArgument {}
extension VideoLinearFormat: @retroactive ExpressibleByArgument {}

/// How much sparse attention keeps.
struct MethodOptions: ParsableArguments {
    @Option(help: "SVG: the part of all pairs that the bands of keys have.")
    var density = VideoMethodOptions().density

    @Option(help: "SVG: query rows on which heads are profiled.")
    var sampledRows = VideoMethodOptions().sampledRows

    @Option(help: "SVG2: the part of the estimated mass that the key clusters of a query cluster must have.")
    var mass = VideoMethodOptions().mass

    @Option(help: "SVG2: the part of the key clusters that every query cluster keeps at least.")
    var minimumKeyRatio = VideoMethodOptions().minimumKeyRatio

    @Option(help: "SVG2: clusters of the queries of a head.")
    var queryClusters = VideoMethodOptions().queryClusters

    @Option(help: "SVG2: clusters of the keys of a head.")
    var keyClusters = VideoMethodOptions().keyClusters

    @Option(help: "XAttention: the part of the estimated mass that blocks must have.")
    var threshold = VideoMethodOptions().threshold

    @Option(help: "SpargeAttention: the part of the key blocks that a query block keeps.")
    var keepRatio = VideoMethodOptions().keepRatio

    @Option(help: "The part of the steps, from the first on, with dense attention.")
    var denseSteps = VideoMethodOptions().denseSteps

    @Option(help: "The layers, from the first on, with dense attention in every step.")
    var denseLayers = VideoMethodOptions().denseLayers

    var options: VideoMethodOptions {
        var options = VideoMethodOptions()
        options.density = density
        options.sampledRows = sampledRows
        options.mass = mass
        options.minimumKeyRatio = minimumKeyRatio
        options.queryClusters = queryClusters
        options.keyClusters = keyClusters
        options.threshold = threshold
        options.keepRatio = keepRatio
        options.denseSteps = denseSteps
        options.denseLayers = denseLayers
        return options
    }
}

/// Steps and threads.
struct RunOptions: ParsableArguments {
    @Option(help: "Denoising steps.")
    var steps = 20

    @Option(help: "Threads. Default: as many as the process may use.")
    var threads: Int?

    func validate() throws {
        if let threads, threads < 1 { throw ValidationError("--threads takes 1 or more, got \(threads)") }
    }

    var pool: WorkerPool { threads.map { WorkerPool(threads: $0) } ?? .shared }
    var sampler: VideoSampler { get throws { try VideoSampler(steps: steps) } }
}

/// The folder of a model: the one that was given, or the one of the repository.
func modelFolder(_ given: String?) throws -> String {
    if let folder = given ?? ModelData.video { return folder }
    throw ValidationError("the model of the repository is not beside this program; give --model FOLDER")
}

/// The prompt of options, or the random one of a seed, if the model takes such prompts.
func prompt(
    sprites: [String], background: String?, seed: UInt64, for model: VideoTransformer
) throws -> SpritePrompt {
    let prompt =
        sprites.isEmpty
        ? SpritePrompt(seed: seed) : try SpritePrompt(sprites: sprites, background: background ?? "")
    guard model.configuration.textTokens == SpritePrompt.tokenCount, model.configuration.textVocabulary >= 53 else {
        throw ValidationError(
            "prompts are \(SpritePrompt.tokenCount) ids below 53, and the model takes \(model.configuration.textTokens) below "
                + "\(model.configuration.textVocabulary)")
    }
    return prompt
}
