import ArgumentParser

@main
struct SparseLMCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparse-lm",
        abstract:
            "Runs language models with dense and sparse attention, 16-bit and 4-bit weights, and caches of several formats, and trains "
            + "adapters of them.",
        version: "0.1.0",
        subcommands: [
            GenerateCommand.self, PerplexityCommand.self, NeedleCommand.self, TableCommand.self, BenchCommand.self,
            CalibrateCommand.self, ThresholdsCommand.self, HeadsCommand.self, BranchCommand.self, DiffuseCommand.self,
            FinetuneCommand.self,
        ])
}
