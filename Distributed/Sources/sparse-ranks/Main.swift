import ArgumentParser

@main
struct SparseRanks: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparse-ranks", abstract: "Sequence parallelism on several ranks.",
        subcommands: [MeasureCommand.self, SimulateCommand.self])
}
