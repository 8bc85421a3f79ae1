import ArgumentParser

@main
struct SparseRanks: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparse-ranks", abstract: "Sequence parallelism on several ranks.",
        subcommands: [CheckCommand.self, FaultCommand.self, MeasureCommand.self, SimulateCommand.self])
}
