import ArgumentParser
import SparseKernels
import SparseKernelsModels
import Terminal
import VideoGeneration

struct TableCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "table", abstract: "Compares methods of attention and forms of linear layers over several prompts.",
        discussion: """
            Each video is compared with that of dense attention with the same noise and the same linear layers, and in the rows of dense \
            attention with that of the first form of linear layers. Prompts and noise are those of the seeds from --seed on.
            """)

    @Option(help: "A folder with config.json and model.safetensors. Default: the 4-bit model of the repository.")
    var model: String?

    @Option(help: "The folder of the model that w4a4 is run with. Default: the one of the repository.")
    var quantized: String?

    @Option(help: ArgumentHelp("Methods, with commas between.", valueName: "methods"))
    var attention = VideoMethod.allCases.map(\.rawValue).joined(separator: ",")

    @Option(
        help: ArgumentHelp("Forms of linear layers, with commas between. Default: that of the model.", valueName: "formats"))
    var linear: String?

    @Option(help: "The number of prompts.")
    var prompts = 3

    @Option(help: "The first seed.")
    var seed: UInt64 = 1

    @Flag(help: "A row for each prompt too.")
    var each = false

    @OptionGroup var running: RunOptions
    @OptionGroup var methods: MethodOptions

    func validate() throws {
        guard (1...1000).contains(prompts) else { throw ValidationError("--prompts takes 1 to 1000, got \(prompts)") }
        _ = try parsedMethods
        _ = try parsedFormats
    }

    private var parsedMethods: [VideoMethod] {
        get throws {
            try attention.split(separator: ",").map { name in
                guard let method = VideoMethod(rawValue: String(name)) else {
                    throw ValidationError(
                        "--attention takes \(VideoMethod.allCases.map(\.rawValue).joined(separator: ", ")), got \(name)")
                }
                return method
            }
        }
    }

    private var parsedFormats: [VideoLinearFormat?] {
        get throws {
            guard let linear else { return [nil] }
            return try linear.split(separator: ",").map { name in
                guard let format = VideoLinearFormat(rawValue: String(name)) else {
                    throw ValidationError(
                        "--linear takes \(VideoLinearFormat.allCases.map(\.rawValue).joined(separator: ", ")), got \(name)")
                }
                return format
            }
        }
    }

    func run() throws {
        let runner = VideoRunner(sampler: try running.sampler, pool: running.pool)
        let options = methods.options
        // Dense first: the others are compared with it.
        let sparse = try parsedMethods.filter { $0 != .dense }
        let formats = try parsedFormats
        let folder = try modelFolder(model)
        printNow("\(prompts) prompt\(prompts == 1 ? "" : "s"), seeds from \(seed) on, \(runner.sampler.steps) steps\n")
        VideoRow.table.header.forEach { printNow($0) }
        var firstDense: [VideoClip] = []
        for (index, format) in formats.enumerated() {
            let own = format == .w4a4 ? try modelFolder(quantized ?? ModelData.video ?? model) : folder
            let model = try VideoTransformer(folder: own, linear: format, on: running.pool)
            var dense: [VideoClip] = []
            for method in [.dense] + sparse {
                let warmUp = try options.attention(method, for: model.configuration) as? WarmedUpVideoAttention
                var rows: [VideoRow] = []
                for number in 0..<prompts {
                    let seed = seed + UInt64(number)
                    let prompt = try prompt(sprites: [], background: nil, seed: seed, for: model)
                    let sample = try runner.run(
                        model, prompt: prompt, seed: seed, method: method, options: options,
                        title: "\(method.title), \(model.linear.rawValue), \(number + 1) of \(prompts)")
                    if method == .dense { dense.append(sample.clip) }
                    let reference: VideoClip? =
                        method == .dense ? (index == 0 ? nil : firstDense[number]) : dense[number]
                    rows.append(
                        VideoRow(
                            method: method, linear: model.linear.rawValue, sample: sample,
                            quality: try reference.map { try VideoQuality(sample.clip, against: $0) }, warmUp: warmUp))
                    if each && prompts > 1 { printNow(rows[number].line + "  seed \(seed)") }
                }
                printNow(VideoRow.mean(rows).line + (each && prompts > 1 ? "  mean" : ""))
            }
            if index == 0 { firstDense = dense }
        }
        printNow("")
        VideoRow.legend.forEach { printNow($0) }
        if formats.count > 1 {
            printNow(
                "Dense rows after the first are compared with the first, which has \(formats[0]?.rawValue ?? "") linear layers."
            )
        }
    }
}
