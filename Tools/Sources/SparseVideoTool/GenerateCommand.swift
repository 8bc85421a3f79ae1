import ArgumentParser
import Foundation
import ModelQuantization
import SparseKernels
import SparseKernelsModels
import Terminal
import VideoGeneration

struct GenerateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate", abstract: "Makes one video: an animated GIF, and a PNG file per frame.",
        discussion: """
            A prompt is one to three sprites before a background. --sprite circle,red,x=3,y=2,right has a shape (circle, square, diamond), \
            a colour (red, green, blue, yellow, magenta, cyan, white), the place in eighths of the frame, and the speed: left, right, up, \
            down, each with =1 to =3 for other than 2. Without --sprite the prompt is random, by --seed.

            GIF and PNG files are made by ImageMagick; --ppm does without. Docs/Operators/VideoModel.md has examples.
            """)

    @Option(help: "A folder with config.json and model.safetensors. Default: the 4-bit model of the repository.")
    var model: String?

    @Option(help: ArgumentHelp("A sprite, such as circle,red,x=3,y=2,right. May be repeated.", valueName: "sprite"))
    var sprite: [String] = []

    @Option(help: "The background of the sprites: texture=0…3,colour=0…3.")
    var background: String?

    @Option(help: "Seed of the noise, and of the prompt without --sprite.")
    var seed: UInt64 = 1

    @Option(help: "How attention is computed.")
    var attention = VideoMethod.dense

    @Option(help: "How linear layers are computed. Default: w4a4 for a quantised model, float for another.")
    var linear: VideoLinearFormat?

    @Flag(help: "Also make the video of dense attention with the same noise, and print PSNR and SSIM.")
    var compare = false

    @OptionGroup var running: RunOptions
    @OptionGroup var methods: MethodOptions

    // MARK: Files

    @Option(name: [.short, .customLong("out")], help: "The GIF file to make. Frames go into a folder beside it, NAME-frames.")
    var output = "video.gif"

    @Option(help: "A PNG file to make with some frames side by side; with --compare, those of dense attention above.")
    var strip: String?

    @Option(help: "Pixels of the files for one of the video.")
    var scale = 4

    @Flag(help: "Write no GIF, and frames as .ppm files, which needs no other program.")
    var ppm = false

    func validate() throws {
        guard (1...64).contains(scale) else { throw ValidationError("--scale takes 1 to 64, got \(scale)") }
        if background != nil && sprite.isEmpty { throw ValidationError("--background needs --sprite") }
        if compare && attention == .dense { throw ValidationError("--compare needs another --attention than dense") }
        if ppm && strip != nil { throw ValidationError("--strip is a PNG file, and --ppm makes none") }
    }

    func run() throws {
        // Everything that can fail does so before the minutes that a video takes.
        let files = VideoFiles(tool: ppm ? nil : try PictureTool(), scale: scale)
        try OutputFile.check(output, replaces: true)
        if let strip { try OutputFile.check(strip, others: [(output, "the video")], replaces: true) }
        let sampler = try running.sampler
        let folder = try modelFolder(self.model)
        let model = try VideoTransformer(folder: folder, linear: linear, on: running.pool)
        let prompt = try prompt(sprites: sprite, background: background, seed: seed, for: model)
        let options = methods.options
        let warmUp = try options.attention(attention, for: model.configuration) as? WarmedUpVideoAttention
        let runner = VideoRunner(sampler: sampler, pool: running.pool)
        let c = model.configuration
        printNow(
            "model: \(c.layers) layers, \(c.tokens) tokens, \(model.linear.rawValue) linear layers, "
                + "\(Format.number(Double(model.blockByteCount) / 1e6)) MB")
        printNow("prompt: \(prompt)")
        printNow("noise: seed \(seed), \(sampler.steps) steps\n")

        var (rows, clips): ([VideoRow], [VideoClip]) = ([], [])
        if compare {
            let dense = try runner.run(model, prompt: prompt, seed: seed, method: .dense, options: options, title: "dense")
            rows.append(VideoRow(method: .dense, linear: model.linear.rawValue, sample: dense, quality: nil, warmUp: nil))
            clips.append(dense.clip)
        }
        let sample = try runner.run(
            model, prompt: prompt, seed: seed, method: attention, options: options, title: attention.title)
        let quality = try clips.first.map { try VideoQuality(sample.clip, against: $0) }
        rows.append(
            VideoRow(method: attention, linear: model.linear.rawValue, sample: sample, quality: quality, warmUp: warmUp))
        clips.append(sample.clip)
        VideoRow.table.header.forEach { printNow($0) }
        rows.forEach { printNow($0.line) }
        if compare { printNow(""); VideoRow.legend.forEach { printNow($0) } }
        printNow("")
        try write(sample.clip, all: clips, with: files)
    }

    private func write(_ clip: VideoClip, all clips: [VideoClip], with files: VideoFiles) throws {
        let stem = output.hasSuffix(".gif") ? String(output.dropLast(4)) : output
        if !ppm {
            try files.writeAnimation(clip, to: output)
            printNow("wrote \(output)")
            if compare {
                try files.writeAnimation(clips[0], to: stem + "-dense.gif")
                printNow("wrote \(stem)-dense.gif")
            }
        }
        printNow("wrote \(try files.writeFrames(clip, to: stem + "-frames"))")
        if let strip {
            try files.writeStrip(clips, to: strip)
            printNow("wrote \(strip)")
        }
    }
}
