import ArgumentParser

@main
struct SparseVideoCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparse-video",
        abstract: "Makes short videos with a small diffusion transformer, by dense and by sparse attention.",
        version: "0.1.0",
        subcommands: [GenerateCommand.self, TableCommand.self, CalibrateCommand.self])
}
