import ArgumentParser
import Foundation
import GoldenReplay
import SequenceParallelReplay
import SparseKernels

struct VerifyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Replays recorded calls of released implementations, one PASS or FAIL line each.",
        discussion: "Operations known so far: \((GoldenReplay.operations + overRanks).joined(separator: ", ")).")

    /// Operations that are replayed on several ranks, which are threads of their own.
    private static let overRanks = SequenceParallelReplay.operations

    @OptionGroup var machine: MachineOptions

    @Argument(help: "Golden cases (.safetensors), or folders of them.")
    var paths: [String]

    func run() throws {
        let sets = try machine.instructionSets()
        let pool = try machine.pools().last!
        let files = try GoldenReplay.files(in: paths)
        if files.isEmpty { throw ValidationError("no .safetensors file in \(paths.joined(separator: ", "))") }
        var failures = 0
        for set in sets {
            for file in files {
                do {
                    let isOverRanks = Self.overRanks.contains(try GoldenCase(path: file).operation)
                    let result =
                        isOverRanks
                        ? try SequenceParallelReplay.run(path: file, instructionSet: set)
                        : try GoldenReplay.run(path: file, instructionSet: set, on: pool)
                    print(sets.count > 1 ? "\(result.line)  \(set)" : result.line)
                    if !result.passed { failures += 1 }
                } catch {
                    print("FAIL  \(file)  \(error)")
                    failures += 1
                }
            }
        }
        print("\(files.count * sets.count - failures) passed, \(failures) failed")
        if failures > 0 { throw ExitCode.failure }
    }
}
