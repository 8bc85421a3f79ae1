import ArgumentParser
import Foundation
import PictureSelection
import SparseKernels
import SparseKernelsModels
import Terminal

/// `sparse-vision encode`.
struct EncodeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "encode",
        abstract: "Computes the features of a picture at one resolution, and writes them to a safetensors file.",
        discussion: """
            The file has `tokens`, [tokens, width], `pooled` for models with a head or a class token, and `projected` for CLIP models with \
            a projection. The picture is resized to the size of the model, unless --native keeps its own.
            """)

    @Argument(help: "A PNG, PPM or PGM file.")
    var picture: String

    @OptionGroup var model: ModelOptions

    @Flag(help: "Keep the size of the picture; the position table is resized to its patches.")
    var native = false

    @Option(name: [.short, .customLong("out")], help: "The safetensors file to write; without it nothing is written.")
    var output: String?

    func run() throws {
        let image = try Picture(path: picture)
        let weights = try model.weights(imageSize: 378)
        let c = weights.configuration
        printNow(model.description(of: c))
        let progress = ProgressLine(total: 2 * c.layers)
        progress.begin("loading")
        let transformer = try VisionTransformer(weights, linear: model.linear, on: model.pool) { _, _ in
            progress.finishCase(work: 1)
        }
        let size = native ? image.size : GridSize(side: c.imageSize)
        let planes = try image.planes(
            mean: c.mean, deviation: c.deviation, resizedTo: size, on: model.pool)
        progress.begin("encoding")
        let clock = ContinuousClock()
        var workspace = VisionWorkspace()
        let start = clock.now
        let result = try transformer(planes, workspace: &workspace, on: model.pool) {
            _, _ throws(SparseKernelsError) in progress.finishCase(work: 1)
        }
        let seconds = (clock.now - start) / .seconds(1)
        progress.clear()
        printNow(
            "\(picture): \(image.size) pixels, seen at \(size); \(result.tokens.shape[0]) tokens of \(result.grid) patches in "
                + "\(Format.number(seconds)) s")
        guard let output else { return }
        var writer = SafetensorsWriter(metadata: ["format": "sparsekernels.features", "grid": "\(result.grid)"])
        try writer.add("tokens", result.tokens)
        if let pooled = result.pooled { try writer.add("pooled", pooled) }
        if let projected = result.projected { try writer.add("projected", projected) }
        try writer.write(to: output)
        printNow("wrote \(output)")
    }
}
