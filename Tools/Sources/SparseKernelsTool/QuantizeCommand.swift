public import ArgumentParser
import Foundation
public import ModelQuantization
import SparseKernels
import Terminal

struct QuantizeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "quantize",
        abstract: "Turns a safetensors model into SVDQuant form: 4-bit residuals beside a low-rank branch.",
        discussion: """
            Finished layers are kept in OUT.partial until the output is complete. When the command was stopped, the same command goes on \
            where it was. Docs/Operators/QuantizeTool.md has examples.

            Exit status: 0; 1 for an error, also when nothing is selected; 2 when the work was done but layers ended with an error above \
            50 %; 64 for wrong arguments.
            """)

    @Argument(help: "The model, a .safetensors file.")
    var model: String

    @Option(name: [.short, .long], help: "The file to make.")
    var output: String

    @Flag(help: "Replace the output file if it exists.")
    var force = false

    // MARK: Layers

    @Option(
        help: ArgumentHelp(
            "Quantise only layers that match this pattern, such as '*.mlp.*'. May be repeated.", valueName: "glob"))
    var include: [String] = []

    @Option(help: ArgumentHelp("Copy layers that match this pattern. May be repeated.", valueName: "glob"))
    var exclude: [String] = []

    @Flag(help: "Do not exclude \(LayerSelection.defaultExclusions.joined(separator: ", ")) by default.")
    var noDefaultExcludes = false

    @Option(help: "Copy layers with fewer input or output features.")
    var minFeatures = 64

    // MARK: Quantisation

    @Option(help: "Rank of the low-rank branch.")
    var rank = 32

    @Option(help: "How the residual is rounded: rtn or gptq.")
    var method = QuantizationOptions.Method.rtn

    @Option(help: ArgumentHelp("search, none, or two exponents such as 0.5,0.5.", valueName: "search|none|α,β"))
    var smoothing = QuantizationOptions.Smoothing.search

    @Option(help: "Rounds of the low-rank split, at most. The released configuration has 100; they stop early.")
    var iterations = QuantizationOptions().iterations

    @Option(help: "What scales are rounded to: f16 or bf16.")
    var scaleType = QuantizationOptions.ScaleType.f16

    @Option(help: "Codes of the activations: int4, int8, or uint4-shift (where activations allow it; int4 elsewhere).")
    var activation = QuantizationOptions.Activation.int4

    // MARK: Calibration

    @Option(help: "A safetensors file with the input [tokens, inFeatures] of each layer under its name.")
    var calibration: String?

    @Option(help: ArgumentHelp("Gaussian tokens instead: the errors then say nothing about the model.", valueName: "tokens"))
    var syntheticCalibration: Int?

    // MARK: Running

    @Option(help: "Threads. Default: as many as the process may use.")
    var threads: Int?

    @Option(help: "Quantise only the first so many layers and write no output; a complete run takes them over.")
    var layers: Int?

    @Flag(help: "List what would be done with each tensor, and why; do nothing.")
    var dryRun = false

    @Flag(help: "Print errors only.")
    var quiet = false

    @Option(help: "Write the table to this file as well.")
    var json: String?

    func validate() throws {
        if (calibration == nil) == (syntheticCalibration == nil) {
            throw ValidationError("give either --calibration FILE or --synthetic-calibration TOKENS")
        }
        for (name, value) in [("threads", threads), ("layers", layers)] where value.map({ $0 < 1 }) ?? false {
            throw ValidationError("--\(name) takes 1 or more, got \(value!)")
        }
    }

    func run() throws {
        var options = QuantizationOptions()
        options.rank = rank
        options.method = method
        options.smoothing = smoothing
        options.iterations = iterations
        options.scaleType = scaleType
        options.activation = activation
        let model = try SafetensorsFile(path: self.model)
        let selection = LayerSelection(
            include: include.isEmpty ? ["*"] : include,
            exclude: exclude + (noDefaultExcludes ? [] : LayerSelection.defaultExclusions), minimumFeatures: minFeatures)
        let plan = try ModelPlan(model, selection: selection, rank: rank)
        if dryRun || plan.layers.isEmpty { plan.lines.forEach { dryRun ? printNow($0) : printError($0) } }
        try plan.requireLayers(of: model)
        let source: CalibrationSource =
            if let calibration { .file(try SafetensorsFile(path: calibration)) } else {
                .gaussian(tokens: syntheticCalibration!)
            }
        let quantizer = try ModelQuantizer(
            model: model, selection: selection, options: options, calibration: source, output: output, replacesOutput: force)
        if let json {
            var others = [(path: model.name, role: "the model"), (path: output, role: "the output")]
            if let calibration { others.append((calibration, "the calibration file")) }
            try OutputFile.check(json, others: others, replaces: true)
        }
        if dryRun { return }
        let reports = try quantize(quantizer)
        if let json { try QuantizationReport(quantizer, layers: reports).write(to: json) }
        if let warning = LayerTable(layers: quantizer.plan.layers).warning(reports) {
            printError("\(quiet ? "" : "\n")Warning: \(warning)")
            throw ExitCode(2)
        }
    }

    private func quantize(_ quantizer: ModelQuantizer) throws -> [LayerReport] {
        let planned = quantizer.plan.layers.prefix(layers ?? .max)
        let interruptMessage = InterruptMessage(
            "stopped; finished layers are in \(output).partial, and the same command goes on")
        defer { withExtendedLifetime(interruptMessage) {} }
        let table = LayerTable(layers: Array(planned))
        let progress =
            quiet ? nil : ProgressLine.onTerminal(total: planned.count, work: planned.reduce(0) { $0 + Double($1.size) })
        if !quiet {
            printNow("\(quantizer.model.name): \(planned.count) of \(quantizer.plan.layers.count) layers, \(quantizer.options)")
            printNow("calibration: \(quantizer.calibration.summary)\n")
            table.header.forEach { printNow($0) }
        }
        var (reused, work) = (0, 0.0)
        let reports = try quantizer.run(
            limit: layers, on: threads.map { WorkerPool(threads: $0) } ?? .shared
        ) { event throws(SparseKernelsError) in
            switch event {
            case .began(let layer):
                work = Double(layer.size)
                progress?.begin(table.name(layer.name))
            case .finished(let report, let isReused):
                if isReused { reused += 1 }
                progress?.clear()
                if !quiet { printNow(table.line(report, isReused: isReused)) }
                progress?.finishCase(work: work, isSkipped: isReused)
            }
        } tick: {
            progress?.tick()
        }
        progress?.clear()
        if quiet { return reports }
        printNow(table.summary(reports))
        if reused > 0 { printNow("\n\(reused) of \(reports.count) layers are from an earlier run (times in parentheses)") }
        let isComplete = layers == nil
        printNow(isComplete ? "\nwrote \(output)" : "\nno output written (--layers); layers are kept in \(output).partial")
        return reports
    }
}

extension QuantizationOptions.Method: ExpressibleByArgument {}
extension QuantizationOptions.ScaleType: ExpressibleByArgument {}
extension QuantizationOptions.Activation: ExpressibleByArgument {}

extension QuantizationOptions.Smoothing: ExpressibleByArgument {
    public init?(argument: String) {
        switch argument {
        case "none": self = .none
        case "search": self = .search
        default:
            let parts = argument.split(separator: ",", omittingEmptySubsequences: false).map { Double($0) }
            guard parts.count == 2, let alpha = parts[0], let beta = parts[1] else { return nil }
            self = .fixed(alpha: alpha, beta: beta)
        }
    }

    public var defaultValueDescription: String { "search" }
}
