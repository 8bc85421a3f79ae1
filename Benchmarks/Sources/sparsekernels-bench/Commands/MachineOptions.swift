import ArgumentParser
import Foundation
import SparseKernels

/// The instruction set and the number of threads: the same flags on every subcommand.
struct MachineOptions: ParsableArguments {
    @Option(
        help:
            "Instruction sets: portable, avx2, avx512, a comma-separated list, or all. Default: the best, or SPARSEKERNELS_ISA."
    )
    var isa: String?

    @Option(help: "Thread counts, comma-separated. Default: 1 and as many as the process may use.")
    var threads: String?

    func instructionSets() throws -> [InstructionSet] {
        guard let isa else { return [try InstructionSet.selected()] }
        if isa == "all" { return InstructionSet.available }
        return try isa.split(separator: ",").map { try InstructionSet.named(String($0), argument: "--isa") }
    }

    func pools() throws -> [WorkerPool] {
        let all = ProcessInfo.processInfo.activeProcessorCount
        guard let threads else { return Set([1, all]).sorted().map { WorkerPool(threads: $0) } }
        return try threads.split(separator: ",").map { text in
            guard let count = Int(text), count >= 1 else {
                throw ValidationError("--threads takes counts of 1 or more, got \"\(text)\"")
            }
            return WorkerPool(threads: count)
        }
    }
}
