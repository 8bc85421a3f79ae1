import ArgumentParser

@main
struct SparseKernelsBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparsekernels-bench",
        abstract: "Measures the kernels of SparseKernels, verifying each result before it is timed.",
        version: "0.1.0",
        subcommands: [
            RunCommand.self, VerifyCommand.self, AttendCommand.self, VideoCommand.self, ShowCommand.self, TablesCommand.self,
            RecordCommand.self,
            LayerCommand.self, CoreCommand.self,
        ],
        defaultSubcommand: RunCommand.self)
}
