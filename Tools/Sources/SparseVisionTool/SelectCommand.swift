import ArgumentParser
import PictureSelection
import SparseKernels
import SparseKernelsModels
import Terminal

/// `sparse-vision select`.
struct SelectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "select",
        abstract: "Selects the patches of a picture that are worth a closer look, encodes them, and draws the selection.",
        discussion: """
            A prompt is a region of the picture, --like x,y,width,height in pixels: patches that resemble it are selected. Without it, those \
            are that stand out from the rest. The features come from a SigLIP checkpoint, or from random weights, which know what patches \
            look like and not what they mean: no trained PS3 network takes part.

            PNG files: NAME-scores.png has the score map over the picture, NAME-SIDE.png the selected patches of each scale. \
            Docs/Operators/VisionModel.md has examples.
            """)

    @Argument(help: "A PNG, PPM or PGM file.")
    var picture: String

    @OptionGroup var model: ModelOptions

    @Option(help: "Sides of the square pictures of all scales in pixels, multiples of the patch, the low resolution first.")
    var scales = "378,756,1512"

    @Option(help: "Patches of a pass.")
    var budget = 1280

    @Option(help: "Passes, which take the next best patches.")
    var passes = 1

    @Option(help: "The layer, from 0, whose outputs are compared with the prompt. Default: the one in the middle.")
    var layer: Int?

    @Option(help: ArgumentHelp("A region to look for, in pixels of the picture.", valueName: "x,y,width,height"))
    var like: String?

    @Option(
        name: [.short, .customLong("out")], help: "What the names of the PNG files begin with. Default: that of the picture.")
    var output: String?

    @Option(help: "Pixels of the longer side of the PNG files.")
    var overlaySize = 756

    func validate() throws {
        guard let sides, sides.count >= 2 else {
            throw ValidationError("--scales takes two or more numbers with commas between them, got \"\(scales)\"")
        }
        if like != nil && box == nil {
            throw ValidationError("--like takes x,y,width,height in whole pixels, got \"\(like!)\"")
        }
        guard (1...1 << 14).contains(overlaySize) else {
            throw ValidationError("--overlay-size takes 1 to \(1 << 14), got \(overlaySize)")
        }
    }

    private var sides: [Int]? { Self.numbers(scales) }

    private var box: PictureBox? {
        guard let like, let numbers = Self.numbers(like), numbers.count == 4 else { return nil }
        return PictureBox(x: numbers[0], y: numbers[1], width: numbers[2], height: numbers[3])
    }

    private static func numbers(_ text: String) -> [Int]? {
        let parts = text.split(separator: ",", omittingEmptySubsequences: false).map { Int($0) }
        return parts.contains(nil) ? nil : parts.compactMap { $0 }
    }

    func run() throws {
        let image = try Picture(path: picture).rgb()
        let weights = try model.weights(imageSize: sides![0])
        let c = weights.configuration
        printNow(model.description(of: c))
        let progress = ProgressLine(total: c.layers + passes + 2)
        progress.begin("loading")
        let ps3 = try PS3VisionModel(
            weights, sides: sides!, budget: budget, selectionLayer: layer, linear: model.linear, on: model.pool
        ) { _, _ in progress.finishCase() }
        let planes = try image.planes(mean: c.mean, deviation: c.deviation, on: model.pool)
        var begun = 0
        let run = try SelectionRun(
            ps3, planes: planes, prompt: box.map { .like($0) } ?? .standingOut, passes: passes, on: model.pool
        ) { name in
            if begun > 0 { progress.finishCase() }
            begun += 1
            progress.begin(name)
        }
        progress.clear()
        try report(run, of: ps3, image)
        let stem = output ?? Self.withoutExtension(picture)
        for (name, overlay) in try SelectionPictures(run, of: ps3, over: image, longerSide: overlaySize, box: box).all {
            try overlay.writePNG(to: "\(stem)-\(name).png")
            printNow("wrote \(stem)-\(name).png")
        }
    }

    /// The path as it was given, without the ending of its last part.
    private static func withoutExtension(_ path: String) -> String {
        guard let dot = path.lastIndex(of: "."), !path[dot...].contains("/"), dot != path.startIndex else { return path }
        return String(path[..<dot])
    }

    private func report(_ run: SelectionRun, of model: PS3VisionModel, _ image: Picture) throws {
        let table = TextTable([
            .init("scale", "pixels", width: 6), .init("picture", "pixels", width: 11), .init("patches", width: 9),
            .init("budget", width: 7), .init("selected", width: 8), .init("", "%", width: 5),
        ])
        printNow("\(picture): \(image.size) pixels\n")
        table.header.forEach { printNow($0) }
        for row in try run.scaleRows(of: model) {
            printNow(
                table.line([
                    "\(row.side)", "\(row.size)", "\(row.grid.count)", "\(row.budget)", "\(row.selected)",
                    Format.percent(Double(row.selected) / Double(row.grid.count)),
                ]))
        }
        let seconds = run.seconds
        printNow(
            """

            tokens: \(run.picture.tokens.shape[0]) of low resolution and \(run.selection.count) selected of \(run.picture.highPatches)
            seconds: low resolution \(Format.number(seconds.looking)), selection \(Format.number(seconds.selecting)), \
            high resolution \(Format.number(seconds.encoding))

            """)
    }
}
