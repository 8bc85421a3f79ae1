import ArgumentParser
import ModelQuantization
import SparseKernels
import Terminal

struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Lists the tensors of safetensors files: names, types, shapes, bytes; SVDQuant layers with format and rank.")

    @Argument(help: "The files.")
    var files: [String]

    @Flag(help: "Also the metadata of the file.")
    var metadata = false

    @Flag(help: "Names of any length as they are, and not without their middle.")
    var fullNames = false

    func run() throws {
        for path in files {
            try ModelListing(SafetensorsFile(path: path), showsMetadata: metadata, showsFullNames: fullNames).lines.forEach {
                printNow($0)
            }
        }
    }
}
