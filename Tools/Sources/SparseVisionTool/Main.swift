import ArgumentParser

@main
struct SparseVisionCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparse-vision",
        abstract: "Selects the patches of large pictures that a vision transformer looks at, and shows them.",
        version: "0.1.0",
        subcommands: [DrawCommand.self, SelectCommand.self, EncodeCommand.self])
}
