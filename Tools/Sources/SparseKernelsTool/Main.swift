import ArgumentParser

@main
struct SparseKernelsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparsekernels",
        abstract: "Quantises the linear layers of safetensors models, and shows what such files hold.",
        version: "0.1.0",
        subcommands: [QuantizeCommand.self, InspectCommand.self, CalibrateCommand.self])
}
